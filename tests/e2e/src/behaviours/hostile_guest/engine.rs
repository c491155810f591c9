//! Talking to the engine by the rules, so that the rules can be broken afterwards.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::mem::offset_of;

use anyhow::{Result, ensure};
use bytemuck::{Zeroable, cast_slice, pod_read_unaligned};
use vmsrs_protocol::control::{
    AddExtent, AppReply, DiscardRequest, DomainReply, Extent, GrantReply, GrantRequest, ListDomain,
    ListReply, MESSAGE_ADD_EXTENT, MESSAGE_DISCARD, MESSAGE_GRANT, MESSAGE_LIST_PAGES,
    MESSAGE_OPEN_DOMAIN, MESSAGE_SEAL, OpenDomain, STATUS_OK, SealReply, SealRequest,
};
use vmsrs_protocol::device::DeviceConfig;
use vmsrs_protocol::incident::{IncidentReport, KIND_MEMORY};
use vmsrs_protocol::seal::{SEAL_LAST, SealRecord};
use vmsrs_protocol::{FrameRun, KEY_MAX, NONE};

use crate::hostile::{Device, message, open_app, register};
use crate::stray::DEBUGFS;

/// Opens a domain of the app `hostile` and gives app, domain, and first page of its first extent.
pub(super) fn domain(device: &mut Device, name: &str) -> Result<(u32, u32, u32)> {
    let reply = accepted(device, &open_app())?;
    let app = pod_read_unaligned::<AppReply>(&reply).app;
    let mut key = [0; KEY_MAX];
    key[..name.len()].copy_from_slice(name.as_bytes());
    let open = OpenDomain {
        app,
        key_length: name.len() as u32,
        key,
        flags: 0,
    };
    let reply = accepted(device, &message(MESSAGE_OPEN_DOMAIN, &open, &[]))?;
    let domain = pod_read_unaligned::<DomainReply>(&reply).domain;
    let extent = AddExtent {
        app,
        domain,
        index: 0,
        pages: 4,
    };
    let reply = accepted(device, &message(MESSAGE_ADD_EXTENT, &extent, &[]))?;
    Ok((app, domain, pod_read_unaligned::<Extent>(&reply).page))
}

/// Sends a message that must be carried out; gives the payload of its reply.
pub(super) fn accepted(device: &mut Device, bytes: &[u8]) -> Result<Vec<u8>> {
    let (status, payload) = device.call(bytes)?;
    ensure!(status == STATUS_OK, "a good message: status {status}");
    Ok(payload)
}

/// Takes frames for the pool.
pub(super) fn grant(device: &mut Device, frames: u32) -> Result<Vec<u32>> {
    let request = GrantRequest {
        frames,
        reserved: 0,
    };
    let reply = accepted(device, &message(MESSAGE_GRANT, &request, &[]))?;
    let runs = reply[size_of::<GrantReply>()..].chunks_exact(size_of::<FrameRun>());
    Ok(runs
        .map(pod_read_unaligned::<FrameRun>)
        .flat_map(|run| run.start..run.start + run.count)
        .collect())
}

pub(super) fn seal(records: &[SealRecord]) -> Vec<u8> {
    let request = SealRequest {
        records: records.len() as u32,
        reserved: 0,
    };
    message(MESSAGE_SEAL, &request, cast_slice(records))
}

/// Sends one commit that must be refused whole for this reason.
pub(super) fn seal_refused(device: &mut Device, records: &[SealRecord], reason: u32) -> Result<()> {
    let reply = accepted(device, &seal(records))?;
    let reply: SealReply = pod_read_unaligned(&reply[..size_of::<SealReply>()]);
    ensure!(
        (reply.sealed, reply.refusal, reply.runs) == (0, reason, 0),
        "{records:?}: {reply:?}, not {reason}"
    );
    Ok(())
}

/// Sees that a domain has no sealed page.
pub(super) fn no_pages(device: &mut Device, (app, domain, _): (u32, u32, u32)) -> Result<()> {
    let list = ListDomain {
        app,
        domain,
        first: 0,
        limit: u32::MAX,
    };
    let reply = accepted(device, &message(MESSAGE_LIST_PAGES, &list, &[]))?;
    let reply: ListReply = pod_read_unaligned(&reply[..size_of::<ListReply>()]);
    ensure!((reply.count, reply.next) == (0, NONE), "{reply:?}");
    Ok(())
}

pub(super) fn discard(frames: &[u32]) -> Vec<u8> {
    let request = DiscardRequest {
        frames: frames.len() as u32,
        reserved: 0,
    };
    message(MESSAGE_DISCARD, &request, cast_slice(frames))
}

pub(super) fn record(place: (u32, u32, u32), new_frame: u32) -> SealRecord {
    let (app, domain, page) = place;
    SealRecord {
        tag: 1,
        app,
        domain,
        page,
        old_frame: NONE,
        new_frame,
        flags: SEAL_LAST,
    }
}

/// A report that is right but for what the caller changes.
pub(super) fn report(
    device: &Device,
    place: (u32, u32, u32),
    number: u64,
) -> Result<IncidentReport> {
    let config = offset_of!(DeviceConfig, incident_base) as u64;
    Ok(IncidentReport {
        incident: device.read_pair(register::CONFIG + config)? + 2 * number,
        tag: 1,
        app: place.0,
        domain: place.1,
        kind: KIND_MEMORY,
        address_domain: NONE,
        ..IncidentReport::zeroed()
    })
}

pub(super) fn window_frames(device: &Device) -> Result<u32> {
    let offset = offset_of!(DeviceConfig, window_frames) as u64;
    device.read(register::CONFIG + offset)
}

/// Has the kernel store a byte into a frame; the error number, if it was stopped.
pub(super) fn store(frame: u32, value: &str) -> Result<Option<i32>> {
    let mut file = OpenOptions::new()
        .write(true)
        .open(format!("{}/store", DEBUGFS))?;
    let command = format!("frame {frame} 11 {value} nofault");
    Ok(file
        .write_all(command.as_bytes())
        .err()
        .and_then(|error| error.raw_os_error()))
}
