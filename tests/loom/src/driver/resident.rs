//! `guest-kmod/resident.c`, `heat.c` and `hot.c`, with what they meet in `commit.c`, `fail.c`, `page.c` and `answer.c`: a domain
//! that becomes hot and cools, while requests are inside, end or fail, and its committed version is sealed.
//!
//! There is one domain with one page, and one key for hot domains. A content is a cell that no two threads may use at once unless
//! both read, so loom finds a frame that is compared, copied or sealed while somebody writes it.

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use loom::sync::{Mutex, MutexGuard};
use std::cell::Cell;

/// `CLAIMED_HERE`.
const CLAIMED_HERE: u64 = i64::MAX as u64;

/// The key of hot domains.
const KEY: u32 = 11;

const FRAMES: usize = 6;

/// The request has failed, or is told that another one is inside.
#[derive(Debug, PartialEq, Eq)]
pub struct Failed;

/// `entry->frame`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Pool(usize),
    /// With the content, since the guest does not write to the vault.
    Vault(u64),
}

/// The page-table entry. A CPU reads it and makes the access in one step, since a zap returns only when no CPU uses the old entry
/// any more.
#[derive(Clone, Copy)]
enum Entry {
    None,
    Committed(Version),
    /// Under the key of the request with that tag.
    Draft(usize, u64),
    /// Under the domain's key.
    Resident(usize),
}

/// What `vmsrs_domain.lock` guards.
struct State {
    committed: Version,
    draft: Option<usize>,
    /// Tag of `owner`, which has an ordinary draft.
    owner: Option<u64>,
    /// `heat->resident`: the frame of the page.
    resident: Option<usize>,
}

/// A thread in a request.
pub struct Member {
    tag: u64,
    /// Whether its PKRU lets it write with [`KEY`].
    open: Cell<bool>,
}

/// The device, with a hot domain.
pub struct Hot {
    word: AtomicU64,
    /// `entries` of the list that the process reads.
    entry: AtomicU32,
    claim: AtomicU64,
    request_locks: [Mutex<()>; 2],
    state: Mutex<State>,
    /// `residents`: whether the domain is in it. Guarded by `hot_lock`.
    residents: Mutex<bool>,
    table: Mutex<Entry>,
    free: Mutex<Vec<usize>>,
    /// `records`: the page's version, if it is not sent yet.
    batch: Mutex<Option<usize>>,
    content: [UnsafeCell<u64>; FRAMES],
}

// SAFETY: that no thread uses a cell that another changes is what the models show; loom checks it.
unsafe impl Sync for Hot {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics with a lock")
}

impl Default for Hot {
    /// The page is resident, and its committed version, zero, is sealed.
    fn default() -> Self {
        Self {
            word: AtomicU64::new(0),
            entry: AtomicU32::new(KEY),
            claim: AtomicU64::new(0),
            request_locks: [(); 2].map(|()| Mutex::new(())),
            state: Mutex::new(State {
                committed: Version::Vault(0),
                draft: Some(0),
                owner: None,
                resident: Some(0),
            }),
            residents: Mutex::new(true),
            table: Mutex::new(Entry::Resident(0)),
            free: Mutex::new((1..FRAMES).collect()),
            batch: Mutex::new(None),
            content: [(); FRAMES].map(|()| UnsafeCell::new(0)),
        }
    }
}

impl Hot {
    fn read_frame(&self, frame: usize) -> u64 {
        // SAFETY: loom checks that nobody writes meanwhile.
        self.content[frame].with(|content| unsafe { *content })
    }

    fn write_frame(&self, frame: usize, value: u64) {
        // SAFETY: loom checks that nobody uses it meanwhile.
        self.content[frame].with_mut(|content| unsafe { *content = value });
    }

    fn read(&self, version: Version) -> u64 {
        match version {
            Version::Pool(frame) => self.read_frame(frame),
            Version::Vault(content) => content,
        }
    }

    fn take(&self) -> usize {
        let frame = lock(&self.free).pop();
        frame.expect("the tests need no more frames")
    }

