//! loom's atomics, for the library's modules.

pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
