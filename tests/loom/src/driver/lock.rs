//! `guest-kmod/lock.c` and `lock_wait.c`: lock words, and the sleep of threads that find one taken; with the
//! parts of `request.c`, `suspend.c`, `fail.c` and `reap.c` that release locks.

use super::deadlock::Wait;
use super::thread::Thread;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Mutex, MutexGuard};
use std::sync::Arc;
use vmsrs_protocol::shared::{LOCK_DELETED, LOCK_TAG, LOCK_WAITERS};

/// Maximum number of sleeping threads.
const SLEEPERS: usize = 4;

/// Why a wait ended without the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// The tag holds the domain already.
    Exists,
    /// The wait would close a cycle.
    Deadlock,
    /// A signal.
    Interrupted,
    /// The time is up.
    TimedOut,
    /// The request has failed.
    Stale,
    /// The domain is deleted.
    Removed,
    /// The lock is taken; never returned by the system call.
    Again,
}

/// `struct vmsrs_lock_sleeper`, for a task that is on the queue.
struct Sleeper {
    thread: usize,
    domain: u32,
    tag: u64,
    woken: u32,
    granted: bool,
}

/// One of `lock_queues`: all domains of a model hash to it. Includes the states of the tasks, which change only under
/// its lock here.
#[derive(Default)]
struct Queue {
    sleepers: Vec<Sleeper>,
    /// Not `TASK_RUNNING`.
    sleeping: [bool; SLEEPERS],
    /// `signal_pending()`.
    signalled: [bool; SLEEPERS],
    /// `left <= 0`.
    expired: [bool; SLEEPERS],
}

impl Queue {
    fn place(&self, thread: &Thread) -> usize {
        let own = |sleeper: &Sleeper| sleeper.thread == thread.number;
        self.sleepers.iter().position(own).expect("on the queue")
    }
}

/// The device, with one app.
pub struct Driver {
    /// `VMSRS_HANDOVER_AFTER`.
    handover_after: u32,
    words: [AtomicU64; 2],
    queue: Mutex<Queue>,
    threads: Vec<Arc<Thread>>,
    /// `waits`; guarded by `waits_lock`.
    waits: Mutex<Vec<Wait>>,
    request_locks: [Mutex<()>; 2],
    /// Tags of suspended requests; guarded by `requests_lock`.
    suspended: Mutex<Vec<u64>>,
    /// Tags of failed requests; guarded by `requests_lock`.
    failed: Mutex<Vec<u64>>,
    /// The app's `lock`.
    app_lock: Mutex<()>,
    /// The app's `deleted`.
    deleted: Mutex<Vec<u32>>,
}

impl Driver {
    /// A driver that knows these threads, and hands a lock over to a sleeper that was woken for it
    /// `handover_after` times.
    pub fn new(threads: &[Arc<Thread>], handover_after: u32) -> Arc<Self> {
        Arc::new(Self {
            handover_after,
            words: [AtomicU64::new(0), AtomicU64::new(0)],
            queue: Mutex::new(Queue::default()),
            threads: threads.to_vec(),
            waits: Mutex::new(Vec::new()),
            request_locks: [Mutex::new(()), Mutex::new(())],
            suspended: Mutex::new(Vec::new()),
            failed: Mutex::new(Vec::new()),
            app_lock: Mutex::new(()),
            deleted: Mutex::new(Vec::new()),
        })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no thread panics with the lock")
    }

