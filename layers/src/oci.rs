//! OCI documents as canonical JSON.
