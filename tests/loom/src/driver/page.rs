//! `guest-kmod/page.c`, `drafts.c`, `request.c`, `commit.c` and `fail.c`: who may make a draft while the
//! request is failed or committed by others.
//!
//! A domain has one page here; drafts in the place of the committed version are in `batch.rs`. Drafts have their
//! request's protection key: on a CPU without, a late write can reach the draft of the next request, as
//! `docs/design.md` says. No domain is hot here: see `tests/hot.rs`.

use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::sync::{Mutex, MutexGuard, RwLock};
use std::sync::Arc;
use vmsrs_protocol::shared::LOCK_TAG;

const DOMAINS: usize = 2;

/// Frame 0 has the first committed version, the next ones are for drafts. Each is used once.
const FRAMES: usize = 4;

/// An access that ends with SIGSEGV or SIGBUS.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused;

/// A commit of a failed request.
#[derive(Debug, PartialEq, Eq)]
pub struct Stale;

/// `struct vmsrs_request`.
struct Request {
    tag: u64,
    /// Written under `requests_lock`, read in faults with `READ_ONCE`.
    failed: AtomicBool,
    /// Whether `file` is set; as `failed`.
    file: AtomicBool,
}

/// `requests`, with each request's list of domains.
#[derive(Default)]
struct Requests(Vec<(Arc<Request>, Vec<usize>)>);

impl Requests {
    /// `vmsrs_request_find`, or a new one.
    fn get(&mut self, tag: u64) -> &mut (Arc<Request>, Vec<usize>) {
        let known = self.0.iter().position(|(request, _)| request.tag == tag);
        let place = known.unwrap_or_else(|| {
            let request = Request {
                tag,
                failed: AtomicBool::new(false),
                file: AtomicBool::new(true),
            };
            self.0.push((Arc::new(request), Vec::new()));
            self.0.len() - 1
        });
        &mut self.0[place]
    }
}

/// What `vmsrs_domain.lock` guards.
#[derive(Default)]
struct State {
    owner: Option<Arc<Request>>,
    draft: Option<usize>,
    committed: usize,
    /// Frames that have been drafts.
    used: usize,
}

/// The page-table entry of a domain's page. A CPU reads it and makes the access in one step, since a zap returns only
/// when no CPU uses the old entry any more.
#[derive(Clone, Copy, Default)]
struct Entry {
    frame: Option<usize>,
    /// Tag of the request whose key it has, if it is writable.
    writer: Option<u64>,
}

struct Domain {
    word: AtomicU64,
    state: Mutex<State>,
    entry: Mutex<Entry>,
    frames: [AtomicU64; FRAMES],
}

/// The device with one app.
pub struct Pages {
    domains: [Domain; DOMAINS],
    requests: Mutex<Requests>,
    commit_lock: RwLock<()>,
    /// One for each of the two requests.
    request_locks: [Mutex<()>; 2],
    /// `srcu`: a read side for each fault; the write side is a grace period.
    srcu: RwLock<()>,
    gone: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics with a lock")
}

impl Default for Pages {
    /// All pages are committed zeros.
    fn default() -> Self {
        Self {
            domains: [(); DOMAINS].map(|()| Domain {
                word: AtomicU64::new(0),
                state: Mutex::default(),
                entry: Mutex::default(),
                frames: [(); FRAMES].map(|()| AtomicU64::new(0)),
            }),
            requests: Mutex::default(),
            commit_lock: RwLock::new(()),
            request_locks: [(); 2].map(|()| Mutex::new(())),
            srcu: RwLock::new(()),
            gone: AtomicBool::new(false),
        }
    }
}

impl Pages {
    /// The library's `word::try_lock`.
    pub fn try_lock(&self, domain: usize, tag: u64) -> bool {
        crate::word::try_lock(&self.domains[domain].word, tag)
    }

    /// The library's `word::release`.
    pub fn release(&self, domain: usize, tag: u64) {
        crate::word::release(&self.domains[domain].word, tag);
    }

    // mapping.c

