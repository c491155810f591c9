//! The recovery engine: store, recovery, incidents and cleanser.
//!
//! It knows frames, pages and commits, and nothing of KVM, queues or threads: memory is reached
//! through [`Protection`] and [`Inspect`], time comes as an argument, and one call is one event. So
//! its guarantees can be tested by property and by model.
//!
//! # States of a frame
//!
//! ```text
//!          grant              seal
//!   Free ────────▶ Granted ─────────▶ Sealed
//!    ▲                │ │                │ superseded
//!    │ wiped          │ │ discard        ▼
//!    └────────────────│─└────────────▶ Retired
//!                     │ incident         ▲
//!                     └──▶ Evidence ─────┘ oldest goes first
//! ```
//!
//! Only granted frames are writable by the guest. The zero frame is always sealed. A sealed frame
//! of a domain with a mirror has a second copy in a frame of the state Mirror: taken from the free
//! ones when the page is sealed, retired with it. The budget
//! `pages in extents + mirror + 1 + pool + evidence <= window` makes sure that a full pool can always be
//! granted as soon as the cleanser has caught up.

pub(crate) mod changes;
mod cleanser;
mod config;

pub(crate) mod corruption;
pub(crate) mod evidence;
pub(crate) mod guest_down;
pub(crate) mod incidents;
mod integrity;
mod message;
mod memory;
mod recovery;
mod refusal;
mod runs;
mod scrub;
mod seal;
pub(crate) mod store;

#[cfg(test)]
mod mock;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::mem;
use std::time::Duration;

use vmsrs_protocol::control::{
    AddExtent, AppReply, DomainReply, Extent, OpenApp, OpenDomain, PageFrame,
};
use vmsrs_protocol::device::{ABI_VERSION, DeviceConfig};
use vmsrs_protocol::event::{EVENT_DAMAGE, EVENT_SEALED_WRITE, Event};
use vmsrs_protocol::incident::{DroppedDraft, Evidence, IncidentReport};
use vmsrs_protocol::seal::{SEAL_LAST, SealRecord};
use vmsrs_protocol::{DAMAGED_FRAME, FrameRun, NONE, ZERO_FRAME};

pub use changes::Page;
pub use cleanser::RetiredFrames;
pub use config::{BATCH_RECORDS_MAX, ConfigError, EngineConfig, PAGES_MIN};
pub use memory::{HostError, Memory, PoolCopy, Unreadable, checksum};
pub use corruption::Retry;
pub use incidents::{CODE_MAX, SealedWrite, Verdict, kind_name};
pub use message::{Reply, handle_message};
pub use refusal::Refusal;
pub use scrub::{Position, Scope, ScrubCounts, ScrubTurn};
pub use seal::SealOutcome;
pub use store::{FrameState, PageOf};

use corruption::{Cause, Corruption, Difference, Remedy};
use guest_down::{GuestDown, Loss};
use incidents::IncidentStore;
use integrity::Finding;
use recovery::Limits;
use seal::Staging;
use store::Store;

/// Tags of one boot of the guest: the driver may use as many before they run into the next boot's.
const TAGS_PER_BOOT: u64 = 1 << 42;

/// Tags stay below this (see [`DeviceConfig::tag_base`]).
const TAG_LIMIT: u64 = 1 << 62;

/// Maximum number of domains that wait for a check because a request in them failed; the scrubber
/// reaches others later.
const SUSPECTS_MAX: usize = 256;

/// The memory of the window, as the engine needs it.
pub trait Memory: Protection + Inspect + Content {}

impl<M: Protection + Inspect + Content> Memory for M {}

/// The recovery engine of one virtual machine.
pub struct Engine {
    config: EngineConfig,
    store: Store,
    staging: Staging,
    incidents: IncidentStore,
    /// Domains of failed requests, as pairs of app and domain, whose sealed pages are to be checked
    /// soon. At most [`SUSPECTS_MAX`].
    suspects: VecDeque<(u32, u32)>,
    /// Events for the driver.
    events: Vec<Event>,
    /// What the last reset dropped, until a driver starts.
    lost: Loss,
    counters: Counters,
    tag_base: u64,
}

/// The context of a message.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Time since the Unix epoch.
    pub at: Duration,
    /// Maximum number of runs of frames in the reply.
    pub max_runs: usize,
}

