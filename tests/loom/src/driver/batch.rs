//! `guest-kmod/pool.c`, `drafts.c`, `answer.c`, `batch.c` and `report.c`: the life of a frame of the pool, from the first write to the host's
//! answer.
//!
//! There is one domain, and its lock word is not modelled: one thread writes. Contents are cells that no two threads
//! may use at once unless both read, so loom finds a frame that is written to while it is sent or compared.

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Mutex, MutexGuard};

/// Pages of the domain.
const PAGES: usize = 2;

const FRAMES: usize = 5;

/// `entry->frame` and `committed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Never,
    Pool(usize),
    Vault(usize),
}

/// `struct vmsrs_page`.
#[derive(Clone, Copy)]
struct Entry {
    frame: Version,
    draft: Option<usize>,
    mapped: bool,
}

/// What `vmsrs_domain.lock` guards.
struct Domain {
    entries: [Entry; PAGES],
    drafts: Vec<usize>,
    /// `page`, `committed` and `alone` of frames.
    page: [usize; FRAMES],
    committed: [Version; FRAMES],
    alone: [bool; FRAMES],
}

/// What `vmsrs_pool.lock` guards.
struct Pool {
    free: Vec<usize>,
    refs: [u32; FRAMES],
}

/// What `vmsrs_batch.lock` guards.
#[derive(Default)]
struct Batch {
    records: Vec<usize>,
    number: u32,
    /// `batch` of frames.
    of: [u32; FRAMES],
}

impl Batch {
    fn put_in_place(&mut self, old: usize, new: usize) {
        let record = self.records.iter_mut().find(|record| **record == old);
        *record.expect("it was committed and not sent") = new;
    }
}

/// The host's page map and vault.
#[derive(Default)]
struct Host {
    map: [Option<usize>; PAGES],
    vault: Vec<u64>,
}

/// `struct vmsrs_report`: each dropped draft with the committed version that it names, and that version's content.
pub struct Report(Vec<(usize, Version, u64)>);

/// The device with one domain.
pub struct Frames {
    domain: Mutex<Domain>,
    pool: Mutex<Pool>,
    batch: Mutex<Batch>,
    host: Mutex<Host>,
    /// `replaced` of frames: in C, guarded by the domain's lock until the frame is sent.
    replaced: [UnsafeCell<Option<usize>>; FRAMES],
    content: [UnsafeCell<u64>; FRAMES],
    /// The page-table entries. A zap returns only when no CPU uses the old entry any more.
    table: [Mutex<Option<Version>>; PAGES],
    /// `vmsrs_app_is_private`: only the writer's process maps the pages.
    private: AtomicBool,
}

// SAFETY: that no thread uses a cell that another changes is what the models show; loom checks it.
unsafe impl Sync for Frames {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics with a lock")
}

impl Default for Frames {
    /// No page was ever committed, and all frames are free, with what another domain has left in them.
    fn default() -> Self {
        let entry = Entry {
            frame: Version::Never,
            draft: None,
            mapped: false,
        };
        Self {
            domain: Mutex::new(Domain {
                entries: [entry; PAGES],
                drafts: Vec::new(),
                page: [0; FRAMES],
                committed: [Version::Never; FRAMES],
                alone: [false; FRAMES],
            }),
            pool: Mutex::new(Pool {
                free: (0..FRAMES).collect(),
                refs: [0; FRAMES],
            }),
            batch: Mutex::default(),
            host: Mutex::default(),
            replaced: [(); FRAMES].map(|()| UnsafeCell::new(None)),
            content: [(); FRAMES].map(|()| UnsafeCell::new(u64::MAX)),
            table: [(); PAGES].map(|()| Mutex::new(None)),
            private: AtomicBool::new(false),
        }
    }
}

impl Frames {
    /// As by default, but no other process maps the pages before it reads one.
    pub fn private() -> Self {
        Self {
            private: AtomicBool::new(true),
            ..Self::default()
        }
    }

    fn read_frame(&self, frame: usize) -> u64 {
        // SAFETY: loom checks that nobody writes meanwhile.
        self.content[frame].with(|content| unsafe { *content })
    }

    fn write_frame(&self, frame: usize, value: u64) {
        // SAFETY: loom checks that nobody uses it meanwhile.
        self.content[frame].with_mut(|content| unsafe { *content = value });
    }

    fn replaced(&self, frame: usize) -> Option<usize> {
        // SAFETY: as in read_frame().
        self.replaced[frame].with(|replaced| unsafe { *replaced })
    }

    fn set_replaced(&self, frame: usize, vault: Option<usize>) {
        // SAFETY: as in write_frame().
        self.replaced[frame].with_mut(|replaced| unsafe { *replaced = vault });
    }

    fn read(&self, version: Version) -> u64 {
        match version {
            Version::Never => 0,
            Version::Pool(frame) => self.read_frame(frame),
            Version::Vault(frame) => lock(&self.host).vault[frame],
        }
    }

    // mapping.c

