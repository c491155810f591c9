//! loom's atomics, for the library's modules.

pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
