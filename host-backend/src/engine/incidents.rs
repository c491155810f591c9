//! The incidents: failures with their evidence, and errors of the guest.

use std::collections::VecDeque;
use std::mem::discriminant;
use std::time::Duration;

use vmsrs_protocol::NONE;
use vmsrs_protocol::incident::{IncidentReport, KIND_MAX, KIND_SEALED_WRITE, REGISTERS};

use super::changes::Change;
use super::corruption::Corruption;
use super::evidence::Program;
use super::guest_down::{self, GuestDown};
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
    /// The driver names a committed version that the host does not know.
    Mismatch,
}

/// A dropped draft of an incident.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dropped {
    pub(crate) domain: u32,
    pub(crate) page: u32,
    /// The frame with the draft's content, or [`NONE`] when it is no longer kept.
    pub(crate) frame: u32,
    /// Bytes in which it differs from the version that stays.
    pub(crate) changed: u32,
    /// Offset of the first of them.
    pub(crate) first: Option<u32>,
    /// What differs; empty when it is not kept.
    pub(crate) changes: Vec<Change>,
}

/// An incident that is kept.
#[derive(Debug)]
pub(crate) struct Incident {
    /// Odd from the driver, even from the host.
    pub(crate) number: u64,
    /// Since the Unix epoch; of repeated events, that of the first.
    pub(crate) at: Duration,
    pub(crate) record: Record,
}

/// What is kept of an incident, by record type.
#[derive(Debug)]
pub(crate) enum Record {
    /// A failed request.
    Request(Box<FailedRequest>),
    /// Writes into a sealed frame.
    SealedWrite(Box<SealedWrites>),
    /// An end of the guest's kernel.
    GuestDown(GuestDown),
    /// A frame whose content is wrong or lost.
    Corruption(Corruption),
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
}

/// The latest incidents, as many of each record type, so that a guest that tries sealed writes in a loop
/// does not push failed requests out.
pub(crate) struct IncidentStore {
    /// Maximum number of incidents of one record type.
    limit: usize,
    /// Oldest first.
    kept: VecDeque<Incident>,
    /// Incidents since the engine was made, by kind.
    kinds: [u64; KIND_MAX as usize + 1],
    /// Ends of the guest's kernel since the engine was made; they have no `KIND_` constant.
    guest_downs: u64,
    /// The host's next number; even.
    next_number: u64,
    /// The driver's first number in this boot; odd.
    base: u64,
    /// The driver's largest number so far.
    largest: u64,
}