    /// `vmsrs_zap_add` and `vmsrs_zap_own`.
    fn zap(&self, domain: usize) {
        *lock(&self.domains[domain].entry) = Entry::default();
    }

    // page.c, with request.c and drafts.c

    /// `may_write`.
    fn may_write(&self, domain: usize, state: &State, tag: u64) -> bool {
        if self.domains[domain].word.load(Ordering::SeqCst) & LOCK_TAG != tag {
            return false;
        }
        state
            .owner
            .as_ref()
            .is_none_or(|owner| owner.tag == tag && !owner.failed.load(Ordering::Relaxed))
    }

    /// `vmsrs_request_own_domain`.
    fn request_own(&self, domain: usize, state: &mut State, tag: u64) -> Result<(), Refused> {
        let mut requests = lock(&self.requests);
        let (request, domains) = requests.get(tag);
        if request.failed.load(Ordering::Relaxed) {
            return Err(Refused);
        }
        domains.push(domain);
        state.owner = Some(request.clone());
        Ok(())
    }

    /// `thread_write` and `vmsrs_draft_make`. `mapped`: there was an entry for reading.
    fn thread_write(&self, domain: usize, tag: u64, mapped: bool) -> Result<(), Refused> {
        let frames = &self.domains[domain].frames;
        let mut state = lock(&self.domains[domain].state);
        if !self.may_write(domain, &state, tag) {
            return Err(Refused);
        }
        if state.draft.is_none() {
            if state.owner.is_none() {
                self.request_own(domain, &mut state, tag)?;
            }
            state.used += 1;
            let frame = state.used;
            let old = frames[state.committed].load(Ordering::Relaxed);
            frames[frame].store(old, Ordering::Relaxed);
            state.draft = Some(frame);
        }
        if mapped {
            self.zap(domain);
        }
        let mut entry = lock(&self.domains[domain].entry);
        if entry.frame.is_none() {
            *entry = Entry {
                frame: state.draft,
                writer: Some(tag),
            };
        }
        Ok(())
    }

    /// `page_read`.
    fn page_read(&self, domain: usize) {
        let state = lock(&self.domains[domain].state);
        let mut frame = state.committed;
        if let (Some(draft), Some(owner)) = (state.draft, &state.owner)
            && owner.file.load(Ordering::Relaxed)
        {
            frame = draft;
        }
        let mut entry = lock(&self.domains[domain].entry);
        if entry.frame.is_none() {
            *entry = Entry {
                frame: Some(frame),
                writer: None,
            };
        }
    }

    /// `page_access`.
    fn page_access(&self, domain: usize, write: Option<u64>, mapped: bool) -> Result<(), Refused> {
        let _section = self.srcu.read().expect("no thread panics with a lock");
        if self.gone.load(Ordering::Relaxed) {
            return Err(Refused);
        }
        match write {
            Some(tag) => self.thread_write(domain, tag, mapped)?,
            None => self.page_read(domain),
        }
        Ok(())
    }

    /// An instruction of a thread with this tag that writes to the domain's page.
    ///
    /// # Errors
    ///
    /// The thread gets a signal.
    pub fn store(&self, domain: usize, tag: u64, value: u64) -> Result<(), Refused> {
        loop {
            let entry = lock(&self.domains[domain].entry);
            match (entry.frame, entry.writer) {
                (Some(frame), Some(writer)) if writer == tag => {
                    self.domains[domain].frames[frame].store(value, Ordering::Relaxed);
                    return Ok(());
                }
                // SEGV_PKUERR
                (Some(_), Some(_)) => return Err(Refused),
                _ => {}
            }
            let mapped = entry.frame.is_some();
            drop(entry);
            self.page_access(domain, Some(tag), mapped)?;
        }
    }

    /// An instruction that reads the domain's page.
    ///
    /// # Errors
    ///
    /// The thread gets a signal.
    pub fn load(&self, domain: usize) -> Result<u64, Refused> {
        loop {
            let entry = lock(&self.domains[domain].entry);
            if let Some(frame) = entry.frame {
                return Ok(self.domains[domain].frames[frame].load(Ordering::Relaxed));
            }
            drop(entry);
            self.page_access(domain, None, false)?;
        }
    }

