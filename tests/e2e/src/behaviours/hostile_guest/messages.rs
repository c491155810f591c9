//! Attacks with the content of messages.

use std::mem::offset_of;

use anyhow::{Result, ensure};
use bytemuck::{Zeroable, bytes_of};
use vmsrs_protocol::control::{
    AddExtent, ControlHeader, DiscardRequest, MESSAGE_ADD_EXTENT, MESSAGE_DISCARD,
    MESSAGE_EVIDENCE, MESSAGE_INCIDENT, MESSAGE_OPEN_APP, MESSAGE_OPEN_DOMAIN, MESSAGE_SEAL,
    OpenDomain, STATUS_MALFORMED, STATUS_NOT_FOUND, STATUS_NOT_OWNER, STATUS_STALE, STATUS_UNKNOWN,
    SealRequest,
};
use vmsrs_protocol::device::DeviceConfig;
use vmsrs_protocol::incident::{DroppedDraft, IncidentReport, KIND_MAX};
use vmsrs_protocol::seal::SealRecord;
use vmsrs_protocol::{KEY_MAX, NONE, ZERO_FRAME};

use super::engine::{
    Page, accepted, discard, domain, grant, no_pages, record, report, seal, seal_refused,
    window_frames,
};
use crate::hostile::{Device, message, open_app, register};

pub(super) fn wrong_lengths(device: &mut Device) -> Result<()> {
    device.expect_refused("too short for a header", &[1, 0, 0, 0], STATUS_MALFORMED)?;
    for kind in MESSAGE_OPEN_APP..=MESSAGE_EVIDENCE {
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
    for kind in [0, MESSAGE_EVIDENCE + 1, 0x8000_0000, u32::MAX] {
        let bytes = message(kind, &0u64, &[]);
        device.expect_refused("an unknown kind", &bytes, STATUS_UNKNOWN)?;
    }
    Ok(())
}

pub(super) fn foreign_frames(device: &mut Device) -> Result<()> {
    let page = domain(device, "frames")?;
    let window = window_frames(device)?;
    let own = grant(device, 4)?;
    for frame in [ZERO_FRAME, window - 1, window, 0x8000_0000, NONE] {
        device.expect_refused("discard", &discard(&[own[0], frame]), STATUS_NOT_OWNER)?;
        seal_refused(device, &[record(page, frame)], STATUS_NOT_OWNER)?;
    }
    accepted(device, &discard(&own))?;
    // Handed back, and so no longer the driver's.
    device.expect_refused("discard again", &discard(&own), STATUS_NOT_OWNER)?;
    seal_refused(device, &[record(page, own[0])], STATUS_NOT_OWNER)
}

pub(super) fn stale_records(device: &mut Device) -> Result<()> {
    let page = domain(device, "stale")?;
    let own = grant(device, 2)?;
    for old_frame in [ZERO_FRAME, own[0], own[1], 0x8000_0000, NONE - 1] {
        let stale = SealRecord {
            old_frame,
            ..record(page, own[0])
        };
        seal_refused(device, &[stale], STATUS_STALE)?;
    }
    // A good record before a stale one of the same commit is not sealed either.
    let good = SealRecord {
        flags: 0,
        ..record(page, own[0])
    };
    let stale = SealRecord {
        old_frame: own[0],
        ..record(next(page), own[1])
    };
    seal_refused(device, &[good, stale], STATUS_STALE)?;
    no_pages(device, page)
}

pub(super) fn foreign_pages(device: &mut Device) -> Result<()> {
    let mine = domain(device, "mine")?;
    let other = domain(device, "other")?;
    let own = grant(device, 1)?[0];
    for page in [other.page, mine.page + 4, 0x0fff_ffff, NONE] {
        seal_refused(
            device,
            &[record(Page { page, ..mine }, own)],
            STATUS_NOT_OWNER,
        )?;
    }
    for (app, domain) in [
        (mine.app, 0x0010_0000),
        (mine.app, NONE),
        (63, mine.domain),
        (NONE, mine.domain),
    ] {
        let foreign = record(
            Page {
                app,
                domain,
                ..mine
            },
            own,
        );
        seal_refused(device, &[foreign], STATUS_NOT_FOUND)?;
    }
    no_pages(device, mine)?;
    no_pages(device, other)
}

pub(super) fn duplicate_frames(device: &mut Device) -> Result<()> {
    let page = domain(device, "twice")?;
    let own = grant(device, 1)?[0];
    device.expect_refused("discard", &discard(&[own, own]), STATUS_MALFORMED)?;
    let first = SealRecord {
        flags: 0,
        ..record(page, own)
    };
    let second = record(next(page), own);
    seal_refused(device, &[first, second], STATUS_NOT_OWNER)?;
    no_pages(device, page)
}

pub(super) fn huge_counts(device: &mut Device) -> Result<()> {
    let page = domain(device, "huge counts")?;
    let Page { app, domain, .. } = page;
    for count in [1, 0x0100_0000, 0x2000_0001, u32::MAX] {
        let seal = SealRequest {
            records: count,
            reserved: 0,
        };
        let discard = DiscardRequest {
            frames: count,
            reserved: 0,
        };
        let report = IncidentReport {
            drafts: count,
            ..IncidentReport::zeroed()
        };
        for bytes in [
            message(MESSAGE_SEAL, &seal, &[]),
            message(MESSAGE_DISCARD, &discard, &[]),
            message(MESSAGE_INCIDENT, &report, &[]),
        ] {
            device.expect_refused("a missing list", &bytes, STATUS_MALFORMED)?;
        }
    }
    let config = offset_of!(DeviceConfig, batch_records) as u64;
    let most = device.read(register::CONFIG + config)?;
    let many = vec![record(Page { page: 0, ..page }, NONE); most as usize + 1];
    device.expect_refused("too many records", &seal(&many), STATUS_MALFORMED)?;
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
        };
        let bytes = message(MESSAGE_OPEN_DOMAIN, &open, &[]);
        device.expect_refused("a key", &bytes, STATUS_MALFORMED)?;
    }
    let config = offset_of!(DeviceConfig, pool_frames) as u64;
    let pool = device.read(register::CONFIG + config)?;
    let granted = grant(device, u32::MAX)?.len() as u32;
    ensure!(granted <= pool, "{granted} frames of a pool of {pool}");
    ensure!(
        grant(device, u32::MAX)?.len() as u32 <= pool - granted,
        "more frames than the pool has"
    );
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
    let foreign = DroppedDraft {
        domain: page.domain,
        page: page.page,
        frame: ZERO_FRAME,
        committed: u32::MAX,
    };
    let bytes = message(
        MESSAGE_INCIDENT,
        &IncidentReport { drafts: 1, ..good },
        bytes_of(&foreign),
    );
    device.expect_refused("a frame that is not a draft", &bytes, STATUS_NOT_OWNER)?;
    let bytes = message(MESSAGE_INCIDENT, &good, &[]);
    accepted(device, &bytes)?;
    device.expect_refused("a duplicate number", &bytes, STATUS_MALFORMED)
}

/// The page after this one.
fn next(page: Page) -> Page {
    Page {
        page: page.page + 1,
        ..page
    }
}
