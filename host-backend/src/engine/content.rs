//! What the engine needs to know of and do to the content of frames to keep it whole.

use std::io;

use thiserror::Error;

/// The content of a frame cannot be had: the hardware reports its memory as broken.
#[derive(Debug, Error)]
#[error("the memory of frame {frame} is broken")]
pub struct Unreadable {
    /// The frame.
    pub frame: u32,
    /// The system's error.
    #[source]
    pub source: io::Error,
}

/// The content of frames, for checks and repairs. Nothing here is seen by the guest as a change of
/// permissions, and no access raises a signal, whatever state the memory is in.
pub trait Content {
    /// The checksum ([`checksum`]) of a frame's content.
    ///
    /// # Errors
    ///
    /// Fails when the content cannot be read.
    fn checksum(&self, frame: u32) -> Result<u32, Unreadable>;

    /// Overwrites a frame that the guest cannot write with the content of another.
    ///
    /// # Errors
    ///
    /// Fails when either of them cannot be accessed.
    fn copy(&mut self, from: u32, to: u32) -> Result<(), Unreadable>;

    /// Backs a frame that the guest cannot write with other memory of the host, with the content
    /// of the frame `from`, or zeros. The guest sees the frame's old memory or the new content, and
    /// nothing between them.
    ///
    /// # Errors
    ///
    /// Fails when `from` cannot be read, or the operating system has no other memory; the frame is
    /// unchanged then, or unreadable for the guest. One that should be zeros stays readable.
    fn replace(&mut self, frame: u32, from: Option<u32>) -> Result<(), Unreadable>;
}

/// The checksum of a page's content: CRC-32, which finds every change of up to three bits in a page
/// and misses one in 2^32 of larger ones.
pub fn checksum(content: &[u8]) -> u32 {
    crc32fast::hash(content)
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
