//! Attacks on the frames of the window.

use std::fs;

use anyhow::{Result, ensure};
use bytemuck::{bytes_of, pod_read_unaligned};
use vmsrs_protocol::ZERO_FRAME;
use vmsrs_protocol::control::{MESSAGE_INCIDENT, STATUS_NOT_OWNER, STATUS_OK, SealReply};
use vmsrs_protocol::incident::{DroppedDraft, IncidentReport};

use super::engine::{accepted, discard, domain, grant, record, report, seal, store, window_frames};
use crate::hostile::{Device, message};
use crate::stray::DEBUGFS;

pub(super) fn every_kind_of_frame(device: &mut Device) -> Result<()> {
    let page = domain(device, "kinds")?;
    let own = grant(device, 8)?;
    for &frame in &own {
        ensure!(
            store(frame, "0x55")?.is_none(),
            "granted frame {frame} is not writable"
        );
    }
    let [sealed, discarded, evidence, kept] = [own[0], own[1], own[2], own[3]];
    let reply = accepted(device, &seal(&[record(page, sealed)]))?;
    let reply: SealReply = pod_read_unaligned(&reply[..size_of::<SealReply>()]);
    ensure!((reply.sealed, reply.refusal) == (1, STATUS_OK), "{reply:?}");
    accepted(device, &discard(&[discarded]))?;
    let draft = DroppedDraft {
        domain: page.domain,
        page: page.page,
        frame: evidence,
        committed: sealed,
    };
    let report = IncidentReport {
        drafts: 1,
        drafts_total: 1,
        ..report(device, page, 0)?
    };
    let bytes = message(MESSAGE_INCIDENT, &report, bytes_of(&draft));
    accepted(device, &bytes)?;

    let last = window_frames(device)? - 1;
    for frame in [ZERO_FRAME, sealed, evidence, last] {
        let error = store(frame, "0x66")?;
        ensure!(error == Some(libc::EFAULT), "frame {frame}: {error:?}");
    }
    // Retired, free or granted again: it is writable only if it is the driver's.
    let again = store(discarded, "0x66")?;
    ensure!(matches!(again, None | Some(libc::EFAULT)), "{again:?}");
    ensure!(
        store(kept, "0x66")?.is_none(),
        "a frame that is still granted is not writable"
    );

    // After a reset none belongs to the driver; the sealed one keeps its content.
    device.start()?;
    for frame in [kept, sealed, evidence] {
        let error = store(frame, "0x77")?;
        ensure!(
            error == Some(libc::EFAULT),
            "frame {frame} after a reset: {error:?}"
        );
    }
    let stale = discard(&[kept]);
    device.expect_refused("a frame granted before the reset", &stale, STATUS_NOT_OWNER)?;
    store(sealed, "0x77")?;
    let byte = fs::read_to_string(format!("{}/byte", DEBUGFS))?;
    ensure!(byte.trim() == "85", "the sealed byte is {byte}");
    Ok(())
}
