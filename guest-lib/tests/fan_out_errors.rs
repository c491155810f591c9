//! Errors while a request starts threads for its pieces of work.
//!
//! Starting a thread allocates, and the allocator of this program faults at one of these allocations.

mod common;

use common::{NULL_WRITE_ADDRESS, domain, null_write, success};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use vmsrs::{Domain, Kind, Request, RunError};

thread_local! {
    /// The allocation of this thread that faults, counted from 1; 0 for none.
    static LEFT: Cell<u32> = const { Cell::new(0) };
}

struct Faulty;

// SAFETY: the system's allocator, except for a fault that ends the caller's request.
unsafe impl GlobalAlloc for Faulty {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let left = LEFT.get();
        if left > 0 {
            LEFT.set(left - 1);
        }
        if left == 1 {
            null_write();
        }
        // SAFETY: passed on to the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static FAULTY: Faulty = Faulty;

/// Runs a request with three pieces of work, in which this allocation faults. Returns false if the request makes fewer
/// allocations.
fn fails(domain: &'static Domain, allocation: u32, done: &Arc<AtomicU32>) -> bool {
    let outcome = domain.run(|request| {
        let pieces: Vec<_> = (0..3)
            .map(|_| {
                let done = Arc::clone(done);
                move |_: &Request| {
                    done.fetch_add(1, Ordering::SeqCst);
                }
            })
            .collect();
        LEFT.set(allocation);
        let outcome = request.fan_out(pieces);
        LEFT.set(0);
        outcome.map(drop)
    });
    match outcome {
        Ok(()) => false,
        Err(RunError::Failed(failure)) => {
            assert_eq!(
                (failure.kind, failure.address),
                (Kind::Memory, NULL_WRITE_ADDRESS)
            );
            true
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn error_while_starting_threads_fails_request() {
    let (send, receive) = mpsc::channel();
    let done = Arc::new(AtomicU32::new(0));
    let theirs = Arc::clone(&done);
    std::thread::spawn(move || {
        let domain = domain();
        let mut allocation = 1;
        while fails(domain, allocation, &theirs) {
            // The thread's next request can start threads.
            success(domain, |request| {
                let pieces = vec![|request: &Request| *request.alloc(2u32).unwrap()];
                assert_eq!(request.fan_out(pieces).unwrap(), [2]);
            });
            allocation += 1;
        }
        send.send(allocation).unwrap();
    });
    // A request that waits for a thread that was never started would hang.
    let allocations = receive.recv_timeout(Duration::from_secs(600)).unwrap();
    assert!(allocations > 4, "only {allocations} allocations");
    assert!(done.load(Ordering::SeqCst) >= 3);
}