    fn put(&self, frame: usize) {
        if let Entry::Draft(shown, _)
        | Entry::Resident(shown)
        | Entry::Committed(Version::Pool(shown)) = *lock(&self.table)
        {
            assert_ne!(shown, frame, "freed while mapped");
        }
        lock(&self.free).push(frame);
    }

    fn zap(&self) {
        *lock(&self.table) = Entry::None;
    }

    // The library: `guest-lib/src/run/hot.rs`.

    /// A request that takes the domain's lock and, if it is hot, goes inside.
    ///
    /// # Errors
    ///
    /// [`Failed`] if another one is inside.
    pub fn begin(&self, tag: u64) -> Result<Member, Failed> {
        while !crate::word::try_lock(&self.word, tag) {
            loom::thread::yield_now();
        }
        let member = Member {
            tag,
            open: Cell::new(false),
        };
        if self.entry.load(Ordering::Acquire) == 0 || self.enter(&member) {
            return Ok(member);
        }
        self.cool(&member)?;
        Ok(member)
    }

    /// `claim` of the library.
    fn enter(&self, member: &Member) -> bool {
        member.open.set(true);
        let claim = |from, to| {
            self.claim
                .compare_exchange(from, to, Ordering::SeqCst, Ordering::Relaxed)
        };
        if claim(0, member.tag).is_ok() {
            if self.entry.load(Ordering::Acquire) == KEY {
                return true;
            }
            let _ = claim(member.tag, 0);
        }
        member.open.set(false);
        false
    }

    /// The request is over; what it has written is committed, or dropped.
    pub fn end(&self, member: &Member) {
        member.open.set(false);
        crate::word::release(&self.word, member.tag);
    }

    /// A read of the page and a write of the number after it, by the request.
    pub fn increment(&self, member: &Member) {
        while !self.try_increment(member) {
            self.thread_write(member);
        }
    }

    /// What a CPU does with the entry that it finds. False if there is a page fault.
    fn try_increment(&self, member: &Member) -> bool {
        let entry = lock(&self.table);
        let frame = match *entry {
            Entry::Draft(frame, tag) if tag == member.tag => frame,
            Entry::Resident(frame) if member.open.get() => frame,
            Entry::Draft(..) | Entry::Resident(_) => panic!("SIGSEGV: another one's key"),
            Entry::None | Entry::Committed(_) => return false,
        };
        self.write_frame(frame, self.read_frame(frame) + 1);
        true
    }

    // page.c

    /// `thread_write`, by the holder of the lock.
    fn thread_write(&self, member: &Member) {
        let mut state = lock(&self.state);
        assert!(
            self.resident_yield(&mut state, member.tag),
            "another request is inside"
        );
        if state.draft.is_none() {
            let frame = self.take();
            self.write_frame(frame, self.read(state.committed));
            state.owner = Some(member.tag);
            state.draft = Some(frame);
            self.zap();
        }
        let draft = state.draft.expect("made above");
        *lock(&self.table) = match state.resident {
            Some(frame) => Entry::Resident(frame),
            None => Entry::Draft(draft, member.tag),
        };
    }

    /// `page_read`, by any thread of the process, and the access.
    pub fn load(&self) -> u64 {
        let state = lock(&self.state);
        let mut entry = lock(&self.table);
        if let Entry::None = *entry {
            *entry = match state.draft {
                None => Entry::Committed(state.committed),
                Some(frame) if state.resident.is_some() => Entry::Resident(frame),
                Some(frame) => Entry::Draft(frame, state.owner.expect("of a draft")),
            };
        }
        self.read(state.committed)
    }

    // resident.c

    /// `try_claim`.
    fn try_claim(&self) -> u64 {
        self.claim
            .compare_exchange(0, CLAIMED_HERE, Ordering::SeqCst, Ordering::Relaxed)
            .unwrap_or_else(|claim| claim)
    }

    /// `vmsrs_resident_claim`.
    fn resident_claim(&self) -> bool {
        self.try_claim() == 0
    }

