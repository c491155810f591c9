//! Attacks with the content of messages.

use anyhow::{Context, Result, ensure};
use bytemuck::{Zeroable, bytes_of};
use vmsrs_protocol::control::{
    AddExtent, ControlHeader, DeleteRecord, DeleteRequest, MESSAGE_ADD_EXTENT, MESSAGE_DELETE,
    MESSAGE_INCIDENT, MESSAGE_OPEN_APP, MESSAGE_OPEN_DOMAIN, MESSAGE_REPORTS, MESSAGE_SEAL,
    OpenDomain, STATUS_MALFORMED, STATUS_NOT_FOUND, STATUS_NOT_OWNER, STATUS_STALE, STATUS_UNKNOWN,
    SealRequest,
};
use vmsrs_protocol::incident::{DroppedDraft, IncidentReport, KIND_MAX};
use vmsrs_protocol::seal::{SEAL_LAST, SealRecord};
use vmsrs_protocol::{DAMAGED_FRAME, EXTENT_MAX_PAGES, IN_POOL, KEY_MAX, NONE, ZERO_FRAME};

use super::engine::{
    Page, accepted, batch_records, domain, domain_of, draft_report, no_pages, pages, pool_frames,
    record, refused_with, report, seal, seal_accepted, seal_refused, vault_frames,
};
use crate::hostile::{Device, message, open_app};

pub(super) fn wrong_lengths(device: &mut Device) -> Result<()> {
    device.expect_refused("too short for a header", &[1, 0, 0, 0], STATUS_MALFORMED)?;
    for kind in MESSAGE_OPEN_APP..=MESSAGE_DELETE {
        let header = ControlHeader { kind, length: 0 };
        device.expect_refused("no payload", bytes_of(&header), STATUS_MALFORMED)?;
    }
    let good = open_app();
    for length in [0, 1, good.len() as u32, 0x7fff_ffff, u32::MAX] {
        let mut bytes = good.clone();
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        device.expect_refused("a wrong length", &bytes, STATUS_MALFORMED)?;
    }
    let mut long = good;
    long.push(0);
    device.expect_refused("an extra byte", &long, STATUS_MALFORMED)
}

pub(super) fn unknown_kinds(device: &mut Device) -> Result<()> {
    for kind in [0, MESSAGE_DELETE + 1, 0x8000_0000, u32::MAX] {
        let bytes = message(kind, &0u64, &[]);
        device.expect_refused("an unknown kind", &bytes, STATUS_UNKNOWN)?;
    }
    Ok(())
}

pub(super) fn foreign_frames(device: &mut Device) -> Result<()> {
    let page = domain(device, "frames")?;
    let pool = pool_frames(device)?;
    for frame in [pool, vault_frames(device)?, IN_POOL, DAMAGED_FRAME, NONE] {
        seal_refused(device, &[record(page, frame)], STATUS_MALFORMED)?;
        // Nor is a good record before it sealed, in the same message or in another.
        let (good, foreign) = (record(page, 0), record(page.after(1), frame));
        seal_refused(device, &[good, foreign], STATUS_MALFORMED)?;
        seal_accepted(device, &[good], 0)?;
        seal_refused(device, &[foreign], STATUS_MALFORMED)?;
        no_pages(device, page)?;
    }
    Ok(())
}

