//! The incidents: failures with their evidence, and errors of the guest.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use vmsrs_protocol::incident::{
    DroppedDraft, IncidentReport, KIND_PROCESS_DEATH, KIND_SEALED_WRITE, KIND_THREAD_DEATH,
    REGISTERS,
};

use super::changes::Change;
use super::corruption::{Corruption, Remedy};
use super::evidence::Program;
use super::guest_down::{self, GuestDown};
use super::incident_counts::{IncidentCounts, IncidentOutcome, RecoveryTimes};
use super::store::PageOwner;

/// Maximum number of drafts listed in one incident.
pub(crate) const DRAFTS_KEPT: usize = 256;

/// Most bytes of changes kept for one incident; for further pages only the count is kept.
pub(crate) const CHANGES_MAX: usize = 1 << 20;

/// Bytes of details (changes, stacks, modules) that all incidents keep; the oldest go first, the
/// newest incident keeps its own.
const DETAILS_MAX: usize = 16 << 20;

/// Gap between the incident numbers of two boots of the guest, for numbers that the driver assigned
/// and could not report.
const BOOT_GAP: u64 = 1000;

/// Number of incident numbers that the driver may use in one boot.
const NUMBERS_PER_BOOT: u64 = 1 << 40;

/// The driver's numbers start no higher than about here. A correct driver never gets there; a hostile
/// one that wastes its numbers gets the same ones again.
const BASE_LIMIT: u64 = 1 << 62;

/// What the host found when it checked a report against its own tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Every dropped draft goes back to the sealed version of its page.
    Intact,
    /// Some drafts go back to a version that is committed and not sealed yet.
    Unsealed,
    /// The driver names a committed version that the host does not know, or no longer has.
    Mismatch,
}

/// A dropped draft of an incident.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) domain: u32,
    pub(crate) page: u32,
    /// Bytes in which it differs from the version that stays; `None` if they were not compared.
    pub(crate) changed: Option<u32>,
    /// Offset of the first of them.
    pub(crate) first: Option<u32>,
    /// What differs; empty when it is not kept.
    pub(crate) changes: Vec<Change>,
}

impl Dropped {
    /// A draft that is not compared.
    pub(crate) fn listed(draft: &DroppedDraft) -> Self {
        Self {
            domain: draft.domain,
            page: draft.page,
            changed: None,
            first: None,
            changes: Vec::new(),
        }
    }
}

/// An incident that is kept.
#[derive(Debug)]
pub(crate) struct Incident {
    /// Odd from the driver, even from the host.
    pub(crate) number: u64,
    /// Since the Unix epoch; of repeated events, that of the first.
    pub(crate) at: Duration,
    /// How many incidents were kept before it.
    order: u64,
    pub(crate) record: Record,
}

/// What is kept of an incident, by record type.
#[derive(Debug)]
pub(crate) enum Record {
    /// A failed request.
    Request(Box<FailedRequest>),
    /// Writes into a frame of the vault.
    SealedWrite(Box<SealedWrites>),
    /// An end of the guest's kernel.
    GuestDown(GuestDown),
    /// A frame whose content is wrong or lost.
    Corruption(Corruption),
}

impl Record {
    /// The name of its kind.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Request(request) => kind_name(request.report.kind),
            Self::SealedWrite(_) => kind_name(KIND_SEALED_WRITE),
            Self::GuestDown(_) => guest_down::KIND_NAME,
            Self::Corruption(corruption) => kind_name(corruption.cause.kind()),
        }
    }

    /// How it ended.
    pub(crate) fn outcome(&self) -> IncidentOutcome {
        match self {
            Self::Request(request) => match request.report.kind {
                KIND_THREAD_DEATH | KIND_PROCESS_DEATH => IncidentOutcome::Discarded,
                _ => IncidentOutcome::Recovered,
            },
            Self::SealedWrite(_) => IncidentOutcome::Stopped,
            Self::GuestDown(_) => IncidentOutcome::Discarded,
            Self::Corruption(corruption) => match corruption.remedy {
                Remedy::Repaired => IncidentOutcome::Repaired,
                Remedy::Replaced => IncidentOutcome::Replaced,
                Remedy::Lost => IncidentOutcome::Lost,
            },
        }
    }
}

