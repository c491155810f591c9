//! `guest-kmod/lock.c`: lock words, and the sleep of those that find one taken.

use super::deadlock::Wait;
use super::thread::Thread;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Mutex, MutexGuard};
use std::sync::Arc;
use vmsrs_protocol::shared::{LOCK_TAG, LOCK_WAITERS};

/// Most threads that sleep.
const SLEEPERS: usize = 4;

/// Why a wait ended without the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// The tag holds the domain already.
    Exists,
    /// The holder waits for the caller's request.
    Deadlock,
    /// A signal.
    Interrupted,
    /// The time is over.
    TimedOut,
    /// The request has failed.
    Stale,
    /// Not yet; never returned by the system call.
    Again,
}

/// `struct lock_sleeper`, for a task that is on the queue.
struct Sleeper {
    thread: usize,
    domain: u32,
}

/// One bucket of `lock_queues`: all domains of a model hash to it. With the states of the tasks, as
/// those change under its lock alone here.
#[derive(Default)]
struct Queue {
    entries: Vec<Sleeper>,
    /// Not `TASK_RUNNING`.
    sleeping: [bool; SLEEPERS],
    /// `signal_pending()`.
    signalled: [bool; SLEEPERS],
    /// `left <= 0`.
    expired: [bool; SLEEPERS],
}

/// The device, with one app.
pub struct Driver {
    words: [AtomicU64; 2],
    queue: Mutex<Queue>,
    threads: Vec<Arc<Thread>>,
    /// `waits`; guarded by `waits_lock`.
    waits: Mutex<Vec<Wait>>,
    commit_lock: Mutex<()>,
    /// Tags of `suspended_requests`; guarded by `requests_lock`.
    suspended: Mutex<Vec<u64>>,
    /// Tags of failed requests; guarded by `requests_lock`.
    failed: Mutex<Vec<u64>>,
}

impl Driver {
    /// A driver that knows these threads.
    pub fn new(threads: &[Arc<Thread>]) -> Arc<Self> {
        Arc::new(Self {
            words: [AtomicU64::new(0), AtomicU64::new(0)],
            queue: Mutex::new(Queue::default()),
            threads: threads.to_vec(),
            waits: Mutex::new(Vec::new()),
            commit_lock: Mutex::new(()),
            suspended: Mutex::new(Vec::new()),
            failed: Mutex::new(Vec::new()),
        })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no thread panics with the lock")
    }