    pub(super) fn waits(&self) -> MutexGuard<'_, Vec<Wait>> {
        self.waits.lock().expect("no thread panics with the lock")
    }

    /// `vmsrs_lock_word`.
    pub fn word(&self, domain: u32) -> &AtomicU64 {
        &self.words[domain as usize]
    }

    /// Whether the domain has no holder and is not marked as waited for.
    pub fn is_free(&self, domain: u32) -> bool {
        self.word(domain).load(Ordering::Relaxed) == 0
    }

    /// Whether the domain's word is marked as waited for.
    pub fn is_waited_for(&self, domain: u32) -> bool {
        self.word(domain).load(Ordering::Relaxed) & LOCK_WAITERS != 0
    }

    /// `vmsrs_sleeper_add`.
    fn sleeper_add(&self, thread: &Thread, tag: u64, domain: u32) {
        self.queue().sleepers.push(Sleeper {
            thread: thread.number,
            domain,
            tag,
            woken: 0,
            granted: false,
        });
    }

    /// `vmsrs_sleeper_remove`. Whether the lock was taken for the sleeper.
    fn sleeper_remove(&self, thread: &Thread) -> bool {
        let mut queue = self.queue();
        let place = queue.place(thread);
        queue.sleepers.remove(place).granted
    }

    /// `set_current_state`.
    fn set_sleeping(&self, thread: &Thread, sleeping: bool) {
        self.queue().sleeping[thread.number] = sleeping;
    }

    fn is_granted(&self, thread: &Thread) -> bool {
        let queue = self.queue();
        queue.sleepers[queue.place(thread)].granted
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

    /// `wake_up_process`.
    fn wake_task(&self, queue: &mut Queue, thread: usize) {
        if !queue.sleeping[thread] {
            return;
        }
        queue.sleeping[thread] = false;
        let task = self.threads.iter().find(|task| task.number == thread);
        task.expect("registered").scheduled.notify_one();
    }

    /// `vmsrs_lock_wake_one`.
    fn wake_one(&self, domain: u32) {
        let mut queue = self.queue();
        let first = |sleeper: &&mut Sleeper| sleeper.domain == domain && !sleeper.granted;
        let Some(sleeper) = queue.sleepers.iter_mut().find(first) else {
            return;
        };
        if sleeper.woken >= self.handover_after {
            sleeper.granted = self.lock_try(domain, sleeper.tag).is_ok();
        }
        sleeper.woken += 1;
        let thread = sleeper.thread;
        self.wake_task(&mut queue, thread);
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

    /// `vmsrs_lock_try`.
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

    /// `vmsrs_lock_delete` of a lock that the tag has, with what comes before and after it (`domain.c`).
    pub fn lock_delete(&self, domain: u32, tag: u64) {
        let app = self.app_lock();
        let word = self.word(domain);
        let mut value = word.load(Ordering::Relaxed);
        loop {
            assert_eq!(value & LOCK_TAG, tag);
            let outcome =
                word.compare_exchange(value, LOCK_DELETED, Ordering::SeqCst, Ordering::Relaxed);
            match outcome {
                Ok(_) => break,
                Err(now) => value = now,
            }
        }
        self.deleted().push(domain);
        drop(app);
        self.wake_one(domain);
    }

    /// `vmsrs_lock_deleted`.
    fn lock_deleted(&self, domain: u32) -> bool {
        self.lock_tag(domain) == LOCK_DELETED && self.deleted().contains(&domain)
    }

    /// `release_forged`.
    pub fn release_forged(&self, domain: u32) {
        let _app = self.app_lock();
        if !self.deleted().contains(&domain) {
            self.lock_release(domain, LOCK_DELETED);
        }
    }

    fn app_lock(&self) -> MutexGuard<'_, ()> {
        self.app_lock
            .lock()
            .expect("no thread panics with the lock")
    }

    fn deleted(&self) -> MutexGuard<'_, Vec<u32>> {
        self.deleted.lock().expect("no thread panics with the lock")
    }

    fn failed(&self) -> MutexGuard<'_, Vec<u64>> {
        self.failed.lock().expect("no thread panics with the lock")
    }

    /// `lock_sleep`.
    fn lock_sleep(&self, thread: &Thread, tag: u64, domain: u32) -> Result<(), Errno> {
        loop {
            self.set_sleeping(thread, true);
            if self.failed().contains(&tag) {
                return Err(Errno::Stale);
            }
            if self.is_granted(thread) {
                return Ok(());
            }
            let outcome = self.lock_try(domain, tag);
            if outcome != Err(Errno::Again) {
                return outcome;
            }
            if self.lock_deleted(domain) {
                return Err(Errno::Removed);
            }
            if self.queue().signalled[thread.number] {
                return Err(Errno::Interrupted);
            }
            if self.queue().expired[thread.number] {
                return Err(Errno::TimedOut);
            }
            if !self.wait_enter(tag, domain) {
                return Err(Errno::Deadlock);
            }
            self.schedule(thread);
        }
    }

    /// `vmsrs_lock_wait`.
    pub(crate) fn lock_wait(&self, thread: &Thread, tag: u64, domain: u32) -> Result<(), Errno> {
        self.sleeper_add(thread, tag, domain);
        let mut outcome = self.lock_sleep(thread, tag, domain);
        self.set_sleeping(thread, false);
        self.wait_leave(tag, domain);
        if self.sleeper_remove(thread) {
            if outcome == Err(Errno::Stale) {
                self.lock_release(domain, tag);
            } else {
                outcome = Ok(());
            }
        }
        if outcome.is_err() || self.lock_tag(domain) != tag {
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
        if tag == 0 || tag == LOCK_DELETED || !self.orphaned(tag) {
            return false;
        }
        let _lock = self.request_lock(tag);
        self.orphaned(tag) && self.lock_tag(domain) == tag
    }

    /// `vmsrs_request_lock`.
    fn request_lock(&self, tag: u64) -> MutexGuard<'_, ()> {
        self.request_locks[tag as usize % 2]
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
        let _lock = self.request_lock(tag);
        self.suspended().push(tag);
    }

    /// `vmsrs_resume`.
    pub(crate) fn resume(&self, tag: u64) {
        let _lock = self.request_lock(tag);
        self.suspended().retain(|&other| other != tag);
    }

    /// `vmsrs_abandon` of a request without drafts that holds a domain.
    pub(crate) fn abandon(&self, tag: u64, domain: u32) {
        let _lock = self.request_lock(tag);
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
