//! Named points at which a test ends the process, beside those of the cache: see [`cache::points`].

cache::points! {
    /// A moment at which a build writes what lasts, beside what the cache itself does.
    pub enum Kept {
        /// Bytes of a download arrived, and more are to come.
        Chunk = "download-chunk",
        /// What is remembered of the cache's size is written over.
        Usage = "usage-written",
        /// A stage is written as a folder for commands, and has no name yet.
        RootWritten = "root-written",
        /// It has its name.
        RootKept = "root-kept",
        /// A command's log is new.
        Log = "log-created",
        /// A blob of a layout is written, and has no name yet.
        LayoutBlobWritten = "layout-blob-written",
        /// It has its name.
        LayoutBlobSettled = "layout-blob-settled",
        /// A document of a layout, or whatever is copied into one, is written, and has no name yet.
        LayoutDocumentWritten = "layout-document-written",
        /// It has its name; the last is the index, which makes all visible.
        LayoutDocumentSettled = "layout-document-settled",
        /// A blob that nothing names is gone from a layout.
        LayoutSwept = "layout-swept",
        /// What is remembered of a layout's blobs is written, and has no name yet.
        LayoutSeenWritten = "layout-seen-written",
        /// A file of a cache in another folder is written, and has no name yet.
        ElsewhereWritten = "elsewhere-written",
        /// It has its name; the last is the document, which makes all visible.
        ElsewhereSettled = "elsewhere-settled",
        /// An archive is written, and has no name yet.
        ArchiveWritten = "archive-written",
        /// It has its name.
        ArchiveSettled = "archive-settled",
    }
}

cache::points! {
    /// A moment of a push.
    pub enum Push {
        /// A blob is about to be asked for from a sister repository.
        Mount = "push-mount",
        /// The registry mounted a blob.
        Mounted = "push-mounted",
        /// A blob's upload is about to begin.
        Upload = "push-upload",
        /// A chunk of a blob arrived, and more are to come.
        Chunk = "push-chunk",
        /// A blob arrived.
        Uploaded = "push-uploaded",
        /// All blobs of an image arrived.
        Blobs = "push-blobs",
        /// One of an image's manifests arrived.
        Manifest = "push-manifest",
        /// All manifests of an image's platforms arrived.
        Manifests = "push-manifests",
        /// An image is whole, and no tag names it yet.
        Index = "push-index",
        /// One tag was written.
        Tag = "push-tag",
        /// All tags of an image were written.
        Tags = "push-tags",
    }
}
