//! The locks of domains: `guest-lib/src/shared/word.rs` and `held.rs` against `guest-kmod/lock.c` and
//! `lock_wait.c`.

use loom::sync::atomic::{AtomicU32, Ordering::Relaxed};
use loom::thread::{self, JoinHandle};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vmsrs_loom::driver::{Driver, Errno, Thread};
use vmsrs_loom::{Library, Life, Protected, check};
use vmsrs_protocol::shared::{LOCK_DELETED, LOCK_TAG};

/// A device with its threads, and what the lock of domain 0 protects.
#[derive(Clone)]
struct World {
    driver: Arc<Driver>,
    threads: Vec<Arc<Thread>>,
    data: Arc<Protected>,
}

/// Wake-ups of a sleeper before it is handed the lock: at once, and as in the product.
const HANDOVERS: [u32; 2] = [0, 2];

impl World {
    fn new(threads: usize) -> Self {
        Self::with_handover(threads, HANDOVERS[1])
    }

    fn with_handover(threads: usize, after: u32) -> Self {
        let threads: Vec<_> = (0..threads).map(Thread::register).collect();
        Self {
            driver: Driver::new(&threads, after),
            threads,
            data: Arc::default(),
        }
    }

    /// Begins request `number + 1` in thread `number`.
    fn library(&self, number: usize, life: Life) -> Library {
        let tag = number as u64 + 1;
        Library::begin(&self.driver, &self.threads[number], tag, life)
    }

    /// A thread that runs one request on domain 0.
    fn spawn(&self, number: usize, life: Life) -> JoinHandle<()> {
        let world = self.clone();
        let library = self.library(number, life);
        thread::spawn(move || library.run(|library| world.request(library)))
    }

    fn request(&self, library: &Library) {
        if library.lock(0).is_ok() {
            self.data.touch();
            library.unlock(0);
        }
        library.end();
    }

    /// What must hold when all threads are done.
    fn check(&self) {
        assert!(self.driver.is_free(0), "a lock is left behind");
    }
}

#[test]
fn one_holder_at_a_time_and_no_wake_up_is_lost() {
    for after in HANDOVERS {
        check(3, move || {
            let world = World::with_handover(3, after);
            let others = [world.spawn(1, Life::long()), world.spawn(2, Life::long())];
            world.request(&world.library(0, Life::long()));
            for other in others {
                other.join().unwrap();
            }
            world.check();
            assert_eq!(world.data.count(), 3);
        });
    }
}

#[test]
fn a_sleeper_that_is_overtaken_has_the_lock_handed_over() {
    for after in HANDOVERS {
        check(2, move || {
            let world = World::with_handover(2, after);
            let served = Arc::<AtomicU32>::default();
            let sleeper = {
                let (world, served) = (world.clone(), served.clone());
                thread::spawn(move || {
                    let library = world.library(1, Life::long());
                    library.lock(0).unwrap();
                    served.store(1, Relaxed);
                    library.unlock(0);
                    library.end();
                })
            };
            // Takes the lock again and again while the other one waits for it.
            let library = world.library(0, Life::long());
            for _ in 0..=after {
                library.lock(0).unwrap();
                while served.load(Relaxed) == 0 && !world.driver.is_waited_for(0) {
                    thread::yield_now();
                }
                library.unlock(0);
            }
            library.lock(0).unwrap();
            assert_eq!(served.load(Relaxed), 1, "overtaken once more");
            library.unlock(0);
            library.end();
            sleeper.join().unwrap();
            world.check();
        });
    }
}

/// A thread waits and something ends its wait at any time; the next waiter gets the lock all the same.
fn a_wait_that_ends_early(after: u32, end: fn(&Driver, &Thread), errnos: &'static [Errno]) {
    check(2, move || {
        let world = World::with_handover(3, after);
        let patient = world.spawn(2, Life::long());
        let impatient = {
            let world = world.clone();
            let library = world.library(1, Life::long());
            thread::spawn(move || {
                library.run(|library| match library.lock(0) {
                    Ok(()) => library.unlock(0),
                    Err(error) => assert!(errnos.contains(&error), "{error:?}"),
                });
            })
        };
        let holder = world.library(0, Life::long());
        let held = holder.lock(0);
        end(&world.driver, &world.threads[1]);
        if held.is_ok() {
            world.data.touch();
            holder.unlock(0);
        }
        impatient.join().unwrap();
        patient.join().unwrap();
        world.check();
        assert_eq!(world.data.count(), 2);
    });
}