/// What the engine has done since it was made.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) commits: u64,
    pub(crate) sealed_pages: u64,
    pub(crate) seal_messages: u64,
    pub(crate) dropped_drafts: u64,
    pub(crate) resets: u64,
    pub(crate) scrubbed: ScrubCounts,
    pub(crate) scrub_passes: u64,
}

impl Engine {
    /// Makes an engine whose frames are all free, and not writable by the guest.
    ///
    /// # Errors
    ///
    /// Fails when the limits are inconsistent.
    pub fn new(config: EngineConfig) -> Result<Self, ConfigError> {
        Ok(Self {
            store: Store::new(&config)?,
            staging: Staging::default(),
            incidents: IncidentStore::new(config.incidents),
            suspects: VecDeque::new(),
            events: Vec::new(),
            lost: Loss::default(),
            counters: Counters::default(),
            tag_base: 1,
            config,
        })
    }

    /// What the driver reads in the device's configuration space in this boot.
    pub fn device_config(&self) -> DeviceConfig {
        DeviceConfig {
            abi_version: ABI_VERSION,
            window_frames: self.config.window_frames,
            pool_frames: self.config.pool_frames,
            batch_records: self.config.batch_records,
            tag_base: self.tag_base,
            incident_base: self.incidents.base(),
        }
    }