pub(super) fn stale_records(device: &mut Device) -> Result<()> {
    let page = domain(device, "stale")?;
    let other = domain(device, "not stale")?;
    let stale = |page, vault_frame| SealRecord {
        vault_frame,
        ..record(page, 1)
    };
    let vault = vault_frames(device)?;
    for frame in [ZERO_FRAME, 1, vault - 1, vault, IN_POOL, DAMAGED_FRAME] {
        seal_refused(device, &[stale(page, frame)], STATUS_STALE)?;
        // Nor is a good record before it sealed, in the same message or in another.
        let good = record(page.after(1), 0);
        seal_refused(device, &[good, stale(page, frame)], STATUS_STALE)?;
        seal_accepted(device, &[good], 0)?;
        seal_refused(device, &[stale(page, frame)], STATUS_STALE)?;
        no_pages(device, page)?;
    }
    let first = seal_accepted(device, &[record(page, 0)], SEAL_LAST)?[0];
    let foreign = seal_accepted(device, &[record(other, 0)], SEAL_LAST)?[0];
    for frame in [NONE, foreign] {
        seal_refused(device, &[stale(page, frame)], STATUS_STALE)?;
    }
    let second = seal_accepted(device, &[stale(page, first)], SEAL_LAST)?[0];
    seal_refused(device, &[stale(page, first)], STATUS_STALE)?;
    let found = pages(device, page)?;
    ensure!(
        found.len() == 1 && (found[0].page, found[0].frame) == (page.page, second),
        "not the version that was accepted: {found:?}"
    );
    Ok(())
}

pub(super) fn foreign_pages(device: &mut Device) -> Result<()> {
    let mine = domain(device, "mine")?;
    let other = domain(device, "other")?;
    for page in [other.page, mine.page + 4, 0x0fff_ffff, NONE] {
        let foreign = record(Page { page, ..mine }, 0);
        seal_refused(device, &[foreign], STATUS_NOT_OWNER)?;
    }
    for (app, domain) in [
        (mine.app, 0x0010_0000),
        (mine.app, NONE),
        (63, mine.domain),
        (NONE, mine.domain),
    ] {
        let foreign = Page {
            app,
            domain,
            ..mine
        };
        seal_refused(device, &[record(foreign, 0)], STATUS_NOT_FOUND)?;
    }
    no_pages(device, mine)?;
    no_pages(device, other)
}

pub(super) fn duplicates(device: &mut Device) -> Result<()> {
    let page = domain(device, "twice")?;
    let first = record(page, 0);
    for second in [record(page.after(1), 0), record(page, 1), first] {
        seal_refused(device, &[first, second], STATUS_MALFORMED)?;
        seal_accepted(device, &[first], 0)?;
        seal_refused(device, &[second], STATUS_MALFORMED)?;
        no_pages(device, page)?;
    }
    Ok(())
}

/// The batch with all frames of the pool is sealed, and one with more records is not.
pub(super) fn long_batches(device: &mut Device) -> Result<()> {
    let pool = pool_frames(device)?;
    let most = batch_records(device)? as usize;
    let page = domain_of(device, "long", pool)?;
    let more = record(domain(device, "longer")?, 0);
    let all: Vec<_> = (0..pool)
        .map(|number| record(page.after(number), number))
        .collect();
    for part in all.chunks(most) {
        seal_accepted(device, part, 0)?;
    }
    seal_refused(device, &[more], STATUS_MALFORMED)?;
    no_pages(device, page)?;

    let (end, parts) = all.split_last().context("a pool without frames")?;
    for part in parts.chunks(most) {
        seal_accepted(device, part, 0)?;
    }
    no_pages(device, page)?;
    seal_accepted(device, &[*end], SEAL_LAST)?;
    ensure!(!pages(device, page)?.is_empty(), "the batch is not sealed");
    Ok(())
}

/// Other messages may come between those of a batch, and see nothing of it.
pub(super) fn messages_in_a_batch(device: &mut Device) -> Result<()> {
    let page = domain(device, "between")?;
    seal_accepted(device, &[record(page, 0)], 0)?;
    device.expect_working()?;
    no_pages(device, page)?;
    let bytes = draft_report(device, page, IN_POOL)?;
    accepted(device, &bytes)?;
    let grown = AddExtent {
        app: page.app,
        domain: page.domain,
        index: 1,
        pages: 4,
    };
    accepted(device, &message(MESSAGE_ADD_EXTENT, &grown, &[]))?;
    // Refused, but no part of the batch.
    device.expect_refused("in a batch", &bytes, STATUS_MALFORMED)?;
    seal_accepted(device, &[record(page.after(1), 1)], SEAL_LAST)?;
    let found = pages(device, page)?;
    ensure!(found.len() == 2, "{found:?}");
    Ok(())
}