#[test]
fn a_wake_up_of_a_timed_out_waiter_goes_to_the_next() {
    for after in HANDOVERS {
        a_wait_that_ends_early(after, Driver::expire, &[Errno::TimedOut]);
    }
}

#[test]
fn a_wake_up_of_an_interrupted_waiter_goes_to_the_next() {
    for after in HANDOVERS {
        a_wait_that_ends_early(after, Driver::signal, &[Errno::Interrupted]);
    }
}

#[test]
fn a_lock_handed_to_a_failed_request_goes_to_the_next() {
    let fail = |driver: &Driver, thread: &Thread| driver.fail(thread, 2);
    for after in HANDOVERS {
        // What it sees first.
        a_wait_that_ends_early(after, fail, &[Errno::Stale, Errno::Interrupted]);
    }
}

/// More accesses than a thread that locks, unlocks and ends makes in any order of events.
const STEPS: u32 = 12;

#[test]
fn all_who_wait_for_a_domain_learn_that_it_is_deleted() {
    check(3, || {
        let world = World::new(3);
        let waiters = [1, 2].map(|number| {
            let library = world.library(number, Life::long());
            thread::spawn(move || {
                library.run(|library| {
                    let locked = library.lock(0);
                    // Nobody gives up before, so that nobody sleeps on.
                    assert!(matches!(locked, Ok(()) | Err(Errno::Removed)));
                    if locked.is_ok() {
                        library.unlock(0);
                    }
                    library.end();
                });
            })
        });
        let library = world.library(0, Life::long());
        library.lock(0).unwrap();
        world.driver.lock_delete(0, 1);
        // The library's own release finds that it has the lock no more.
        library.unlock(0);
        library.end();
        for waiter in waiters {
            waiter.join().unwrap();
        }
    });
}

#[test]
fn a_deletion_is_told_from_a_forged_one_at_any_time() {
    check(3, || {
        let world = World::new(2);
        let waiter = {
            let library = world.library(1, Life::long());
            thread::spawn(move || {
                library.run(|library| {
                    let locked = library.lock(0);
                    if locked.is_ok() {
                        library.unlock(0);
                    }
                    library.end();
                });
            })
        };
        let looker = {
            let driver = Arc::clone(&world.driver);
            thread::spawn(move || driver.release_forged(0))
        };
        let library = world.library(0, Life::long());
        library.lock(0).unwrap();
        world.driver.lock_delete(0, 1);
        library.unlock(0);
        library.end();
        waiter.join().unwrap();
        looker.join().unwrap();
        // Nobody gets the lock from here on.
        let word = world.driver.word(0).load(Ordering::Relaxed);
        assert_eq!(word & LOCK_TAG, LOCK_DELETED);
    });
    check(2, || {
        let world = World::new(1);
        world.driver.word(0).store(LOCK_DELETED, Ordering::Relaxed);
        world.driver.release_forged(0);
        assert!(world.driver.is_free(0));
    });
}

#[test]
fn a_thread_that_dies_anywhere_leaves_no_lock_behind() {
    for (steps, after) in (0..STEPS).flat_map(|steps| HANDOVERS.map(|after| (steps, after))) {
        check(2, move || {
            let world = World::with_handover(3, after);
            let mortal = world.spawn(1, Life::short(steps));
            let other = world.spawn(2, Life::long());
            mortal.join().unwrap();
            other.join().unwrap();
            // The lock can be had.
            world.request(&world.library(0, Life::long()));
            world.check();
        });
    }
}

#[test]
fn a_domain_whose_word_has_the_tag_is_always_on_the_list() {
    for steps in 0.. {
        let through = Arc::new(AtomicBool::new(false));
        let ended = through.clone();
        check(0, move || {
            let world = World::new(1);
            let library = world.library(0, Life::short(steps));
            library.run_watched(|library| {
                library.lock(0).unwrap();
                library.lock(1).unwrap();
                // Out of the middle.
                library.unlock(0);
                library.lock(0).unwrap();
                library.unlock(0);
                library.unlock(1);
                ended.store(true, Ordering::Relaxed);
            });
            for domain in 0..2 {
                let held = library.held().contains(&domain);
                assert!(held || world.driver.is_free(domain), "after {steps} steps");
            }
        });
        if through.load(Ordering::Relaxed) {
            assert!(steps > 12, "only {steps} steps");
            return;
        }
    }
}

