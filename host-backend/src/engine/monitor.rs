//! The monitor: what went wrong, with its evidence, and what the guest did wrong.

use std::collections::VecDeque;
use std::time::Duration;

use vmsrs_protocol::NONE;
use vmsrs_protocol::incident::{IncidentReport, KIND_MAX, KIND_SEALED_WRITE, REGISTERS};

use super::changes::Change;
use super::evidence::Program;

/// Most drafts of one incident that are listed.
pub(crate) const DRAFTS_KEPT: usize = 256;

/// Bytes of changes that are kept of one incident; of further pages only their number is.
pub(crate) const CHANGES_MAX: usize = 1 << 20;

/// Bytes of details (changes, stacks, modules) that all incidents keep; the oldest go first, the
/// newest incident keeps its own.
const DETAILS_MAX: usize = 16 << 20;

/// Gap between the incident numbers of two boots of the guest, for numbers that the driver gave out
/// and could not report any more.
const BOOT_GAP: u64 = 1000;

/// Room for the driver's incident numbers in one boot.
const NUMBERS_PER_BOOT: u64 = 1 << 40;

/// The driver's numbers begin no higher than about here. Boots of a good driver never get there; a
/// hostile one that wastes its numbers gets the same ones again.
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

/// A failed request.
#[derive(Debug)]
pub(crate) struct Incident {
    /// Since the Unix epoch.
    pub(crate) at: Duration,
    pub(crate) report: IncidentReport,
    pub(crate) verdict: Verdict,
    /// At most [`DRAFTS_KEPT`].
    pub(crate) drafts: Vec<Dropped>,
    /// What the program kept, if it came.
    pub(crate) program: Option<Program>,
    /// Its details had to go.
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
    pub(crate) number: u64,
    /// Time of the first one since the Unix epoch.
    pub(crate) at: Duration,
    pub(crate) write: SealedWrite,
    /// How often it was tried; the registers are those of the first time.
    pub(crate) count: u64,
    /// App, domain and page, if the frame held a committed page.
    pub(crate) owner: Option<(u32, u32, u32)>,
}

/// Incidents, each sort in a list of its own, so that a guest that tries sealed writes in a loop
/// does not push failed requests out.
pub(crate) struct Monitor {
    limit: usize,
    /// Oldest first.
    incidents: VecDeque<Incident>,
    /// Oldest first.
    sealed_writes: VecDeque<SealedWrites>,
    /// Incidents since the engine was made, by kind.
    kinds: [u64; KIND_MAX as usize + 1],
    /// The host's next number; even.
    next_number: u64,
    /// The driver's first number in this boot; odd.
    base: u64,
    /// The driver's largest number so far.
    largest: u64,
}

