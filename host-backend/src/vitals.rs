//! Whether the threads of the machine are alive: each of them is asked from time to time, and has to answer.
//!
//! A thread that works registers a [`Pulse`], with a way to wake it, and [beats](Pulse::beat) whenever it is
//! about to wait. One that hangs, or has panicked, does not answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

/// The threads of this process that have a pulse.
static THREADS: Threads = Threads::new();

/// Threads that are asked together.
struct Threads {
    all: Mutex<Vec<Thread>>,
}

struct Thread {
    vital: Arc<Vital>,
    /// Makes the thread look up. Called with the list locked, so the thread is still there; must not wait.
    wake: Box<dyn Fn() + Send>,
}

struct Vital {
    name: String,
    /// How often it was asked.
    asked: AtomicU64,
    /// The last question that it has answered.
    answered: AtomicU64,
}

impl Vital {
    fn is_silent(&self) -> bool {
        self.answered.load(Ordering::Relaxed) < self.asked.load(Ordering::Relaxed)
    }
}

impl Threads {
    const fn new() -> Self {
        Self {
            all: Mutex::new(Vec::new()),
        }
    }

    fn register(&'static self, name: String, wake: impl Fn() + Send + 'static) -> Pulse {
        let vital = Arc::new(Vital {
            name,
            asked: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        });
        self.lock().push(Thread {
            vital: vital.clone(),
            wake: Box::new(wake),
        });
        Pulse {
            vital,
            threads: self,
        }
    }

    fn ask(&self) {
        for thread in &*self.lock() {
            thread.vital.asked.fetch_add(1, Ordering::Relaxed);
            (thread.wake)();
        }
    }

    fn silent(&self) -> Vec<String> {
        let all = self.lock();
        let silent = all.iter().filter(|thread| thread.vital.is_silent());
        silent.map(|thread| thread.vital.name.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Thread>> {
        // The list is whole after every statement.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pulse of a thread, which is asked as long as it exists.
pub(crate) struct Pulse {
    vital: Arc<Vital>,
    threads: &'static Threads,
}

impl Pulse {
    /// Registers the calling thread. `wake` makes it beat soon, from any thread and without waiting.
    pub(crate) fn new(name: impl Into<String>, wake: impl Fn() + Send + 'static) -> Self {
        THREADS.register(name.into(), wake)
    }

    /// Says that the thread is alive.
    pub(crate) fn beat(&self) {
        let asked = self.vital.asked.load(Ordering::Relaxed);
        self.vital.answered.store(asked, Ordering::Relaxed);
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        let is_own = |thread: &Thread| Arc::ptr_eq(&thread.vital, &self.vital);
        let mut all = self.threads.lock();
        if thread::panicking() {
            // Nobody does its work any more, and it will not answer. There may be nothing left to wake.
            for thread in all.iter_mut().filter(|thread| is_own(thread)) {
                thread.wake = Box::new(|| ());
            }
        } else {
            all.retain(|thread| !is_own(thread));
        }
    }
}

/// Asks every thread.
pub(crate) fn ask() {
    THREADS.ask();
}

/// The threads that have not answered the last [`ask`].
pub(crate) fn silent() -> Vec<String> {
    THREADS.silent()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn threads() -> &'static Threads {
        Box::leak(Box::new(Threads::new()))
    }

    #[test]
    fn a_thread_that_answers_is_alive() {
        let threads = threads();
        let (wake, woken) = mpsc::channel();
        let pulse = threads.register("worker".into(), move || wake.send(()).unwrap());
        assert!(threads.silent().is_empty());
        let worker = thread::spawn(move || {
            for () in woken.iter().take(3) {
                pulse.beat();
            }
        });
        for _ in 0..3 {
            threads.ask();
        }
        // It has answered everything that it was woken for, and is gone.
        worker.join().unwrap();
        threads.ask();
        assert!(threads.silent().is_empty());
    }

    #[test]
    fn a_thread_that_does_not_answer_is_named_until_it_does() {
        let threads = threads();
        let pulse = threads.register("worker".into(), || ());
        let other = threads.register("other".into(), || ());
        threads.ask();
        other.beat();
        assert_eq!(threads.silent(), ["worker"]);
        pulse.beat();
        assert!(threads.silent().is_empty());
        drop(pulse);
        threads.ask();
        assert_eq!(threads.silent(), ["other"]);
    }

    #[test]
    fn a_thread_that_panicked_never_answers() {
        let threads = threads();
        let worker = thread::spawn(move || {
            let _pulse = threads.register("worker".into(), || panic!("not woken any more"));
            panic!("expected in this test");
        });
        worker.join().unwrap_err();
        threads.ask();
        assert_eq!(threads.silent(), ["worker"]);
    }
}
