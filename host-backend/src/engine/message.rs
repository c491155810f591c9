//! Control messages: bytes of the driver become calls of the engine, results become bytes.
//!
//! Everything in a message is checked here or in the call it leads to, and nowhere else; a message
//! that is refused has no effect, except for the reports before the one that is refused.

use std::borrow::Cow;
use std::time::Duration;

use bytemuck::{AnyBitPattern, NoUninit, bytes_of, pod_read_unaligned};
use vmsrs_protocol::control::{
    AddExtent, ControlHeader, DeleteRecord, DeleteRequest, ListDomain, ListReply,
    MESSAGE_ADD_EXTENT, MESSAGE_DELETE, MESSAGE_EVIDENCE, MESSAGE_INCIDENT, MESSAGE_LIST_EXTENTS,
    MESSAGE_LIST_PAGES, MESSAGE_OPEN_APP, MESSAGE_OPEN_DOMAIN, MESSAGE_REPORTS, MESSAGE_SEAL,
    OpenApp, OpenDomain, PARTS_MAX, ReplyHeader, STATUS_OK, SealReply, SealRequest,
};
use vmsrs_protocol::incident::{DroppedDraft, Evidence, IncidentReport};
use vmsrs_protocol::seal::SealRecord;

use super::refusal::Refusal;
use super::{Engine, Memory};

/// A reply, and what was refused, for the counters.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// The reply's bytes: empty when there is no room for a header, else a [`ReplyHeader`] and its
    /// payload, never more than the room for it.
    pub bytes: Vec<u8>,
    /// Why the message, or the batch that it is a part of, was refused.
    pub refusal: Option<Refusal>,
}

impl Reply {
    /// The reply to a message that is refused.
    pub fn refused(refusal: Refusal, room: usize) -> Self {
        let header = ReplyHeader {
            status: refusal.status(),
            length: 0,
        };
        let bytes = match room < size_of::<ReplyHeader>() {
            true => Vec::new(),
            false => bytes_of(&header).to_vec(),
        };
        Self {
            bytes,
            refusal: Some(refusal),
        }
    }
}

/// Handles one message of the driver.
///
/// `message` is what the driver wrote, headers included; `room` is how many bytes a reply may have;
/// `at` is the time since the Unix epoch, for incidents.
pub fn handle_message(
    engine: &mut Engine,
    memory: &mut impl Memory,
    at: Duration,
    message: &[u8],
    room: usize,
) -> Reply {
    match dispatch(engine, memory, at, message, room) {
        Ok((payload, refusal)) => {
            let header = ReplyHeader {
                status: STATUS_OK,
                // Replies are bounded by `room`, and that by the longest message.
                length: payload.len() as u32,
            };
            let mut bytes = bytes_of(&header).to_vec();
            bytes.extend_from_slice(&payload);
            debug_assert!(bytes.len() <= room);
            Reply { bytes, refusal }
        }
        Err(refusal) => Reply::refused(refusal, room),
    }
}

/// The payload of a reply, and what was refused of the message; or why all of it was.
type MessageResult = Result<(Vec<u8>, Option<Refusal>), Refusal>;

fn dispatch(
    engine: &mut Engine,
    memory: &mut impl Memory,
    at: Duration,
    message: &[u8],
    room: usize,
) -> MessageResult {
    let mut input = Input(message);
    let header: ControlHeader = input.take()?;
    if header.length as usize != input.0.len() {
        return Err(Refusal::Malformed(
            "the driver sent a message that does not match the length in its header",
        ));
    }
    let room = Room(room).less::<ReplyHeader>()?;
    let payload = match header.kind {
        MESSAGE_OPEN_APP => {
            room.less::<vmsrs_protocol::control::AppReply>()?;
            bytes_of(&engine.open_app(&input.last::<OpenApp>()?)?).to_vec()
        }
        MESSAGE_OPEN_DOMAIN => {
            room.less::<vmsrs_protocol::control::DomainReply>()?;
            bytes_of(&engine.open_domain(&input.last::<OpenDomain>()?)?).to_vec()
        }
        MESSAGE_LIST_EXTENTS => {
            let (list, limit) = list_request(&mut input, room)?;
            let (extents, next) = engine.list_extents(list.app, list.domain, list.first, limit)?;
            list_reply(&extents, next)
        }
        MESSAGE_LIST_PAGES => {
            let (list, limit) = list_request(&mut input, room)?;
            let (pages, next) = engine.list_pages(list.app, list.domain, list.first, limit)?;
            list_reply(&pages, next)
        }
        MESSAGE_ADD_EXTENT => {
            room.less::<vmsrs_protocol::control::ExtentReply>()?;
            bytes_of(&engine.add_extent(&input.last::<AddExtent>()?)?).to_vec()
        }
        MESSAGE_SEAL => {
            let sealed = seal(engine, memory, at, &mut input, room);
            if sealed.is_err() {
                engine.drop_batch();
            }
            return sealed;
        }
        MESSAGE_DELETE => {
            let deleted = delete(engine, &mut input);
            if deleted.is_err() {
                engine.drop_batch();
            }
            deleted?;
            Vec::new()
        }
        MESSAGE_REPORTS => {
            for _ in 0..PARTS_MAX {
                let (kind, part) = input.part()?;
                report(engine, memory, at, kind, part)?;
                if input.0.is_empty() {
                    return Ok((Vec::new(), None));
                }
            }
            return Err(Refusal::Malformed(
                "the driver sent too many reports in a message",
            ));
        }
        kind => {
            report(engine, memory, at, kind, input)?;
            Vec::new()
        }
    };
    Ok((payload, None))
}

