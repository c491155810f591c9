//! The guest physical address space: where RAM, devices, firmware tables and shared memory regions
//! lie, and the RAM itself.

use std::result;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::mmap::FromRangesError;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::host_memory::{HostPages, MemoryFileError, memory_file, want_huge_pages};
use crate::size::Size;

/// Guest RAM. Cloning is cheap and shares the memory.
pub type GuestRam = GuestMemoryMmap<()>;

/// Size of a page, and of a frame of a shared memory region, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// End of the RAM below the hole, at most: from here to 4 GiB there are only devices.
pub const HOLE_START: u64 = 3 << 30;
/// First address after the hole.
pub const HOLE_END: u64 = 4 << 30;

/// First of the pages given to virtio-mmio devices, one page each.
pub const MMIO_START: u64 = 0xd000_0000;
/// Address of the in-kernel I/O APIC.
pub const IOAPIC_ADDRESS: u32 = 0xfec0_0000;
/// Address of the in-kernel local APICs.
pub const LAPIC_ADDRESS: u32 = 0xfee0_0000;
/// A page that KVM uses on Intel CPUs to run real mode.
pub const KVM_IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// Three more pages for the same purpose.
pub const KVM_TSS_ADDRESS: usize = 0xfffb_d000;

/// End of the conventional memory below 640 KiB.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The firmware area, where the ACPI tables lie and where a kernel may look for them.
pub const FIRMWARE_START: u64 = 0xe_0000;
/// End of the firmware area and start of the RAM above it.
pub const HIGH_RAM_START: u64 = 0x10_0000;

/// Minimum RAM of a guest, in bytes: with less no Linux kernel boots.
pub const MIN_RAM: u64 = 64 << 20;
/// Most RAM a guest can have, in bytes.
pub const MAX_RAM: u64 = 1 << 40;

/// Shared memory regions start at a multiple of this, so that the guest can map them with the largest
/// pages.
const REGION_ALIGNMENT: u64 = 1 << 30;

/// Why guest RAM could not be set up.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The size asked for is invalid.
    #[error(
        "guest memory of {:#} is not possible: give a multiple of 4K between {:#} and {:#}",
        Size(*.0), Size(MIN_RAM), Size(MAX_RAM)
    )]
    Size(u64),
    /// The memory file could not be created.
    #[error("no memory for the guest's RAM")]
    Create(#[from] MemoryFileError),
    /// The memory file could not be mapped.
    #[error(
        "cannot map the guest's RAM: is less memory or address space available than asked for?"
    )]
    Map(#[from] FromRangesError),
}

/// What a range of guest physical memory is for, as the boot protocols tell the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// Usable RAM (`E820_TYPE_RAM`).
    Ram = 1,
    /// Not to be touched (`E820_TYPE_RESERVED`).
    Reserved = 2,
}

/// One entry of the memory map given to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    /// First guest physical address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is.
    pub kind: RangeKind,
}

/// How much RAM lies on either side of the hole below 4 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    below: u64,
    above: u64,
}

impl Layout {
    /// Lays out `size` bytes of RAM.
    ///
    /// # Errors
    ///
    /// Fails with [`MemoryError::Size`] when `size` is not a multiple of the page size or out of
    /// bounds.
    pub fn new(size: u64) -> result::Result<Self, MemoryError> {
        if !size.is_multiple_of(PAGE_SIZE) || !(MIN_RAM..=MAX_RAM).contains(&size) {
            return Err(MemoryError::Size(size));
        }
        let below = size.min(HOLE_START);
        Ok(Self {
            below,
            above: size - below,
        })
    }

    /// End of the RAM below the hole.
    pub fn low_end(&self) -> u64 {
        self.below
    }

    /// End of all RAM.
    pub fn end(&self) -> u64 {
        if self.above == 0 {
            self.below
        } else {
            HOLE_END + self.above
        }
    }

    /// First guest physical address that a shared memory region can have: the first 1 GiB boundary at or
    /// above both 4 GiB and the end of RAM.
    pub fn regions_start(&self) -> GuestAddress {
        GuestAddress(self.end().max(HOLE_END).next_multiple_of(REGION_ALIGNMENT))
    }

    /// Guest physical addresses of shared memory regions of these sizes, in order.
    pub fn place<const COUNT: usize>(&self, sizes: [u64; COUNT]) -> [GuestAddress; COUNT] {
        let mut next = self.regions_start();
        sizes.map(|size| {
            let start = next;
            // Regions are smaller than 2^43 bytes, and so is RAM.
            next = GuestAddress((start.0 + size).next_multiple_of(REGION_ALIGNMENT));
            start
        })
    }

    /// The RAM's ranges: start and length in bytes.
    pub fn ram_ranges(&self) -> Vec<(GuestAddress, u64)> {
        let mut ranges = vec![(GuestAddress(0), self.below)];
        if self.above != 0 {
            ranges.push((GuestAddress(HOLE_END), self.above));
        }
        ranges
    }

    /// The memory map for the kernel. Shared memory regions are not in it: they are a device's memory.
    pub fn memory_map(&self) -> Vec<MapEntry> {
        let entry = |start, end, kind| MapEntry {
            start,
            len: end - start,
            kind,
        };
        let mut map = vec![
            entry(0, LOW_RAM_END, RangeKind::Ram),
            entry(LOW_RAM_END, HIGH_RAM_START, RangeKind::Reserved),
            entry(HIGH_RAM_START, self.below, RangeKind::Ram),
        ];
        if self.above != 0 {
            map.push(entry(HOLE_END, HOLE_END + self.above, RangeKind::Ram));
        }
        map
    }

