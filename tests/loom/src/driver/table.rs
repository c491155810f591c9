//! `guest-kmod/thread.c` and `reap.c`: the table of threads, read under RCU; and `lock_page` of `lock.c`.

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Mutex, RwLock};

/// One `struct vmsrs_thread` in the table, from its registration to its memory's end.
pub struct Registration {
    /// `ref`.
    references: AtomicUsize,
    /// Whether the hash has it: written under `threads_lock`, read under RCU.
    linked: AtomicUsize,
    threads_lock: Mutex<()>,
    /// Read sides of RCU; the write side is a grace period.
    rcu: RwLock<()>,
    /// What a reference keeps: page, mm, task.
    resources: UnsafeCell<bool>,
    /// What RCU keeps: the structure itself.
    memory: UnsafeCell<bool>,
    ends: AtomicUsize,
}

// SAFETY: that no thread uses what another frees is what the models show; loom checks it.
unsafe impl Sync for Registration {}
// SAFETY: as above.
unsafe impl Send for Registration {}

impl Default for Registration {
    /// Registered: the table has a reference.
    fn default() -> Self {
        Self {
            references: AtomicUsize::new(1),
            linked: AtomicUsize::new(1),
            threads_lock: Mutex::new(()),
            rcu: RwLock::new(()),
            resources: UnsafeCell::new(true),
            memory: UnsafeCell::new(true),
            ends: AtomicUsize::new(0),
        }
    }
}

impl Registration {
    fn use_memory(&self) {
        // SAFETY: loom checks that no thread frees it meanwhile.
        let whole = self.memory.with(|memory| unsafe { *memory });
        assert!(whole, "use after free");
    }

    fn use_resources(&self) {
        // SAFETY: as above.
        assert!(self.resources.with(|resources| unsafe { *resources }));
    }

    /// `kref_get_unless_zero`.
    fn get_unless_zero(&self) -> bool {
        let mut value = self.references.load(Ordering::Relaxed);
        while value != 0 {
            let outcome = self.references.compare_exchange(
                value,
                value + 1,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            match outcome {
                Ok(_) => return true,
                Err(now) => value = now,
            }
        }
        false
    }

    /// `vmsrs_thread_put`, with `thread_release`. `kref_put` is a release, and an acquire at 0.
    fn put(&self) {
        if self.references.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        // SAFETY: as above.
        self.resources
            .with_mut(|resources| unsafe { *resources = false });
        // `kfree_rcu`.
        drop(self.rcu.write().expect("no thread panics with a lock"));
        // SAFETY: as above.
        self.memory.with_mut(|memory| unsafe { *memory = false });
    }

    /// `vmsrs_thread_current`.
    fn find(&self) -> bool {
        let _section = self.rcu.read().expect("no thread panics with a lock");
        if self.linked.load(Ordering::Acquire) == 0 {
            return false;
        }
        self.use_memory();
        self.get_unless_zero()
    }

    /// `vmsrs_thread_unlink`, unless that has been done. The caller then ends the thread.
    fn unlink(&self) -> bool {
        let _threads = self
            .threads_lock
            .lock()
            .expect("no thread panics with a lock");
        let linked = self.linked.load(Ordering::Relaxed) != 0;
        self.linked.store(0, Ordering::Release);
        linked
    }

    /// `thread_end`.
    fn end(&self) {
        self.use_resources();
        self.ends.fetch_add(1, Ordering::Relaxed);
        self.put();
    }

    /// A fault of the thread. Whether it is registered.
    pub fn fault(&self) -> bool {
        let found = self.find();
        if found {
            self.use_resources();
            self.put();
        }
        found
    }

    /// `vmsrs_thread_exit`.
    pub fn exit(&self) {
        if !self.find() {
            return;
        }
        if self.unlink() {
            self.end();
        }
        self.put();
    }

    /// `vmsrs_threads_reap`, or the watch.
    pub fn reap(&self) {
        if self.unlink() {
            self.end();
        }
    }

    /// How often the thread was ended.
    pub fn ends(&self) -> usize {
        self.ends.load(Ordering::Relaxed)
    }

    /// Whether the memory is free, when all threads are through.
    pub fn is_freed(&self) -> bool {
        // SAFETY: as above.
        !self.memory.with(|memory| unsafe { *memory })
    }
}

/// Pages that threads of a model can allocate.
const PAGES: usize = 2;

/// One entry of `vmsrs_app.lock_pages`, with the pages that may get there.
pub struct LockPage {
    /// `lock_pages[index]`: 0, or 1 and the page's number.
    entry: AtomicUsize,
    /// Content, or nothing before and after its use.
    pages: [UnsafeCell<Option<u64>>; PAGES],
}

// SAFETY: that a page is whole before another thread reads it is what the model is to show.
unsafe impl Sync for LockPage {}
// SAFETY: as above.
unsafe impl Send for LockPage {}

impl Default for LockPage {
    fn default() -> Self {
        Self {
            entry: AtomicUsize::new(0),
            pages: [(); PAGES].map(|()| UnsafeCell::new(None)),
        }
    }
}

impl LockPage {
    /// `lock_page` by a thread that would allocate page `number`. The page that is used.
    pub fn get(&self, number: usize) -> usize {
        let page = self.entry.load(Ordering::Acquire);
        if page != 0 {
            return page - 1;
        }
        // SAFETY: no other thread has the number; loom checks that.
        self.pages[number].with_mut(|page| unsafe { *page = Some(0) });
        let outcome =
            self.entry
                .compare_exchange(0, number + 1, Ordering::SeqCst, Ordering::SeqCst);
        match outcome {
            Ok(_) => number,
            Err(other) => {
                // SAFETY: as above.
                self.pages[number].with_mut(|page| unsafe { *page = None });
                other - 1
            }
        }
    }

    /// `lock_page` without an allocation: the page, if there is one.
    pub fn peek(&self) -> Option<usize> {
        self.entry.load(Ordering::Acquire).checked_sub(1)
    }

    /// The content of a page that `get` or `peek` gave.
    pub fn read(&self, page: usize) -> Option<u64> {
        // SAFETY: loom checks that no thread writes to it meanwhile.
        self.pages[page].with(|page| unsafe { *page })
    }
}