/// Handles one report.
fn report(
    engine: &mut Engine,
    memory: &mut impl Memory,
    at: Duration,
    kind: u32,
    mut input: Input<'_>,
) -> Result<(), Refusal> {
    match kind {
        MESSAGE_INCIDENT => {
            let report: IncidentReport = input.take()?;
            let drafts: Cow<[DroppedDraft]> = input.list(report.drafts)?;
            engine.report(at, &report, &drafts, memory)
        }
        MESSAGE_EVIDENCE => {
            let evidence: Evidence = input.take()?;
            engine.evidence(&evidence, input.0)
        }
        _ => Err(Refusal::Unknown),
    }
}

fn seal(
    engine: &mut Engine,
    memory: &mut impl Memory,
    at: Duration,
    input: &mut Input<'_>,
    room: Room,
) -> MessageResult {
    let room = room.less::<SealReply>()?.entries::<u32>();
    let request: SealRequest = input.take()?;
    let records: Cow<[SealRecord]> = input.list(request.records)?;
    if records.len() > room {
        return Err(NO_ROOM);
    }
    let outcome = engine.seal(at, &records, request.flags, memory)?;
    let mut payload = bytes_of(&SealReply {
        // As many as the records, or none.
        sealed: outcome.frames.len() as u32,
        refusal: outcome.refusal_status(),
    })
    .to_vec();
    payload.extend_from_slice(bytemuck::cast_slice(&outcome.frames));
    Ok((payload, outcome.refusal))
}

fn delete(engine: &mut Engine, input: &mut Input<'_>) -> Result<(), Refusal> {
    let request: DeleteRequest = input.take()?;
    let records: Cow<[DeleteRecord]> = input.list(request.records)?;
    engine.delete(&records)
}

fn list_request(input: &mut Input<'_>, room: Room) -> Result<(ListDomain, usize), Refusal> {
    let list: ListDomain = input.last()?;
    // Extents and pages have entries of the same size.
    let entries = room
        .less::<ListReply>()?
        .entries::<vmsrs_protocol::control::PageFrame>();
    Ok((list, entries.min(list.limit as usize)))
}

fn list_reply<T: NoUninit>(entries: &[T], next: u32) -> Vec<u8> {
    let reply = ListReply {
        // Bounded by the reply's room.
        count: entries.len() as u32,
        next,
    };
    let mut payload = bytes_of(&reply).to_vec();
    payload.extend_from_slice(bytemuck::cast_slice(entries));
    payload
}

/// What is left of a message.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// The next structure.
    fn take<T: AnyBitPattern>(&mut self) -> Result<T, Refusal> {
        let (bytes, rest) = self
            .0
            .split_at_checked(size_of::<T>())
            .ok_or(Refusal::Malformed(
                "the driver sent a message that is too short for its kind",
            ))?;
        self.0 = rest;
        Ok(pod_read_unaligned(bytes))
    }

    /// The last structure.
    fn last<T: AnyBitPattern>(&mut self) -> Result<T, Refusal> {
        let value = self.take()?;
        self.list::<u8>(0)?;
        Ok(value)
    }

    /// A message in a message: its kind and its payload, which is padded to a multiple of 8 bytes.
    fn part(&mut self) -> Result<(u32, Input<'a>), Refusal> {
        let header: ControlHeader = self.take()?;
        let length = header.length as usize;
        let (part, rest) =
            self.0
                .split_at_checked(length.next_multiple_of(8))
                .ok_or(Refusal::Malformed(
                    "the driver sent a message with a part that is longer than the message",
                ))?;
        self.0 = rest;
        Ok((header.kind, Input(&part[..length])))
    }

    /// The rest, which must be `count` structures: where it is if it is aligned.
    fn list<T: AnyBitPattern>(&mut self, count: u32) -> Result<Cow<'a, [T]>, Refusal> {
        let size = size_of::<T>();
        if !self.0.len().is_multiple_of(size) || self.0.len() / size != count as usize {
            return Err(Refusal::Malformed(
                "the driver sent a message whose list does not match its length",
            ));
        }
        Ok(bytemuck::try_cast_slice(self.0).map_or_else(
            |_| self.0.chunks_exact(size).map(pod_read_unaligned).collect(),
            Cow::Borrowed,
        ))
    }
}

const NO_ROOM: Refusal =
    Refusal::Malformed("the driver sent a message without enough room for the reply");

/// Bytes that are left for a reply.
#[derive(Clone, Copy)]
struct Room(usize);

impl Room {
    /// The room after a structure.
    fn less<T>(self) -> Result<Self, Refusal> {
        self.0.checked_sub(size_of::<T>()).map(Self).ok_or(NO_ROOM)
    }

    /// How many structures fit.
    fn entries<T>(self) -> usize {
        self.0 / size_of::<T>()
    }
}