    // commit.c

    /// `vmsrs_commit` of all domains, with `vmsrs_request_take_domains`, `domains_commit` and
    /// `vmsrs_drafts_commit`.
    ///
    /// # Errors
    ///
    /// The request has failed.
    pub fn commit(&self, tag: u64) -> Result<(), Stale> {
        let _commit = self
            .commit_lock
            .read()
            .expect("no thread panics with a lock");
        let _request = lock(&self.request_locks[tag as usize % 2]);
        let mut requests = lock(&self.requests);
        let (request, domains) = requests.get(tag);
        if request.failed.load(Ordering::Relaxed) {
            return Err(Stale);
        }
        let domains = std::mem::take(domains);
        // So `vmsrs_request_remove_idle` has nothing to do.
        requests.0.retain(|(request, _)| request.tag != tag);
        drop(requests);
        let mut states: Vec<_> = domains
            .iter()
            .map(|&domain| lock(&self.domains[domain].state))
            .collect();
        for (&domain, state) in domains.iter().zip(&mut states) {
            self.zap(domain);
            if let Some(draft) = state.draft.take() {
                state.committed = draft;
            }
            state.owner = None;
            // `map_committed`.
            *lock(&self.domains[domain].entry) = Entry {
                frame: Some(state.committed),
                writer: None,
            };
        }
        Ok(())
    }

    // fail.c

    /// `vmsrs_drafts_discard`.
    fn domain_discard(&self, domain: usize) {
        let mut state = lock(&self.domains[domain].state);
        self.zap(domain);
        state.draft = None;
        state.owner = None;
    }

    /// `vmsrs_fail`, with `mark_failed` and `fail_locked`. The thread at fault has entered all domains as held.
    pub fn fail(&self, tag: u64) {
        let _commit = self
            .commit_lock
            .read()
            .expect("no thread panics with a lock");
        let _request = lock(&self.request_locks[tag as usize % 2]);
        let mut requests = lock(&self.requests);
        let (request, domains) = requests.get(tag);
        request.failed.store(true, Ordering::Relaxed);
        request.file.store(false, Ordering::Relaxed);
        let domains = std::mem::take(domains);
        drop(requests);
        for domain in domains {
            self.domain_discard(domain);
            self.lock_release(domain, tag);
        }
        for domain in 0..DOMAINS {
            self.lock_release(domain, tag);
        }
    }

    /// `vmsrs_fail_overdue`, without the request's lock. No request is suspended.
    pub fn fail_overdue(&self, tag: u64) {
        let mut requests = lock(&self.requests);
        requests.get(tag).0.failed.store(true, Ordering::Relaxed);
    }

    /// `vmsrs_lock_release`.
    fn lock_release(&self, domain: usize, tag: u64) {
        let word = &self.domains[domain].word;
        let mut value = word.load(Ordering::Relaxed);
        while value & LOCK_TAG == tag {
            match word.compare_exchange(value, 0, Ordering::SeqCst, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => value = now,
            }
        }
    }

    // main.c

    /// `vmsrs_remove`, up to the reset of the device: the pool belongs to the next driver.
    pub fn remove(&self) {
        let commit = self
            .commit_lock
            .write()
            .expect("no thread panics with a lock");
        self.gone.store(true, Ordering::Relaxed);
        drop(commit);
        drop(self.srcu.write().expect("no thread panics with a lock"));
        let _commit = self
            .commit_lock
            .write()
            .expect("no thread panics with a lock");
        for domain in 0..DOMAINS {
            self.zap(domain);
        }
    }

    /// The committed content of a domain's page.
    pub fn committed(&self, domain: usize) -> u64 {
        let state = lock(&self.domains[domain].state);
        self.domains[domain].frames[state.committed].load(Ordering::Relaxed)
    }
}