#[test]
fn a_failed_request_does_not_release_anothers_lock() {
    check(2, || {
        let world = World::new(3);
        let others = [world.spawn(1, Life::long()), world.spawn(2, Life::long())];
        // Overdue: the watch releases its locks while it runs on. Its writes would be refused.
        let overdue = world.library(0, Life::long());
        let watch = {
            let world = world.clone();
            thread::spawn(move || world.driver.fail(&world.threads[0], 1))
        };
        if overdue.lock(0).is_ok() {
            overdue.unlock(0);
        }
        watch.join().unwrap();
        for other in others {
            other.join().unwrap();
        }
        world.check();
        assert_eq!(world.data.count(), 2);
    });
}

#[test]
fn a_wake_up_is_not_lost_to_a_sleeper_of_another_domain() {
    check(2, || {
        let world = World::new(3);
        let data = Arc::<Protected>::default();
        let request = |number: usize, domain: u32| {
            let library = world.library(number, Life::long());
            let data = data.clone();
            thread::spawn(move || {
                library.run(|library| {
                    library.lock(domain).unwrap();
                    if domain == 1 {
                        data.touch();
                    }
                    library.unlock(domain);
                });
            })
        };
        let holder = world.library(0, Life::long());
        holder.lock(0).unwrap();
        holder.lock(1).unwrap();
        let others = [request(1, 0), request(2, 1)];
        holder.unlock(1);
        holder.unlock(0);
        for other in others {
            other.join().unwrap();
        }
        assert!(world.driver.is_free(0) && world.driver.is_free(1));
        assert_eq!(data.count(), 1);
    });
}

#[test]
fn one_request_of_a_cycle_gets_an_error_and_the_others_go_on() {
    check(2, || {
        let world = World::new(2);
        // Takes one domain, then the other; releases what it has when the other lock would close a cycle.
        let both = |world: &World, number: usize, domains: [u32; 2]| {
            let library = world.library(number, Life::long());
            library.lock(domains[0]).unwrap();
            let outcome = library.lock(domains[1]);
            if outcome.is_ok() {
                library.unlock(domains[1]);
            }
            library.unlock(domains[0]);
            library.end();
            outcome
        };
        let other = {
            let world = world.clone();
            thread::spawn(move || both(&world, 1, [1, 0]))
        };
        let outcomes = [both(&world, 0, [0, 1]), other.join().unwrap()];
        let told = |outcome: &&Result<(), Errno>| **outcome == Err(Errno::Deadlock);
        assert!(outcomes.iter().filter(told).count() <= 1, "{outcomes:?}");
        let good = |outcome: &&Result<(), Errno>| told(outcome) || outcome.is_ok();
        assert_eq!(outcomes.iter().filter(good).count(), 2, "{outcomes:?}");
        assert!(world.driver.is_free(0) && world.driver.is_free(1));
    });
}

#[test]
fn a_request_with_a_thread_is_never_taken_for_an_orphan() {
    check(3, || {
        let world = World::new(2);
        let workers = [0, 1].map(|number| {
            let world = world.clone();
            thread::spawn(move || world.request(&world.library(number, Life::long())))
        });
        // A sleeper looks after a slice of its sleep.
        for _ in 0..2 {
            assert!(!world.driver.holder_is_orphaned(0));
        }
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

#[test]
fn a_resumed_request_is_never_taken_for_an_orphan() {
    check(3, || {
        let world = World::new(2);
        let worker = {
            let world = world.clone();
            thread::spawn(move || {
                let first = world.library(0, Life::long());
                first.lock(0).unwrap();
                let tag = first.suspend();
                // Another thread of the server; it had no request.
                let second = world.library(1, Life::long());
                second.end();
                second.resume(tag, 0);
                second.unlock(0);
                second.end();
            })
        };
        for _ in 0..2 {
            assert!(!world.driver.holder_is_orphaned(0));
        }
        worker.join().unwrap();
        world.check();
    });
}

#[test]
fn an_abandoned_request_is_never_taken_for_an_orphan() {
    check(3, || {
        let world = World::new(1);
        let worker = {
            let world = world.clone();
            thread::spawn(move || {
                let library = world.library(0, Life::long());
                library.lock(0).unwrap();
                let tag = library.suspend();
                library.abandon(tag, 0);
            })
        };
        for _ in 0..2 {
            assert!(!world.driver.holder_is_orphaned(0));
        }
        worker.join().unwrap();
        world.check();
    });
}
