//! Measures the cost of a request that reads, one that writes, and one that fails, in nanoseconds.
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
        // One of the measurements is of a request that fails.
        let _ = black_box(user.run(|request| {
            work(request);
            Ok::<_, vmsrs::Error>(())
        }));
    }
    let each = start.elapsed() / ROUNDS;
    println!("{what:20} {:>8} ns", each.as_nanos());
}

fn main() -> Result<(), vmsrs::Error> {
    // SAFETY: no request in this program lends its locals to other threads.
    let app = unsafe { App::open("cost") }?;
    let user = app.domain("user")?;
    measure("first write", user, |request| {
        if request.root::<u64>().is_none() {
            let value = request.alloc(0u64).map(NonNull::from).ok();
            let _ = request.set_root(value);
        }
    });
    measure("reads", user, |request| {
        // SAFETY: the root was set above and is only read.
        black_box(
            request
                .root::<u64>()
                .map(|value| unsafe { *value.as_ref() }),
        );
    });
    measure("writes", user, |request| {
        if let Some(value) = request.root::<u64>() {
            // SAFETY: the root was set above, and the request holds the domain.
            unsafe { *value.as_ptr() += 1 };
        }
    });
    measure("fails", user, |_| {
        // SAFETY: none: the write is meant to fault.
        unsafe { black_box(std::ptr::without_provenance_mut::<u32>(16)).write_volatile(1) }
    });
    Ok(())
}