/// A failed request.
#[derive(Debug)]
pub(crate) struct FailedRequest {
    pub(crate) report: IncidentReport,
    pub(crate) verdict: Verdict,
    /// At most [`DRAFTS_KEPT`].
    pub(crate) drafts: Vec<Dropped>,
    /// Evidence sent by the program, if any.
    pub(crate) program: Option<Program>,
    /// Bytes that its details take.
    pub(crate) details: usize,
    /// Its details were dropped to stay within [`DETAILS_MAX`].
    pub(crate) stripped: bool,
}

/// Bytes of code that are kept of a write that was stopped: the longest instruction of x86.
pub const CODE_MAX: usize = 15;

/// A write that the second-level page table stopped, as the virtual CPU's thread saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SealedWrite {
    /// The frame.
    pub frame: u32,
    /// The virtual CPU.
    pub vcpu: u32,
    /// Guest virtual address of the access, or 0 when it is not known.
    pub address: u64,
    /// Guest instruction pointer.
    pub instruction: u64,
    /// Guest physical address of the access.
    pub physical: u64,
    /// Privilege level of the guest: 0 for its kernel, 3 for user mode.
    pub cpl: u8,
    /// Root of its page tables, which names the process.
    pub cr3: u64,
    /// Its general registers in the order of [`IncidentReport::registers`].
    pub registers: [u64; REGISTERS],
    /// The bytes at the instruction pointer; see `code_length`.
    pub code: [u8; CODE_MAX],
    /// How many of them could be read.
    pub code_length: u8,
}

impl SealedWrite {
    /// The bytes at the instruction pointer that could be read.
    pub fn code(&self) -> &[u8] {
        &self.code[..usize::from(self.code_length).min(CODE_MAX)]
    }

    /// With these bytes at the instruction pointer; no more than [`CODE_MAX`] are kept.
    #[must_use]
    pub fn with_code(mut self, code: &[u8]) -> Self {
        let length = code.len().min(CODE_MAX);
        self.code[..length].copy_from_slice(&code[..length]);
        // At most `CODE_MAX`.
        self.code_length = length as u8;
        self
    }
}

/// Sealed writes by one instruction to one frame.
#[derive(Debug)]
pub(crate) struct SealedWrites {
    /// The first one.
    pub(crate) write: SealedWrite,
    /// How often it was tried.
    pub(crate) count: u64,
    /// The frame's committed page, if it held one.
    pub(crate) owner: Option<PageOwner>,
    /// Resets of the device before.
    boot: u64,
}

/// The latest incidents, as many of each record type, so that a guest that tries sealed writes in a loop
/// does not push failed requests out.
pub(crate) struct IncidentStore {
    /// Maximum number of incidents of one record type.
    limit: usize,
    requests: VecDeque<Incident>,
    /// Failed requests so far, by the number of each that is kept: the driver's numbers may come out of
    /// order.
    request_of: HashMap<u64, u64>,
    /// Failed requests that were kept so far.
    requests_added: u64,
    /// Of them the first that may have its details.
    detailed_from: u64,
    /// Bytes of details that all of them take.
    details: usize,
    sealed_writes: VecDeque<Incident>,
    guest_downs: VecDeque<Incident>,
    corruptions: VecDeque<Incident>,
    /// Incidents that were kept so far.
    added: u64,
    /// All since the engine was made.
    counts: IncidentCounts,
    /// Those of all failed requests since then.
    recovery_times: RecoveryTimes,
    /// The host's next number; even.
    next_number: u64,
    /// The driver's first number in this boot; odd.
    base: u64,
    /// The driver's largest number so far.
    largest: u64,
    /// Resets of the device so far.
    boot: u64,
}

