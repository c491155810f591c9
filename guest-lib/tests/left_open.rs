//! What failed requests leave open is counted. One test, since the counts are those of the process.

mod common;

use common::{domain, failure, null_write, success};
use std::hint::black_box;
use vmsrs::health;

const BYTES: usize = 64 << 20;

fn open_files(count: usize) -> Vec<i32> {
    // SAFETY: makes descriptors.
    let files = (0..count).map(|_| unsafe { libc::dup(libc::STDERR_FILENO) });
    files.collect()
}

#[test]
fn descriptors_and_memory_that_failed_requests_leave_are_counted() {
    let domain = domain();
    let left = || {
        let health = health();
        (health.left_descriptors, health.left_bytes)
    };
    success(domain, |_| ());
    failure(domain, |_| null_write());
    let (descriptors, bytes) = left();
    assert_eq!(descriptors, 0);
    assert!(bytes < BYTES as u64 / 4, "{bytes}");
    for failures in 1..=3 {
        failure(domain, |_| {
            open_files(3);
            // SAFETY: a block that nobody frees.
            black_box(unsafe { libc::malloc(BYTES) });
            null_write();
        });
        let now = left();
        assert_eq!(now.0, 3 * failures);
        let more = now.1 - bytes;
        let expected = failures * BYTES as u64;
        assert!(
            (expected - expected / 8..expected + expected / 8).contains(&more),
            "{more} of {expected}"
        );
    }
    let before = left();
    // What the request owns is closed, and is not counted; neither is it missed by the next count.
    failure(domain, |request| {
        for file in open_files(5) {
            request.own_fd(file).unwrap();
        }
        null_write();
    });
    failure(domain, |_| {
        open_files(1);
        null_write();
    });
    assert_eq!(left().0, before.0 + 1);
}