impl IncidentStore {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            kept: VecDeque::new(),
            kinds: [0; KIND_MAX as usize + 1],
            guest_downs: 0,
            next_number: 2,
            base: 1,
            largest: 0,
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
    }

    /// Whether the driver may give a new incident this number.
    pub(crate) fn is_new_number(&self, number: u64) -> bool {
        number % 2 == 1
            && number
                .checked_sub(self.base)
                .is_some_and(|offset| offset < NUMBERS_PER_BOOT)
            && self.get(number).is_none()
    }

    /// Keeps a failed request. Returns the incident evicted for it.
    pub(crate) fn add_request(&mut self, at: Duration, request: FailedRequest) -> Option<Incident> {
        let number = request.report.incident;
        self.largest = self.largest.max(number);
        self.count(request.report.kind);
        let oldest = self.add(number, at, Record::Request(Box::new(request)));
        self.trim();
        oldest
    }

    /// Keeps a sealed write and returns its number. Further writes by the same instruction to the
    /// same frame are counted under the same number, as long as the frame holds the same page.
    pub(crate) fn add_sealed_write(
        &mut self,
        at: Duration,
        write: SealedWrite,
        owner: Option<PageOwner>,
    ) -> u64 {
        self.count(KIND_SEALED_WRITE);
        for incident in self.kept.iter_mut().rev() {
            if let Record::SealedWrite(known) = &mut incident.record
                && known.write.frame == write.frame
                && known.write.instruction == write.instruction
                && known.owner == owner
            {
                known.count = known.count.saturating_add(1);
                return incident.number;
            }
        }
        let writes = SealedWrites {
            write,
            count: 1,
            owner,
        };
        self.add_own(at, Record::SealedWrite(Box::new(writes)))
    }

    /// Keeps a corruption and returns its number.
    pub(crate) fn add_corruption(&mut self, at: Duration, corruption: Corruption) -> u64 {
        self.count(corruption.cause.kind());
        self.add_own(at, Record::Corruption(corruption))
    }

    /// Keeps an end of the guest's kernel.
    pub(crate) fn add_guest_down(&mut self, at: Duration, down: GuestDown) {
        self.guest_downs = self.guest_downs.saturating_add(1);
        self.add_own(at, Record::GuestDown(down));
    }

    /// Keeps what the program of a failed request sent; without that request, or a second time, it
    /// is dropped.
    pub(crate) fn attach(&mut self, number: u64, program: Program) {
        let request = self
            .kept
            .iter_mut()
            .rev()
            .find(|incident| incident.number == number)
            .and_then(Incident::request_mut);
        if let Some(request) = request
            && request.program.is_none()
            && !request.stripped
        {
            request.program = Some(program);
            self.trim();
        }
    }

    /// The evidence that has been kept longest: the frames are no longer the incident's.
    pub(crate) fn release_oldest_evidence(&mut self) -> Vec<u32> {
        self.kept
            .iter_mut()
            .map(Incident::release_evidence)
            .find(|frames| !frames.is_empty())
            .unwrap_or_default()
    }

    pub(crate) fn get(&self, number: u64) -> Option<&Incident> {
        self.kept.iter().find(|incident| incident.number == number)
    }

    /// All incidents, in the order in which they came.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Incident> {
        self.kept.iter()
    }

    /// Incidents since the engine was made, by the name of their kind, without zeros.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let kinds = (0u32..).zip(self.kinds);
        kinds
            .map(|(kind, count)| (kind_name(kind), count))
            .chain([(guest_down::KIND_NAME, self.guest_downs)])
            .filter(|&(_, count)| count != 0)
    }

    /// Keeps an incident that the host itself reports and returns its number.
    fn add_own(&mut self, at: Duration, record: Record) -> u64 {
        let number = self.next_number;
        self.next_number += 2;
        self.add(number, at, record);
        number
    }

    /// Keeps an incident. Returns the oldest of the same record type, if it is evicted for it.
    fn add(&mut self, number: u64, at: Duration, record: Record) -> Option<Incident> {
        let record_type = discriminant(&record);
        let same = |incident: &Incident| discriminant(&incident.record) == record_type;
        let oldest = match self.kept.iter().filter(|known| same(known)).count() < self.limit {
            true => None,
            false => self.kept.iter().position(same),
        };
        let removed = oldest.and_then(|oldest| self.kept.remove(oldest));
        self.kept.push_back(Incident { number, at, record });
        removed
    }

    /// Drops the oldest details beyond the limit.
    fn trim(&mut self) {
        let mut left = DETAILS_MAX;
        let requests = self.kept.iter_mut().rev().filter_map(Incident::request_mut);
        for (age, request) in requests.enumerate() {
            let cost = request.cost();
            if age > 0 && cost > left {
                request.strip();
            } else {
                left = left.saturating_sub(cost);
            }
        }
    }

    fn count(&mut self, kind: u32) {
        let count = &mut self.kinds[kind as usize];
        *count = count.saturating_add(1);
    }
}

impl Incident {
    /// The failed request, if it is one.
    #[cfg(test)]
    pub(crate) fn request(&self) -> Option<&FailedRequest> {
        match &self.record {
            Record::Request(request) => Some(request),
            _ => None,
        }
    }

    fn request_mut(&mut self) -> Option<&mut FailedRequest> {
        match &mut self.record {
            Record::Request(request) => Some(request),
            _ => None,
        }
    }

    /// Takes the frames that hold its evidence.
    pub(crate) fn release_evidence(&mut self) -> Vec<u32> {
        self.request_mut()
            .map(FailedRequest::release_evidence)
            .unwrap_or_default()
    }
}

impl FailedRequest {
    /// Bytes that its details take.
    fn cost(&self) -> usize {
        let changes = self.drafts.iter().flat_map(|draft| &draft.changes);
        changes.map(Change::cost).sum::<usize>() + self.program.as_ref().map_or(0, Program::cost)
    }

    /// Drops its details.
    fn strip(&mut self) {
        for draft in &mut self.drafts {
            draft.changes = Vec::new();
        }
        self.program = None;
        self.stripped = true;
    }

    /// Takes the frames that hold its evidence.
    fn release_evidence(&mut self) -> Vec<u32> {
        self.drafts
            .iter_mut()
            .map(|draft| std::mem::replace(&mut draft.frame, NONE))
            .filter(|&frame| frame != NONE)
            .collect()
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
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(
            incidents.counts().collect::<Vec<_>>(),
            [("sealed-write", 1001)]
        );
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
        let counts: Vec<_> = incidents.counts().collect();
        assert_eq!(counts, [("sealed-write", 1), ("guest-down", 3)]);
    }
}
