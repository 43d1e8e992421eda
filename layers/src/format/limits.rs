//! How much an archive may ask for.

/// How much one archive may ask for. The defaults hold every Debian package, wheel and base layer that was ever met, and
/// stop a decompression bomb within seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that one compressed stream may become, and the largest file; 16 GiB.
    pub max_output: u64,
    /// Bytes of output for one byte of input, counted once the output is over [`free_output`](Self::free_output); 200.
    pub max_ratio: u64,
    /// Output in bytes that no ratio is asked of; 1 GiB.
    pub free_output: u64,
    /// Headers of an archive, those of extensions included; 1,000,000.
    pub max_entries: u64,
    /// Bytes of one path; 4095, as Linux's PATH_MAX.
    pub max_path: usize,
    /// Bytes of one PAX header, which is held in memory; 1 MiB.
    pub max_extended_header: u64,
    /// Bytes of the files that are held in memory: control.tar of a package, METADATA and RECORD of a wheel, and of the extended
    /// attributes of a tar archive; 64 MiB.
    pub max_metadata: u64,
    /// Memory in bytes that the xz decoder may take; 256 MiB.
    pub max_xz_memory: u64,
    /// Binary logarithm of the largest zstd window; 27, which is 128 MiB.
    pub max_zstd_window_log: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_output: 16 << 30,
            max_ratio: 200,
            free_output: 1 << 30,
            max_entries: 1_000_000,
            max_path: 4095,
            max_extended_header: 1 << 20,
            max_metadata: 64 << 20,
            max_xz_memory: 256 << 20,
            max_zstd_window_log: 27,
        }
    }
}
