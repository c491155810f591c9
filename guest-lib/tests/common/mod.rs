//! An app without a device, for tests on any machine.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test program has its own copy and uses a part of it"
)]

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use vmsrs::{App, Domain, Failure, Request, RunError};

/// The app of this test program.
pub fn app() -> &'static App {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: before any other thread of the test reads the environment through this library.
        unsafe { std::env::set_var("VMSRS_DEVICE", "none") };
    });
    // SAFETY: the requests of these tests lend nothing to other threads.
    unsafe { App::open("test") }.unwrap()
}

/// A domain that no other test has.
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
        other => panic!("the request should have failed, but {other:?}"),
    }
}

/// Runs a request that must succeed.
pub fn success<T: std::fmt::Debug>(domain: &'static Domain, f: impl FnOnce(&Request) -> T) -> T {
    domain
        .run(|request| Ok::<_, ()>(f(request)))
        .expect("the request should have succeeded")
}
