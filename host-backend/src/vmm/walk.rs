//! Walking the guest's page tables.
//!
//! KVM's own translation (`KVM_TRANSLATE`) obeys SMAP and so fails for user pages while the guest's
//! kernel runs; this one reads the tables as they are and leaves permissions to the caller.

use std::os::unix::fs::FileExt;

use kvm_bindings::kvm_sregs;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::memory::{GuestRam, PAGE_SIZE};

const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
const EFER_LMA: u64 = 1 << 10;

const ENTRY_PRESENT: u64 = 1;
const ENTRY_WRITABLE: u64 = 1 << 1;
const ENTRY_USER: u64 = 1 << 2;
const ENTRY_LARGE: u64 = 1 << 7;
const ENTRY_NO_EXECUTE: u64 = 1 << 63;
/// Bits 51 to 12 of an entry: the physical address.
const ENTRY_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Reads guest physical memory.
pub trait PhysicalMemory {
    /// Fills `buffer` from `gpa` on; false when a part of the range is not readable memory.
    fn read(&self, gpa: u64, buffer: &mut [u8]) -> bool;
}

/// Reads through the file that backs RAM: broken memory is an error of the call there. Through a mapping it
/// would be a signal, and the end of the VMM.
impl PhysicalMemory for GuestRam {
    fn read(&self, gpa: u64, buffer: &mut [u8]) -> bool {
        let Some((region, at)) = self.to_region_addr(GuestAddress(gpa)) else {
            return false;
        };
        let fits = (at.0.checked_add(buffer.len() as u64)).is_some_and(|end| end <= region.len());
        // Page tables and instructions are read page by page, and regions are whole pages.
        match region.file_offset() {
            Some(file) if fits => file
                .file()
                .read_exact_at(buffer, file.start() + at.0)
                .is_ok(),
            _ => false,
        }
    }
}

/// The registers that decide how addresses are translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paging {
    /// Control register 0.
    pub cr0: u64,
    /// Control register 3: the root of the page tables.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// The extended feature enable register.
    pub efer: u64,
}

impl From<&kvm_sregs> for Paging {
    fn from(sregs: &kvm_sregs) -> Self {
        Self {
            cr0: sregs.cr0,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            efer: sregs.efer,
        }
    }
}

/// Where a virtual address leads, and what the page tables allow there. A permission holds only if
/// every level grants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// Guest physical address of the very byte.
    pub gpa: u64,
    /// Writes are allowed.
    pub writable: bool,
    /// User mode has access.
    pub user: bool,
    /// Instructions may be fetched (if the guest has turned this protection on).
    pub executable: bool,
}

impl Paging {
    /// Translates `address` through the tables in `memory`: 4 or 5 levels in long mode, the
    /// address itself when paging is off.
    ///
    /// Returns `None` when the address is not mapped or not canonical, when a table lies outside
    /// `memory`, or for the paging modes of 32-bit kernels.
    pub fn translate(&self, memory: &impl PhysicalMemory, address: u64) -> Option<Translation> {
        if self.cr0 & CR0_PG == 0 {
            return Some(Translation {
                gpa: address,
                writable: true,
                user: true,
                executable: true,
            });
        }
        if self.efer & EFER_LMA == 0 || self.cr4 & CR4_PAE == 0 {
            return None;
        }
        let levels = if self.cr4 & CR4_LA57 == 0 { 4 } else { 5 };
        if !is_canonical(address, levels) {
            return None;
        }
        let mut translation = Translation {
            gpa: 0,
            writable: true,
            user: true,
            executable: true,
        };
        let mut table = self.cr3 & ENTRY_ADDRESS;
        for level in (1..=levels).rev() {
            let shift = 12 + 9 * (level - 1);
            let index = (address >> shift) & 0x1ff;
            let mut bytes = [0; 8];
            if !memory.read(table + index * 8, &mut bytes) {
                return None;
            }
            let entry = u64::from_le_bytes(bytes);
            if entry & ENTRY_PRESENT == 0 {
                return None;
            }
            translation.writable &= entry & ENTRY_WRITABLE != 0;
            translation.user &= entry & ENTRY_USER != 0;
            translation.executable &= entry & ENTRY_NO_EXECUTE == 0;
            // Large pages exist on levels 2 and 3 alone.
            if level == 1 || (level <= 3 && entry & ENTRY_LARGE != 0) {
                let offset_mask = (1u64 << shift) - 1;
                translation.gpa = (entry & ENTRY_ADDRESS & !offset_mask) | (address & offset_mask);
                return Some(translation);
            }
            table = entry & ENTRY_ADDRESS;
        }
        None
    }

    /// Whether `address` is in the half of the address space that belongs to user programs.
    pub fn is_user_address(address: u64) -> bool {
        address >> 63 == 0
    }

