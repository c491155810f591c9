//! Errors while a request starts threads for its pieces of work.
//!
//! This program's allocator makes them: starting a thread allocates, and an error at each of these
//! places cuts the request short there.

mod common;

use common::{domain, success};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use vmsrs::{Domain, Kind, Request, RunError};

thread_local! {
    /// Allocations of this thread until the one that writes through a null pointer; 0 for none.
    static LEFT: Cell<u32> = const { Cell::new(0) };
}

struct Faulty;

// SAFETY: the system's allocator, but for an error that ends its caller's request.
unsafe impl GlobalAlloc for Faulty {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let left = LEFT.get();
        if left > 0 {
            LEFT.set(left - 1);
        }
        if left == 1 {
            // SAFETY: it is not; that is the test.
            unsafe { black_box(std::ptr::without_provenance_mut::<u32>(16)).write_volatile(1) };
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

/// Runs a request that does three pieces of work in parallel, with an error at that allocation. False if
/// the request has ended before.
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
            assert_eq!((failure.kind, failure.address), (Kind::Memory, 16));
            true
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn error_while_starting_threads_never_hangs() {
    let (send, receive) = mpsc::channel();
    let done = Arc::new(AtomicU32::new(0));
    let theirs = Arc::clone(&done);
    std::thread::spawn(move || {
        let domain = domain();
        let mut allocation = 1;
        while fails(domain, allocation, &theirs) {
            // The same thread's next request has threads, too.
            success(domain, |request| {
                let pieces = vec![|request: &Request| *request.alloc(2u32).unwrap()];
                assert_eq!(request.fan_out(pieces).unwrap(), [2]);
            });
            allocation += 1;
        }
        send.send(allocation).unwrap();
    });
    // Long enough for any machine; a request that waits for a thread that never comes does so forever.
    let allocations = receive.recv_timeout(Duration::from_secs(120)).unwrap();
    assert!(allocations > 10, "{allocations} places are too few");
    assert!(done.load(Ordering::SeqCst) >= 3);
}
