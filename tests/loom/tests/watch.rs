//! The watch of deadlines: `guest-kmod/watch.c` and `suspend.c`.

use loom::thread;
use std::sync::Arc;
use vmsrs_loom::check;
use vmsrs_loom::driver::Watch;

#[test]
fn an_overdue_request_that_is_suspended_is_discarded() {
    check(3, || {
        let world = Arc::<Watch>::default();
        let watch = {
            let world = world.clone();
            thread::spawn(move || world.run())
        };
        world.begin(1, true);
        let suspended = world.suspend(1);
        world.detach();
        watch.join().unwrap();
        world.run();
        if suspended {
            assert!(
                world.is_discarded(1),
                "no thread is left to release its locks"
            );
        } else {
            assert!(world.has_failed(1));
        }
    });
}

#[test]
fn a_deadline_is_never_taken_for_that_of_the_next_request() {
    check(3, || {
        let world = Arc::<Watch>::default();
        let watch = {
            let world = world.clone();
            thread::spawn(move || world.run())
        };
        world.begin(1, true);
        world.detach();
        world.begin(2, false);
        watch.join().unwrap();
        assert!(!world.has_failed(2), "it has no deadline");
    });
}
