//! The atomics of the modules that `tests/loom` builds too, where this module has loom's.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
