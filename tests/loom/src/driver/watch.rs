//! `guest-kmod/watch.c`, `fail.c` and `suspend.c`: the watch, which fails requests over their
//! deadline, against a thread that ends or suspends its request. A deadline has passed, or there is none.

use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::sync::{Mutex, MutexGuard};

/// `struct vmsrs_request`.
#[derive(Clone, Copy, Debug, Default)]
struct Request {
    tag: u64,
    failed: bool,
    suspended: bool,
    /// Whether its drafts are gone and its locks free.
    discarded: bool,
}

/// A device with one thread. The control block is written as the library writes it, in the order of x86, where a
/// store is a release.
#[derive(Default)]
pub struct Watch {
    /// `control->tag`.
    tag: AtomicU64,
    /// Whether `control->deadline_ns` has passed.
    over: AtomicBool,
    request_locks: [Mutex<()>; 2],
    /// Guarded by `requests_lock`. The deadline of a suspended request has passed.
    requests: Mutex<Vec<Request>>,
}

impl Watch {
    fn requests(&self) -> MutexGuard<'_, Vec<Request>> {
        self.requests
            .lock()
            .expect("no thread panics with the lock")
    }

    /// `vmsrs_request_lock`.
    fn request_lock(&self, tag: u64) -> MutexGuard<'_, ()> {
        self.request_locks[tag as usize % 2]
            .lock()
            .expect("no thread panics with the lock")
    }

    /// `Thread::carry` of the library: a request begins, over its deadline at once or without any.
    pub fn begin(&self, tag: u64, over: bool) {
        self.over.store(over, Ordering::Release);
        self.tag.store(tag, Ordering::Release);
    }

    /// `Thread::detach`.
    pub fn detach(&self) {
        self.tag.store(0, Ordering::Release);
        self.over.store(false, Ordering::Release);
    }

    /// `vmsrs_suspend`. False if the request has failed.
    pub fn suspend(&self, tag: u64) -> bool {
        let _lock = self.request_lock(tag);
        let mut requests = self.requests();
        let request = find(&mut requests, tag);
        request.suspended = !request.failed;
        request.suspended
    }

    /// `watch_thread`. The tag of a request that is overdue.
    fn look(&self) -> Option<u64> {
        let tag = self.tag.load(Ordering::Acquire);
        let over = self.over.load(Ordering::Acquire);
        let same = self.tag.load(Ordering::Acquire) == tag;
        (same && over && tag != 0).then_some(tag)
    }

    /// `vmsrs_fail_overdue`.
    fn overdue(&self, tag: u64) {
        let suspended = {
            let mut requests = self.requests();
            let request = find(&mut requests, tag);
            request.failed |= !request.suspended;
            request.suspended
        };
        if suspended {
            self.fail_suspended(tag);
        }
    }

    /// `vmsrs_fail_suspended`.
    fn fail_suspended(&self, tag: u64) {
        let _lock = self.request_lock(tag);
        let mut requests = self.requests();
        let request = find(&mut requests, tag);
        if request.suspended && !request.failed {
            request.failed = true;
            request.discarded = true;
        }
    }

    /// `watch_work`, with `watch_suspended`.
    pub fn run(&self) {
        if let Some(tag) = self.look() {
            self.overdue(tag);
        }
        let due = |request: &&Request| request.suspended && !request.failed;
        let first = self.requests().iter().find(due).map(|request| request.tag);
        if let Some(tag) = first {
            self.fail_suspended(tag);
        }
    }

    /// Whether the request has failed.
    pub fn has_failed(&self, tag: u64) -> bool {
        find(&mut self.requests(), tag).failed
    }

    /// Whether the request's drafts are gone and its locks free.
    pub fn is_discarded(&self, tag: u64) -> bool {
        find(&mut self.requests(), tag).discarded
    }
}

/// `vmsrs_request_find`, or a new one.
fn find(requests: &mut Vec<Request>, tag: u64) -> &mut Request {
    let place = requests.iter().position(|request| request.tag == tag);
    let place = place.unwrap_or_else(|| {
        requests.push(Request {
            tag,
            ..Request::default()
        });
        requests.len() - 1
    });
    &mut requests[place]
}
