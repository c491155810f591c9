//! Frames with wrong content: a wrong checksum, or broken memory of the host.

use vmsrs_protocol::incident::{KIND_CHECKSUM, KIND_POISON};

use super::store::PageOwner;

/// How a wrong content was detected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Its checksum is not the one it had when it was sealed.
    Checksum,
    /// The hardware reports its memory as broken.
    Poison,
}

impl Cause {
    /// Its `KIND_` constant.
    pub(crate) fn kind(self) -> u32 {
        match self {
            Self::Checksum => KIND_CHECKSUM,
            Self::Poison => KIND_POISON,
        }
    }
}

/// What becomes of an access that met broken memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The frame has its content again.
    Now,
    /// The driver has been told to take the page away; then the access ends in the guest.
    Later,
    /// It fails.
    Never,
}

/// How the content of a frame differed from its mirror's copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Bytes that differed.
    pub(crate) bytes: u32,
    /// Offset in the page of the first of them, if there was one.
    pub(crate) first: Option<u32>,
}

/// What became of the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// The frame has its right content again.
    Repaired,
    /// It was not a committed page: its user lost it, and the frame gets new memory.
    Replaced,
    /// The content of a committed page is lost.
    Lost,
}

/// One such frame.
#[derive(Clone, Debug)]
pub(crate) struct Corruption {
    pub(crate) cause: Cause,
    pub(crate) remedy: Remedy,
    pub(crate) frame: u32,
    /// The frame's committed page, if it held one.
    pub(crate) owner: Option<PageOwner>,
    /// How the content differed from the mirror's, if that is known.
    pub(crate) difference: Option<Difference>,
}
