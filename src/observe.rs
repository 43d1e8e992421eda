//! What the engine tells while it works. Terminals live in `report`, nowhere else.

use layers::Digest;

/// Something that happened. Names are short and safe to show; URLs carry no secrets.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A download begins; `size` in bytes where it is known.
    DownloadStarted {
        /// The file's name.
        name: &'a str,
        /// Bytes to come.
        size: Option<u64>,
    },
    /// More bytes of a download arrived.
    DownloadAdvanced {
        /// The file's name.
        name: &'a str,
        /// Bytes since the last event.
        bytes: u64,
    },
    /// A download is complete and verified.
    DownloadFinished {
        /// The file's name.
        name: &'a str,
    },
    /// An archive is being converted into a fragment.
    ConversionStarted {
        /// The archive's name.
        name: &'a str,
    },
    /// The modules of an archive have their byte-code.
    ByteCode {
        /// The archive's name.
        name: &'a str,
        /// How many were compiled.
        compiled: usize,
        /// How many had it from the last archive of the same package.
        taken: usize,
    },
    /// A fragment is in the cache.
    ConversionFinished {
        /// The archive's name.
        name: &'a str,
    },
    /// A layer is being written.
    LayerStarted {
        /// The layer's label.
        label: &'a str,
    },
    /// A layer is there.
    LayerFinished {
        /// The layer's label.
        label: &'a str,
        /// Its compressed digest.
        digest: Digest,
        /// Its compressed size in bytes.
        size: u64,
    },
    /// An image is there.
    ImageFinished {
        /// The image's name.
        name: &'a str,
        /// Digest of its manifest or index.
        digest: Digest,
        /// Whether nothing had to be done.
        cached: bool,
    },
    /// A command of a build step begins.
    StepStarted {
        /// The step's label.
        label: &'a str,
    },
    /// A command of a build step wrote a line.
    StepOutput {
        /// The step's label.
        label: &'a str,
        /// The line, without its end.
        line: &'a str,
    },
    /// A build step is done.
    StepFinished {
        /// The step's label.
        label: &'a str,
    },
    /// An upload begins.
    UploadStarted {
        /// What is sent, and where to.
        name: &'a str,
        /// Bytes to send.
        size: u64,
    },
    /// More bytes of an upload were sent.
    UploadAdvanced {
        /// What is sent.
        name: &'a str,
        /// Bytes since the last event.
        bytes: u64,
    },
    /// The other side has all of it.
    Uploaded {
        /// What was sent.
        name: &'a str,
    },
    /// The other side takes a blob from another of its repositories.
    Mounted {
        /// The blob.
        name: &'a str,
        /// The repository that had it.
        from: &'a str,
    },
    /// The other side has it already.
    Present {
        /// What need not be sent.
        name: &'a str,
    },
    /// A name points to an image now.
    Tagged {
        /// The reference.
        reference: &'a str,
        /// Digest of the manifest or index.
        digest: Digest,
    },
    /// Something the user should know, and that does not stop the work.
    Warning(&'a str),
    /// Something the user may like to know.
    Note(&'a str),
}

/// Hears events, from any thread.
pub trait Observer: Sync {
    /// Called once for each event.
    fn on(&self, event: Event<'_>);
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn on(&self, _: Event<'_>) {}
}
