//! The state of the engine and its incidents as plain data: the JSON of the control socket.

use serde::{Deserialize, Serialize};

use crate::engine::{RecoveryTimes, ScrubCounts};

pub use crate::engine::IncidentOutcome;

/// What the pages of a failed request go back to, as the host checked it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restored {
    /// To the versions that the host has sealed.
    Sealed,
    /// Some to versions that were committed and not sealed yet.
    Committed,
    /// The driver named versions that the host does not know, or no longer has.
    Unknown,
}

/// A number of incidents of one kind that ended in the same way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IncidentCount {
    /// Name of the kind.
    pub what: String,
    /// How they ended.
    pub outcome: IncidentOutcome,
    /// How many.
    pub count: u64,
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
pub struct EngineStatus {
    /// Frames in the pool.
    pub pool_frames: u32,
    /// Frames in the vault.
    pub vault_frames: u32,
    /// Frames of the vault that are wiped or were never used.
    pub free_frames: u32,
    /// Frames that hold pages of a batch that is still arriving.
    pub staged_frames: u32,
    /// Frames that hold committed pages; the zero frame is among them.
    pub sealed_frames: u32,
    /// Frames that wait for the cleanser.
    pub retired_frames: u32,
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
    /// Batches of commits that were sealed.
    pub batches: u64,
    /// Pages sealed.
    pub sealed_pages: u64,
    /// Seal messages taken.
    pub seal_messages: u64,
    /// Drafts dropped, with and without an incident.
    pub dropped_drafts: u64,
    /// Times that the device was reset.
    pub resets: u64,
    /// Bytes that the host keeps about frames, pages and domains.
    pub metadata_bytes: u64,
    /// Incidents by kind and outcome since the VM was started.
    pub incidents: Vec<IncidentCount>,
    /// How long the recovery of failed requests took since then.
    pub recovery_times: RecoveryTimes,
    /// What the guest's driver was refused, by reason.
    pub refusals: Vec<Count>,
}

impl EngineStatus {
    /// Incidents of all kinds, since the start.
    pub(crate) fn all_incidents(&self) -> u64 {
        self.incidents.iter().map(|kind| kind.count).sum()
    }
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
    pub outcome: IncidentOutcome,
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
    /// What is known of its sort only.
    #[serde(flatten)]
    pub facts: IncidentFacts,
}

/// What is known of an incident, by its sort. In JSON the sort is the name of the field that holds
/// the facts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IncidentFacts {
    /// About a failed request.
    Request(Box<RequestFacts>),
    /// About a write into a sealed frame.
    SealedWrite(SealedWriteFacts),
    /// About an end of the guest's kernel.
    GuestDown(GuestDownFacts),
    /// About a frame with wrong content.
    Corruption(CorruptionFacts),
}

impl IncidentDetail {
    /// The failed request, if it is one.
    pub fn request(&self) -> Option<&RequestFacts> {
        match &self.facts {
            IncidentFacts::Request(request) => Some(request),
            _ => None,
        }
    }
}

/// A frame whose content is wrong or lost.
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
    /// The owner of the address, if it lies in the apps' address ranges.
    pub address_at: Option<AddressFacts>,
    /// Nanoseconds from the detection in the guest until its drafts were dropped.
    pub recovery_ns: u64,
    /// What its pages went back to.
    pub restored: Restored,
    /// What it has left open outside of domains; `None` if that was not counted. Not trusted.
    pub left_open: Option<LeftOpenFacts>,
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

/// What a failed request has left open outside of domains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOpenFacts {
    /// Descriptors.
    pub descriptors: u32,
    /// Bytes of memory.
    pub bytes: u64,
    /// Other threads or requests may have had a part in it.
    pub is_estimate: bool,
}

/// The owner of an address in the apps' ranges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressFacts {
    /// The sort of place.
    pub place: Place,
    /// Name of the app in whose range it lies, if there is such an app.
    pub app: Option<String>,
    /// Key of the domain that has the page, or that ends before it.
    pub domain: Option<String>,
    /// Bytes from that domain's end to the address, if it lies past it.
    pub behind: Option<u64>,
}

/// Sorts of places in the apps' address ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A page of a domain.
    Domain,
    /// A guard after a domain.
    Guard,
    /// An address that no domain has.
    Unused,
}

/// What the program kept of its failure. Not trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramFacts {
    /// Address of the first byte of `stack`.
    pub stack_address: u64,
    /// First byte of the whole stack.
    pub stack_low: u64,
    /// First byte past the whole stack.
    pub stack_high: u64,
    /// The top of the stack that failed.
    #[serde(with = "hex")]
    pub stack: Vec<u8>,
    /// Module table ([`vmsrs_protocol::incident::ModuleEntry`]).
    #[serde(with = "hex")]
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
    /// Bytes in which it differed from the page's committed version; `None` if they could not be
    /// compared.
    pub changed_bytes: Option<u32>,
    /// Offset in the page of the first of them.
    pub first_changed: Option<u32>,
    /// What differed, in order; empty if that is not kept.
    pub changes: Vec<ChangeFacts>,
}

/// Bytes that a dropped draft had changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeFacts {
    /// Address of the first of them.
    pub address: u64,
    /// In the version that stayed.
    #[serde(with = "hex")]
    pub old: Vec<u8>,
    /// In the dropped draft; as many.
    #[serde(with = "hex")]
    pub new: Vec<u8>,
    /// The heap block that starts at or before the change, and nearest to it. No block with a good
    /// header starts inside the change.
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
    /// It is a chunk of a slab.
    #[serde(default)]
    pub chunk: bool,
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
    /// store, that is after its instruction.)
    #[serde(with = "hex")]
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
    /// Frames of the pool, whose content no longer counts: drafts, and commits that had not reached the
    /// host.
    pub pool_frames: u32,
    /// How often domains were opened; a process that opens an app again counts again.
    pub domains: u32,
    /// Pages of a batch of which only a part had reached the host.
    pub staged_pages: u32,
}
