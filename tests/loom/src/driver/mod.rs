//! The driver's concurrent parts, line by line: `lock.rs` is `guest-kmod/lock.c`, and so on. The test
//! `driver_sources` fails when a function that is modelled here changes in C.
//!
//! Where loom has no counterpart, the model has what is guaranteed: a spinlock or a mutex by a
//! mutex, a full barrier by sequentially consistent accesses, a grace period by a lock that readers
//! share.

mod batch;
mod deadlock;
mod lock;
mod page;
mod resident;
mod table;
mod thread;
mod watch;

pub use batch::Frames;
pub use lock::{Driver, Errno};
pub use page::{Pages, Refused, Stale};
pub use resident::{Failed, Hot, Member};
pub use table::{LockPage, Registration};
pub use thread::Thread;
pub use watch::Watch;