    /// `vmsrs_zap_add` and `vmsrs_zap_finish`.
    fn zap(&self, domain: &mut Domain, page: usize) {
        if std::mem::take(&mut domain.entries[page].mapped) {
            *lock(&self.table[page]) = None;
        }
    }

    // pool.c

    /// `vmsrs_pool_take`.
    fn take(&self) -> usize {
        let mut pool = lock(&self.pool);
        let frame = pool.free.pop().expect("the tests need no more frames");
        assert_eq!(pool.refs[frame], 0, "a frame in two places");
        pool.refs[frame] = 1;
        frame
    }

    /// `put`.
    fn put(&self, pool: &mut Pool, frame: usize) {
        pool.refs[frame] = pool.refs[frame]
            .checked_sub(1)
            .expect("a frame is put as often as it is taken");
        if pool.refs[frame] != 0 {
            return;
        }
        for table in &self.table {
            assert_ne!(
                *lock(table),
                Some(Version::Pool(frame)),
                "freed while mapped"
            );
        }
        assert!(!pool.free.contains(&frame), "a frame in two places");
        pool.free.push(frame);
    }

    /// `vmsrs_pool_put_all`.
    fn put_all(&self, frames: &[usize]) {
        let mut pool = lock(&self.pool);
        for &frame in frames {
            self.put(&mut pool, frame);
        }
    }

    /// `vmsrs_pool_pin_committed`.
    fn pin_committed(&self, domain: &Domain, dropped: &[usize]) {
        let mut pool = lock(&self.pool);
        for &draft in dropped {
            if let Version::Pool(frame) = domain.committed[draft] {
                pool.refs[frame] += 1;
            }
        }
    }

    /// `vmsrs_pool_put_dropped`, with `unpin`.
    fn put_dropped(&self, report: &Report) {
        let mut pool = lock(&self.pool);
        for &(draft, committed, _) in &report.0 {
            if let Version::Pool(frame) = committed {
                self.put(&mut pool, frame);
            }
            self.put(&mut pool, draft);
        }
    }

    // drafts.c

    /// `choose_draft`.
    fn choose_draft(&self, domain: &mut Domain, page: usize, copy: usize) -> usize {
        let Version::Pool(shown) = domain.entries[page].frame else {
            return copy;
        };
        let private = self.private.load(Ordering::Relaxed);
        if !domain.entries[page].mapped || !private || lock(&self.pool).refs[shown] != 1 {
            return copy;
        }
        domain.page[copy] = page;
        domain.committed[copy] = domain.committed[shown];
        self.set_replaced(copy, self.replaced(shown));
        if !self.host_replace(shown, copy) {
            return copy;
        }
        domain.entries[page].frame = Version::Pool(copy);
        shown
    }

    /// A write by the request: `vmsrs_draft_make`, with `add_draft`, at the first one.
    pub fn store(&self, page: usize, value: u64) {
        let mut domain = lock(&self.domain);
        if domain.entries[page].draft.is_none() {
            let copy = self.take();
            let committed = self.read(domain.entries[page].frame);
            self.write_frame(copy, committed);
            let before = domain.entries[page];
            let draft = self.choose_draft(&mut domain, page, copy);
            self.set_replaced(draft, None);
            domain.alone[draft] = self.private.load(Ordering::Relaxed);
            // In `thread_write`; other processes keep what they show.
            if before.mapped && before.frame != Version::Pool(draft) && domain.alone[draft] {
                self.zap(&mut domain, page);
            }
            domain.page[draft] = page;
            domain.entries[page].draft = Some(draft);
            domain.drafts.push(draft);
            domain.entries[page].mapped = true;
            *lock(&self.table[page]) = Some(Version::Pool(draft));
        }
        let draft = domain.entries[page].draft.expect("made above");
        self.write_frame(draft, value);
    }

    /// A read by another process: `mmap`, `page_read`, and then the access.
    pub fn load(&self, page: usize) -> u64 {
        self.private.store(false, Ordering::Relaxed);
        let mut domain = lock(&self.domain);
        let mut entry = lock(&self.table[page]);
        let committed = domain.entries[page].frame;
        let draft = domain.entries[page].draft.map(Version::Pool);
        assert!(
            entry.is_none() || *entry == Some(committed) || *entry == draft,
            "a version that was superseded is still mapped"
        );
        // Its page table is another one than the writer's, so a draft's entry is not in it.
        if *entry != Some(committed) {
            *entry = Some(committed);
            domain.entries[page].mapped = true;
            if let Some(draft) = domain.entries[page].draft {
                domain.alone[draft] = false;
            }
        }
        let value = self.read(committed);
        drop(entry);
        value
    }

    /// A commit of pages that will probably be read.
    pub fn commit(&self) {
        self.commit_expecting(true);
    }

