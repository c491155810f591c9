//! Takes the facts of the control socket's answers from the engine.

use std::time::Duration;

use vmsrs_protocol::heap::State as HeapState;
use vmsrs_protocol::incident::{REG_RIP, REPORT_ADDRESS, REPORT_LEFT, REPORT_LEFT_ESTIMATE};
use vmsrs_protocol::{APP_BASE, APP_PAGES, EXTENT_UNIT_PAGES, MAX_APPS, PAGE_SIZE};

use super::facts::*;
use crate::engine::changes::{Block, Change};
use crate::engine::corruption::Corruption;
use crate::engine::evidence::Program;
use crate::engine::incidents::{Dropped, FailedRequest, Incident, Record, SealedWrites, Verdict};
use crate::engine::store::{PageOwner, Store};
use crate::engine::{Engine, FrameState, PageOf};
use crate::engine_handle::EngineHandle;

/// The engine's state, with what the driver was refused.
pub(crate) fn status(handle: &EngineHandle) -> EngineStatus {
    let refusals = handle.refusals().into_iter();
    EngineStatus {
        refusals: refusals
            .map(|(what, count)| count_of(what, count))
            .collect(),
        ..handle.read(engine_status)
    }
}

/// The engine's state, without refusals.
pub(crate) fn engine_status(engine: &Engine) -> EngineStatus {
    let store = engine.store();
    let counters = engine.counters();
    let frames = |state| store.frames.count(state);
    let (pages, pages_max) = store.pages();
    EngineStatus {
        pool_frames: engine.config().pool_frames,
        vault_frames: store.frames.len(),
        free_frames: frames(FrameState::Free),
        staged_frames: frames(FrameState::Staged),
        sealed_frames: frames(FrameState::Sealed),
        retired_frames: frames(FrameState::Retired),
        mirror_frames: frames(FrameState::Mirror),
        damaged_pages: store.damaged(),
        scrub: counters.scrubbed,
        scrub_passes: counters.scrub_passes,
        // At most `MAX_APPS`.
        apps: store.apps.len() as u32,
        domains: store.domains(),
        pages,
        pages_max,
        batches: counters.batches,
        sealed_pages: counters.sealed_pages,
        seal_messages: counters.seal_messages,
        dropped_drafts: counters.dropped_drafts,
        resets: counters.resets,
        metadata_bytes: store.bytes() as u64,
        incidents: engine
            .incidents()
            .counts()
            .iter()
            .map(|(kind, outcome, count)| IncidentCount {
                what: kind.to_owned(),
                outcome,
                count,
            })
            .collect(),
        recovery_times: engine.incidents().recovery_times().clone(),
        refusals: Vec::new(),
    }
}

/// All incidents that are kept, oldest first.
pub(crate) fn incidents(engine: &Engine) -> Vec<IncidentSummary> {
    let all = engine.incidents().iter();
    let mut list: Vec<_> = all
        .map(|incident| summary(engine.store(), incident))
        .collect();
    list.sort_by_key(|summary| summary.at_ms);
    list
}

/// Everything known about an incident; `None` when it is unknown or no longer kept.
pub(crate) fn incident(engine: &Engine, number: u64) -> Option<IncidentDetail> {
    let incident = engine.incidents().get(number)?;
    let store = engine.store();
    let (instruction, facts) = match &incident.record {
        Record::Request(request) => {
            let rip = request.report.registers[REG_RIP];
            let facts = Box::new(request_facts(store, request));
            ((rip != 0).then_some(rip), IncidentFacts::Request(facts))
        }
        Record::SealedWrite(writes) => (
            Some(writes.write.instruction),
            IncidentFacts::SealedWrite(write_facts(writes)),
        ),
        Record::GuestDown(down) => {
            let facts = GuestDownFacts {
                reason: down.reason.clone(),
                pool_frames: engine.config().pool_frames,
                domains: down.loss.domains,
                staged_pages: down.loss.staged_pages,
            };
            (None, IncidentFacts::GuestDown(facts))
        }
        Record::Corruption(corruption) => (
            None,
            IncidentFacts::Corruption(corruption_facts(corruption)),
        ),
    };
    Some(IncidentDetail {
        summary: summary(store, incident),
        instruction,
        facts,
    })
}

fn summary(store: &Store, incident: &Incident) -> IncidentSummary {
    let record = &incident.record;
    let owned = |owner: Option<PageOwner>| IncidentSummary {
        number: incident.number,
        at_ms: milliseconds(incident.at),
        kind: record.kind().to_owned(),
        outcome: record.outcome(),
        app: owner.and_then(|owner| app_name(store, owner.app)),
        domain: owner.and_then(|owner| domain_key(store, owner.app, owner.domain)),
        address: None,
    };
    match record {
        Record::Request(request) => {
            let report = &request.report;
            IncidentSummary {
                app: app_name(store, report.app),
                domain: domain_key(store, report.app, report.domain),
                address: (report.flags & REPORT_ADDRESS != 0).then_some(report.address),
                ..owned(None)
            }
        }
        Record::SealedWrite(writes) => IncidentSummary {
            address: (writes.write.address != 0).then_some(writes.write.address),
            ..owned(writes.owner)
        },
        Record::GuestDown(_) => owned(None),
        Record::Corruption(corruption) => {
            let page = corruption
                .owner
                .map(|PageOwner { app, page, .. }| PageOf { app, page });
            IncidentSummary {
                address: page.map(|page| page.address()),
                ..owned(corruption.owner)
            }
        }
    }
}

