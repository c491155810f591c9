//! An app without a device, for tests on any machine.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test program has its own copy and uses part of it"
)]

use std::hint::black_box;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use vmsrs::{App, Domain, Failure, Request, RunError};

/// The app of this test program.
pub fn app() -> &'static App {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: no other thread of this test reads the environment before.
        unsafe { std::env::set_var("VMSRS_DEVICE", "none") };
    });
    // SAFETY: requests of these tests do not share their locals with other threads.
    unsafe { App::open("test") }.unwrap()
}

/// A domain that no other test uses.
pub fn domain() -> &'static Domain {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    app().domain(format!("domain {number}")).unwrap()
}

/// Runs a request that must fail.
pub fn failure(domain: &'static Domain, f: impl FnOnce(&Request)) -> Failure {
    let outcome = domain.run(|request| {
        f(request);
        Ok::<_, ()>(())
    });
    match outcome {
        Err(RunError::Failed(failure)) => *failure,
        other => panic!("the request did not fail: {other:?}"),
    }
}

/// Runs a request that must succeed.
pub fn success<T: std::fmt::Debug>(domain: &'static Domain, f: impl FnOnce(&Request) -> T) -> T {
    domain
        .run(|request| Ok::<_, ()>(f(request)))
        .expect("the request failed")
}

/// The address to which [`null_write`] writes.
pub const NULL_WRITE_ADDRESS: u64 = 16;

/// Writes to a field of a structure at the null pointer, which fails the request.
pub fn null_write() {
    let address = black_box(NULL_WRITE_ADDRESS as usize);
    // SAFETY: faults, which is the error under test.
    unsafe { std::ptr::without_provenance_mut::<u32>(address).write_volatile(1) };
}