/// Deletions are part of their batch, and go with it when one of them is wrong.
pub(super) fn false_deletions(device: &mut Device) -> Result<()> {
    let page = domain(device, "deletions")?;
    let mut vault_frame = seal_accepted(device, &[record(page, 0)], SEAL_LAST)?[0];
    let good = DeleteRecord {
        app: page.app,
        domain: page.domain,
        extents: NONE,
        reserved: 0,
    };
    let deletion = |records: &[DeleteRecord], count| {
        let request = DeleteRequest {
            records: count,
            reserved: 0,
        };
        message(MESSAGE_DELETE, &request, bytemuck::cast_slice(records))
    };
    let wrong = [
        (vec![DeleteRecord { app: 63, ..good }], STATUS_NOT_FOUND),
        (
            vec![DeleteRecord {
                domain: NONE,
                ..good
            }],
            STATUS_NOT_FOUND,
        ),
        (
            vec![DeleteRecord {
                domain: page.domain + 1,
                ..good
            }],
            STATUS_NOT_FOUND,
        ),
        (vec![DeleteRecord { extents: 0, ..good }], STATUS_MALFORMED),
        (vec![good, good], STATUS_MALFORMED),
    ];
    for (records, status) in wrong {
        // Alone, or after one that is right: nothing of the batch stays.
        let bytes = deletion(&records, records.len() as u32);
        device.expect_refused("a deletion", &bytes, status)?;
        let newer = SealRecord {
            vault_frame,
            ..record(page, 1)
        };
        vault_frame = seal_accepted(device, &[newer], SEAL_LAST)?[0];
    }
    for count in [0, 2, 0x1000_0001, u32::MAX] {
        let bytes = deletion(&[good], count);
        device.expect_refused("a list that does not match", &bytes, STATUS_MALFORMED)?;
    }
    accepted(device, &deletion(&[good], 1))?;
    device.expect_refused("another one", &deletion(&[good], 1), STATUS_MALFORMED)?;
    let found = pages(device, page)?;
    ensure!(found.len() == 1, "{found:?}");
    // Now for good. What is named of it afterwards is refused.
    accepted(device, &deletion(&[good], 1))?;
    seal_accepted(device, &[], SEAL_LAST)?;
    device.expect_refused("a deleted domain", &deletion(&[good], 1), STATUS_NOT_FOUND)?;
    refused_with(device, &[record(page, 0)], SEAL_LAST, STATUS_NOT_FOUND)?;
    let again = domain(device, "deletions")?;
    no_pages(device, again)
}