    pub(super) fn waits(&self) -> MutexGuard<'_, Vec<Wait>> {
        self.waits.lock().expect("no thread panics with the lock")
    }

    /// `lock_word`.
    pub(crate) fn word(&self, domain: u32) -> &AtomicU64 {
        &self.words[domain as usize]
    }

    /// Whether nobody holds the domain and nobody is said to wait for it.
    pub fn is_free(&self, domain: u32) -> bool {
        self.word(domain).load(Ordering::Relaxed) == 0
    }

    /// `prepare_to_wait_event`, exclusive and interruptible. Whether a signal is pending.
    fn prepare_to_wait(&self, thread: &Thread, domain: u32) -> bool {
        let mut queue = self.queue();
        if queue.signalled[thread.number] {
            queue.entries.retain(|entry| entry.thread != thread.number);
            return true;
        }
        if queue
            .entries
            .iter()
            .all(|entry| entry.thread != thread.number)
        {
            queue.entries.push(Sleeper {
                thread: thread.number,
                domain,
            });
        }
        queue.sleeping[thread.number] = true;
        false
    }

    /// `schedule_timeout`, without the time slice: only a wake-up ends it.
    fn schedule(&self, thread: &Thread) {
        let mut queue = self.queue();
        while queue.sleeping[thread.number] {
            queue = thread
                .scheduled
                .wait(queue)
                .expect("no thread panics with the lock");
        }
    }

    /// `finish_wait`.
    fn finish_wait(&self, thread: &Thread) {
        let mut queue = self.queue();
        queue.sleeping[thread.number] = false;
        queue.entries.retain(|entry| entry.thread != thread.number);
    }

    /// `try_to_wake_up`: whether the task was not running.
    fn wake_task(&self, queue: &mut Queue, thread: usize) -> bool {
        if !queue.sleeping[thread] {
            return false;
        }
        queue.sleeping[thread] = false;
        let task = self.threads.iter().find(|task| task.number == thread);
        task.expect("registered").scheduled.notify_one();
        true
    }

    /// `wake_one`, with `lock_wake_function` and `autoremove_wake_function`.
    fn wake_one(&self, domain: u32) {
        let mut queue = self.queue();
        let mut place = 0;
        while place < queue.entries.len() {
            let thread = queue.entries[place].thread;
            if queue.entries[place].domain == domain && self.wake_task(&mut queue, thread) {
                queue.entries.remove(place);
                return;
            }
            place += 1;
        }
    }

    /// `vmsrs_lock_wake`.
    pub(crate) fn lock_wake(&self, domain: u32) {
        self.wake_one(domain);
    }

    /// `vmsrs_lock_release`.
    pub fn lock_release(&self, domain: u32, tag: u64) {
        let word = self.word(domain);
        let mut value = word.load(Ordering::Relaxed);
        while tag != 0 && value & LOCK_TAG == tag {
            match word.compare_exchange(value, 0, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => value = now,
            }
        }
        self.wake_one(domain);
    }

    /// `vmsrs_lock_release_held`.
    pub(crate) fn lock_release_held(&self, thread: &Thread, tag: u64) {
        for domain in thread.held() {
            self.lock_release(domain, tag);
        }
    }

    /// `lock_try`.
    fn lock_try(&self, domain: u32, tag: u64) -> Result<(), Errno> {
        let word = self.word(domain);
        let mut value = word.load(Ordering::Relaxed);
        loop {
            if value & LOCK_TAG == tag {
                return Err(Errno::Exists);
            }
            let new = if value & LOCK_TAG != 0 {
                value | LOCK_WAITERS
            } else {
                tag | LOCK_WAITERS
            };
            if new != value {
                let outcome =
                    word.compare_exchange(value, new, Ordering::SeqCst, Ordering::Relaxed);
                if let Err(now) = outcome {
                    value = now;
                    continue;
                }
            }
            return match new & LOCK_TAG == tag {
                true => Ok(()),
                false => Err(Errno::Again),
            };
        }
    }

    fn failed(&self) -> MutexGuard<'_, Vec<u64>> {
        self.failed.lock().expect("no thread panics with the lock")
    }

    /// `vmsrs_lock_wait`.
    pub(crate) fn lock_wait(&self, thread: &Thread, tag: u64, domain: u32) -> Result<(), Errno> {
        let outcome = loop {
            let interrupted = self.prepare_to_wait(thread, domain);
            if self.failed().contains(&tag) {
                break Err(Errno::Stale);
            }
            let outcome = self.lock_try(domain, tag);
            if outcome != Err(Errno::Again) {
                break outcome;
            }
            if interrupted {
                break Err(Errno::Interrupted);
            }
            if self.queue().expired[thread.number] {
                break Err(Errno::TimedOut);
            }
            if !self.wait_enter(tag, domain) {
                break Err(Errno::Deadlock);
            }
            self.schedule(thread);
        };
        self.finish_wait(thread);
        self.wait_leave(tag, domain);
        if outcome.is_err() {
            self.wake_one(domain);
        }
        outcome
    }

    /// `vmsrs_lock_tag`.
    fn lock_tag(&self, domain: u32) -> u64 {
        self.word(domain).load(Ordering::Acquire) & LOCK_TAG
    }

    /// `vmsrs_request_orphaned`, with `vmsrs_thread_carries`.
    fn orphaned(&self, tag: u64) -> bool {
        if self.suspended().contains(&tag) {
            return false;
        }
        let carries = |thread: &Arc<Thread>| thread.control.tag.load(Ordering::Acquire) == tag;
        !self.threads.iter().any(carries)
    }

    /// `release_orphan` and `vmsrs_fail_orphan`, up to the decision: whether the domain's holder
    /// would be failed.
    pub fn holder_is_orphaned(&self, domain: u32) -> bool {
        let tag = self.lock_tag(domain);
        if tag == 0 || !self.orphaned(tag) {
            return false;
        }
        let _commit = self.commit_lock();
        self.orphaned(tag) && self.lock_tag(domain) == tag
    }

    fn commit_lock(&self) -> MutexGuard<'_, ()> {
        self.commit_lock
            .lock()
            .expect("no thread panics with the lock")
    }

    fn suspended(&self) -> MutexGuard<'_, Vec<u64>> {
        self.suspended
            .lock()
            .expect("no thread panics with the lock")
    }

    /// `vmsrs_suspend` (`suspend.c`).
    pub(crate) fn suspend(&self, tag: u64) {
        let _commit = self.commit_lock();
        self.suspended().push(tag);
    }

    /// `vmsrs_resume`.
    pub(crate) fn resume(&self, tag: u64) {
        let _commit = self.commit_lock();
        self.suspended().retain(|&other| other != tag);
    }

    /// `vmsrs_abandon` of a request without drafts that holds a domain.
    pub(crate) fn abandon(&self, tag: u64, domain: u32) {
        let _commit = self.commit_lock();
        self.lock_release(domain, tag);
        self.suspended().retain(|&other| other != tag);
    }

    /// `send_sig` to a thread.
    pub fn signal(&self, thread: &Thread) {
        let mut queue = self.queue();
        queue.signalled[thread.number] = true;
        self.wake_task(&mut queue, thread.number);
    }

    /// The end of the time that a thread waits for a lock.
    pub fn expire(&self, thread: &Thread) {
        let mut queue = self.queue();
        queue.expired[thread.number] = true;
        self.wake_task(&mut queue, thread.number);
    }

    /// `vmsrs_fail` of a request without drafts: marked, its locks released, its threads signalled.
    pub fn fail(&self, thread: &Thread, tag: u64) {
        let mut failed = self.failed();
        if !failed.contains(&tag) {
            failed.push(tag);
        }
        drop(failed);
        self.lock_release_held(thread, tag);
        self.signal(thread);
    }

    /// `thread_end`: the thread is dead.
    pub(crate) fn thread_end(&self, thread: &Thread) {
        let tag = thread.control.tag.load(Ordering::Relaxed);
        if tag != 0 {
            self.fail(thread, tag);
        } else {
            self.lock_release_held(thread, 0);
        }
    }
}
