//! Copying pool frames into the vault.
//!
//! A read of the pool's file whose buffers are the vault's frames: one copy for each page, and one
//! system call for each run of neighbouring pool frames. The checksum is that of what the vault holds,
//! which the guest cannot change any more.

use std::io;
use std::os::fd::AsRawFd;
use std::slice;

use vmsrs_protocol::PAGE_SIZE;

use super::{AccessError, Pool, Vault, offset};
use crate::engine::{HostError, PoolCopy, Unreadable, checksum};

/// Maximum number of buffers in one system call (`IOV_MAX`).
const RUN_MAX: usize = 1024;

/// As [`crate::engine::Memory::seal`]. `sorted` is room for the order of the copies.
pub(super) fn seal(
    pool: &Pool,
    vault: &Vault,
    copies: &[PoolCopy],
    sorted: &mut Vec<(u32, PoolCopy)>,
    sealed: &mut Vec<Result<u32, Unreadable>>,
) -> Result<(), HostError> {
    // A message has fewer records than there are numbers.
    sorted.clear();
    sorted.extend((0..).zip(copies.iter().copied()));
    sorted.sort_unstable_by_key(|(_, copy)| copy.pool_frame);
    let mut failed = Vec::new();
    let follows = |a: &(u32, PoolCopy), b: &(u32, PoolCopy)| {
        Some(b.1.pool_frame) == a.1.pool_frame.checked_add(1)
    };
    for run in sorted.chunk_by(follows).flat_map(|run| run.chunks(RUN_MAX)) {
        let done = copy_run(pool, vault, run).map_err(vault_error)?;
        // After the first that fails: one by one, each with its own error.
        for &(index, copy) in &run[done..] {
            if let Err(error) = copy_one(pool, vault, copy)? {
                failed.push((index, error));
            }
        }
    }
    failed.sort_unstable_by_key(|&(index, _)| index);
    let mut failed = failed.into_iter().peekable();
    for (index, copy) in (0..).zip(copies) {
        sealed.push(match failed.next_if(|&(failed, _)| failed == index) {
            Some((_, error)) => Err(error),
            None => Ok(sum(vault, copy.vault_frame).map_err(vault_error)?),
        });
    }
    Ok(())
}

/// Copies neighbouring pool frames; returns how many have been copied as a whole.
fn copy_run(pool: &Pool, vault: &Vault, run: &[(u32, PoolCopy)]) -> Result<usize, AccessError> {
    let (Some((_, first)), Some((_, last))) = (run.first(), run.last()) else {
        return Ok(0);
    };
    pool.region.check(last.pool_frame)?;
    let buffers = run
        .iter()
        .map(|(_, copy)| {
            Ok(libc::iovec {
                iov_base: vault.host_frame(copy.vault_frame)?.cast(),
                iov_len: PAGE_SIZE as usize,
            })
        })
        .collect::<Result<Vec<_>, AccessError>>()?;
    // SAFETY: each buffer is a frame of the host's mapping of the vault, of which no Rust object is a
    // part. There are at most RUN_MAX of them, and the offset is smaller than 2^63.
    let read = unsafe {
        libc::preadv(
            pool.region.file.as_raw_fd(),
            buffers.as_ptr(),
            buffers.len() as i32,
            offset(first.pool_frame) as libc::off_t,
        )
    };
    Ok(usize::try_from(read).unwrap_or(0) / PAGE_SIZE as usize)
}

/// Copies one frame. If the vault's frame is what cannot be accessed, it gets other memory.
fn copy_one(
    pool: &Pool,
    vault: &Vault,
    copy: PoolCopy,
) -> Result<Result<(), Unreadable>, HostError> {
    let read = || vault.fill(copy.vault_frame, &pool.region.file, offset(copy.pool_frame));
    let result = match read() {
        Err(error) if is_fault(&error.source) => {
            vault.renew(copy.vault_frame).map_err(vault_error)?;
            read()
        }
        result => result,
    };
    match result {
        Ok(()) => Ok(Ok(())),
        Err(error) if is_fault(&error.source) => Err(vault_error(error)),
        Err(error) => Ok(Err(Unreadable {
            frame: copy.pool_frame,
            source: error.source,
        })),
    }
}

/// The buffer of a read could not be written.
fn is_fault(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EFAULT)
}

/// The checksum of a frame that has been written just now.
fn sum(vault: &Vault, frame: u32) -> Result<u32, AccessError> {
    let start = vault.host_frame(frame)?;
    // SAFETY: the frame lies in the host's mapping. It is the engine's copy, which nobody but this
    // thread uses yet: the guest cannot write it, and the cleanser has only retired frames.
    let content = unsafe { slice::from_raw_parts(start, PAGE_SIZE as usize) };
    Ok(checksum(content))
}

