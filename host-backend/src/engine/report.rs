//! What the engine tells people: its status and its incidents, as plain data for the control
//! socket and the command line.

use serde::{Deserialize, Serialize};
use vmsrs_protocol::heap::State;
use vmsrs_protocol::incident::{
    KIND_CHECKSUM, KIND_POISON, KIND_PROCESS_DEATH, KIND_SEALED_WRITE, KIND_THREAD_DEATH, REG_RIP,
    REPORT_ADDRESS,
};
use vmsrs_protocol::{APP_BASE, APP_PAGES, EXTENT_UNIT_PAGES, NONE, PAGE_SIZE};

use super::Engine;
use super::changes::{Block, Change};
use super::corruption::{Cause, Corruption, Remedy};
use super::evidence::Program;
use super::guest_down::{self, GuestDown};
use super::monitor::{Dropped, Incident, SealedWrites, Verdict, kind_name};
use super::scrub::ScrubCounts;
use super::store::{FrameState, PageOf};

/// How an incident ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The request failed, its writes were dropped, its process goes on.
    Recovered,
    /// The request ended with its thread, its process or the whole guest, its writes were dropped.
    Discarded,
    /// The write did not happen.
    Stopped,
    /// The page has its right content again, from the mirror.
    Repaired,
    /// The access did not happen, and the frame gets other memory.
    Replaced,
    /// The content of the page is lost.
    Lost,
}

/// What the pages of a failed request go back to, as the host checked it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restored {
    /// To the versions that the host has sealed.
    Sealed,
    /// Some to versions that were committed and not sealed yet.
    Committed,
    /// The driver named versions that the host does not know.
    Unknown,
}

/// A number of events of one sort.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// What happened.
    pub what: String,
    /// How often.
    pub count: u64,
}

/// The engine's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Frames in the window.
    pub window_frames: u32,
    /// Most frames that the driver may hold as granted.
    pub pool_frames: u32,
    /// Frames that are wiped and wait for a grant.
    pub free_frames: u32,
    /// Frames that the guest may write.
    pub granted_frames: u32,
    /// Frames that hold committed pages; the zero frame is among them.
    pub sealed_frames: u32,
    /// Frames that wait for the cleanser.
    pub retired_frames: u32,
    /// Frames that are kept for incidents.
    pub evidence_frames: u32,
    /// Frames that hold second copies of committed pages.
    pub mirror_frames: u32,
    /// Committed pages whose content is lost.
    pub damaged_pages: u32,
    /// What checks of sealed pages have found since the VM was started.
    pub scrub: ScrubCounts,
    /// Times that all sealed pages were checked.
    pub scrub_passes: u64,
    /// Apps.
    pub apps: u32,
    /// Domains of all apps.
    pub domains: u32,
    /// Pages that domains have.
    pub pages: u32,
    /// Pages that domains can have in all.
    pub pages_max: u32,
    /// Commits sealed.
    pub commits: u64,
    /// Pages sealed.
    pub sealed_pages: u64,
    /// Seal messages taken.
    pub seal_messages: u64,
    /// Drafts dropped, with and without an incident.
    pub dropped_drafts: u64,
    /// Pages of a commit that is still arriving.
    pub staged_pages: u64,
    /// Times that the driver started the device anew.
    pub resets: u64,
    /// Bytes that the host keeps about frames, pages and domains.
    pub metadata_bytes: u64,
    /// Incidents by kind since the VM was started.
    pub incidents: Vec<Count>,
    /// What the guest's driver was refused, by reason.
    pub refusals: Vec<Count>,
}

/// An incident in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncidentSummary {
    /// Its number: odd from the driver, even from the host.
    pub number: u64,
    /// Milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Name of its kind.
    pub kind: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Name of the app, if one is known.
    pub app: Option<String>,
    /// Key of the domain that the request worked on, or that owns the frame.
    pub domain: Option<String>,
    /// Guest virtual address of the access that failed, if there was one.
    pub address: Option<u64>,
}

/// Everything known about one incident.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncidentDetail {
    /// What the list shows.
    #[serde(flatten)]
    pub summary: IncidentSummary,
    /// Guest instruction pointer at the error, if it is known.
    pub instruction: Option<u64>,
    /// About a failed request.
    pub request: Option<RequestFacts>,
    /// About a write into a sealed frame.
    pub sealed_write: Option<SealedWriteFacts>,
    /// About an end of the guest's kernel.
    pub guest_down: Option<GuestDownFacts>,
    /// About a frame whose content went wrong by itself.
    pub corruption: Option<CorruptionFacts>,
}