    /// Reads up to `len` bytes at the virtual `address`, fewer when the next page is not mapped or
    /// not readable.
    pub fn read_virtual(&self, memory: &impl PhysicalMemory, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = address.wrapping_add(bytes.len() as u64);
            let to_page_end = (PAGE_SIZE - at % PAGE_SIZE) as usize;
            let mut chunk = vec![0; to_page_end.min(len - bytes.len())];
            match self.translate(memory, at) {
                Some(translation) if memory.read(translation.gpa, &mut chunk) => {
                    bytes.extend(chunk);
                }
                _ => break,
            }
        }
        bytes
    }
}

/// Whether all bits above the translated ones repeat the highest of them.
fn is_canonical(address: u64, levels: u32) -> bool {
    let unused = 64 - (12 + 9 * levels);
    ((address << unused) as i64 >> unused) as u64 == address
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::host_memory::HostPages;
    use std::cell::RefCell;
    use std::collections::HashMap;

    const WRITABLE: u64 = ENTRY_PRESENT | ENTRY_WRITABLE | ENTRY_USER;

    /// Sparse memory that builds page tables.
    #[derive(Default)]
    pub(crate) struct TestMemory {
        words: RefCell<HashMap<u64, u64>>,
        next_table: RefCell<u64>,
    }

    impl PhysicalMemory for TestMemory {
        fn read(&self, gpa: u64, buffer: &mut [u8]) -> bool {
            for (index, byte) in buffer.iter_mut().enumerate() {
                let at = gpa + index as u64;
                let Some(word) = self.words.borrow().get(&(at & !7)).copied() else {
                    return false;
                };
                *byte = word.to_le_bytes()[(at & 7) as usize];
            }
            true
        }
    }

    const ROOT: u64 = 0x10_0000;

    impl TestMemory {
        pub(crate) fn new() -> Self {
            let memory = Self::default();
            *memory.next_table.borrow_mut() = ROOT + PAGE_SIZE;
            memory.clear_table(ROOT);
            memory
        }

        fn clear_table(&self, table: u64) {
            for index in 0..512 {
                self.words.borrow_mut().insert(table + index * 8, 0);
            }
        }

        /// Maps the page of `address` by an entry on level `leaf`; tables in between grant all.
        pub(crate) fn map(&self, levels: u32, address: u64, leaf: u32, entry: u64) {
            let mut table = ROOT;
            for level in (leaf..=levels).rev() {
                let slot = table + ((address >> (12 + 9 * (level - 1))) & 0x1ff) * 8;
                if level == leaf {
                    self.words.borrow_mut().insert(slot, entry);
                    return;
                }
                let present = self.words.borrow()[&slot];
                if present == 0 {
                    let new = *self.next_table.borrow();
                    *self.next_table.borrow_mut() += PAGE_SIZE;
                    self.clear_table(new);
                    self.words.borrow_mut().insert(slot, new | WRITABLE);
                    table = new;
                } else {
                    table = present & ENTRY_ADDRESS;
                }
            }
        }

        pub(crate) fn store(&self, gpa: u64, bytes: &[u8]) {
            for (index, byte) in bytes.iter().enumerate() {
                let at = gpa + index as u64;
                let mut words = self.words.borrow_mut();
                let word = words.entry(at & !7).or_default();
                let mut all = word.to_le_bytes();
                all[(at & 7) as usize] = *byte;
                *word = u64::from_le_bytes(all);
            }
        }
    }

    pub(crate) fn long_mode(levels: u32) -> Paging {
        Paging {
            cr0: CR0_PG | 1,
            cr3: ROOT,
            cr4: CR4_PAE | if levels == 5 { CR4_LA57 } else { 0 },
            efer: EFER_LMA,
        }
    }

    fn gpa(paging: &Paging, memory: &TestMemory, address: u64) -> Option<u64> {
        paging.translate(memory, address).map(|t| t.gpa)
    }

    #[test]
    fn a_small_page_is_found_through_four_and_five_levels() {
        for levels in [4, 5] {
            let memory = TestMemory::new();
            let address = 0xffff_8880_1234_5678;
            memory.map(levels, address, 1, 0x7_7000 | WRITABLE);
            let paging = long_mode(levels);
            assert_eq!(gpa(&paging, &memory, address), Some(0x7_7678));
            assert_eq!(gpa(&paging, &memory, address + PAGE_SIZE), None);
        }
    }

    #[test]
    fn large_pages_keep_the_lower_bits_of_the_address() {
        let memory = TestMemory::new();
        let paging = long_mode(4);
        memory.map(4, 0x4000_0000, 2, 0x8000_0000 | WRITABLE | ENTRY_LARGE);
        // Bit 12 of a large page's entry is the attribute bit, not address.
        memory.map(4, 0x8000_0000, 3, 0x1_0000_1000 | WRITABLE | ENTRY_LARGE);
        assert_eq!(gpa(&paging, &memory, 0x401f_f123), Some(0x801f_f123));
        assert_eq!(gpa(&paging, &memory, 0xbfff_f123), Some(0x1_3fff_f123));
    }

    #[test]
    fn a_permission_needs_every_level() {
        let memory = TestMemory::new();
        let paging = long_mode(4);
        memory.map(4, 0x1000, 1, 0x5000 | ENTRY_PRESENT | ENTRY_NO_EXECUTE);
        memory.map(4, 0x2000, 1, 0x6000 | WRITABLE);
        let sealed = paging.translate(&memory, 0x1000).unwrap();
        assert!(!sealed.writable && !sealed.user && !sealed.executable);
        let open = paging.translate(&memory, 0x2000).unwrap();
        assert!(open.writable && open.user && open.executable);
        // Take the permissions away two levels higher.
        let directory = memory.words.borrow()[&ROOT] & ENTRY_ADDRESS;
        let entry = memory.words.borrow()[&directory];
        memory
            .words
            .borrow_mut()
            .insert(directory, entry & !(ENTRY_USER | ENTRY_WRITABLE));
        let closed = paging.translate(&memory, 0x2000).unwrap();
        assert!(!closed.writable && !closed.user && closed.executable);
    }

    #[test]
    fn an_address_that_is_not_canonical_has_no_translation() {
        let memory = TestMemory::new();
        memory.map(
            4,
            0x0000_8880_0000_0000 & 0x0000_7fff_ffff_ffff,
            1,
            WRITABLE,
        );
        assert_eq!(gpa(&long_mode(4), &memory, 0x0001_0000_0000_0000), None);
        assert!(is_canonical(0xffff_8000_0000_0000, 4));
        assert!(!is_canonical(0x0000_8000_0000_0000, 4));
        assert!(is_canonical(0x0000_8000_0000_0000, 5));
        assert!(!is_canonical(0x0100_0000_0000_0000, 5));
    }

    #[test]
    fn a_table_outside_memory_ends_the_walk() {
        let memory = TestMemory::new();
        memory.map(4, 0x1000, 3, 0xdead_0000 | WRITABLE);
        assert_eq!(gpa(&long_mode(4), &memory, 0x1000), None);
    }

    #[test]
    fn broken_ram_is_not_readable() {
        use vm_memory::Bytes;

        use crate::vmm::memory::{HOLE_END, HOLE_START, Layout, tests::lose};

        let size = HOLE_START + PAGE_SIZE;
        let ram = Layout::new(size)
            .unwrap()
            .allocate(HostPages::Standard)
            .unwrap();
        ram.write_obj(7u64, GuestAddress(HOLE_END)).unwrap();
        let read = |gpa, length| {
            let mut bytes = vec![0; length];
            PhysicalMemory::read(&ram, gpa, &mut bytes).then_some(bytes)
        };
        assert_eq!(read(HOLE_END, 8), Some(7u64.to_le_bytes().to_vec()));
        assert_eq!(read(HOLE_START - 8, 8), Some(vec![0; 8]));
        for (gpa, length) in [
            (HOLE_START - 4, 8),
            (HOLE_START, 1),
            (HOLE_END + PAGE_SIZE, 1),
            (u64::MAX, 2),
        ] {
            assert_eq!(read(gpa, length), None, "{gpa:#x}");
        }
        lose(&ram, HOLE_START);
        assert_eq!(read(HOLE_END, 8), None);
    }

    proptest::proptest! {
        /// The guest chooses what its page tables hold, also tables that point to themselves.
        #[test]
        fn any_page_table_entry_gives_an_end(entry: u64, address: u64, leaf in 1u32..=5) {
            let memory = TestMemory::new();
            memory.map(5, address, leaf, entry);
            let paging = long_mode(5);
            paging.translate(&memory, address);
            paging.read_virtual(&memory, address, 16);
        }
    }

    #[test]
    fn without_paging_an_address_is_its_own_translation() {
        let paging = Paging {
            cr0: 1,
            cr3: 0,
            cr4: 0,
            efer: 0,
        };
        assert_eq!(gpa(&paging, &TestMemory::new(), 0x1234), Some(0x1234));
    }

    #[test]
    fn a_virtual_read_crosses_pages_and_stops_at_a_hole() {
        let memory = TestMemory::new();
        let paging = long_mode(4);
        memory.map(4, 0x1000, 1, 0x5000 | WRITABLE);
        memory.map(4, 0x2000, 1, 0x9000 | WRITABLE);
        memory.store(0x5ff8, &[1, 2, 3, 4, 5, 6, 7, 8]);
        memory.store(0x9000, &[9, 10, 11, 12, 13, 14, 15, 16]);
        assert_eq!(paging.read_virtual(&memory, 0x1ffe, 4), [7, 8, 9, 10]);
        memory.map(4, 0x2000, 1, 0);
        assert_eq!(paging.read_virtual(&memory, 0x1ffe, 4), [7, 8]);
    }
}
