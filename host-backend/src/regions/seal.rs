//! Copying pool frames into the vault.
//!
//! The checksum is that of what the vault holds, which the guest cannot change any more.

use super::{AccessError, Pool, Vault, unreadable};
use crate::broken_memory::Broken;
use crate::engine::{HostError, NotCopied, PoolCopy, Unreadable};
use crate::host_memory::HostPages;

/// As [`crate::engine::Memory::seal`].
pub(super) fn seal(
    pool: &Pool,
    vault: &Vault,
    copies: &[PoolCopy],
    sealed: &mut Vec<Result<u32, NotCopied>>,
) -> Result<(), HostError> {
    sealed.reserve(copies.len());
    for &copy in copies {
        let result = match copy_page(pool, vault, copy).map_err(host_error)? {
            Ok(checksum) => Ok(checksum),
            Err(broken) => copy_again(pool, vault, copy, broken)?,
        };
        sealed.push(result);
    }
    Ok(())
}

/// Copies a frame; returns the copy's checksum. Fails when there is no such frame.
fn copy_page(
    pool: &Pool,
    vault: &Vault,
    copy: PoolCopy,
) -> Result<Result<u32, Broken>, AccessError> {
    let (from, to) = (
        pool.frame(copy.pool_frame)?,
        vault.host_frame(copy.vault_frame)?,
    );
    let access = vault.region.access;
    // SAFETY: both frames are mapped. No Rust object is a part of the host's mapping of the vault.
    let copied = unsafe { access.copy(to, from).and_then(|()| access.crc32c(to)) };
    Ok(copied)
}

/// What becomes of a page that met broken memory: a frame of the vault gets other memory and the page is
/// copied again.
#[cold]
fn copy_again(
    pool: &Pool,
    vault: &Vault,
    copy: PoolCopy,
    broken: Broken,
) -> Result<Result<u32, NotCopied>, HostError> {
    let lost = |broken: Broken| {
        Ok(Err(NotCopied::Pool(Unreadable {
            frame: copy.pool_frame,
            source: broken.into(),
        })))
    };
    if pool.is_at(broken.address) {
        return lost(broken);
    }
    let unwritable = |broken| unreadable(vault.region.broken(copy.vault_frame, broken));
    if vault.region.pages == HostPages::Huge {
        return Ok(Err(NotCopied::Vault(unwritable(broken))));
    }
    vault.renew(copy.vault_frame).map_err(host_error)?;
    match copy_page(pool, vault, copy).map_err(host_error)? {
        Ok(checksum) => Ok(Ok(checksum)),
        Err(broken) if pool.is_at(broken.address) => lost(broken),
        Err(broken) => Err(host_error(vault.region.broken(copy.vault_frame, broken))),
    }
}

fn host_error(error: AccessError) -> HostError {
    HostError {
        frame: error.frame,
        source: error.source,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::engine::{Memory, NotCopied, PoolCopy, checksum};
    use crate::host_memory::HostPages;
    use crate::regions::Regions;
    use crate::regions::tests::{POOL, VAULT, guest_byte, lose_after, regions};

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
        let pool = Arc::get_mut(&mut regions.pool).unwrap();
        lose_after(&mut pool.region.guest, 2);
        let mut sealed = Vec::new();
        let frames = copies(&[(3, 13), (1, 11), (2, 12), (0, 10)]);
        regions.seal(&frames, &mut sealed).unwrap();
        let lost: Vec<_> = sealed.iter().map(Result::is_err).collect();
        assert_eq!(lost, [true, false, true, false]);
        let Err(NotCopied::Pool(error)) = &sealed[0] else {
            panic!("{sealed:?}");
        };
        assert_eq!(error.frame, 3);
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
        let frames = copies(&[(1, 11), (2, 12)]);
        let error = regions.seal(&frames, &mut Vec::new()).unwrap_err();
        assert_eq!(error.frame, 12);
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
        let mut sealed = Vec::new();
        let frames = copies(&[(2, 12), (1, 11)]);
        regions.seal(&frames, &mut sealed).unwrap();
        let Err(NotCopied::Vault(error)) = &sealed[0] else {
            panic!("{sealed:?}");
        };
        assert_eq!(error.frame, 12);
        assert_eq!(*sealed[1].as_ref().unwrap(), checksum(&[7; 4096]));
        assert!(regions.vault.wipe(12).is_err());
    }
}
