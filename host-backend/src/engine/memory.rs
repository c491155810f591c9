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
}

impl NotCopied {
    /// The system's error.
    pub fn cause(&self) -> &io::Error {
        let (Self::Pool(error) | Self::Vault(error)) = self;
        &error.source
    }
}

/// The vault cannot be written: the host has no memory for it.
#[derive(Debug, Error)]
#[error("the vault cannot be written from frame {frame} on")]
pub struct HostError {
    /// The first vault frame that was not written.
    pub frame: u32,
    /// The system's error.
    #[source]
    pub source: io::Error,
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
    /// Copies pool frames, which the guest may be changing meanwhile, into vault frames: each is read
    /// once. For each copy, in order, the checksum ([`checksum`]) of what the vault frame holds now is
    /// added to `sealed`, or why there is no copy; what the vault frame holds is unspecified then. Vault
    /// frames whose memory is broken get other memory if that is possible.
    ///
    /// # Errors
    ///
    /// Fails when the vault cannot be written; what its frames hold is unspecified then.
    fn seal(
        &mut self,
        copies: &[PoolCopy],
        sealed: &mut Vec<Result<u32, NotCopied>>,
    ) -> Result<(), HostError>;

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

    /// The checksum ([`checksum`]) of a vault frame's content.
    ///
    /// # Errors
    ///
    /// Fails when the content cannot be read.
    fn checksum(&self, frame: u32) -> Result<u32, Unreadable>;

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

/// The checksum of a page's content: CRC-32C, which finds every change of up to three bits in a page
/// and misses one in 2^32 of larger ones.
pub fn checksum(content: &[u8]) -> u32 {
    crc32c::crc32c(content)
}

#[cfg(test)]
mod tests {
    use super::checksum;

    #[test]
    fn every_flipped_bit_of_a_page_changes_its_checksum() {
        let mut page: Vec<u8> = (0..4096u32).map(|byte| (byte * 7) as u8).collect();
        let whole = checksum(&page);
        for bit in 0..page.len() * 8 {
            page[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(checksum(&page), whole, "bit {bit}");
            page[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(checksum(&page), whole);
    }
}