    pub(crate) fn config(&self) -> &EngineConfig {
        &self.config
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn incidents(&self) -> &IncidentStore {
        &self.incidents
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Pages of a commit that is still arriving.
    pub(crate) fn staged_pages(&self) -> usize {
        self.staging.len()
    }

    /// Finds or makes an app.
    ///
    /// # Errors
    ///
    /// Refuses a name that is empty or not padded with zeros, and more than `MAX_APPS` apps.
    pub fn open_app(&mut self, message: &OpenApp) -> Result<AppReply, Refusal> {
        self.store.open_app(message)
    }

    /// Finds or makes a domain.
    ///
    /// # Errors
    ///
    /// Refuses an unknown app, a key of a wrong length or not padded with zeros, and more domains
    /// than the window has units of pages for.
    pub fn open_domain(&mut self, message: &OpenDomain) -> Result<DomainReply, Refusal> {
        self.store.open_domain(message)
    }

    /// At most `limit` extents of a domain from number `first` on, with the next number or `NONE`.
    ///
    /// # Errors
    ///
    /// Refuses an unknown app or domain.
    pub fn list_extents(
        &self,
        app: u32,
        domain: u32,
        first: u32,
        limit: usize,
    ) -> Result<(Vec<Extent>, u32), Refusal> {
        self.store.list_extents(app, domain, first, limit)
    }

    /// At most `limit` sealed pages of a domain from page `first` on, with the next page or `NONE`.
    ///
    /// # Errors
    ///
    /// Refuses an unknown app or domain.
    pub fn list_pages(
        &self,
        app: u32,
        domain: u32,
        first: u32,
        limit: usize,
    ) -> Result<(Vec<PageFrame>, u32), Refusal> {
        let (mut pages, next) = self.store.list_pages(app, domain, first, limit)?;
        for entry in &mut pages {
            if self.store.frames.is_damaged(entry.frame) {
                entry.frame = DAMAGED_FRAME;
            }
        }
        Ok((pages, next))
    }

    /// Finds or makes an extent.
    ///
    /// # Errors
    ///
    /// Refuses an unknown app or domain, an index beyond the next one, a length that cannot be, and
    /// an extent that the window has no room for.
    pub fn add_extent(&mut self, message: &AddExtent) -> Result<Extent, Refusal> {
        self.store.add_extent(message)
    }

    /// Grants frames to the driver, fewer than `frames` when a limit says so.
    ///
    /// # Errors
    ///
    /// [`Refusal::Host`] when none could be made writable.
    pub fn grant(
        &mut self,
        frames: u32,
        max_runs: usize,
        protection: &mut impl Protection,
    ) -> Result<Vec<FrameRun>, Refusal> {
        self.store.grant(frames, max_runs, protection)
    }

    /// Takes over committed pages, whole commits in order, up to the first that is refused.
    ///
    /// # Errors
    ///
    /// Refuses a message with more records than the driver may send; the outcome has every other
    /// refusal.
    pub fn seal(
        &mut self,
        call: Call,
        records: &[SealRecord],
        memory: &mut (impl Protection + Content),
    ) -> Result<SealOutcome, Refusal> {
        if records.len() > self.config.batch_records as usize {
            return Err(Refusal::Malformed(
                "the driver sent too many seal records in a message",
            ));
        }
        let outcome = seal::seal(
            &mut self.store,
            &mut self.staging,
            records,
            call.max_runs,
            memory,
        );
        for &frame in &outcome.damaged {
            self.note_corruption(call.at, frame, Cause::Poison, Remedy::Lost, None);
        }
        let commits = records[..outcome.taken as usize]
            .iter()
            .filter(|record| record.flags & SEAL_LAST != 0);
        self.counters.commits += commits.count() as u64;
        self.counters.sealed_pages += u64::from(outcome.sealed);
        self.counters.seal_messages += 1;
        Ok(outcome)
    }

    /// Takes the report of a failed request; its drafts become evidence. Returns frames in exchange.
    ///
    /// # Errors
    ///
    /// Refuses an unknown kind, a number that is not new, an unknown app or domain, pages that are
    /// not their domain's, frames that are not granted, and [`Refusal::Host`] when they could not be
    /// made read-only.
    pub fn report(
        &mut self,
        call: Call,
        report: &IncidentReport,
        drafts: &[DroppedDraft],
        memory: &mut impl Memory,
    ) -> Result<Vec<FrameRun>, Refusal> {
        let limits = Limits {
            evidence_frames: self.config.evidence_frames,
            max_runs: call.max_runs,
        };
        let granted = recovery::report(
            &mut self.store,
            &mut self.incidents,
            limits,
            call.at,
            report,
            drafts,
            memory,
        )?;
        self.counters.dropped_drafts += drafts.len() as u64;
        self.check_restored(call.at, report, drafts, memory);
        Ok(granted)
    }

    /// Takes what the program kept of a failed request: `bytes` are its stack, modules and message,
    /// of the lengths that `evidence` says. For an incident that is not kept, or has some already, it
    /// is dropped.
    ///
    /// # Errors
    ///
    /// Refuses parts that are too long or not what `bytes` has.
    pub fn evidence(&mut self, evidence: &Evidence, bytes: &[u8]) -> Result<(), Refusal> {
        let kept = evidence::Program::new(evidence, bytes)?;
        self.incidents.attach(evidence.incident, kept);
        Ok(())
    }

    /// Checks the sealed versions that a failed request's pages go back to, and puts its domains on
    /// the list of those that are checked as a whole soon.
    fn check_restored(
        &mut self,
        at: Duration,
        report: &IncidentReport,
        drafts: &[DroppedDraft],
        memory: &mut impl Memory,
    ) {
        for draft in drafts {
            let frame = self.store.apps[report.app as usize].frame(draft.page);
            if frame != NONE {
                self.check_frame(at, frame, memory);
            }
        }
        let domains = drafts.iter().map(|draft| draft.domain);
        for domain in domains.chain([report.domain]) {
            let suspect = (report.app, domain);
            if domain != NONE
                && self.suspects.len() < SUSPECTS_MAX
                && !self.suspects.contains(&suspect)
            {
                self.suspects.push_back(suspect);
            }
        }
    }

    /// Takes the next domain that is due for a whole check.
    pub fn take_suspect(&mut self) -> Option<Scope> {
        let (app, domain) = self.suspects.pop_front()?;
        Some(Scope {
            app: Some(app),
            domain: Some(domain),
        })
    }

    /// Whether a domain is due for a whole check.
    pub fn has_suspects(&self) -> bool {
        !self.suspects.is_empty()
    }

    /// Checks sealed pages from a position on, with the work of at most `pages` of them (at least 1),
    /// and repairs from their mirrors those that are wrong. Returns what was found, and where to go on.
    pub fn scrub(
        &mut self,
        at: Duration,
        scope: Scope,
        position: Position,
        pages: u32,
        memory: &mut impl Memory,
    ) -> ScrubTurn {
        if position == Position::default()
            && let Some((cause, remedy)) = integrity::check_zero_frame(memory)
        {
            self.note_corruption(at, ZERO_FRAME, cause, remedy, None);
        }
        let scrub::Found {
            frames,
            looked,
            next,
        } = scrub::next_frames(&self.store, scope, position, pages);
        let mut counts = ScrubCounts::default();
        for frame in frames {
            counts.checked += 1;
            match self.check_frame(at, frame, memory) {
                Finding::Whole => {}
                Finding::Mirrored => counts.mirrored += 1,
                Finding::Wrong {
                    remedy: Remedy::Repaired,
                    ..
                } => counts.repaired += 1,
                Finding::Wrong { .. } | Finding::Damaged => counts.damaged += 1,
            }
        }
        self.counters.scrubbed.add(counts);
        if next.is_none() && scope == Scope::default() {
            self.counters.scrub_passes += 1;
        }
        ScrubTurn {
            found: counts,
            looked,
            next,
        }
    }

    /// Handles an access of the guest that the hardware stopped because the frame's memory is broken.
    /// Returns what becomes of the access.
    pub fn poisoned(&mut self, at: Duration, frame: u32, memory: &mut impl Memory) -> Retry {
        match self.frame_state(frame) {
            Some(FrameState::Sealed) if frame == ZERO_FRAME => {
                let Some((cause, remedy)) = integrity::check_zero_frame(memory) else {
                    return Retry::Now;
                };
                self.note_corruption(at, frame, cause, remedy, None);
                match remedy {
                    Remedy::Repaired => Retry::Now,
                    Remedy::Replaced | Remedy::Lost => Retry::Never,
                }
            }
            Some(FrameState::Sealed) => match self.check_frame(at, frame, memory) {
                Finding::Whole
                | Finding::Mirrored
                | Finding::Wrong {
                    remedy: Remedy::Repaired,
                    ..
                } => Retry::Now,
                Finding::Wrong { .. } | Finding::Damaged => Retry::Later,
            },
            Some(_) => {
                // Its user loses what is in it; the cleanser gives it other memory then.
                self.note_corruption(at, frame, Cause::Poison, Remedy::Replaced, None);
                Retry::Never
            }
            None => Retry::Never,
        }
    }

    /// Takes the events for the driver.
    pub fn take_events(&mut self) -> Vec<Event> {
        mem::take(&mut self.events)
    }

    /// Finds the number of an app, and of a domain in it if a key is given.
    pub fn find(&self, app: &[u8], domain: Option<&[u8]>) -> Option<Scope> {
        let number = self
            .store
            .apps
            .iter()
            .position(|known| known.name() == app)?;
        let domain = match domain {
            Some(key) => Some(self.store.apps[number].find(key)?),
            None => None,
        };
        Some(Scope {
            // Below `MAX_APPS`.
            app: Some(number as u32),
            domain,
        })
    }

    /// Number of sealed pages in scope.
    pub fn sealed_pages(&self, scope: Scope) -> u64 {
        match (
            scope.app.and_then(|app| self.store.app(app).ok()),
            scope.domain,
        ) {
            (Some(app), Some(domain)) if app.has_domain(domain) => app.domain_size(domain).1.into(),
            (Some(app), None) => (0..app.domains())
                .map(|domain| u64::from(app.domain_size(domain).1))
                .sum(),
            // The zero frame belongs to no page.
            _ => u64::from(self.store.frames.count(FrameState::Sealed)) - 1,
        }
    }

    fn check_frame(&mut self, at: Duration, frame: u32, memory: &mut impl Memory) -> Finding {
        let finding = integrity::check(&mut self.store, frame, memory);
        if let Finding::Wrong {
            cause,
            remedy,
            difference,
        } = finding
        {
            self.note_corruption(at, frame, cause, remedy, difference);
        }
        finding
    }

    /// Keeps a corruption as an incident, and tells the driver when a page is lost.
    fn note_corruption(
        &mut self,
        at: Duration,
        frame: u32,
        cause: Cause,
        remedy: Remedy,
        difference: Option<Difference>,
    ) {
        let corruption = Corruption {
            cause,
            remedy,
            frame,
            owner: self.store.owner_of(frame),
            difference,
        };
        let number = self.incidents.add_corruption(at, corruption);
        if let (Some(page), Remedy::Lost) = (self.store.frames.page(frame), remedy) {
            self.events.push(Event {
                kind: EVENT_DAMAGE,
                frame,
                incident: number,
                address: page.address(),
                instruction: 0,
                vcpu: NONE,
                reserved: 0,
            });
        }
    }

    /// Takes drafts that were dropped without an error. Returns frames in exchange.
    ///
    /// # Errors
    ///
    /// Refuses frames that are not granted or named twice, and [`Refusal::Host`] when they could not
    /// be made read-only.
    pub fn discard(
        &mut self,
        frames: &[u32],
        max_runs: usize,
        protection: &mut impl Protection,
    ) -> Result<Vec<FrameRun>, Refusal> {
        let granted = recovery::discard(&mut self.store, frames, max_runs, protection)?;
        self.counters.dropped_drafts += frames.len() as u64;
        Ok(granted)
    }

    /// Keeps a write that the second-level page table stopped, and returns the event for the driver.
    pub fn sealed_write(&mut self, at: Duration, write: SealedWrite) -> Event {
        let owner = self.store.owner_of(write.frame);
        Event {
            kind: EVENT_SEALED_WRITE,
            frame: write.frame,
            incident: self.incidents.add_sealed_write(at, write, owner),
            address: write.address,
            instruction: write.instruction,
            vcpu: write.vcpu,
            reserved: 0,
        }
    }

    /// The state of a frame; `None` beyond the window.
    pub fn frame_state(&self, frame: u32) -> Option<FrameState> {
        self.store.frames.state(frame)
    }

    /// Whether the guest may not write to a frame.
    pub fn is_protected(&self, frame: u32) -> bool {
        self.frame_state(frame) != Some(FrameState::Granted)
    }

    /// Ends a boot of the guest: all granted frames are retired, a commit that has not arrived
    /// whole is dropped, numbers continue after those in use. Apps, domains and their sealed pages
    /// stay.
    ///
    /// Frames that the host cannot make read-only stay granted, unknown to the next driver, until
    /// the next reset.
    pub fn reset(&mut self, memory: &mut (impl Protection + Inspect)) {
        self.lost = Loss::of(&self.store, self.staging.len(), memory);
        self.staging.drop_commit(&mut self.store);
        let mut granted: Vec<u32> = self.store.frames.in_state(FrameState::Granted).collect();
        for run in runs::gather(&mut granted, |_| false) {
            match memory.protect(run) {
                Ok(()) => runs::frames_of(run).for_each(|frame| self.store.retire(frame)),
                Err(error) => log::error!("{error}: {}", error.source),
            }
        }
        self.store.take_short();
        self.incidents.reset();
        self.tag_base = (self.tag_base + TAGS_PER_BOOT).min(TAG_LIMIT - TAGS_PER_BOOT);
        self.counters.resets += 1;
    }

    /// Notes that a driver has started: what the last reset dropped is no longer its concern.
    pub fn driver_started(&mut self) {
        self.lost = Loss::default();
    }

    /// Records the end of the guest's kernel; `reason` is a sentence without a full stop.
    /// What was dropped by the reset since a driver started last becomes an incident. The reset may
    /// be the guest's own work: kernels reset their devices when they reboot in order.
    pub fn guest_down(&mut self, at: Duration, reason: &str) {
        let loss = mem::take(&mut self.lost);
        if loss.is_none() {
            return;
        }
        self.counters.dropped_drafts += u64::from(loss.written_frames);
        let down = GuestDown {
            reason: reason.to_owned(),
            loss,
        };
        self.incidents.add_guest_down(at, down);
    }

    /// Whether retired frames wait for the cleanser.
    pub fn has_retired(&self) -> bool {
        self.store.retired.len() != 0
    }

    /// Takes up to `frames` retired frames to wipe.
    pub fn take_retired(&mut self, frames: u32) -> RetiredFrames {
        cleanser::take(&mut self.store, frames)
    }

    /// Takes wiped frames back. Returns whether the driver should be told that frames are free again.
    pub fn cleansed(&mut self, retired: RetiredFrames) -> bool {
        cleanser::done(&mut self.store, retired)
    }

    /// Panics when an invariant of frames and pages does not hold.
    #[cfg(test)]
    pub(crate) fn check_invariants(&self) {
        self.store.check_invariants();
        let staged = self
            .store
            .frames
            .in_state(FrameState::Granted)
            .filter(|&frame| self.store.frames.is_staged(frame));
        assert_eq!(staged.count(), self.staging.len());
        let mut evidence: Vec<u32> = self
            .incidents
            .iter()
            .filter_map(incidents::Incident::request)
            .flat_map(|request| &request.drafts)
            .map(|draft| draft.frame)
            .filter(|&frame| frame != vmsrs_protocol::NONE)
            .collect();
        evidence.sort_unstable();
        let frames = self.store.frames.in_state(FrameState::Evidence);
        assert_eq!(evidence, frames.collect::<Vec<_>>());
        assert!(evidence.len() <= self.config.evidence_frames as usize);
    }
}