fn write_facts(writes: &SealedWrites) -> SealedWriteFacts {
    let write = &writes.write;
    SealedWriteFacts {
        frame: write.frame,
        vcpu: write.vcpu,
        physical: write.physical,
        user: write.cpl == 3,
        cpl: write.cpl,
        cr3: write.cr3,
        page: writes.owner.map(|owner| owner.page),
        code: write.code().to_vec(),
        registers: write.registers.to_vec(),
        count: writes.count,
    }
}

fn corruption_facts(corruption: &Corruption) -> CorruptionFacts {
    CorruptionFacts {
        frame: corruption.frame,
        page: corruption.owner.map(|owner| owner.page),
        changed_bytes: corruption.difference.map(|found| found.bytes),
        first_changed: corruption.difference.and_then(|found| found.first),
    }
}

fn request_facts(store: &Store, request: &FailedRequest) -> RequestFacts {
    let report = &request.report;
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
            .then(|| address_facts(store, report.address))
            .flatten(),
        recovery_ns: report.recovery_ns,
        restored: match request.verdict {
            Verdict::Intact => Restored::Sealed,
            Verdict::Unsealed => Restored::Committed,
            Verdict::Mismatch => Restored::Unknown,
        },
        left_open: (report.flags & REPORT_LEFT != 0).then_some(LeftOpenFacts {
            descriptors: report.left_descriptors,
            bytes: report.left_bytes,
            is_estimate: report.flags & REPORT_LEFT_ESTIMATE != 0,
        }),
        drafts_total: report.drafts_total,
        drafts: request
            .drafts
            .iter()
            .map(|draft| draft_facts(store, report.app, draft))
            .collect(),
        program: request.program.as_ref().map(program_facts),
        details_dropped: request.stripped,
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

fn draft_facts(store: &Store, app: u32, draft: &Dropped) -> DraftFacts {
    let address = page_address(app, draft.page);
    DraftFacts {
        domain: domain_key(store, app, draft.domain).unwrap_or_default(),
        page: draft.page,
        address,
        changed_bytes: draft.changed,
        first_changed: draft.first,
        changes: draft
            .changes
            .iter()
            .map(|change| change_facts(address, change))
            .collect(),
    }
}

/// The owner of an address; `None` outside the apps' ranges.
fn address_facts(store: &Store, address: u64) -> Option<AddressFacts> {
    let page = address.checked_sub(APP_BASE)? / u64::from(PAGE_SIZE);
    let number = u32::try_from(page / u64::from(APP_PAGES)).ok()?;
    if number >= MAX_APPS {
        return None;
    }
    let unused = |app| AddressFacts {
        place: Place::Unused,
        app,
        domain: None,
        behind: None,
    };
    let Some(app) = store.apps.get(number as usize) else {
        return Some(unused(None));
    };
    let name = Some(printable(app.name()));
    // Below `APP_PAGES`.
    let page = (page % u64::from(APP_PAGES)) as u32;
    if let Some(domain) = app.owner(page) {
        return Some(AddressFacts {
            place: Place::Domain,
            app: name,
            domain: domain_key(store, number, domain),
            behind: None,
        });
    }
    // A guard is one unit, and the unit before it has an owner.
    let guard = page - page % EXTENT_UNIT_PAGES;
    let before = guard.checked_sub(1).and_then(|last| app.owner(last));
    Some(match before {
        None => unused(name),
        Some(domain) => AddressFacts {
            place: Place::Guard,
            app: name,
            domain: domain_key(store, number, domain),
            behind: Some(address - page_address(number, guard)),
        },
    })
}

/// The app and domain that an incident is of, by their numbers.
pub(super) fn owner_of(incident: &Incident) -> Option<(u32, u32)> {
    let owner = match &incident.record {
        Record::Request(request) => return Some((request.report.app, request.report.domain)),
        Record::SealedWrite(writes) => writes.owner,
        Record::Corruption(corruption) => corruption.owner,
        Record::GuestDown(_) => None,
    };
    owner.map(|owner| (owner.app, owner.domain))
}

pub(super) fn app_name(store: &Store, app: u32) -> Option<String> {
    let app = store.apps.get(app as usize)?;
    Some(printable(app.name()))
}

pub(super) fn domain_key(store: &Store, app: u32, domain: u32) -> Option<String> {
    let app = store.apps.get(app as usize)?;
    app.key(domain).map(printable)
}

fn count_of(what: &str, count: u64) -> Count {
    Count {
        what: what.to_owned(),
        count,
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
        HeapState::Live | HeapState::Slab | HeapState::Taken => BlockState::Live,
        HeapState::Freed | HeapState::Free | HeapState::Given => BlockState::Freed,
    };
    let is_chunk = |state| matches!(state, HeapState::Taken | HeapState::Given);
    BlockFacts {
        address: block.address,
        size: block.size,
        was: block.was.map(state),
        became: block.became.map(state),
        chunk: block.became.or(block.was).is_some_and(is_chunk),
    }
}

fn program_facts(program: &Program) -> ProgramFacts {
    ProgramFacts {
        stack_address: program.stack_address,
        stack_low: program.stack_bounds.0,
        stack_high: program.stack_bounds.1,
        stack: program.stack().to_vec(),
        modules: program.modules().to_vec(),
        message: printable(program.text()),
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

fn milliseconds(time: Duration) -> u64 {
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
