//! The recovery engine: store, recovery, incidents and cleanser.
//!
//! It knows frames, pages and batches, and nothing of KVM, queues or threads: memory is reached
//! through [`Memory`], time comes as an argument, and one call is one event. So its guarantees can be
//! tested by property and by model.
//!
//! # States of a frame of the vault
//!
//! ```text
//!         copied            batch complete
//!   Free ───────▶ Staged ─────────────────▶ Sealed
//!    ▲            ▲ │                         │ superseded
//!    │     copied │ │ batch dropped           ▼
//!    │            │ └──────────────────▶ Retired
//!    │            └──────────────────────┘ │
//!    └──────────────── wiped ──────────────┘
//! ```
//!
//! The guest can write none of them: it writes to the pool, whose frames are the driver's alone. The zero
//! frame is always sealed. A sealed frame of a domain with a mirror has a second copy in a frame of the
//! state Mirror: taken from the free ones when the page is sealed, retired with it. The budget
//! `pages in extents + mirror + 1 + pool <= vault` makes sure that a valid batch always finds frames: it has
//! no more pages than the pool has frames. Retired frames are used first: a copy overwrites all of a frame,
//! so that one that is used soon need not be wiped.

pub(crate) mod changes;
mod cleanser;
mod config;

pub(crate) mod corruption;
pub(crate) mod evidence;
pub(crate) mod guest_down;
mod incident_counts;
pub(crate) mod incidents;
mod integrity;
mod memory;
mod message;
mod recovery;
mod refusal;
mod scrub;
mod seal;
pub(crate) mod store;
mod suspects;

#[cfg(test)]
pub(crate) mod mock;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::mem;
use std::time::Duration;

use vmsrs_protocol::control::{
    AddExtent, AppReply, DeleteRecord, DomainReply, Extent, OpenApp, OpenDomain, PageFrame,
};
use vmsrs_protocol::device::{ABI_VERSION, DeviceConfig};
use vmsrs_protocol::event::{EVENT_DAMAGE, EVENT_SEALED_WRITE, Event};
use vmsrs_protocol::incident::{DroppedDraft, Evidence, IncidentReport};
use vmsrs_protocol::seal::{SEAL_LAST, SealRecord};
use vmsrs_protocol::{NONE, ZERO_FRAME};

pub use changes::Page;
pub use config::{BATCH_RECORDS_MAX, ConfigError, EngineConfig, PAGES_MIN};
pub use corruption::Retry;
pub use incident_counts::{IncidentOutcome, RECOVERY_BOUNDS, RecoveryTimes};
pub use incidents::{CODE_MAX, SealedWrite, Verdict, kind_name};
pub use memory::{Memory, NotCopied, PoolCopy, Unreadable};
pub use message::{Reply, handle_message};
pub use refusal::Refusal;
pub use scrub::{Position, Scope, ScrubCounts, ScrubTurn};
pub use seal::SealOutcome;
pub use store::{FrameState, PageOf};

use corruption::{Cause, Corruption, Difference, Remedy};
use guest_down::{GuestDown, Loss};
use incidents::IncidentStore;
use integrity::Finding;
use seal::Staging;
use store::Store;
use suspects::Suspects;

/// Tags of one boot of the guest: the driver may use as many before they run into the next boot's.
const TAGS_PER_BOOT: u64 = 1 << 42;

/// Tags stay below this (see [`DeviceConfig::tag_base`]).
const TAG_LIMIT: u64 = 1 << 62;

/// The recovery engine of one virtual machine.
pub struct Engine {
    config: EngineConfig,
    store: Store,
    staging: Staging,
    incidents: IncidentStore,
    suspects: Suspects,
    /// Events for the driver.
    events: Vec<Event>,
    /// What the last reset dropped, until a driver starts.
    lost: Loss,
    /// How often domains were opened since a driver started.
    opened: u32,
    counters: Counters,
    tag_base: u64,
}

/// What the engine has done since it was made.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) batches: u64,
    pub(crate) sealed_pages: u64,
    pub(crate) seal_messages: u64,
    pub(crate) dropped_drafts: u64,
    pub(crate) resets: u64,
    pub(crate) scrubbed: ScrubCounts,
    pub(crate) scrub_passes: u64,
}

impl Engine {
    /// Makes an engine whose frames are all free.
    ///
    /// # Errors
    ///
    /// Fails when the limits are inconsistent.
    pub fn new(config: EngineConfig) -> Result<Self, ConfigError> {
        Ok(Self {
            store: Store::new(&config)?,
            staging: Staging::new(config.pool_frames),
            incidents: IncidentStore::new(config.incidents),
            suspects: Suspects::default(),
            events: Vec::new(),
            lost: Loss::default(),
            opened: 0,
            counters: Counters::default(),
            tag_base: 1,
            config,
        })
    }

