//! What a request costs: nanoseconds for one that reads, one that writes, and one that fails.
//!
//! `cargo run --release --example cost`

use std::hint::black_box;
use std::ptr::NonNull;
use std::time::Instant;
use vmsrs::{App, Domain, Request};

const ROUNDS: u32 = 10_000;

fn measure(what: &str, user: &'static Domain, work: impl Fn(&Request)) {
    let start = Instant::now();
    for _ in 0..ROUNDS {
        // A failure is what one of the measurements is about.
        let _ = black_box(user.run(|request| {
            work(request);
            Ok::<_, vmsrs::Error>(())
        }));
    }
    let each = start.elapsed() / ROUNDS;
    println!("{what:20} {:>8} ns", each.as_nanos());
}

fn main() -> Result<(), vmsrs::Error> {
    // SAFETY: no request here lends its locals to other threads.
    let app = unsafe { App::open("cost") }?;
    let user = app.domain("user")?;
    measure("first write", user, |request| {
        if request.root::<u64>().is_none() {
            let value = request.alloc(0u64).map(NonNull::from).ok();
            let _ = request.set_root(value);
        }
    });
    measure("reads", user, |request| {
        // SAFETY: set above; only read.
        black_box(
            request
                .root::<u64>()
                .map(|value| unsafe { *value.as_ref() }),
        );
    });
    measure("writes", user, |request| {
        if let Some(value) = request.root::<u64>() {
            // SAFETY: set above; the request holds the domain.
            unsafe { *value.as_ptr() += 1 };
        }
    });
    measure("fails", user, |_| {
        // SAFETY: it is not; the failure is measured.
        unsafe { black_box(std::ptr::without_provenance_mut::<u32>(16)).write_volatile(1) }
    });
    Ok(())
}
