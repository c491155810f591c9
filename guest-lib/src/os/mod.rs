//! What the library needs of the kernel and the C library. Knows nothing of requests.

pub(crate) mod alarm;
pub(crate) mod cancellation;
pub(crate) mod clib;
pub(crate) mod clock;
pub(crate) mod errno;
pub(crate) mod exceptions;
pub(crate) mod file;
pub(crate) mod frames;
pub(crate) mod futex;
pub(crate) mod identity;
pub(crate) mod latch;
pub(crate) mod local;
pub(crate) mod lock;
pub(crate) mod modules;
pub(crate) mod mutex;
pub(crate) mod own_stack;
pub(crate) mod region;
pub(crate) mod robust;
pub(crate) mod rseq;
pub(crate) mod sanitizer;
pub(crate) mod signals;
pub(crate) mod start;
pub(crate) mod streams;
pub(crate) mod switch;
pub(crate) mod thread_end;
pub(crate) mod usage;
