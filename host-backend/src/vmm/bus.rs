//! Address buses: which device answers an access to a port or to a guest physical address.
//!
//! The VM has two of them, one for port I/O and one for memory-mapped I/O. Devices are registered
//! before the first vCPU runs; from then on a bus is read-only and needs no lock of its own.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;

/// A device that answers reads and writes of the guest.
///
/// `offset` is relative to the start of the range the device was registered with, and
/// `offset + data.len()` never exceeds that range's length. Every other property of an access
/// (its width, its alignment, the values written) is the guest's choice and must be checked.
pub trait BusDevice: Send {
    /// Fills `data` with what the guest reads at `offset`. On entry every byte is 0xff.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes the bytes that the guest writes at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device as the bus holds it: shared with its driver on the host side.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Why a device could not be registered.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or ends beyond the address space.
    #[error("bus range {base:#x}+{len:#x} is empty or ends beyond the address space")]
    InvalidRange {
        /// First address of the refused range.
        base: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// The range shares addresses with a device registered before.
    #[error("bus range {base:#x}+{len:#x} overlaps the device at {other:#x}")]
    Overlap {
        /// First address of the refused range.
        base: u64,
        /// Its length in bytes.
        len: u64,
        /// First address of the range that is already there.
        other: u64,
    },
}

struct Entry {
    len: u64,
    device: SharedDevice,
}

/// Non-overlapping address ranges, each with its device.
#[derive(Default)]
pub struct Bus {
    ranges: BTreeMap<u64, Entry>,
}

impl Bus {
    /// Returns a bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers `device` for the `len` bytes from `base` on.
    ///
    /// # Errors
    ///
    /// Fails when the range is empty, ends beyond 2^64 or overlaps one that is registered.
    pub fn insert(&mut self, base: u64, len: u64, device: SharedDevice) -> Result<(), BusError> {
        let invalid = BusError::InvalidRange { base, len };
        if len == 0 {
            return Err(invalid);
        }
        let last = base.checked_add(len - 1).ok_or(invalid)?;
        // Ranges do not overlap each other, so the last one that starts at or before our end is
        // the only one that can reach into ours.
        match self.ranges.range(..=last).next_back() {
            Some((&other, entry)) if entry.len > base.saturating_sub(other) => {
                return Err(BusError::Overlap { base, len, other });
            }
            _ => {}
        }
        self.ranges.insert(base, Entry { len, device });
        Ok(())
    }

    /// Carries out a guest's read; an address that no device claims reads as all ones, as on
    /// hardware.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((offset, device)) = self.find(address, data.len()) {
            lock(device).read(offset, data);
        } else {
            log::trace!("unclaimed read of {} bytes at {address:#x}", data.len());
        }
    }

    /// Carries out a guest's write; one that no device claims is dropped.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            lock(device).write(offset, data);
        } else {
            log::trace!("unclaimed write of {} bytes at {address:#x}", data.len());
        }
    }

    /// The device whose range holds the whole access, with the access's offset into the range.
    fn find(&self, address: u64, width: usize) -> Option<(u64, &SharedDevice)> {
        let (base, entry) = self.ranges.range(..=address).next_back()?;
        let offset = address - base;
        let end = offset.checked_add(u64::try_from(width).ok()?)?;
        (end <= entry.len).then_some((offset, &entry.device))
    }
}

/// A device that panicked on another vCPU keeps answering: its registers are plain values, and a
/// second panic would only hide the first.
fn lock(device: &SharedDevice) -> std::sync::MutexGuard<'_, dyn BusDevice + 'static> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder {
        writes: Vec<(u64, Vec<u8>)>,
    }

    impl BusDevice for Recorder {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data[0] = offset as u8;
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.writes.push((offset, data.to_vec()));
        }
    }

    fn recorder() -> Arc<Mutex<Recorder>> {
        Arc::default()
    }

    #[test]
    fn an_access_reaches_its_device_with_a_relative_offset() {
        let device = recorder();
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x10, device.clone()).unwrap();
        let mut data = [0u8; 2];
        bus.read(0x1007, &mut data);
        assert_eq!(data, [7, 0xff]);
        bus.write(0x100e, &[1, 2]);
        assert_eq!(device.lock().unwrap().writes, [(0xe, vec![1, 2])]);
    }

    #[test]
    fn an_unclaimed_read_gives_all_ones_and_a_write_is_dropped() {
        let device = recorder();
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x10, device.clone()).unwrap();
        for address in [0, 0xfff, 0x1010, u64::MAX] {
            let mut data = [0u8; 4];
            bus.read(address, &mut data);
            assert_eq!(data, [0xff; 4], "read at {address:#x}");
            bus.write(address, &[1]);
        }
        assert!(device.lock().unwrap().writes.is_empty());
    }

    #[test]
    fn an_access_that_leaves_its_range_reaches_no_device() {
        let device = recorder();
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x10, device.clone()).unwrap();
        bus.write(0x100d, &[1, 2, 3, 4]);
        assert!(device.lock().unwrap().writes.is_empty());
    }

    #[test]
    fn overlapping_ranges_are_refused() {
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x100, recorder()).unwrap();
        for (base, len) in [
            (0x1000, 1),
            (0xfff, 2),
            (0x10ff, 1),
            (0, 0x2000),
            (0x1010, 4),
        ] {
            assert_eq!(
                bus.insert(base, len, recorder()),
                Err(BusError::Overlap {
                    base,
                    len,
                    other: 0x1000
                }),
            );
        }
        bus.insert(0xf00, 0x100, recorder()).unwrap();
        bus.insert(0x1100, 0x100, recorder()).unwrap();
    }

    #[test]
    fn a_range_that_is_empty_or_wraps_is_refused() {
        let mut bus = Bus::new();
        for (base, len) in [(0x1000, 0), (u64::MAX, 2), (2, u64::MAX)] {
            assert_eq!(
                bus.insert(base, len, recorder()),
                Err(BusError::InvalidRange { base, len }),
            );
        }
        bus.insert(u64::MAX, 1, recorder()).unwrap();
    }
}