pub(super) fn huge_counts(device: &mut Device) -> Result<()> {
    let page = domain(device, "huge counts")?;
    let Page { app, domain, .. } = page;
    for count in [1, 0x0100_0000, 0x2000_0001, u32::MAX] {
        let seal = SealRequest {
            records: count,
            flags: SEAL_LAST,
        };
        let report = IncidentReport {
            drafts: count,
            ..IncidentReport::zeroed()
        };
        for bytes in [
            message(MESSAGE_SEAL, &seal, &[]),
            message(MESSAGE_INCIDENT, &report, &[]),
        ] {
            device.expect_refused("a missing list", &bytes, STATUS_MALFORMED)?;
        }
    }
    let many = vec![record(page, 0); batch_records(device)? as usize + 1];
    let many = seal(&many, SEAL_LAST);
    device.expect_refused("too many records", &many, STATUS_MALFORMED)?;
    for flags in [SEAL_LAST << 1, u32::MAX] {
        refused_with(device, &[record(page, 0)], flags, STATUS_MALFORMED)?;
    }
    no_pages(device, page)?;
    for (index, pages, status) in [
        (1, 0, STATUS_MALFORMED),
        (1, u32::MAX, STATUS_MALFORMED),
        (2, 4, STATUS_NOT_FOUND),
        (u32::MAX, 4, STATUS_NOT_FOUND),
    ] {
        let extent = AddExtent {
            app,
            domain,
            index,
            pages,
        };
        let bytes = message(MESSAGE_ADD_EXTENT, &extent, &[]);
        device.expect_refused("an extent", &bytes, status)?;
    }
    for key_length in [0, KEY_MAX as u32 + 1, u32::MAX] {
        let open = OpenDomain {
            app,
            key_length,
            key: [1; KEY_MAX],
            flags: 0,
            pages: 0,
            reuse: NONE,
        };
        let bytes = message(MESSAGE_OPEN_DOMAIN, &open, &[]);
        device.expect_refused("a key", &bytes, STATUS_MALFORMED)?;
    }
    for pages in [EXTENT_MAX_PAGES + 1, u32::MAX] {
        let open = OpenDomain {
            app,
            key_length: 1,
            key: [1; KEY_MAX],
            flags: 0,
            pages,
            reuse: NONE,
        };
        let bytes = message(MESSAGE_OPEN_DOMAIN, &open, &[]);
        device.expect_refused("a first extent", &bytes, STATUS_MALFORMED)?;
    }
    Ok(())
}

pub(super) fn false_reports(device: &mut Device) -> Result<()> {
    let page = domain(device, "reports")?;
    let good = report(device, page, 0)?;
    let send = |device: &mut Device, report: IncidentReport, status| {
        let bytes = message(MESSAGE_INCIDENT, &report, &[]);
        device.expect_refused("a false report", &bytes, status)
    };
    for kind in [0, KIND_MAX + 1, u32::MAX] {
        send(device, IncidentReport { kind, ..good }, STATUS_MALFORMED)?;
    }
    for incident in [0, good.incident + 1, u64::MAX, u64::MAX - 1] {
        send(
            device,
            IncidentReport { incident, ..good },
            STATUS_MALFORMED,
        )?;
    }
    for (app, domain) in [(NONE, 0), (63, 0), (good.app, NONE - 1)] {
        let unknown = IncidentReport {
            app,
            domain,
            ..good
        };
        send(device, unknown, STATUS_NOT_FOUND)?;
    }
    let pool = pool_frames(device)?;
    let draft = |pool_frame, committed| DroppedDraft {
        domain: page.domain,
        page: page.page,
        pool_frame,
        committed,
    };
    for foreign in [
        draft(pool, NONE),
        draft(IN_POOL, NONE),
        draft(NONE, NONE),
        draft(0, IN_POOL | pool),
        draft(0, vault_frames(device)?),
    ] {
        let bytes = message(
            MESSAGE_INCIDENT,
            &IncidentReport { drafts: 1, ..good },
            bytes_of(&foreign),
        );
        device.expect_refused("a frame that does not exist", &bytes, STATUS_MALFORMED)?;
    }
    let bytes = message(MESSAGE_INCIDENT, &good, &[]);
    accepted(device, &bytes)?;
    device.expect_refused("a duplicate number", &bytes, STATUS_MALFORMED)?;
    let several = message(MESSAGE_REPORTS, &0u64, &bytes);
    device.expect_refused("a report of no kind", &several, STATUS_UNKNOWN)?;
    for length in [1, bytes.len() as u32, u32::MAX - 7, u32::MAX] {
        let header = ControlHeader {
            kind: MESSAGE_INCIDENT,
            length,
        };
        let several = message(MESSAGE_REPORTS, &header, &bytes[8..]);
        device.expect_refused("a report of a wrong length", &several, STATUS_MALFORMED)?;
    }
    Ok(())
}
