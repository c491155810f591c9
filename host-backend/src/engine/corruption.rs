//! Frames whose content went wrong by itself: a wrong checksum, or broken memory of the host.

use std::collections::VecDeque;
use std::time::Duration;

/// How it shows that a frame's content has gone wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Its checksum is not the one it had when it was sealed.
    Checksum,
    /// The hardware reports the memory behind it as broken.
    Poison,
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
    /// It was no committed page: whoever used it lost it, and the frame gets other memory.
    Replaced,
    /// The content of a committed page is lost.
    Lost,
}

/// One such frame.
#[derive(Clone, Debug)]
pub(crate) struct Corruption {
    pub(crate) number: u64,
    /// Since the Unix epoch.
    pub(crate) at: Duration,
    pub(crate) cause: Cause,
    pub(crate) remedy: Remedy,
    pub(crate) frame: u32,
    /// App, domain and page, if the frame held a committed page.
    pub(crate) owner: Option<(u32, u32, u32)>,
    /// How the content differed from the mirror's, if that is known.
    pub(crate) difference: Option<Difference>,
}

/// The latest corruptions.
pub(crate) struct Corruptions {
    limit: usize,
    /// Oldest first.
    kept: VecDeque<Corruption>,
}

impl Corruptions {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            kept: VecDeque::new(),
        }
    }

    pub(crate) fn add(&mut self, corruption: Corruption) {
        if self.kept.len() == self.limit {
            self.kept.pop_front();
        }
        self.kept.push_back(corruption);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Corruption> {
        self.kept.iter()
    }
}
