//! Regular messages to the engine, which the attacks start from.

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

/// A page of a domain.
#[derive(Clone, Copy)]
pub(super) struct Page {
    pub(super) app: u32,
    pub(super) domain: u32,
    pub(super) page: u32,
}

/// Opens a domain of the app `hostile`; returns the first page of its first extent.
pub(super) fn domain(device: &mut Device, name: &str) -> Result<Page> {
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
    let page = pod_read_unaligned::<Extent>(&reply).page;
    Ok(Page { app, domain, page })
}

/// Sends a message that must be carried out; returns the payload of its reply.
pub(super) fn accepted(device: &mut Device, bytes: &[u8]) -> Result<Vec<u8>> {
    let (status, payload) = device.call(bytes)?;
    ensure!(status == STATUS_OK, "a regular message: status {status}");
    Ok(payload)
}

/// Asks for frames for the pool; returns those that are granted.
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

/// A message that seals these records.
pub(super) fn seal(records: &[SealRecord]) -> Vec<u8> {
    let request = SealRequest {
        records: records.len() as u32,
        reserved: 0,
    };
    message(MESSAGE_SEAL, &request, cast_slice(records))
}

/// Sends a commit that must be refused as a whole for this reason.
pub(super) fn seal_refused(device: &mut Device, records: &[SealRecord], reason: u32) -> Result<()> {
    let reply = accepted(device, &seal(records))?;
    let reply: SealReply = pod_read_unaligned(&reply[..size_of::<SealReply>()]);
    ensure!(
        (reply.sealed, reply.refusal, reply.runs) == (0, reason, 0),
        "{records:?}: {reply:?}, expected {reason}"
    );
    Ok(())
}

/// Checks that the domain of a page has no sealed pages.
pub(super) fn no_pages(device: &mut Device, page: Page) -> Result<()> {
    let list = ListDomain {
        app: page.app,
        domain: page.domain,
        first: 0,
        limit: u32::MAX,
    };
    let reply = accepted(device, &message(MESSAGE_LIST_PAGES, &list, &[]))?;
    let reply: ListReply = pod_read_unaligned(&reply[..size_of::<ListReply>()]);
    ensure!((reply.count, reply.next) == (0, NONE), "{reply:?}");
    Ok(())
}

/// A message that hands these frames back.
pub(super) fn discard(frames: &[u32]) -> Vec<u8> {
    let request = DiscardRequest {
        frames: frames.len() as u32,
        reserved: 0,
    };
    message(MESSAGE_DISCARD, &request, cast_slice(frames))
}

/// A record that seals `new_frame` as the first version of a page; its commit has no other records.
pub(super) fn record(page: Page, new_frame: u32) -> SealRecord {
    SealRecord {
        tag: 1,
        app: page.app,
        domain: page.domain,
        page: page.page,
        old_frame: NONE,
        new_frame,
        flags: SEAL_LAST,
    }
}

/// A valid report of the device's incident with this index, for the caller to change.
pub(super) fn report(device: &Device, page: Page, index: u64) -> Result<IncidentReport> {
    let config = offset_of!(DeviceConfig, incident_base) as u64;
    Ok(IncidentReport {
        incident: device.read_pair(register::CONFIG + config)? + 2 * index,
        tag: 1,
        app: page.app,
        domain: page.domain,
        kind: KIND_MEMORY,
        address_domain: NONE,
        ..IncidentReport::zeroed()
    })
}

/// The number of frames of the window.
pub(super) fn window_frames(device: &Device) -> Result<u32> {
    let offset = offset_of!(DeviceConfig, window_frames) as u64;
    device.read(register::CONFIG + offset)
}

/// Makes the kernel store a byte to a frame; returns the error number if the store was stopped.
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
