//! The driver's concurrent parts, line by line: `lock.rs` is `guest-kmod/lock.c`, and so on.
//!
//! What loom has no counterpart for is modelled by what it guarantees: a spinlock or a mutex by a
//! mutex, a full barrier by sequentially consistent accesses, a grace period by a lock that readers
//! share.

mod deadlock;
mod lock;
mod page;
mod table;
mod thread;
mod watch;

pub use lock::{Driver, Errno};
pub use page::{Pages, Refused, Stale};
pub use table::{LockPage, Registration};
pub use thread::Thread;
pub use watch::Watch;