    /// `take_back`. Gives the frame, if it differs from the committed version; it is still the page's draft then.
    fn take_back(&self, state: &mut State) -> Option<usize> {
        self.zap();
        let frame = state.resident.take().expect("hot");
        let mut residents = lock(&self.residents);
        // `vmsrs_hot_list`.
        self.entry.store(0, Ordering::Release);
        *residents = false;
        self.claim.store(0, Ordering::Release);
        drop(residents);
        if self.read_frame(frame) != self.read(state.committed) {
            return Some(frame);
        }
        state.draft = None;
        self.put(frame);
        None
    }

    /// `vmsrs_resident_drop`.
    fn resident_drop(&self, state: &mut State) {
        if let Some(frame) = self.take_back(state) {
            state.draft = None;
            self.put(frame);
        }
    }

    /// `take_back_written`.
    fn take_back_written(&self, state: &mut State, member: &Member) {
        // In `take_back`: its PKRU lets it read only.
        member.open.set(false);
        state.owner = Some(member.tag);
        // An owner without a draft is one in C, too.
        let _ = self.take_back(state);
    }

    /// `is_inside`.
    fn is_inside(&self, state: &State, tag: u64) -> bool {
        self.claim.load(Ordering::Relaxed) == tag
            && self.word.load(Ordering::SeqCst) == tag
            && state.owner.is_none_or(|owner| owner == tag)
    }

    /// `vmsrs_resident_yield`, of a request of the only process. All claims are valid, and nobody dies.
    fn resident_yield(&self, state: &mut State, tag: u64) -> bool {
        if state.resident.is_none() {
            return true;
        }
        let mut claim = self.claim.load(Ordering::Relaxed);
        if claim != tag {
            claim = self.try_claim();
        }
        if claim == tag {
            return true;
        }
        if claim != 0 {
            return false;
        }
        self.resident_drop(state);
        true
    }

    /// `vmsrs_resident_cool`, by the request that has the lock.
    ///
    /// # Errors
    ///
    /// [`Failed`] if another request is inside.
    pub fn cool(&self, member: &Member) -> Result<(), Failed> {
        let _lock = self.request_lock(member.tag);
        let mut state = lock(&self.state);
        if state.resident.is_some() && self.is_inside(&state, member.tag) {
            self.take_back_written(&mut state, member);
            return Ok(());
        }
        // `vmsrs_resident_yield` without a process.
        if state.resident.is_some() && !self.resident_claim() {
            return Err(Failed);
        }
        if state.resident.is_some() {
            self.resident_drop(&mut state);
        }
        Ok(())
    }