fn vault_error(error: AccessError) -> HostError {
    HostError {
        frame: error.frame,
        source: error.source,
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::{Memory, PoolCopy, checksum};
    use crate::regions::Regions;
    use crate::regions::tests::{POOL, VAULT, guest_byte, regions};

    /// Writes a pool frame as the guest does.
    fn guest_write(regions: &Regions, frame: u32, byte: u8) {
        assert!(frame < POOL);
        // SAFETY: the frame lies in the guest-facing mapping, which is writable, and there is no
        // reference to it.
        unsafe {
            let start = regions.pool.guest_mapping().add(frame as usize * 4096);
            start.write_bytes(byte, 4096);
        }
    }

    fn copies(frames: &[(u32, u32)]) -> Vec<PoolCopy> {
        let copy = |&(pool_frame, vault_frame)| PoolCopy {
            pool_frame,
            vault_frame,
        };
        frames.iter().map(copy).collect()
    }

    #[test]
    fn each_pool_frame_is_copied_to_its_vault_frame() {
        let mut regions = regions();
        for frame in 0..POOL {
            guest_write(&regions, frame, frame as u8 + 1);
        }
        // Downward, as the driver's stack gives frames; with gaps; up to the last of both regions.
        let frames = [
            (9, 100),
            (8, 30),
            (7, 31),
            (6, 32),
            (20, 33),
            (22, 5),
            (POOL - 1, VAULT - 1),
            (0, 1),
        ];
        let mut sealed = Vec::new();
        regions.seal(&copies(&frames), &mut sealed).unwrap();
        let sealed: Vec<_> = sealed.into_iter().map(Result::unwrap).collect();
        for (&(pool, vault), sum) in frames.iter().zip(sealed) {
            let byte = pool as u8 + 1;
            assert_eq!(sum, checksum(&[byte; 4096]), "pool frame {pool}");
            assert_eq!(regions.checksum(vault).unwrap(), sum);
            assert_eq!(guest_byte(regions.vault.guest_mapping(), vault, 77), byte);
        }
        let mut content = [9; 4096];
        regions.read_vault(2, &mut content).unwrap();
        assert_eq!(content, [0; 4096], "nothing else is written");
    }

    #[test]
    fn what_the_guest_writes_later_is_not_in_the_vault() {
        let mut regions = regions();
        guest_write(&regions, 3, 1);
        let mut sealed = Vec::new();
        regions.seal(&copies(&[(3, 4)]), &mut sealed).unwrap();
        guest_write(&regions, 3, 2);
        let sum = regions.checksum(4).unwrap();
        assert_eq!(sum, checksum(&[1; 4096]));
        assert_eq!(*sealed[0].as_ref().unwrap(), sum);
    }

    #[test]
    fn frames_outside_of_the_regions_are_not_copied() {
        for (pool, vault) in [(POOL, 1), (u32::MAX, 1), (0, VAULT), (0, u32::MAX)] {
            let result = regions().seal(&copies(&[(pool, vault)]), &mut Vec::new());
            assert!(result.is_err(), "{pool} {vault}");
        }
    }

    #[test]
    fn no_copies_are_no_work() {
        let mut sealed = Vec::new();
        regions().seal(&[], &mut sealed).unwrap();
        assert!(sealed.is_empty());
    }

    #[test]
    fn a_pool_frame_without_memory_leaves_the_others_whole() {
        let mut regions = regions();
        for frame in 0..4 {
            guest_write(&regions, frame, 7);
        }
        regions.lose_pool_after(2);
        let mut sealed = Vec::new();
        let frames = copies(&[(3, 13), (2, 12), (1, 11), (0, 10)]);
        regions.seal(&frames, &mut sealed).unwrap();
        let lost: Vec<_> = sealed.iter().map(Result::is_err).collect();
        assert_eq!(lost, [true, true, false, false]);
        assert_eq!(sealed[0].as_ref().unwrap_err().frame, 3);
        assert_eq!(regions.checksum(11).unwrap(), checksum(&[7; 4096]));
    }

    impl Regions {
        /// Puts a file in the pool's place that ends after so many frames: reads of the others fail, as
        /// of broken memory.
        fn lose_pool_after(&mut self, frames: u32) {
            use std::os::unix::fs::FileExt;
            let file = tempfile::tempfile().unwrap();
            for frame in 0..frames {
                let mut content = [0; 4096];
                self.read_pool(frame, &mut content).unwrap();
                file.write_all_at(&content, u64::from(frame) * 4096)
                    .unwrap();
            }
            let pool = std::sync::Arc::get_mut(&mut self.pool).unwrap();
            pool.region.file = std::sync::Arc::new(file);
        }
    }
}
