//! What the library shares with the driver: control block, list of written pages, lock words, protection keys, system calls.

pub(crate) mod backend;
pub(crate) mod control;
pub(crate) mod descriptor;
pub(crate) mod device;
pub(crate) mod held;
pub(crate) mod hot;
pub(crate) mod keys;
pub(crate) mod pkru;
pub(crate) mod unprotected;
pub(crate) mod waits;
pub(crate) mod word;
pub(crate) mod written;