impl IncidentStore {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            requests: VecDeque::new(),
            request_of: HashMap::new(),
            requests_added: 0,
            detailed_from: 0,
            details: 0,
            sealed_writes: VecDeque::new(),
            guest_downs: VecDeque::new(),
            corruptions: VecDeque::new(),
            added: 0,
            counts: IncidentCounts::default(),
            recovery_times: RecoveryTimes::default(),
            next_number: 2,
            base: 1,
            largest: 0,
            boot: 0,
        }
    }

    /// The driver's first incident number in this boot.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Ends a boot of the guest: the next one's numbers start after those of this one.
    pub(crate) fn reset(&mut self) {
        let last = self.largest.max(self.base).min(BASE_LIMIT);
        self.base = (last + BOOT_GAP).next_multiple_of(BOOT_GAP) + 1;
        self.boot += 1;
    }

    /// Whether the driver may give a new incident this number.
    pub(crate) fn is_new_number(&self, number: u64) -> bool {
        number % 2 == 1
            && number
                .checked_sub(self.base)
                .is_some_and(|offset| offset < NUMBERS_PER_BOOT)
            && !self.request_of.contains_key(&number)
    }

    /// Keeps a failed request.
    pub(crate) fn add_request(&mut self, at: Duration, request: FailedRequest) {
        let number = request.report.incident;
        self.largest = self.largest.max(number);
        self.recovery_times.add(request.report.recovery_ns);
        self.details += request.details;
        let incident = self.incident(number, at, Record::Request(Box::new(request)));
        if let Some(oldest) = push(&mut self.requests, self.limit, incident) {
            self.request_of.remove(&oldest.number);
            if let Record::Request(request) = oldest.record {
                self.details -= request.details;
            }
        }
        self.request_of.insert(number, self.requests_added);
        self.requests_added += 1;
        self.trim();
    }

    /// Keeps a sealed write and returns its number. Further writes by the same instruction to the
    /// same frame are counted under the same number, as long as the frame holds the same page and the
    /// guest is the same boot.
    pub(crate) fn add_sealed_write(
        &mut self,
        at: Duration,
        write: SealedWrite,
        owner: Option<PageOwner>,
    ) -> u64 {
        for incident in self.sealed_writes.iter_mut().rev() {
            let Record::SealedWrite(known) = &mut incident.record else {
                continue;
            };
            if known.boot != self.boot {
                break;
            }
            if known.write.frame == write.frame
                && known.write.instruction == write.instruction
                && known.owner == owner
            {
                known.count = known.count.saturating_add(1);
                self.counts
                    .add(incident.record.kind(), incident.record.outcome());
                return incident.number;
            }
        }
        let writes = SealedWrites {
            write,
            count: 1,
            owner,
            boot: self.boot,
        };
        let incident = self.own(at, Record::SealedWrite(Box::new(writes)));
        let number = incident.number;
        push(&mut self.sealed_writes, self.limit, incident);
        number
    }

    /// Keeps a corruption and returns its number.
    pub(crate) fn add_corruption(&mut self, at: Duration, corruption: Corruption) -> u64 {
        let incident = self.own(at, Record::Corruption(corruption));
        let number = incident.number;
        push(&mut self.corruptions, self.limit, incident);
        number
    }

    /// Keeps an end of the guest's kernel.
    pub(crate) fn add_guest_down(&mut self, at: Duration, down: GuestDown) {
        let incident = self.own(at, Record::GuestDown(down));
        push(&mut self.guest_downs, self.limit, incident);
    }

    /// Keeps what the program of a failed request sent; without that request, or a second time, it
    /// is dropped.
    pub(crate) fn attach(&mut self, number: u64, program: Program) {
        let Some(index) = self.request_index(number) else {
            return;
        };
        if let Some(request) = self.requests[index].request_mut()
            && request.program.is_none()
            && !request.stripped
        {
            request.details += program.cost();
            self.details += program.cost();
            request.program = Some(program);
            self.trim();
        }
    }

    pub(crate) fn get(&self, number: u64) -> Option<&Incident> {
        if let Some(index) = self.request_index(number) {
            return self.requests.get(index);
        }
        // The host's numbers grow.
        [&self.sealed_writes, &self.guest_downs, &self.corruptions]
            .into_iter()
            .find_map(|kept| {
                let index = kept.binary_search_by_key(&number, |incident| incident.number);
                kept.get(index.ok()?)
            })
    }

    /// All incidents, in the order in which they came.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Incident> {
        let mut all: Vec<&Incident> = self
            .requests
            .iter()
            .chain(&self.sealed_writes)
            .chain(&self.guest_downs)
            .chain(&self.corruptions)
            .collect();
        all.sort_unstable_by_key(|incident| incident.order);
        all.into_iter()
    }

    /// All incidents since the engine was made.
    pub(crate) fn counts(&self) -> &IncidentCounts {
        &self.counts
    }

    /// How long the recovery of failed requests took since then.
    pub(crate) fn recovery_times(&self) -> &RecoveryTimes {
        &self.recovery_times
    }

    /// An incident that the host itself reports.
    fn own(&mut self, at: Duration, record: Record) -> Incident {
        let number = self.next_number;
        self.next_number += 2;
        self.incident(number, at, record)
    }

    fn incident(&mut self, number: u64, at: Duration, record: Record) -> Incident {
        let order = self.added;
        self.added += 1;
        self.counts.add(record.kind(), record.outcome());
        Incident {
            number,
            at,
            order,
            record,
        }
    }

    /// The place of a failed request in `requests`.
    fn request_index(&self, number: u64) -> Option<usize> {
        self.request_of
            .get(&number)
            .map(|&added| self.index_of(added))
    }

    /// The place in `requests` of the one before which so many were added.
    fn index_of(&self, added: u64) -> usize {
        let age = self.requests_added - added;
        // No older than there are.
        self.requests.len() - age as usize
    }

    /// Drops the oldest details beyond the limit, those of the newest request excepted.
    fn trim(&mut self) {
        let oldest = self.requests_added - self.requests.len() as u64;
        self.detailed_from = self.detailed_from.max(oldest);
        while self.details > DETAILS_MAX && self.detailed_from + 1 < self.requests_added {
            let index = self.index_of(self.detailed_from);
            if let Some(request) = self.requests[index].request_mut() {
                self.details -= request.details;
                request.strip();
            }
            self.detailed_from += 1;
        }
    }
}

