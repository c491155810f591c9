//! Threads for pieces of a request's work: `guest-lib/src/state/slots.rs` and `fan_out.rs`.

use loom::thread;
use std::sync::Arc;
use vmsrs_loom::check;
use vmsrs_loom::fan_out::{FanOut, Start};

fn spawn(world: &Arc<FanOut>, start: Start, number: u32) -> thread::JoinHandle<bool> {
    let world = world.clone();
    thread::spawn(move || world.run(start, number))
}

#[test]
fn a_piece_runs_before_its_starter_has_landed_or_not_at_all() {
    check(3, || {
        let world = Arc::<FanOut>::default();
        let piece = spawn(&world, world.reserve(), 2);
        // An error of the starter, anywhere after its start.
        let taken_back = world.land();
        let ran = piece.join().unwrap();
        assert!(ran != taken_back, "run {ran}, taken back {taken_back}");
        assert_eq!(world.count(), 1 + u64::from(ran));
    });
}

#[test]
fn a_slot_without_its_thread_is_free_after_the_landing() {
    check(3, || {
        let world = Arc::<FanOut>::default();
        let other = {
            let world = world.clone();
            thread::spawn(move || world.join(2))
        };
        world.reserve();
        assert!(world.land());
        other.join().unwrap();
        assert_eq!(world.count(), 1);
    });
}

#[test]
fn a_late_thread_has_no_part_in_the_next_request() {
    check(3, || {
        let world = Arc::<FanOut>::default();
        let late = spawn(&world, world.reserve(), 2);
        let taken_back = world.land();
        // The same slots again. The thread of this piece arrives in time.
        let next = world.reserve();
        let in_time = {
            let world = world.clone();
            thread::spawn(move || world.run(next, 3))
        };
        assert!(in_time.join().unwrap());
        assert!(late.join().unwrap() != taken_back);
        assert_eq!(world.count(), 3 - u64::from(taken_back));
    });
}

#[test]
fn a_start_that_is_refused_leaves_nothing_behind() {
    check(3, || {
        let world = Arc::<FanOut>::default();
        let first = spawn(&world, world.reserve(), 2);
        let second = world.reserve();
        world.cancel(second);
        assert!(!world.run(second, 3));
        let taken_back = world.land();
        assert!(first.join().unwrap() != taken_back);
        assert_eq!(world.count(), 2 - u64::from(taken_back));
    });
}

#[test]
fn what_a_starter_that_ended_has_reserved_is_swept_or_adopted() {
    check(3, || {
        let world = Arc::<FanOut>::default();
        let piece = spawn(&world, world.reserve(), 2);
        let swept = world.sweep();
        let ran = piece.join().unwrap();
        assert!(ran != swept, "run {ran}, swept {swept}");
        assert_eq!(world.count(), 1 + u64::from(ran));
    });
}
