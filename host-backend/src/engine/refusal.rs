//! Why the engine does not do what the guest asks for.

use thiserror::Error;
use vmsrs_protocol::control::{
    STATUS_HOST_ERROR, STATUS_MALFORMED, STATUS_NO_SPACE, STATUS_NOT_FOUND, STATUS_NOT_OWNER,
    STATUS_STALE, STATUS_UNKNOWN,
};

/// A refused message or batch. Nothing of it has taken effect.
///
/// The text is a sentence about the guest without a full stop, one for each check, so that
/// refusals can be counted and logged by it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// Malformed message, or a field out of range.
    #[error("{0}")]
    Malformed(&'static str),
    /// The kind of message is not known.
    #[error("the driver sent a message of an unknown kind")]
    Unknown,
    /// The vault, or a table of the host, is full.
    #[error("{0}")]
    NoSpace(&'static str),
    /// No such app, domain or extent.
    #[error("{0}")]
    NotFound(&'static str),
    /// A page that is not the domain's.
    #[error("{0}")]
    NotOwner(&'static str),
    /// The page's sealed frame is another one than the record says.
    #[error("the driver committed a page against a frame that is not its sealed one")]
    Stale,
    /// The host's own operating system refused memory for the vault.
    #[error("the host has no memory for the vault")]
    Host,
}

impl Refusal {
    /// The `STATUS_` constant that tells the driver.
    pub fn status(self) -> u32 {
        match self {
            Self::Malformed(_) => STATUS_MALFORMED,
            Self::Unknown => STATUS_UNKNOWN,
            Self::NoSpace(_) => STATUS_NO_SPACE,
            Self::NotFound(_) => STATUS_NOT_FOUND,
            Self::NotOwner(_) => STATUS_NOT_OWNER,
            Self::Stale => STATUS_STALE,
            Self::Host => STATUS_HOST_ERROR,
        }
    }

    /// The refusal's text, by which it is counted.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Malformed(reason)
            | Self::NoSpace(reason)
            | Self::NotFound(reason)
            | Self::NotOwner(reason) => reason,
            Self::Unknown => "the driver sent a message of an unknown kind",
            Self::Stale => "the driver committed a page against a frame that is not its sealed one",
            Self::Host => "the host has no memory for the vault",
        }
    }
}