impl Monitor {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            incidents: VecDeque::new(),
            sealed_writes: VecDeque::new(),
            kinds: [0; KIND_MAX as usize + 1],
            next_number: 2,
            base: 1,
            largest: 0,
        }
    }

    /// The driver's first incident number in this boot.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Leaves the numbers of the boot that ends behind.
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
            && self.incident(number).is_none()
    }

    /// Keeps an incident. Gives back the one that has to go for it.
    pub(crate) fn add(&mut self, incident: Incident) -> Option<Incident> {
        self.largest = self.largest.max(incident.report.incident);
        self.count(incident.report.kind);
        let oldest = if self.incidents.len() == self.limit {
            self.incidents.pop_front()
        } else {
            None
        };
        self.incidents.push_back(incident);
        self.trim();
        oldest
    }

    /// Keeps what the program of an incident sent; without that incident, or a second time, it is
    /// dropped.
    pub(crate) fn attach(&mut self, number: u64, program: Program) {
        let incident = self
            .incidents
            .iter_mut()
            .rev()
            .find(|incident| incident.report.incident == number);
        if let Some(incident) = incident
            && incident.program.is_none()
            && !incident.stripped
        {
            incident.program = Some(program);
            self.trim();
        }
    }

    /// Drops the oldest details beyond the limit.
    fn trim(&mut self) {
        let mut left = DETAILS_MAX;
        for (age, incident) in self.incidents.iter_mut().rev().enumerate() {
            let cost = incident.cost();
            if age > 0 && cost > left {
                incident.strip();
            } else {
                left = left.saturating_sub(cost);
            }
        }
    }

    /// Keeps a sealed write and gives its number. Further writes by the same instruction to the
    /// same frame are counted under the same number.
    pub(crate) fn add_sealed_write(
        &mut self,
        at: Duration,
        write: SealedWrite,
        owner: Option<(u32, u32, u32)>,
    ) -> u64 {
        self.count(KIND_SEALED_WRITE);
        let known = self.sealed_writes.iter_mut().rev().find(|known| {
            known.write.frame == write.frame && known.write.instruction == write.instruction
        });
        if let Some(known) = known {
            known.count = known.count.saturating_add(1);
            return known.number;
        }
        if self.sealed_writes.len() == self.limit {
            self.sealed_writes.pop_front();
        }
        let number = self.take_number();
        self.sealed_writes.push_back(SealedWrites {
            number,
            at,
            write,
            count: 1,
            owner,
        });
        number
    }

    /// The next number for an incident that the host itself reports.
    pub(crate) fn take_number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number += 2;
        number
    }

    /// The evidence that has been kept longest: the frames are no longer the incident's.
    pub(crate) fn release_oldest_evidence(&mut self) -> Vec<u32> {
        for incident in &mut self.incidents {
            let frames = incident.release_evidence();
            if !frames.is_empty() {
                return frames;
            }
        }
        Vec::new()
    }

    pub(crate) fn incident(&self, number: u64) -> Option<&Incident> {
        self.incidents
            .iter()
            .find(|incident| incident.report.incident == number)
    }

    pub(crate) fn incidents(&self) -> impl Iterator<Item = &Incident> {
        self.incidents.iter()
    }

    pub(crate) fn sealed_writes(&self) -> impl Iterator<Item = &SealedWrites> {
        self.sealed_writes.iter()
    }

    /// Incidents since the engine was made, as pairs of kind and number, without zeros.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = (u32, u64)> {
        (0u32..).zip(self.kinds).filter(|&(_, count)| count != 0)
    }

    /// Counts an incident of this kind.
    pub(crate) fn count(&mut self, kind: u32) {
        let count = &mut self.kinds[kind as usize];
        *count = count.saturating_add(1);
    }
}

impl Incident {
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

    /// Frames that hold its evidence; it has none any more.
    pub(crate) fn release_evidence(&mut self) -> Vec<u32> {
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
        let mut monitor = Monitor::new(4);
        let write = SealedWrite {
            frame: 3,
            instruction: 0x1000,
            ..SealedWrite::default()
        };
        for _ in 0..1000 {
            assert_eq!(monitor.add_sealed_write(Duration::ZERO, write, None), 2);
        }
        assert_eq!(monitor.sealed_writes().next().unwrap().count, 1000);
        let other = SealedWrite { frame: 4, ..write };
        assert_eq!(monitor.add_sealed_write(Duration::ZERO, other, None), 4);
        assert_eq!(
            monitor.kinds().collect::<Vec<_>>(),
            [(KIND_SEALED_WRITE, 1001)]
        );
    }

    #[test]
    fn incident_numbers_do_not_overflow_however_often_a_hostile_guest_resets() {
        let mut monitor = Monitor::new(4);
        // The largest number that a boot may use, in more boots than 64 bits have room for.
        for _ in 0..1u32 << 25 {
            monitor.largest = monitor.base + (NUMBERS_PER_BOOT - 2);
            monitor.reset();
        }
        assert!(monitor.base() % 2 == 1 && monitor.is_new_number(monitor.base()));
        assert!(monitor.base().checked_add(NUMBERS_PER_BOOT).is_some());
    }

    #[test]
    fn incident_numbers_go_on_after_a_reset_and_stay_odd() {
        let mut monitor = Monitor::new(4);
        assert!(monitor.is_new_number(1));
        monitor.largest = 4711;
        monitor.reset();
        assert_eq!(monitor.base(), 6001);
        for number in [6000, 6002, 5999, u64::MAX] {
            assert!(!monitor.is_new_number(number), "{number}");
        }
        assert!(monitor.is_new_number(6001));
    }
}
