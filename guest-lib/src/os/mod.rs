//! What the library needs of the kernel and the C library. Knows nothing of requests.

pub(crate) mod alarm;
pub(crate) mod clib;
pub(crate) mod futex;
pub(crate) mod identity;
pub(crate) mod region;
pub(crate) mod switch;
