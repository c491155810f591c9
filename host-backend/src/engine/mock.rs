//! Pool and vault for tests. Memory can be broken, the vault can be full, and the guest can be made to
//! change each pool frame as soon as it was read.

use std::io;

use vmsrs_protocol::{PAGE_SIZE, ZERO_FRAME};

use super::memory::{Memory, NotCopied, PoolCopy, Unreadable};
use super::{EngineConfig, Page};

pub(crate) struct MockMemory {
    pub(crate) pool: Vec<Page>,
    pub(crate) vault: Vec<Page>,
    /// Frames whose memory is broken.
    pub(crate) broken_pool: Vec<bool>,
    pub(crate) broken_vault: Vec<bool>,
    /// Frames of the vault that cannot be written, and get no other memory.
    pub(crate) unwritable: Vec<bool>,
    /// How often each pool frame was copied into the vault.
    pub(crate) copies: Vec<u32>,
    /// Calls of [`Memory::seal`] that succeed before the host has no memory for one.
    pub(crate) fails_after: Option<u32>,
    /// The guest writes to each pool frame after it was copied.
    pub(crate) is_restless: bool,
}

impl MockMemory {
    pub(crate) fn new(config: &EngineConfig) -> Self {
        let (pool, vault) = (config.pool_frames as usize, config.vault_frames as usize);
        Self {
            pool: vec![[0; PAGE_SIZE as usize]; pool],
            vault: vec![[0; PAGE_SIZE as usize]; vault],
            broken_pool: vec![false; pool],
            broken_vault: vec![false; vault],
            unwritable: vec![false; vault],
            copies: vec![0; pool],
            fails_after: None,
            is_restless: false,
        }
    }

    /// What the guest does to a pool frame. The whole page changes.
    pub(crate) fn guest_write(&mut self, frame: u32, content: u64) {
        fill(&mut self.pool[frame as usize], content);
    }

    /// The content that [`Self::guest_write`] gave a frame that was copied into the vault; panics when it
    /// is of several.
    pub(crate) fn content(&self, frame: u32) -> u64 {
        let page = &self.vault[frame as usize];
        let content = u64::from_le_bytes(*page.first_chunk().unwrap());
        assert!(
            page[8..] == page[..page.len() - 8],
            "frame {frame} has parts of several versions"
        );
        content
    }

    pub(crate) fn wipe(&mut self, frame: u32) -> Result<(), Unreadable> {
        assert_ne!(frame, ZERO_FRAME);
        check(&self.unwritable, frame)?;
        self.renew(frame);
        Ok(())
    }

    /// Backs a vault frame with zeroed memory.
    fn renew(&mut self, frame: u32) {
        self.vault[frame as usize].fill(0);
        self.broken_vault[frame as usize] = false;
    }
}

fn checksum(page: &Page) -> u64 {
    crc32c::crc32c(page).into()
}

fn fill(page: &mut Page, content: u64) {
    page.as_chunks_mut::<8>().0.fill(content.to_le_bytes());
}

fn check(broken: &[bool], frame: u32) -> Result<(), Unreadable> {
    match broken[frame as usize] {
        false => Ok(()),
        true => Err(Unreadable {
            frame,
            source: io::Error::from_raw_os_error(libc::EIO),
        }),
    }
}

impl Memory for MockMemory {
    fn seal(&mut self, copy: PoolCopy) -> Result<u64, NotCopied> {
        match &mut self.fails_after {
            Some(0) => {
                self.fails_after = None;
                return Err(NotCopied::Host(io::Error::from_raw_os_error(libc::ENOMEM)));
            }
            Some(count) => *count -= 1,
            None => {}
        }
        let (from, to) = (copy.pool_frame as usize, copy.vault_frame as usize);
        if let Err(error) = check(&self.unwritable, copy.vault_frame) {
            self.vault[to][..100].fill(0xee);
            return Err(NotCopied::Vault(error));
        }
        self.copies[from] += 1;
        assert_ne!(copy.vault_frame, ZERO_FRAME);
        self.broken_vault[to] = false;
        if let Err(error) = check(&self.broken_pool, copy.pool_frame) {
            // Half of it was copied, and the rest is what was there before.
            self.vault[to][..100].fill(0xee);
            return Err(NotCopied::Pool(error));
        }
        self.vault[to] = self.pool[from];
        if self.is_restless {
            fill(&mut self.pool[from], u64::MAX);
        }
        Ok(checksum(&self.vault[to]))
    }

    fn read_pool(&self, frame: u32, content: &mut Page) -> Result<(), Unreadable> {
        check(&self.broken_pool, frame)?;
        *content = self.pool[frame as usize];
        Ok(())
    }

    fn read_vault(&self, frame: u32, content: &mut Page) -> Result<(), Unreadable> {
        check(&self.broken_vault, frame)?;
        *content = self.vault[frame as usize];
        Ok(())
    }

    fn checksum(&self, frame: u32) -> Result<u64, Unreadable> {
        check(&self.broken_vault, frame)?;
        Ok(checksum(&self.vault[frame as usize]))
    }

    fn copy(&mut self, from: u32, to: u32) -> Result<(), Unreadable> {
        check(&self.broken_vault, from)?;
        check(&self.broken_vault, to)?;
        check(&self.unwritable, to)?;
        self.vault[to as usize] = self.vault[from as usize];
        Ok(())
    }

    fn replace(&mut self, frame: u32, from: Option<u32>) -> Result<(), Unreadable> {
        if let Some(from) = from {
            check(&self.broken_vault, from)?;
        }
        check(&self.unwritable, frame)?;
        let content = from.map_or([0; PAGE_SIZE as usize], |from| self.vault[from as usize]);
        self.renew(frame);
        self.vault[frame as usize] = content;
        Ok(())
    }
}