/// A frame whose content went wrong by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorruptionFacts {
    /// The frame.
    pub frame: u32,
    /// The page that it held, if it held a committed one.
    pub page: Option<u32>,
    /// Bytes in which it differed from its mirror's copy, if they could be compared.
    pub changed_bytes: Option<u32>,
    /// Offset in the page of the first of them.
    pub first_changed: Option<u32>,
}

/// A failed request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestFacts {
    /// Its tag.
    pub tag: u64,
    /// The signal, or 0.
    pub signal: i32,
    /// `si_code` of the signal, or 0.
    pub code: i32,
    /// Process in the guest.
    pub pid: u32,
    /// Thread in the guest.
    pub tid: u32,
    /// Name of the thread.
    pub thread: String,
    /// Whose the address is, if it lies in the apps' address ranges.
    pub address_at: Option<AddressFacts>,
    /// Nanoseconds from the detection in the guest to the end of the discard.
    pub recovery_ns: u64,
    /// What its pages went back to.
    pub restored: Restored,
    /// Drafts that were dropped in all.
    pub drafts_total: u32,
    /// The first of them.
    pub drafts: Vec<DraftFacts>,
    /// What the program kept; `None` if it could not keep anything, or it is no longer kept.
    pub program: Option<ProgramFacts>,
    /// What the program kept and what the drafts had changed had to make room for younger incidents.
    pub details_dropped: bool,
    /// Registers at the error, in the order of [`vmsrs_protocol::incident::REGISTER_NAMES`].
    /// Empty if there are none.
    pub registers: Vec<u64>,
    /// Return addresses, innermost first.
    pub backtrace: Vec<u64>,
}

/// Whose an address in the apps' ranges is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressFacts {
    /// The sort of place.
    pub place: Place,
    /// Name of the app in whose range it lies, if there is such an app.
    pub app: Option<String>,
    /// Key of the domain that has the page, or that ends before it.
    pub domain: Option<String>,
    /// Bytes from that domain's end to the address, if it lies behind it.
    pub behind: Option<u64>,
}

/// Sorts of places in the apps' address ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A page of a domain.
    Domain,
    /// A guard behind a domain.
    Guard,
    /// An address that no domain has.
    Unused,
}

/// What the program kept of its failure. Nobody vouches for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramFacts {
    /// Address of the first byte of `stack`.
    pub stack_address: u64,
    /// First byte of the whole stack.
    pub stack_low: u64,
    /// First byte behind the whole stack.
    pub stack_high: u64,
    /// The top of the stack that failed.
    #[serde(with = "super::hex")]
    pub stack: Vec<u8>,
    /// Module table ([`vmsrs_protocol::incident::ModuleEntry`]).
    #[serde(with = "super::hex")]
    pub modules: Vec<u8>,
    /// What the program said, a panic's message for example; may be empty.
    pub message: String,
}

/// A dropped draft.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DraftFacts {
    /// Key of its domain.
    pub domain: String,
    /// Its page.
    pub page: u32,
    /// Address of the page in the program.
    pub address: u64,
    /// Bytes in which it differed from the page's committed version.
    pub changed_bytes: u32,
    /// Offset in the page of the first of them.
    pub first_changed: Option<u32>,
    /// The frame that still holds it.
    pub frame: Option<u32>,
    /// What differed, in order; empty if that is not kept.
    pub changes: Vec<ChangeFacts>,
}

/// Bytes that a dropped draft had changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeFacts {
    /// Address of the first of them.
    pub address: u64,
    /// In the version that stayed.
    #[serde(with = "super::hex")]
    pub old: Vec<u8>,
    /// In the dropped draft; as many.
    #[serde(with = "super::hex")]
    pub new: Vec<u8>,
    /// The heap block that begins at or before the change, and nearest to it. No block with a good
    /// header begins inside of the change.
    pub block: Option<BlockFacts>,
}

/// A block of the library's heap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockFacts {
    /// Its address.
    pub address: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Its state in the version that stayed; `None`: there was no such block.
    pub was: Option<BlockState>,
    /// Its state in the dropped draft; `None`: there was no such block, or its header was damaged.
    pub became: Option<BlockState>,
}

/// State of a heap block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockState {
    /// In use.
    Live,
    /// Given back.
    Freed,
}