    /// `vmsrs_drafts_commit` and `vmsrs_batch_append`, under the domain's lock. `reads` is what `vmsrs_predict_reads`
    /// tells.
    pub fn commit_expecting(&self, reads: bool) {
        let mut domain = lock(&self.domain);
        let drafts = std::mem::take(&mut domain.drafts);
        for &draft in &drafts {
            let page = domain.page[draft];
            self.zap(&mut domain, page);
        }
        for &draft in &drafts {
            let page = domain.page[draft];
            domain.committed[draft] = domain.entries[page].frame;
            domain.entries[page].frame = Version::Pool(draft);
            domain.entries[page].draft = None;
            // `map_committed`.
            if reads {
                domain.entries[page].mapped = true;
                *lock(&self.table[page]) = Some(Version::Pool(draft));
            }
        }
        let mut superseded = Vec::new();
        let mut batch = lock(&self.batch);
        for &frame in &drafts {
            self.add_record(&domain, &mut batch, frame, &mut superseded);
        }
        drop(batch);
        self.put_all(&superseded);
    }

    /// `vmsrs_drafts_discard`.
    pub fn discard(&self) -> Report {
        let mut domain = lock(&self.domain);
        let drafts = std::mem::take(&mut domain.drafts);
        let mut dropped = Vec::new();
        for &draft in &drafts {
            let page = domain.page[draft];
            self.zap(&mut domain, page);
            let committed = domain.entries[page].frame;
            domain.committed[draft] = committed;
            domain.entries[page].draft = None;
            dropped.push((draft, committed, self.read(committed)));
        }
        self.pin_committed(&domain, &drafts);
        Report(dropped)
    }

    // batch.c

    /// `vmsrs_batch_replace`.
    fn host_replace(&self, old: usize, new: usize) -> bool {
        let mut batch = lock(&self.batch);
        if batch.of[old] != batch.number {
            return false;
        }
        batch.of[new] = batch.number;
        batch.put_in_place(old, new);
        true
    }

    /// `add_record`.
    fn add_record(
        &self,
        domain: &Domain,
        batch: &mut Batch,
        frame: usize,
        superseded: &mut Vec<usize>,
    ) {
        batch.of[frame] = batch.number;
        // `superseded_by`.
        match domain.committed[frame] {
            Version::Pool(old) if batch.of[old] == batch.number => {
                self.set_replaced(frame, self.replaced(old));
                batch.put_in_place(old, frame);
                superseded.push(old);
                return;
            }
            Version::Vault(vault) => self.set_replaced(frame, Some(vault)),
            Version::Pool(_) | Version::Never => {}
        }
        batch.records.push(frame);
    }

    /// `seal`, with `send_batch`, `fill_records` and `finish_domain`; and the host, which copies a frame when its
    /// record arrives and moves its page map after the last one. In which order `finish_row` comes to the pages of one
    /// domain makes no difference, since it has the domain's lock.
    pub fn seal(&self) {
        let mut batch = lock(&self.batch);
        let sent = std::mem::take(&mut batch.records);
        batch.number += 1;
        drop(batch);
        let mut sealed = Vec::new();
        for &frame in &sent {
            let (page, copy) = (lock(&self.domain).page[frame], self.read_frame(frame));
            let mut host = lock(&self.host);
            assert_eq!(self.replaced(frame), host.map[page], "a stale record");
            host.vault.push(copy);
            sealed.push((frame, page, host.vault.len() - 1));
        }
        let mut host = lock(&self.host);
        for &(_, page, vault) in &sealed {
            host.map[page] = Some(vault);
        }
        drop(host);
        let mut domain = lock(&self.domain);
        for &(frame, page, vault) in &sealed {
            self.show_sealed(&mut domain, frame, page, vault);
        }
        drop(domain);
        self.put_all(&sent);
    }

    /// `finish_pages`, `show_sealed`, `note_sealed`, and the zap; `sent_version` in the first case.
    fn show_sealed(&self, domain: &mut Domain, frame: usize, page: usize, vault: usize) {
        match domain.entries[page].frame {
            Version::Pool(shown) if shown == frame => {
                domain.entries[page].frame = Version::Vault(vault);
                // `shows_draft_only`.
                let draft = domain.entries[page].draft;
                if !draft.is_some_and(|draft| domain.alone[draft]) {
                    self.zap(domain, page);
                }
            }
            Version::Pool(newer) => self.set_replaced(newer, Some(vault)),
            _ => unreachable!("one batch is sent at a time"),
        }
    }

    /// `send_reports` with one report and `vmsrs_report_free`: the host compares each draft with the version that it names.
    pub fn send_report(&self, report: &Report) {
        for &(draft, committed, content) in &report.0 {
            self.read_frame(draft);
            assert_eq!(
                self.read(committed),
                content,
                "the version that a report names has changed"
            );
        }
        self.put_dropped(report);
    }

    // What the tests look at.

    /// The content of the pages as the host has them.
    pub fn sealed(&self) -> [u64; PAGES] {
        let host = lock(&self.host);
        host.map
            .map(|frame| frame.map_or(0, |frame| host.vault[frame]))
    }

    /// Whether all frames are free.
    pub fn all_free(&self) -> bool {
        lock(&self.pool).free.len() == FRAMES
    }
}