    /// Allocates the RAM in a memory file of `pages` and maps it, shared, into this process.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be created or mapped.
    pub fn allocate(&self, pages: HostPages) -> result::Result<GuestRam, MemoryError> {
        let size = self.below + self.above;
        // Daemons of devices get it, too. Tests cut it off to lose memory.
        let is_sealed = !cfg!(test);
        let file = Arc::new(memory_file(c"vmsrs-ram", size, pages, is_sealed)?);
        let mut offset = 0;
        let mut ranges = Vec::new();
        for (start, len) in self.ram_ranges() {
            // MAX_RAM fits into usize on x86-64, the only machine this code runs on.
            let file_offset = FileOffset::from_arc(file.clone(), offset);
            ranges.push((start, len as usize, Some(file_offset)));
            offset += len;
        }
        let ram = GuestRam::from_ranges_with_files(&ranges)?;
        for region in ram.iter() {
            // It fits: it is the length of a mapping.
            want_huge_pages(region.as_ptr(), region.len() as usize);
        }
        Ok(ram)
    }
}

/// Maps the same RAM once more, for devices. What a device does to its mapping when it meets broken
/// memory (see `vmm/poison.rs`) is then not seen by the guest.
///
/// # Errors
///
/// Fails when the system refuses.
pub fn for_devices(ram: &GuestRam) -> result::Result<GuestRam, MemoryError> {
    let ranges: Vec<_> = ram
        .iter()
        .map(|region| {
            // It fits: it is the length of a mapping.
            let length = region.len() as usize;
            (region.start_addr(), length, region.file_offset().cloned())
        })
        .collect();
    Ok(GuestRam::from_ranges_with_files(&ranges)?)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use vm_memory::Bytes;

    /// Cuts a RAM file off at a length: accesses to mappings beyond it raise SIGBUS, and reads of the
    /// file fail, as for broken memory.
    pub(crate) fn lose(ram: &GuestRam, length: u64) {
        let file = ram.iter().next().and_then(|region| region.file_offset());
        file.unwrap().file().set_len(length).unwrap();
    }

    const GIB: u64 = 1 << 30;

    #[test]
    fn small_ram_lies_below_the_hole_in_one_piece() {
        let layout = Layout::new(GIB).unwrap();
        assert_eq!(layout.ram_ranges(), [(GuestAddress(0), GIB)]);
        assert_eq!(layout.end(), GIB);
        assert_eq!(layout.regions_start(), GuestAddress(4 * GIB));
    }

    #[test]
    fn large_ram_is_split_around_the_hole() {
        let layout = Layout::new(5 * GIB).unwrap();
        assert_eq!(
            layout.ram_ranges(),
            [(GuestAddress(0), 3 * GIB), (GuestAddress(4 * GIB), 2 * GIB)],
        );
        assert_eq!(layout.low_end(), 3 * GIB);
        assert_eq!(layout.regions_start(), GuestAddress(6 * GIB));
    }

    #[test]
    fn regions_start_at_the_next_gigabytes_above_ram() {
        let layout = Layout::new(3 * GIB + PAGE_SIZE).unwrap();
        assert_eq!(layout.end(), 4 * GIB + PAGE_SIZE);
        assert_eq!(layout.regions_start(), GuestAddress(5 * GIB));
        let starts = layout.place([PAGE_SIZE, GIB, 1]);
        assert_eq!(starts, [5 * GIB, 6 * GIB, 7 * GIB].map(GuestAddress));
    }

    #[test]
    fn a_size_that_makes_no_sense_is_refused() {
        for size in [
            0,
            MIN_RAM - PAGE_SIZE,
            MIN_RAM + 1,
            MAX_RAM + PAGE_SIZE,
            u64::MAX,
        ] {
            assert!(matches!(Layout::new(size), Err(MemoryError::Size(s)) if s == size));
        }
    }

    #[test]
    fn the_memory_map_is_sorted_and_holds_no_device() {
        for size in [MIN_RAM, GIB, 3 * GIB, 7 * GIB] {
            let layout = Layout::new(size).unwrap();
            let map = layout.memory_map();
            for pair in map.windows(2) {
                assert!(pair[0].start + pair[0].len <= pair[1].start);
            }
            for entry in map {
                let end = entry.start + entry.len;
                assert!(end <= HOLE_START || entry.start >= HOLE_END);
                assert!(end <= layout.regions_start().0);
            }
        }
    }

    #[test]
    fn ram_is_readable_and_writable_up_to_its_end_and_no_further() {
        let layout = Layout::new(MIN_RAM).unwrap();
        let ram = layout.allocate(HostPages::Standard).unwrap();
        ram.write_obj(0x55u8, GuestAddress(MIN_RAM - 1)).unwrap();
        assert_eq!(ram.read_obj::<u8>(GuestAddress(MIN_RAM - 1)).unwrap(), 0x55);
        assert!(ram.read_obj::<u8>(GuestAddress(MIN_RAM)).is_err());
        assert_eq!(ram.num_regions(), 1);
    }
}
