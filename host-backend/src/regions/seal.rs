//! Copying pool frames into the vault.
//!
//! Each byte is loaded once, and its store and its share of the checksum have what was loaded: the checksum is that of the
//! copy, whatever the guest writes meanwhile.

use super::{AccessError, Pool, Vault, unreadable};
use crate::broken_memory::Broken;
use crate::engine::{NotCopied, PoolCopy, Unreadable};
use crate::host_memory::HostPages;

/// As [`crate::engine::Memory::seal`].
#[inline]
pub(super) fn seal(pool: &Pool, vault: &Vault, copy: PoolCopy) -> Result<u64, NotCopied> {
    match copy_page(pool, vault, copy) {
        Ok(Ok(checksum)) => Ok(checksum),
        Ok(Err(broken)) => copy_again(pool, vault, copy, broken),
        Err(error) => Err(host(error)),
    }
}

/// Copies a frame; returns the copy's checksum. Fails when there is no such frame.
#[inline]
fn copy_page(
    pool: &Pool,
    vault: &Vault,
    copy: PoolCopy,
) -> Result<Result<u64, Broken>, AccessError> {
    let (from, to) = (
        pool.frame(copy.pool_frame)?,
        vault.host_frame(copy.vault_frame)?,
    );
    // SAFETY: both frames are mapped. No Rust object is a part of the host's mapping of the vault.
    Ok(unsafe { vault.region.access.copy_and_sum(to, from) })
}

/// What becomes of a page that met broken memory: a frame of the vault gets other memory and the page is
/// copied again.
#[cold]
fn copy_again(
    pool: &Pool,
    vault: &Vault,
    copy: PoolCopy,
    broken: Broken,
) -> Result<u64, NotCopied> {
    let lost = |broken: Broken| {
        NotCopied::Pool(Unreadable {
            frame: copy.pool_frame,
            source: broken.into(),
        })
    };
    if pool.is_at(broken.address) {
        return Err(lost(broken));
    }
    let unwritable = |broken| vault.region.broken(copy.vault_frame, broken);
    if vault.region.pages == HostPages::Huge {
        return Err(NotCopied::Vault(unreadable(unwritable(broken))));
    }
    vault.renew(copy.vault_frame).map_err(host)?;
    copy_page(pool, vault, copy)
        .map_err(host)?
        .map_err(|broken| match pool.is_at(broken.address) {
            true => lost(broken),
            false => host(unwritable(broken)),
        })
}

fn host(error: AccessError) -> NotCopied {
    NotCopied::Host(error.source)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use crate::engine::{Memory, NotCopied, PoolCopy};
    use crate::host_memory::HostPages;
    use crate::regions::Regions;
    use crate::regions::tests::{POOL, VAULT, checksum, guest_byte, lose_after, regions};

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

    fn seal(regions: &mut Regions, pool_frame: u32, vault_frame: u32) -> Result<u64, NotCopied> {
        regions.seal(PoolCopy {
            pool_frame,
            vault_frame,
        })
    }

    #[test]
    fn each_pool_frame_is_copied_to_its_vault_frame() {
        let mut regions = regions();
        for frame in 0..POOL {
            guest_write(&regions, frame, frame as u8 + 1);
        }
        // Up to the first and the last of both regions.
        for (pool, vault) in [(9, 100), (8, 30), (20, 5), (POOL - 1, VAULT - 1), (0, 1)] {
            let sum = seal(&mut regions, pool, vault).unwrap();
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
        let sealed = seal(&mut regions, 3, 4).unwrap();
        guest_write(&regions, 3, 2);
        let sum = regions.checksum(4).unwrap();
        assert_eq!(sum, checksum(&[1; 4096]));
        assert_eq!(sealed, sum);
    }

    /// What is sealed is what was read, also if the guest writes at the same time.
    #[test]
    fn the_checksum_is_that_of_the_copy_of_a_page_that_changes() {
        let mut regions = regions();
        let guest = regions.clone();
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    (0..8).for_each(|byte| guest_write(&guest, 3, byte));
                }
            });
            for _ in 0..10_000 {
                let sealed = seal(&mut regions, 3, 4).unwrap();
                assert_eq!(regions.checksum(4).unwrap(), sealed);
            }
            is_done.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn frames_outside_of_the_regions_are_not_copied() {
        for (pool, vault) in [(POOL, 1), (u32::MAX, 1), (0, VAULT), (0, u32::MAX)] {
            let result = seal(&mut regions(), pool, vault);
            assert!(matches!(result, Err(NotCopied::Host(_))), "{pool} {vault}");
        }
    }

    #[test]
    fn a_pool_frame_without_memory_leaves_the_others_whole() {
        let mut regions = regions();
        for frame in 0..4 {
            guest_write(&regions, frame, 7);
        }
        let pool = Arc::get_mut(&mut regions.pool).unwrap();
        lose_after(&mut pool.region.guest, 2);
        for (pool, vault) in [(3, 13), (1, 11), (2, 12), (0, 10)] {
            match seal(&mut regions, pool, vault) {
                Ok(sum) => assert_eq!((pool < 2, sum), (true, checksum(&[7; 4096]))),
                Err(NotCopied::Pool(error)) => assert_eq!((pool >= 2, error.frame), (true, pool)),
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(regions.checksum(11).unwrap(), checksum(&[7; 4096]));
        let mut content = [0; 4096];
        assert!(regions.read_pool(1, &mut content).is_ok());
        assert!(regions.read_pool(2, &mut content).is_err());
    }

    #[test]
    fn without_memory_for_the_vault_nothing_can_be_sealed() {
        let mut regions = regions();
        let vault = Arc::get_mut(&mut regions.vault).unwrap();
        lose_after(&mut vault.host, 12);
        seal(&mut regions, 1, 11).unwrap();
        let error = seal(&mut regions, 2, 12).unwrap_err();
        assert!(matches!(error, NotCopied::Host(_)), "{error}");
        assert!(regions.checksum(11).is_ok());
        assert!(regions.checksum(12).is_err());
        assert!(regions.copy(11, 12).is_err());
    }

    #[test]
    fn a_vault_frame_that_cannot_be_renewed_leaves_the_others_whole() {
        let mut regions = regions();
        guest_write(&regions, 1, 7);
        let vault = Arc::get_mut(&mut regions.vault).unwrap();
        lose_after(&mut vault.host, 12);
        vault.region.pages = HostPages::Huge;
        let Err(NotCopied::Vault(error)) = seal(&mut regions, 2, 12) else {
            panic!("sealed");
        };
        assert_eq!(error.frame, 12);
        assert_eq!(seal(&mut regions, 1, 11).unwrap(), checksum(&[7; 4096]));
        assert!(regions.vault.wipe(12).is_err());
    }
}