/// A write into a frame that the guest may not write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedWriteFacts {
    /// The frame.
    pub frame: u32,
    /// The virtual CPU.
    pub vcpu: u32,
    /// Guest physical address.
    pub physical: u64,
    /// Whether the guest was in user mode.
    pub user: bool,
    /// Its privilege level: 0 for the kernel, 3 for user mode.
    pub cpl: u8,
    /// Root of its page tables, which names the process.
    pub cr3: u64,
    /// The committed page in the frame, by its number in its app, if it held one.
    pub page: Option<u32>,
    /// The bytes at the instruction pointer, as far as they could be read. (Where KVM emulated the
    /// store, that is behind its instruction.)
    #[serde(with = "super::hex")]
    pub code: Vec<u8>,
    /// General registers of the first attempt, in the order of a request's.
    pub registers: Vec<u64>,
    /// How often the same instruction tried to write the frame.
    pub count: u64,
}

/// An end of the guest's kernel that took requests with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestDownFacts {
    /// How it ended.
    pub reason: String,
    /// Frames that the driver held.
    pub granted_frames: u32,
    /// Those of them that the guest had written: drafts, and commits that had not reached the host.
    pub written_frames: u32,
    /// Pages of a commit of which only a part had reached the host.
    pub staged_pages: u32,
}

impl Engine {
    /// The engine's state. The caller knows the refusals.
    pub fn status(&self) -> Status {
        let frames = |state| self.store.frames.count(state);
        let (pages, pages_max) = self.store.pages();
        let downs = Some(self.guest_downs.count()).filter(|&count| count != 0);
        let downs = downs.map(|count| Count {
            what: guest_down::KIND_NAME.to_owned(),
            count,
        });
        Status {
            window_frames: self.store.frames.len(),
            pool_frames: self.config.pool_frames,
            free_frames: frames(FrameState::Free),
            granted_frames: frames(FrameState::Granted),
            sealed_frames: frames(FrameState::Sealed),
            retired_frames: frames(FrameState::Retired),
            evidence_frames: frames(FrameState::Evidence),
            mirror_frames: frames(FrameState::Mirror),
            damaged_pages: self.store.damaged(),
            scrub: self.counters.scrubbed,
            scrub_passes: self.counters.scrub_passes,
            // At most `MAX_APPS`.
            apps: self.store.apps.len() as u32,
            domains: self.store.domains(),
            pages,
            pages_max,
            commits: self.counters.commits,
            sealed_pages: self.counters.sealed_pages,
            seal_messages: self.counters.seal_messages,
            dropped_drafts: self.counters.dropped_drafts,
            staged_pages: self.staging.len() as u64,
            resets: self.counters.resets,
            metadata_bytes: self.store.bytes() as u64,
            incidents: self
                .monitor
                .kinds()
                .map(|(kind, count)| Count {
                    what: kind_name(kind).to_owned(),
                    count,
                })
                .chain(downs)
                .collect(),
            refusals: Vec::new(),
        }
    }

    /// All incidents that are kept, oldest first.
    pub fn incidents(&self) -> Vec<IncidentSummary> {
        let requests = self
            .monitor
            .incidents()
            .map(|incident| self.request_summary(incident));
        let writes = self
            .monitor
            .sealed_writes()
            .map(|writes| self.write_summary(writes));
        let downs = self.guest_downs.iter().map(down_summary);
        let corruptions = self
            .corruptions
            .iter()
            .map(|corruption| self.corruption_summary(corruption));
        let host = writes.chain(downs).chain(corruptions);
        let mut list: Vec<_> = requests.chain(host).collect();
        list.sort_by_key(|summary| summary.at_ms);
        list
    }

