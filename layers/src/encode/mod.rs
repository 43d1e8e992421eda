//! Entries to bytes: the canonical tar, fragments and layers.
