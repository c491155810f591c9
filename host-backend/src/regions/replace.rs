//! Replacing a vault frame's memory, in one step for its readers.
//!
//! A page of a file cannot be exchanged: there is a moment between the hole and the new content in which
//! the file has zeros. So another page with the content takes the frame's place in the guest-facing
//! mapping meanwhile. Each of the two changes is one `mmap` over the other: a reader at that moment
//! waits for the kernel and sees what was there before or what is there after. KVM's own entries are
//! invalidated with the mapping that they came from, and made again from the one that is there then.
//!
//! With [`HostPages::Huge`] a frame cannot be replaced: the system takes the whole huge page away when a
//! part of it is broken, and a mapping of such pages cannot be split.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::process;

use vmsrs_protocol::PAGE_SIZE;

use super::vault::page_file;
use super::{AccessError, Vault, offset};
use crate::engine::Page;
use crate::host_memory::{HostPages, want_huge_pages};

/// A page that stands in a frame's place; the file is back there when this is dropped.
struct StandIn<'a> {
    vault: &'a Vault,
    frame: u32,
    /// What the guest may do with the frame then.
    protection: i32,
}

impl<'a> StandIn<'a> {
    fn new(vault: &'a Vault, frame: u32, content: &Page) -> io::Result<Self> {
        let page = page_file().map_err(io::Error::other)?;
        page.write_all_at(content, 0)?;
        vault.map(frame, page.as_raw_fd(), 0, libc::PROT_READ)?;
        Ok(Self {
            vault,
            frame,
            protection: libc::PROT_READ,
        })
    }
}

impl Drop for StandIn<'_> {
    fn drop(&mut self) {
        let file = self.vault.region.file.as_raw_fd();
        let mapped = self
            .vault
            .map(self.frame, file, offset(self.frame), self.protection);
        if let Err(error) = mapped {
            // The frame would show a page that nothing writes to, to its next user too.
            log::error!("frame {} cannot be mapped again: {error}", self.frame);
            process::abort();
        }
    }
}

impl Vault {
    /// Backs a frame with other memory, with `content`. A reader of the frame through the guest-facing
    /// mapping finds its old memory or `content`, at any moment.
    ///
    /// # Errors
    ///
    /// Fails when the vault does not have this frame, with [`HostPages::Huge`], or when the system
    /// refuses. The guest can read the frame as before then; or not at all, if its old
    /// memory is gone and it should not be zeros.
    pub fn replace(&self, frame: u32, content: &Page) -> Result<(), AccessError> {
        self.region.check(frame)?;
        let failed = |source| self.region.error(frame, source);
        if self.region.pages == HostPages::Huge {
            return Err(failed(io::ErrorKind::Unsupported.into()));
        }
        let mut stand_in = StandIn::new(self, frame, content).map_err(failed)?;
        self.punch(frame)?;
        let written = self.write(frame, content);
        if written.is_err() && content.iter().any(|&byte| byte != 0) {
            stand_in.protection = libc::PROT_NONE;
        }
        written
    }

    /// Puts a page of a file in a frame's place in the guest-facing mapping.
    fn map(&self, frame: u32, file: RawFd, offset: u64, protection: i32) -> io::Result<()> {
        let page = PAGE_SIZE as usize;
        // SAFETY: callers have checked that the frame lies in the guest-facing mapping. No Rust object
        // lives in that mapping, and this process does not write through it.
        let (start, mapped) = unsafe {
            let start = self.region.guest.as_ptr().add(frame as usize * page);
            let flags = libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_FIXED;
            // Files of the vault are smaller than 2^44 bytes.
            let offset = offset as libc::off_t;
            let mapped = libc::mmap(start.cast(), page, protection, flags, file, offset);
            (start, mapped)
        };
        if mapped != libc::MAP_FAILED {
            // As its neighbours, with which it becomes one mapping again.
            want_huge_pages(start, page);
            return Ok(());
        }
        let error = io::Error::last_os_error();
        // SAFETY: without flags that write anything the call only looks at the mapping.
        if unsafe { libc::msync(start.cast(), page, libc::MS_ASYNC) } != 0 {
            // The system took the old page away before it refused. Whatever is mapped there next would
            // be shown to the guest.
            log::error!("frame {frame} has no place in memory any more: {error}");
            process::abort();
        }
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use super::*;
    use crate::engine::Memory;
    use crate::regions::tests::{guest_byte, kernel_lets_write, regions};

    #[test]
    fn replacing_a_frame_is_atomic_for_readers() {
        let mut regions = regions();
        let vault = regions.vault.clone();
        for frame in [3, 5] {
            vault.write(frame, &[7; 4096]).unwrap();
        }
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut reads = 0u64;
                // A panic or a signal shows what was seen between.
                while !done.load(SeqCst) || reads == 0 {
                    assert_eq!(guest_byte(vault.guest_mapping(), 3, 9), 7);
                    reads += 1;
                }
            });
            for _ in 0..2000 {
                regions.replace(3, Some(5)).unwrap();
            }
            done.store(true, SeqCst);
            reader.join().unwrap();
        });
        assert!(!kernel_lets_write(vault.guest_mapping(), 3));
        vault.write(3, &[8; 4096]).unwrap();
        assert_eq!(
            guest_byte(vault.guest_mapping(), 3, 0),
            8,
            "the mapping shows the file again"
        );
    }

    #[test]
    fn replaced_frames_leave_one_mapping() {
        let mut regions = regions();
        for frame in [3, 5, 7] {
            regions.replace(frame, None).unwrap();
        }
        let start = format!("{:x}-", regions.vault.guest_mapping() as usize);
        let end = regions.vault.guest_mapping() as usize + regions.vault.size() as usize;
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let mapping = maps.lines().find_map(|line| line.strip_prefix(&start));
        let mapping_end = mapping.unwrap().split(' ').next().unwrap();
        // A neighbour that happens to continue the file would be part of it.
        assert!(usize::from_str_radix(mapping_end, 16).unwrap() >= end);
    }

    #[test]
    fn failed_replacement_leaves_the_frame_readable() {
        let mut regions = regions();
        regions.vault.write(3, &[7; 4096]).unwrap();
        let vault = Arc::get_mut(&mut regions.vault).unwrap();
        // No hole is possible through this descriptor.
        let path = format!("/proc/self/fd/{}", vault.region.file.as_raw_fd());
        vault.region.file = Arc::new(File::open(path).unwrap());
        for (frame, from, expected) in [(3, Some(4), 7), (0, None, 0)] {
            assert!(regions.replace(frame, from).is_err());
            let seen = guest_byte(regions.vault.guest_mapping(), frame, 0);
            assert_eq!(seen, expected, "frame {frame}");
        }
    }
}