    /// Everything known about an incident; `None` when it is unknown or no longer kept.
    pub fn incident(&self, number: u64) -> Option<IncidentDetail> {
        if let Some(incident) = self.monitor.incident(number) {
            let rip = incident.report.registers[REG_RIP];
            return Some(IncidentDetail {
                summary: self.request_summary(incident),
                instruction: (rip != 0).then_some(rip),
                request: Some(self.request_facts(incident)),
                sealed_write: None,
                guest_down: None,
                corruption: None,
            });
        }
        if let Some(down) = self.guest_downs.iter().find(|down| down.number == number) {
            return Some(IncidentDetail {
                summary: down_summary(down),
                instruction: None,
                request: None,
                sealed_write: None,
                guest_down: Some(GuestDownFacts {
                    reason: down.reason.clone(),
                    granted_frames: down.loss.granted_frames,
                    written_frames: down.loss.written_frames,
                    staged_pages: down.loss.staged_pages,
                }),
                corruption: None,
            });
        }
        let mut corruptions = self.corruptions.iter();
        if let Some(corruption) = corruptions.find(|known| known.number == number) {
            return Some(IncidentDetail {
                summary: self.corruption_summary(corruption),
                instruction: None,
                request: None,
                sealed_write: None,
                guest_down: None,
                corruption: Some(CorruptionFacts {
                    frame: corruption.frame,
                    page: corruption.owner.map(|(_, _, page)| page),
                    changed_bytes: corruption.difference.map(|found| found.bytes),
                    first_changed: corruption.difference.and_then(|found| found.first),
                }),
            });
        }
        let writes = self
            .monitor
            .sealed_writes()
            .find(|writes| writes.number == number)?;
        Some(IncidentDetail {
            summary: self.write_summary(writes),
            instruction: Some(writes.write.instruction),
            request: None,
            sealed_write: Some(SealedWriteFacts {
                frame: writes.write.frame,
                vcpu: writes.write.vcpu,
                physical: writes.write.physical,
                user: writes.write.cpl == 3,
                cpl: writes.write.cpl,
                cr3: writes.write.cr3,
                page: writes.owner.map(|(_, _, page)| page),
                code: writes.write.code().to_vec(),
                registers: writes.write.registers.to_vec(),
                count: writes.count,
            }),
            guest_down: None,
            corruption: None,
        })
    }

    fn corruption_summary(&self, corruption: &Corruption) -> IncidentSummary {
        let owner = corruption.owner;
        IncidentSummary {
            number: corruption.number,
            at_ms: milliseconds(corruption.at),
            kind: kind_name(match corruption.cause {
                Cause::Checksum => KIND_CHECKSUM,
                Cause::Poison => KIND_POISON,
            })
            .to_owned(),
            outcome: match corruption.remedy {
                Remedy::Repaired => Outcome::Repaired,
                Remedy::Replaced => Outcome::Replaced,
                Remedy::Lost => Outcome::Lost,
            },
            app: owner.and_then(|(app, ..)| self.app_name(app)),
            domain: owner.and_then(|(app, domain, _)| self.domain_key(app, domain)),
            address: owner.map(|(app, _, page)| PageOf { app, page }.address()),
        }
    }

    fn request_summary(&self, incident: &Incident) -> IncidentSummary {
        let report = &incident.report;
        IncidentSummary {
            number: report.incident,
            at_ms: milliseconds(incident.at),
            kind: kind_name(report.kind).to_owned(),
            outcome: match report.kind {
                KIND_THREAD_DEATH | KIND_PROCESS_DEATH => Outcome::Discarded,
                _ => Outcome::Recovered,
            },
            app: self.app_name(report.app),
            domain: self.domain_key(report.app, report.domain),
            address: (report.flags & REPORT_ADDRESS != 0).then_some(report.address),
        }
    }

    fn write_summary(&self, writes: &SealedWrites) -> IncidentSummary {
        IncidentSummary {
            number: writes.number,
            at_ms: milliseconds(writes.at),
            kind: kind_name(KIND_SEALED_WRITE).to_owned(),
            outcome: Outcome::Stopped,
            app: writes.owner.and_then(|(app, ..)| self.app_name(app)),
            domain: writes
                .owner
                .and_then(|(app, domain, _)| self.domain_key(app, domain)),
            address: (writes.write.address != 0).then_some(writes.write.address),
        }
    }

    fn request_facts(&self, incident: &Incident) -> RequestFacts {
        let report = &incident.report;
        let name = &report.thread_name;
        let name_length = name.iter().take_while(|&&byte| byte != 0).count();
        let has_registers = report.registers.iter().any(|&register| register != 0);
        RequestFacts {
            tag: report.tag,
            signal: report.signal,
            code: report.code,
            pid: report.pid,
            tid: report.tid,
            thread: printable(&name[..name_length]),
            address_at: (report.flags & REPORT_ADDRESS != 0)
                .then(|| self.address_facts(report.address))
                .flatten(),
            recovery_ns: report.recovery_ns,
            restored: match incident.verdict {
                Verdict::Intact => Restored::Sealed,
                Verdict::Unsealed => Restored::Committed,
                Verdict::Mismatch => Restored::Unknown,
            },
            drafts_total: report.drafts_total,
            drafts: incident
                .drafts
                .iter()
                .map(|draft| self.draft_facts(report.app, draft))
                .collect(),
            program: incident.program.as_ref().map(program_facts),
            details_dropped: incident.stripped,
            registers: match has_registers {
                true => report.registers.to_vec(),
                false => Vec::new(),
            },
            backtrace: report
                .backtrace
                .iter()
                .copied()
                .take_while(|&address| address != 0)
                .collect(),
        }
    }

