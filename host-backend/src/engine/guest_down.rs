//! Ends of the guest's kernel (a panic, a reboot, a triple fault) that took requests with them.
//!
//! The driver cannot report these any more, so the host does. It knows what was staged. What the pool
//! held (drafts, and commits that had not been sent) only the driver knew.

/// Name of this kind of incident, beside those of the driver's reports.
pub(crate) const KIND_NAME: &str = "guest-down";

/// What went with the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loss {
    /// How often domains were opened in this boot; their requests may have been running.
    pub(crate) domains: u32,
    /// Pages of a batch of which only a part had reached the host.
    pub(crate) staged_pages: u32,
}

impl Loss {
    /// Whether nothing can have been lost.
    pub(crate) fn is_none(&self) -> bool {
        self.domains == 0
    }
}

/// One such end.
#[derive(Debug)]
pub(crate) struct GuestDown {
    /// How the guest ended, in a sentence without a full stop.
    pub(crate) reason: String,
    pub(crate) loss: Loss,
}
