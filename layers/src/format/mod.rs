//! Archive formats: bytes to entries. Hostile input is refused here.