    fn draft_facts(&self, app: u32, draft: &Dropped) -> DraftFacts {
        let address = page_address(app, draft.page);
        DraftFacts {
            domain: self.domain_key(app, draft.domain).unwrap_or_default(),
            page: draft.page,
            address,
            changed_bytes: draft.changed,
            first_changed: draft.first,
            frame: (draft.frame != NONE).then_some(draft.frame),
            changes: draft
                .changes
                .iter()
                .map(|change| change_facts(address, change))
                .collect(),
        }
    }

    /// Whose an address is; `None` outside of the apps' ranges.
    fn address_facts(&self, address: u64) -> Option<AddressFacts> {
        let page = address.checked_sub(APP_BASE)? / u64::from(PAGE_SIZE);
        let number = u32::try_from(page / u64::from(APP_PAGES)).ok()?;
        if number >= vmsrs_protocol::MAX_APPS {
            return None;
        }
        let unused = |app| AddressFacts {
            place: Place::Unused,
            app,
            domain: None,
            behind: None,
        };
        let Some(app) = self.store.apps.get(number as usize) else {
            return Some(unused(None));
        };
        let name = Some(printable(app.name()));
        // Below `APP_PAGES`.
        let page = (page % u64::from(APP_PAGES)) as u32;
        if let Some(domain) = app.owner(page) {
            return Some(AddressFacts {
                place: Place::Domain,
                app: name,
                domain: self.domain_key(number, domain),
                behind: None,
            });
        }
        // A guard is one unit, and the unit before it is somebody's.
        let guard = page - page % EXTENT_UNIT_PAGES;
        let before = guard.checked_sub(1).and_then(|last| app.owner(last));
        Some(match before {
            None => unused(name),
            Some(domain) => AddressFacts {
                place: Place::Guard,
                app: name,
                domain: self.domain_key(number, domain),
                behind: Some(address - page_address(number, guard)),
            },
        })
    }

    fn app_name(&self, app: u32) -> Option<String> {
        let app = self.store.apps.get(app as usize)?;
        Some(printable(app.name()))
    }

    fn domain_key(&self, app: u32, domain: u32) -> Option<String> {
        let app = self.store.apps.get(app as usize)?;
        app.key(domain).map(printable)
    }
}

fn page_address(app: u32, page: u32) -> u64 {
    let page = u64::from(app) * u64::from(APP_PAGES) + u64::from(page);
    APP_BASE + page * u64::from(PAGE_SIZE)
}

fn change_facts(page: u64, change: &Change) -> ChangeFacts {
    ChangeFacts {
        address: page + u64::from(change.offset),
        old: change.before().to_vec(),
        new: change.after().to_vec(),
        block: change.block.map(block_facts),
    }
}

fn block_facts(block: Block) -> BlockFacts {
    let state = |state| match state {
        State::Live => BlockState::Live,
        State::Freed | State::Free => BlockState::Freed,
    };
    BlockFacts {
        address: block.address,
        size: block.size,
        was: block.was.map(state),
        became: block.became.map(state),
    }
}

fn program_facts(program: &Program) -> ProgramFacts {
    ProgramFacts {
        stack_address: program.stack_address,
        stack_low: program.stack_bounds.0,
        stack_high: program.stack_bounds.1,
        stack: program.stack.to_vec(),
        modules: program.modules.to_vec(),
        message: printable(&program.text),
    }
}

fn down_summary(down: &GuestDown) -> IncidentSummary {
    IncidentSummary {
        number: down.number,
        at_ms: milliseconds(down.at),
        kind: guest_down::KIND_NAME.to_owned(),
        outcome: Outcome::Discarded,
        app: None,
        domain: None,
        address: None,
    }
}

/// Text of the guest's choosing, safe to show on a terminal.
fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text)
        .chars()
        .map(|character| match character.is_control() {
            true => char::REPLACEMENT_CHARACTER,
            false => character,
        })
        .collect()
}

fn milliseconds(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn text_of_the_guest_cannot_control_a_terminal() {
        assert_eq!(printable(b"user-1"), "user-1");
        assert_eq!(printable(b"\x1b[2J\xff"), "\u{fffd}[2J\u{fffd}");
    }
}