/// Keeps an incident. Returns the oldest, if it is evicted for it.
fn push(kept: &mut VecDeque<Incident>, limit: usize, incident: Incident) -> Option<Incident> {
    let oldest = match kept.len() < limit {
        true => None,
        false => kept.pop_front(),
    };
    kept.push_back(incident);
    oldest
}

impl Incident {
    fn request_mut(&mut self) -> Option<&mut FailedRequest> {
        match &mut self.record {
            Record::Request(request) => Some(request),
            _ => None,
        }
    }
}

impl FailedRequest {
    /// Drops its details.
    fn strip(&mut self) {
        for draft in &mut self.drafts {
            draft.changes = Vec::new();
        }
        self.program = None;
        self.details = 0;
        self.stripped = true;
    }
}

/// Name of a `KIND_` constant, for people and scripts.
pub fn kind_name(kind: u32) -> &'static str {
    use vmsrs_protocol::incident as kinds;
    match kind {
        kinds::KIND_MEMORY => "memory",
        kinds::KIND_ARITHMETIC => "arithmetic",
        kinds::KIND_INSTRUCTION => "instruction",
        kinds::KIND_ABORT => "abort",
        kinds::KIND_STACK_OVERFLOW => "stack-overflow",
        kinds::KIND_FOREIGN_WRITE => "foreign-write",
        kinds::KIND_SEALED_WRITE => "sealed-write",
        kinds::KIND_DOUBLE_FREE => "double-free",
        kinds::KIND_FOREIGN_FREE => "foreign-free",
        kinds::KIND_RED_ZONE => "red-zone",
        kinds::KIND_USE_AFTER_FREE => "use-after-free",
        kinds::KIND_HEAP_CORRUPT => "heap-corrupt",
        kinds::KIND_PANIC => "panic",
        kinds::KIND_DEADLINE => "deadline",
        kinds::KIND_THREAD_DEATH => "thread-death",
        kinds::KIND_PROCESS_DEATH => "process-death",
        kinds::KIND_NO_FRAMES => "no-frames",
        kinds::KIND_INVARIANT => "invariant",
        kinds::KIND_FOREIGN_DRAFT => "foreign-draft",
        kinds::KIND_CHECKSUM => "checksum",
        kinds::KIND_POISON => "poison",
        kinds::KIND_DAMAGED => "damaged",
        kinds::KIND_QUARANTINE => "quarantine",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use vmsrs_protocol::incident::KIND_MAX;

    use super::*;

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = (1..=KIND_MAX).map(kind_name).collect();
        assert_eq!(names.len(), KIND_MAX as usize);
        assert!(!names.contains("unknown"));
    }

    #[test]
    fn sealed_writes_in_a_loop_are_one_incident_with_a_count() {
        let mut incidents = IncidentStore::new(4);
        let write = SealedWrite {
            frame: 3,
            instruction: 0x1000,
            ..SealedWrite::default()
        };
        for _ in 0..1000 {
            assert_eq!(incidents.add_sealed_write(Duration::ZERO, write, None), 2);
        }
        let Record::SealedWrite(writes) = &incidents.get(2).unwrap().record else {
            panic!("another record type");
        };
        assert_eq!(writes.count, 1000);
        let other = SealedWrite { frame: 4, ..write };
        assert_eq!(incidents.add_sealed_write(Duration::ZERO, other, None), 4);
        let counts: Vec<_> = incidents.counts().iter().collect();
        assert_eq!(counts, [("sealed-write", IncidentOutcome::Stopped, 1001)]);
    }

    #[test]
    fn incident_numbers_survive_endless_resets() {
        let mut incidents = IncidentStore::new(4);
        // The largest number that a boot may use, in more boots than 64 bits have room for.
        for _ in 0..1u32 << 25 {
            incidents.largest = incidents.base + (NUMBERS_PER_BOOT - 2);
            incidents.reset();
        }
        assert!(incidents.base() % 2 == 1 && incidents.is_new_number(incidents.base()));
        assert!(incidents.base().checked_add(NUMBERS_PER_BOOT).is_some());
    }

    #[test]
    fn incident_numbers_go_on_after_a_reset_and_stay_odd() {
        let mut incidents = IncidentStore::new(4);
        assert!(incidents.is_new_number(1));
        incidents.largest = 4711;
        incidents.reset();
        assert_eq!(incidents.base(), 6001);
        for number in [6000, 6002, 5999, u64::MAX] {
            assert!(!incidents.is_new_number(number), "{number}");
        }
        assert!(incidents.is_new_number(6001));
    }

    #[test]
    fn sealed_writes_of_two_boots_are_two_incidents() {
        let mut incidents = IncidentStore::new(4);
        let write = SealedWrite::default();
        let add =
            |incidents: &mut IncidentStore| incidents.add_sealed_write(Duration::ZERO, write, None);
        assert_eq!((add(&mut incidents), add(&mut incidents)), (2, 2));
        incidents.reset();
        assert_eq!((add(&mut incidents), add(&mut incidents)), (4, 4));
    }

    #[test]
    fn sealed_writes_are_merged_per_owner() {
        let mut incidents = IncidentStore::new(4);
        let write = SealedWrite {
            frame: 3,
            instruction: 0x1000,
            ..SealedWrite::default()
        };
        let owner = |domain| {
            Some(PageOwner {
                app: 0,
                domain,
                page: 7,
            })
        };
        for (domain, number) in [(1, 2), (2, 4), (1, 2), (2, 4)] {
            let added = incidents.add_sealed_write(Duration::ZERO, write, owner(domain));
            assert_eq!(added, number, "domain {domain}");
        }
        assert_eq!(incidents.add_sealed_write(Duration::ZERO, write, None), 6);
    }

    #[test]
    fn the_latest_of_each_sort_are_kept_and_all_are_counted() {
        let mut incidents = IncidentStore::new(2);
        incidents.add_sealed_write(Duration::ZERO, SealedWrite::default(), None);
        for _ in 0..3 {
            let down = GuestDown {
                reason: "the guest reset itself".into(),
                loss: guest_down::Loss::default(),
            };
            incidents.add_guest_down(Duration::ZERO, down);
        }
        let kept: Vec<u64> = incidents.iter().map(|incident| incident.number).collect();
        assert_eq!(kept, [2, 6, 8]);
        let counts: Vec<_> = incidents.counts().iter().collect();
        let expected = [
            ("guest-down", IncidentOutcome::Discarded, 3),
            ("sealed-write", IncidentOutcome::Stopped, 1),
        ];
        assert_eq!(counts, expected);
    }
}