    /// `vmsrs_resident_lock`: the domain, if the request is inside.
    fn resident_lock(&self, member: &Member) -> Result<Option<MutexGuard<'_, State>>, Failed> {
        if !member.open.get() {
            return Ok(None);
        }
        if !*lock(&self.residents) {
            return Err(Failed);
        }
        let state = lock(&self.state);
        if state.resident.is_some() && self.is_inside(&state, member.tag) {
            return Ok(Some(state));
        }
        Err(Failed)
    }

    /// `copy_changed`, in `vmsrs_resident_prepare`: a copy of the resident page, if it differs.
    fn copy_changed(&self, state: &State) -> Option<usize> {
        let frame = state.resident.expect("hot");
        let value = self.read_frame(frame);
        if value == self.read(state.committed) {
            return None;
        }
        let copy = self.take();
        self.write_frame(copy, value);
        Some(copy)
    }

    /// `vmsrs_commit` of a plain request, with `domains_commit`, `vmsrs_resident_commit` and `vmsrs_heat_learn`; `learn` says that
    /// it is time for the domain to be hot again. False if it has written nothing.
    ///
    /// # Errors
    ///
    /// [`Failed`] if it is not alone inside.
    pub fn commit(&self, member: &Member, learn: bool) -> Result<bool, Failed> {
        let _lock = self.request_lock(member.tag);
        let hot = self.resident_lock(member)?;
        let copy = hot.as_ref().and_then(|state| self.copy_changed(state));
        let mut state = hot.unwrap_or_else(|| lock(&self.state));
        let mut record = copy;
        // `vmsrs_drafts_commit`, if the request has any.
        if state.owner == Some(member.tag) {
            state.owner = None;
            record = state.draft.take();
            self.zap();
        }
        let Some(frame) = record else {
            if state.resident.is_some() {
                self.claim.store(0, Ordering::Release);
            }
            return Ok(false);
        };
        let old = std::mem::replace(&mut state.committed, Version::Pool(frame));
        // `vmsrs_batch_append`, with `add_record`; a version that is being sent is the sealer's.
        let superseded = lock(&self.batch).replace(frame);
        if let (Some(superseded), Version::Pool(old)) = (superseded, old) {
            assert_eq!(superseded, old, "not the page's version");
            self.put(old);
        }
        if state.resident.is_some() {
            // `vmsrs_resident_commit`.
            self.claim.store(0, Ordering::Release);
        } else if learn {
            self.resident_new(&mut state);
        }
        Ok(true)
    }

    /// `vmsrs_resident_discard`, in `fail_locked`: what the request has written is dropped, whether inside or not.
    pub fn fail(&self, member: &Member) {
        let lock_of_request = self.request_lock(member.tag);
        // `find_of`, with `is_of`.
        let found = *lock(&self.residents) && self.claim.load(Ordering::Relaxed) == member.tag;
        let mut state = lock(&self.state);
        if found && state.resident.is_some() && self.claim.load(Ordering::Relaxed) == member.tag {
            member.open.set(false);
            self.resident_drop(&mut state);
        }
        // `vmsrs_drafts_discard`.
        if state.owner == Some(member.tag) {
            state.owner = None;
            self.zap();
            if let Some(frame) = state.draft.take() {
                self.put(frame);
            }
        }
        drop(state);
        drop(lock_of_request);
        self.end(member);
    }

    // heat.c

    /// `free_key`: the key is wanted for another domain.
    pub fn free_key(&self) {
        if !*lock(&self.residents) {
            return;
        }
        let Ok(mut state) = self.state.try_lock() else {
            return;
        };
        if state.resident.is_some() && self.resident_claim() {
            self.resident_drop(&mut state);
        }
    }

    /// `resident_new`, `add_page` and `map_pages`, in `vmsrs_heat_learn`.
    fn resident_new(&self, state: &mut State) {
        let mut residents = lock(&self.residents);
        // `vmsrs_hot_key`.
        assert_eq!(self.entry.load(Ordering::Relaxed), 0);
        self.claim.store(0, Ordering::Relaxed);
        assert!(self.resident_claim());
        *residents = true;
        drop(residents);
        let frame = self.take();
        self.write_frame(frame, self.read(state.committed));
        state.draft = Some(frame);
        state.resident = Some(frame);
        *lock(&self.table) = Entry::Resident(frame);
        let residents = lock(&self.residents);
        // `vmsrs_hot_list`.
        self.entry.store(KEY, Ordering::Release);
        drop(residents);
        self.claim.store(0, Ordering::Release);
    }

    /// `vmsrs_request_lock`.
    fn request_lock(&self, tag: u64) -> MutexGuard<'_, ()> {
        lock(&self.request_locks[tag as usize % 2])
    }

    // answer.c

    /// `seal`, with `show_sealed`. Gives what the host has copied.
    pub fn seal(&self) -> Option<u64> {
        let frame = lock(&self.batch).take()?;
        let sealed = self.read_frame(frame);
        let mut state = lock(&self.state);
        if state.committed == Version::Pool(frame) {
            state.committed = Version::Vault(sealed);
            // `shows_draft_only`: a draft is alone here.
            if state.draft.is_none() {
                self.zap();
            }
        }
        drop(state);
        self.put(frame);
        Some(sealed)
    }

    /// A stray write clears the lock's word.
    pub fn clear_word(&self) {
        self.word.store(0, Ordering::Relaxed);
    }

    /// The committed content, and whether the domain is hot.
    pub fn state(&self) -> (u64, bool) {
        let state = lock(&self.state);
        (self.read(state.committed), state.resident.is_some())
    }
}
