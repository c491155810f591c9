//! Regular messages to the engine, which the attacks start from.

use std::mem::offset_of;

use anyhow::{Result, ensure};
use bytemuck::{Pod, Zeroable, bytes_of, cast_slice, pod_read_unaligned};
use vmsrs_protocol::control::{
    AddExtent, AppReply, DomainReply, Extent, ListDomain, ListReply, MESSAGE_ADD_EXTENT,
    MESSAGE_INCIDENT, MESSAGE_LIST_PAGES, MESSAGE_OPEN_DOMAIN, MESSAGE_SEAL, OpenDomain, PageFrame,
    STATUS_OK, SealReply, SealRequest,
};
use vmsrs_protocol::device::DeviceConfig;
use vmsrs_protocol::incident::{DroppedDraft, IncidentReport, KIND_MEMORY};
use vmsrs_protocol::seal::{SEAL_LAST, SealRecord};
use vmsrs_protocol::{KEY_MAX, NONE};

use crate::hostile::{Device, message, open_app, register};

/// A page of a domain.
#[derive(Clone, Copy)]
pub(super) struct Page {
    pub(super) app: u32,
    pub(super) domain: u32,
    pub(super) page: u32,
}

impl Page {
    /// The page `number` pages after this one.
    pub(super) fn after(self, number: u32) -> Self {
        Self {
            page: self.page + number,
            ..self
        }
    }
}

/// Opens a domain of the app `hostile`; returns the first page of its first extent, which has four.
pub(super) fn domain(device: &mut Device, name: &str) -> Result<Page> {
    domain_of(device, name, 4)
}

/// The same with this number of pages, at least.
pub(super) fn domain_of(device: &mut Device, name: &str, pages: u32) -> Result<Page> {
    let reply = accepted(device, &open_app())?;
    let app = pod_read_unaligned::<AppReply>(&reply).app;
    let mut key = [0; KEY_MAX];
    key[..name.len()].copy_from_slice(name.as_bytes());
    let open = OpenDomain {
        app,
        key_length: name.len() as u32,
        key,
        flags: 0,
        pages: 0,
        reuse: NONE,
    };
    let reply = accepted(device, &message(MESSAGE_OPEN_DOMAIN, &open, &[]))?;
    let domain = pod_read_unaligned::<DomainReply>(&reply).domain;
    let extent = AddExtent {
        app,
        domain,
        index: 0,
        pages,
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

/// A message with these records of a batch; `flags` as in [`SealRequest::flags`].
pub(super) fn seal(records: &[SealRecord], flags: u32) -> Vec<u8> {
    let request = SealRequest {
        records: records.len() as u32,
        flags,
    };
    message(MESSAGE_SEAL, &request, cast_slice(records))
}

/// The entries of a list.
fn list<T: Pod>(bytes: &[u8]) -> Vec<T> {
    bytes
        .chunks_exact(size_of::<T>())
        .map(pod_read_unaligned)
        .collect()
}

/// Sends a part of a batch that must be accepted; returns the vault frames of its records.
pub(super) fn seal_accepted(
    device: &mut Device,
    records: &[SealRecord],
    flags: u32,
) -> Result<Vec<u32>> {
    let bytes = accepted(device, &seal(records, flags))?;
    let (reply, frames) = bytes.split_at(size_of::<SealReply>());
    let reply: SealReply = pod_read_unaligned(reply);
    ensure!(
        (reply.sealed as usize, reply.refusal) == (records.len(), STATUS_OK)
            && frames.len() == records.len() * size_of::<u32>(),
        "{records:?}: {reply:?} and {} bytes",
        frames.len()
    );
    Ok(list(frames))
}

/// Sends the end of a batch, which must be refused as a whole for this reason.
pub(super) fn seal_refused(device: &mut Device, records: &[SealRecord], reason: u32) -> Result<()> {
    refused_with(device, records, SEAL_LAST, reason)
}

/// The same with other flags.
pub(super) fn refused_with(
    device: &mut Device,
    records: &[SealRecord],
    flags: u32,
    reason: u32,
) -> Result<()> {
    let bytes = accepted(device, &seal(records, flags))?;
    let (reply, frames) = bytes.split_at(size_of::<SealReply>());
    let reply: SealReply = pod_read_unaligned(reply);
    ensure!(
        (reply.sealed, reply.refusal, frames.len()) == (0, reason, 0),
        "{records:?}: {reply:?}, expected {reason}"
    );
    Ok(())
}

/// The sealed pages of a page's domain, as many as one reply lists.
pub(super) fn pages(device: &mut Device, page: Page) -> Result<Vec<PageFrame>> {
    let request = ListDomain {
        app: page.app,
        domain: page.domain,
        first: 0,
        limit: u32::MAX,
    };
    let bytes = accepted(device, &message(MESSAGE_LIST_PAGES, &request, &[]))?;
    let (reply, entries) = bytes.split_at(size_of::<ListReply>());
    let reply: ListReply = pod_read_unaligned(reply);
    ensure!(
        entries.len() == reply.count as usize * size_of::<PageFrame>(),
        "{reply:?}"
    );
    Ok(list(entries))
}

/// Checks that the domain of a page has no sealed pages.
pub(super) fn no_pages(device: &mut Device, page: Page) -> Result<()> {
    let pages = pages(device, page)?;
    ensure!(pages.is_empty(), "{pages:?}");
    Ok(())
}

/// A record that seals a pool frame as the first version of a page.
pub(super) fn record(page: Page, pool_frame: u32) -> SealRecord {
    SealRecord {
        app: page.app,
        domain: page.domain,
        page: page.page,
        pool_frame,
        vault_frame: NONE,
        reserved: 0,
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

/// A valid report of one draft, of this page and in pool frame 2, that falls back to this committed version.
pub(super) fn draft_report(device: &Device, page: Page, committed: u32) -> Result<Vec<u8>> {
    let draft = DroppedDraft {
        domain: page.domain,
        page: page.page,
        pool_frame: 2,
        committed,
    };
    let report = IncidentReport {
        drafts: 1,
        drafts_total: 1,
        ..report(device, page, 0)?
    };
    Ok(message(MESSAGE_INCIDENT, &report, bytes_of(&draft)))
}

/// The number of frames in the vault.
pub(super) fn vault_frames(device: &Device) -> Result<u32> {
    device.read(register::CONFIG + offset_of!(DeviceConfig, vault_frames) as u64)
}

/// The number of frames in the pool.
pub(super) fn pool_frames(device: &Device) -> Result<u32> {
    device.read(register::CONFIG + offset_of!(DeviceConfig, pool_frames) as u64)
}

/// The maximum number of records in a message.
pub(super) fn batch_records(device: &Device) -> Result<u32> {
    device.read(register::CONFIG + offset_of!(DeviceConfig, batch_records) as u64)
}