    /// What the driver reads in the device's configuration space in this boot.
    pub fn device_config(&self) -> DeviceConfig {
        DeviceConfig {
            abi_version: ABI_VERSION,
            vault_frames: self.config.vault_frames,
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
    /// than the vault has units of pages for.
    pub fn open_domain(&mut self, message: &OpenDomain) -> Result<DomainReply, Refusal> {
        let reply = self.store.open_domain(message)?;
        self.opened = self.opened.saturating_add(1);
        Ok(reply)
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
        self.store.list_pages(app, domain, first, limit)
    }

    /// Finds or makes an extent.
    ///
    /// # Errors
    ///
    /// Refuses an unknown app or domain, an index beyond the next one, a length that cannot be, and
    /// an extent that the vault has no room for.
    pub fn add_extent(&mut self, message: &AddExtent) -> Result<Extent, Refusal> {
        self.store.add_extent(message)
    }

    /// Takes over a part of a batch of committed pages. `flags` says whether it is the last one, with
    /// which the batch takes effect. A batch that is refused is dropped as a whole.
    ///
    /// # Errors
    ///
    /// Refuses a message with more records than the driver may send; the outcome has every other
    /// refusal.
    pub fn seal(
        &mut self,
        at: Duration,
        records: &[SealRecord],
        flags: u32,
        memory: &mut impl Memory,
    ) -> Result<SealOutcome, Refusal> {
        if records.len() > self.config.batch_records as usize {
            self.drop_batch();
            return Err(Refusal::Malformed(
                "the driver sent too many seal records in a message",
            ));
        }
        let outcome = self.staging.seal(&mut self.store, records, flags, memory);
        for &frame in &outcome.damaged {
            self.note_corruption(at, frame, Cause::Poison, Remedy::Lost, None);
        }
        if outcome.refusal.is_none() {
            self.counters.batches += u64::from(flags & SEAL_LAST != 0);
        }
        self.counters.sealed_pages += u64::from(outcome.sealed);
        self.counters.seal_messages += 1;
        Ok(outcome)
    }

    /// Takes over domains that are deleted or cleared with the batch that arrives.
    ///
    /// # Errors
    ///
    /// Refuses a domain that does not exist or that the batch has named so already. The batch is dropped as a whole.
    pub fn delete(&mut self, records: &[DeleteRecord]) -> Result<(), Refusal> {
        self.staging.delete(&mut self.store, records)
    }

    /// Drops the batch that is still arriving, if there is one.
    pub(crate) fn drop_batch(&mut self) {
        self.staging.drop_batch(&mut self.store);
    }

    /// Takes the report of a failed request. What its drafts had changed becomes evidence; their frames
    /// are the driver's again.
    ///
    /// # Errors
    ///
    /// Refuses an unknown kind, a number that is not new, an unknown app or domain, pages that are
    /// not their domain's, and frames that do not exist or are named twice.
    pub fn report(
        &mut self,
        at: Duration,
        report: &IncidentReport,
        drafts: &[DroppedDraft],
        memory: &impl Memory,
    ) -> Result<(), Refusal> {
        let request = recovery::report(
            &self.store,
            &self.incidents,
            self.config.pool_frames,
            report,
            drafts,
            memory,
        )?;
        self.incidents.add_request(at, request);
        self.counters.dropped_drafts += drafts.len() as u64;
        let mut last = NONE;
        let domains = drafts.iter().map(|draft| draft.domain);
        for domain in domains.chain([report.domain]) {
            if domain != NONE && domain != last {
                self.suspects.add(at, (report.app, domain));
            }
            last = domain;
        }
        Ok(())
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

    /// Takes the next domain that is due for a whole check.
    pub fn take_suspect(&mut self) -> Option<Scope> {
        let (app, domain) = self.suspects.take()?;
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
                // Nobody needs what is in it; the cleanser gives it other memory.
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
            (Some(_), Some(_)) => 0,
            (Some(app), None) => app.sealed().into(),
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

    /// The state of a frame; `None` beyond the vault.
    pub fn frame_state(&self, frame: u32) -> Option<FrameState> {
        self.store.frames.state(frame)
    }

    /// Ends a boot of the guest: a batch that has not arrived whole is dropped, what is in the pool counts
    /// no more, numbers continue after those in use. Apps, domains and their sealed pages stay.
    pub fn reset(&mut self) {
        self.lost = Loss {
            domains: mem::take(&mut self.opened),
            staged_pages: self.staging.len(),
        };
        self.drop_batch();
        self.store.free_numbers();
        self.incidents.reset();
        self.tag_base = (self.tag_base + TAGS_PER_BOOT).min(TAG_LIMIT - TAGS_PER_BOOT);
        self.counters.resets += 1;
    }

    /// Notes that a driver has started: what the last reset dropped is no longer its concern.
    pub fn driver_started(&mut self) {
        self.lost = Loss::default();
    }

    /// Records the end of the guest's kernel; `reason` is a sentence without a full stop.
    /// If domains were open when the device was reset, whose requests may have been running, that becomes
    /// an incident. The reset may be the guest's own work: kernels reset their devices when they reboot in
    /// order.
    pub fn guest_down(&mut self, at: Duration, reason: &str) {
        let loss = mem::take(&mut self.lost);
        if loss.is_none() {
            return;
        }
        let down = GuestDown {
            reason: reason.to_owned(),
            loss,
        };
        self.incidents.add_guest_down(at, down);
    }

    /// Whether retired frames wait for the cleanser.
    pub fn has_retired(&self) -> bool {
        self.store.frames.has_retired()
    }

    /// How many retired frames no seal has used since the last call, at most.
    pub fn take_unused(&mut self) -> u32 {
        self.store.frames.take_unused()
    }

    /// Wipes up to `frames` retired frames, those first that were retired first, which are free then. One that `wipe` refuses stays retired
    /// and is set aside until [`Self::retry_unwiped`].
    ///
    /// # Errors
    ///
    /// Returns the first error of `wipe`.
    pub fn cleanse<E>(
        &mut self,
        frames: u32,
        wipe: impl FnMut(u32) -> Result<(), E>,
    ) -> Result<(), E> {
        cleanser::cleanse(&mut self.store, frames, wipe)
    }

    /// Whether there are frames that could not be wiped.
    pub fn has_unwiped(&self) -> bool {
        !self.store.unwiped.is_empty()
    }

    /// Lets the frames that could not be wiped be tried again.
    pub fn retry_unwiped(&mut self) {
        cleanser::retry(&mut self.store);
    }

    /// Panics when an invariant of frames and pages does not hold.
    #[cfg(test)]
    pub(crate) fn check_invariants(&self) {
        self.store.check_invariants();
        self.staging.check_invariants(&self.store);
    }
}
