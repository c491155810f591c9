//! What the engine needs of the memory of pool and vault.

use std::io;

use thiserror::Error;

use super::changes::Page;

/// The content of a frame cannot be read: the hardware reports its memory as broken, or there is no such
/// frame.
#[derive(Debug, Error)]
#[error("the memory of frame {frame} is broken")]
pub struct Unreadable {
    /// The frame.
    pub frame: u32,
    /// The system's error.
    #[source]
    pub source: io::Error,
}

/// Why a page has no copy in the vault.
#[derive(Debug, Error)]
pub enum NotCopied {
    /// The pool frame cannot be read.
    #[error("pool: {0}")]
    Pool(#[source] Unreadable),
    /// The vault frame's memory is broken, and it cannot get other memory.
    #[error("vault: {0}")]
    Vault(#[source] Unreadable),
    /// The host has no memory for the vault.
    #[error("the vault cannot be written")]
    Host(#[source] io::Error),
}

impl NotCopied {
    /// The system's error.
    pub fn cause(&self) -> &io::Error {
        match self {
            Self::Pool(error) | Self::Vault(error) => &error.source,
            Self::Host(source) => source,
        }
    }
}

/// A pool frame, and the vault frame that it is copied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolCopy {
    /// The pool frame.
    pub pool_frame: u32,
    /// The vault frame.
    pub vault_frame: u32,
}

/// The memory of pool and vault. No access raises a signal, whatever state the memory is in.
pub trait Memory {
    /// Copies a pool frame, which the guest may be changing meanwhile, into a vault frame: each byte is read
    /// once. Returns the checksum of the copy. Without a copy, what the vault frame holds is unspecified. A vault
    /// frame whose memory is broken gets other memory if that is possible.
    ///
    /// # Errors
    ///
    /// Fails when there is no copy.
    fn seal(&mut self, copy: PoolCopy) -> Result<u64, NotCopied>;

    /// Copies the content of a pool frame, which the guest may be changing meanwhile.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be read.
    fn read_pool(&self, frame: u32, content: &mut Page) -> Result<(), Unreadable>;

    /// Copies the content of a vault frame.
    ///
    /// # Errors
    ///
    /// Fails when it cannot be read.
    fn read_vault(&self, frame: u32, content: &mut Page) -> Result<(), Unreadable>;

    /// The checksum of a vault frame's content, by the same function as [`Self::seal`]'s: it finds a change, of
    /// whatever kind, except for one in 2^32 at most.
    ///
    /// # Errors
    ///
    /// Fails when the content cannot be read.
    fn checksum(&self, frame: u32) -> Result<u64, Unreadable>;

    /// Overwrites a vault frame with the content of another.
    ///
    /// # Errors
    ///
    /// Fails when either of them cannot be accessed.
    fn copy(&mut self, from: u32, to: u32) -> Result<(), Unreadable>;

    /// Backs a vault frame with other memory of the host, with the content of the vault frame `from`, or
    /// zeros. The guest sees the frame's old memory or the new content, and nothing between them.
    ///
    /// # Errors
    ///
    /// Fails when `from` cannot be read, or the operating system has no other memory; the frame is
    /// unchanged then, or unreadable for the guest. One that should be zeros stays readable.
    fn replace(&mut self, frame: u32, from: Option<u32>) -> Result<(), Unreadable>;
}
