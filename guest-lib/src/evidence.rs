//! What a failed request leaves for whoever looks for the bug: the top of its stack, the modules
//! that were mapped, and what it said.
//!
//! Nothing is copied here, with one exception: at its landing the thread only tells the driver where
//! the bytes lie, and the driver reads them when the drafts are gone and the locks are free. The
//! request stack is as the error left it until the next request. The exception is a panic, whose
//! unwinding overwrites the stack: a panic hook copies the top of it to the stack's unused low end.
//!
//! The table of modules is made by [`refresh`] outside of requests: walking the loader's list takes
//! its lock, which a request that was cut short may have left behind.

use crate::region::Region;
use crate::thread;
use std::cell::{Cell, UnsafeCell};
use std::ffi::{CStr, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, OnceLock, PoisonError};
use vmsrs_protocol::incident::{
    BUILD_ID_MAX, KIND_PANIC, MODULES_MAX, ModuleEntry, REG_R12, REG_R13, REG_R14, REG_R15,
    REG_RBP, REG_RBX, REG_RIP, REG_RSP, REGISTERS, REPORT_ADDRESS, STACK_MAX,
};
use vmsrs_protocol::ioctl::IoctlFail;

/// Room between the copy of a panic's stack and what still runs on that stack.
const HEADROOM: u64 = 32 * 1024;

/// Whether `address` of an error with this signal and code says anything. A general protection fault
/// (`SI_KERNEL`: the address was not canonical) comes without one.
pub(crate) fn address_flag(address: u64, signal: i32, code: i32) -> u32 {
    const SI_KERNEL: i32 = 0x80;
    let faulted = matches!(signal, libc::SIGSEGV | libc::SIGBUS) && code > 0 && code != SI_KERNEL;
    if faulted || address != 0 {
        REPORT_ADDRESS
    } else {
        0
    }
}

/// Completes the report of a failed request at its landing: `stack` is what it ran on, `text` what it
/// said. The driver reads both before the next request can change them.
pub(crate) fn attach(record: &mut IoctlFail, stack: Option<&Region>, text: &[u8]) {
    let (modules, length) = MODULES.current();
    record.modules = modules as u64;
    record.modules_bytes = length;
    record.text = text.as_ptr() as u64;
    // At most MESSAGE bytes.
    record.text_bytes = text.len() as u32;
    let Some(stack) = stack else {
        return;
    };
    record.stack_low = stack.low() as u64;
    record.stack_high = stack.top() as u64;
    let shelved = SHELF.take().filter(|shelved| shelved.tag == record.tag);
    if let (KIND_PANIC, Some(shelved)) = (record.kind, shelved) {
        // The bytes have moved, the addresses in them have not.
        record.registers = shelved.registers;
        record.stack = shelved.place;
        record.stack_bytes = shelved.bytes;
        return;
    }
    if let Some((from, bytes)) = top_of_stack(stack, record.registers[REG_RSP]) {
        record.stack = from;
        record.stack_bytes = bytes;
    }
}

/// The bytes that are kept of a stack whose pointer is `rsp`: from there on, or from the lowest byte
/// if it ran over. `None` if that is another stack.
fn top_of_stack(stack: &Region, rsp: u64) -> Option<(u64, u32)> {
    let (low, high) = (stack.low() as u64, stack.top() as u64);
    if !(low..high).contains(&rsp) && !stack.is_below(rsp) {
        return None;
    }
    let from = rsp.max(low) & !7;
    Some((from, (high - from).min(STACK_MAX.into()) as u32))
}

// Panics.

/// The copied stack of a panic.
#[derive(Clone, Copy)]
struct Shelved {
    tag: u64,
    registers: [u64; REGISTERS],
    place: u64,
    bytes: u32,
}

thread_local! {
    /// The latest panic in a request of this thread; no destructor.
    static SHELF: Cell<Option<Shelved>> = const { Cell::new(None) };
}

/// Installs the panic hook, once in a process; the one before is called after it.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |information| {
            shelve();
            previous(information);
        }));
    });
}

/// Copies the top of the request stack, on which this runs, to its low end.
#[inline(never)]
fn shelve() {
    let Some(thread) = thread::current().filter(|thread| thread.can_divert()) else {
        return;
    };
    let Some(stack) = thread.stack_region() else {
        return;
    };
    let mut registers = [0; REGISTERS];
    // SAFETY: reads registers and stores them in the array.
    unsafe {
        std::arch::asm!(
            "mov [{r} + 8 * {rbx}], rbx",
            "mov [{r} + 8 * {rbp}], rbp",
            "mov [{r} + 8 * {rsp}], rsp",
            "mov [{r} + 8 * {r12}], r12",
            "mov [{r} + 8 * {r13}], r13",
            "mov [{r} + 8 * {r14}], r14",
            "mov [{r} + 8 * {r15}], r15",
            "lea {t}, [rip]",
            "mov [{r} + 8 * {rip}], {t}",
            r = in(reg) registers.as_mut_ptr(),
            t = out(reg) _,
            rbx = const REG_RBX,
            rbp = const REG_RBP,
            rsp = const REG_RSP,
            r12 = const REG_R12,
            r13 = const REG_R13,
            r14 = const REG_R14,
            r15 = const REG_R15,
            rip = const REG_RIP,
            options(nostack, preserves_flags)
        );
    }
    let low = stack.low() as u64;
    let Some((from, bytes)) = top_of_stack(stack, registers[REG_RSP]) else {
        return;
    };
    if from < low + u64::from(bytes) + HEADROOM {
        return;
    }
    // SAFETY: both lie in the request stack, apart from one another, and the target below everything
    // that runs on it by the headroom.
    unsafe { ptr::copy_nonoverlapping(from as *const u8, stack.low(), bytes as usize) };
    SHELF.set(Some(Shelved {
        tag: thread.tag(),
        registers,
        place: low,
        bytes,
    }));
}

// Modules.

/// Two tables, one of which is current. The driver may read one that is being written if two changes
/// come at once; a table is not believed anyway.
struct Modules {
    tables: [UnsafeCell<[u8; MODULES_MAX as usize]>; 2],
    /// Length of the current table; the top bit says which one that is.
    current: AtomicU64,
}

// SAFETY: written only under REFRESH, and read by nobody in this process.
unsafe impl Sync for Modules {}

const SECOND: u64 = 1 << 63;

static MODULES: Modules = Modules {
    tables: [const { UnsafeCell::new([0; MODULES_MAX as usize]) }; 2],
    current: AtomicU64::new(0),
};

/// Guards the table that is not current; holds the loader's counts of what it added and removed.
static REFRESH: Mutex<Option<(u64, u64)>> = Mutex::new(None);

impl Modules {
    /// Place and length of the current table.
    fn current(&self) -> (*const u8, u32) {
        let current = self.current.load(Ordering::Acquire);
        let table = &self.tables[usize::from(current & SECOND != 0)];
        (table.get().cast(), (current & !SECOND) as u32)
    }
}

/// Makes the table of modules anew if the loader has added or removed some. Outside of requests.
pub(crate) fn refresh() {
    let mut known = REFRESH.lock().unwrap_or_else(PoisonError::into_inner);
    let next = MODULES.current.load(Ordering::Relaxed) & SECOND ^ SECOND;
    let mut walk = Walk {
        known: *known,
        counts: None,
        // SAFETY: the table that is not current, under its lock.
        table: unsafe { &mut *MODULES.tables[usize::from(next != 0)].get() },
        length: 0,
    };
    // SAFETY: the callback takes the walk, which lives until the call returns.
    unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut walk).cast()) };
    let (counts, length) = (walk.counts, walk.length as u64);
    if counts.is_some() && counts != *known {
        MODULES.current.store(next | length, Ordering::Release);
        *known = counts;
    }
}

struct Walk<'a> {
    known: Option<(u64, u64)>,
    counts: Option<(u64, u64)>,
    table: &'a mut [u8; MODULES_MAX as usize],
    length: usize,
}

unsafe extern "C" fn visit(
    information: *mut libc::dl_phdr_info,
    size: usize,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: refresh() passes its walk, the loader valid information.
    let (walk, information) = unsafe { (&mut *argument.cast::<Walk<'_>>(), &*information) };
    if size < size_of::<libc::dl_phdr_info>() {
        // A loader without the counts: the table is made once.
        walk.counts = Some((0, 0));
    } else {
        walk.counts = Some((information.dlpi_adds, information.dlpi_subs));
    }
    if walk.counts == walk.known {
        return 1;
    }
    // SAFETY: the loader's information about a mapped module.
    unsafe { walk.add(information) };
    0
}

impl Walk<'_> {
    /// Appends a module if it has room.
    ///
    /// # Safety
    ///
    /// The information is that of a mapped module.
    unsafe fn add(&mut self, information: &libc::dl_phdr_info) {
        // SAFETY: by contract.
        let headers = unsafe {
            std::slice::from_raw_parts(information.dlpi_phdr, information.dlpi_phnum.into())
        };
        let bias = information.dlpi_addr;
        let mut entry = ModuleEntry {
            bias,
            start: u64::MAX,
            ..ModuleEntry::default()
        };
        for header in headers {
            let from = bias.wrapping_add(header.p_vaddr);
            match header.p_type {
                libc::PT_LOAD => {
                    entry.start = entry.start.min(from);
                    entry.end = entry.end.max(from.wrapping_add(header.p_memsz));
                }
                libc::PT_NOTE => {
                    // SAFETY: a mapped segment of the module.
                    let notes = unsafe {
                        std::slice::from_raw_parts(from as *const u8, header.p_memsz as usize)
                    };
                    if let Some(id) = build_id(notes) {
                        let length = id.len().min(BUILD_ID_MAX);
                        entry.build_id[..length].copy_from_slice(&id[..length]);
                        entry.build_id_bytes = length as u32;
                    }
                }
                _ => {}
            }
        }
        if entry.start >= entry.end {
            return;
        }
        let name = if information.dlpi_name.is_null() {
            &[]
        } else {
            // SAFETY: the loader's string.
            unsafe { CStr::from_ptr(information.dlpi_name) }.to_bytes()
        };
        let path = if name.is_empty() { program() } else { name };
        entry.path_bytes = path.len() as u32;
        let parts: [&[u8]; 2] = [bytemuck::bytes_of(&entry), path];
        let length = (size_of::<ModuleEntry>() + path.len()).next_multiple_of(8);
        let Some(room) = self.table.get_mut(self.length..self.length + length) else {
            return;
        };
        room.fill(0);
        room[..parts[0].len()].copy_from_slice(parts[0]);
        room[parts[0].len()..][..path.len()].copy_from_slice(parts[1]);
        self.length += length;
    }
}

/// The path of the program itself, which the loader does not name.
fn program() -> &'static [u8] {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        std::fs::read_link("/proc/self/exe")
            .map(|path| path.as_os_str().as_bytes().to_vec())
            .unwrap_or_default()
    })
}

/// The build ID among the notes of a segment (elf(5), `Elf64_Nhdr`; alignment 4 as GNU tools write
/// it).
fn build_id(mut notes: &[u8]) -> Option<&[u8]> {
    const NT_GNU_BUILD_ID: u32 = 3;
    loop {
        let (header, rest) = notes.split_first_chunk::<12>()?;
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (name_length, length) = (word(0) as usize, word(4) as usize);
        let name = rest.get(..name_length)?;
        let rest = rest.get(name_length.next_multiple_of(4)..)?;
        let content = rest.get(..length)?;
        if name == b"GNU\0" && word(8) == NT_GNU_BUILD_ID {
            return Some(content);
        }
        notes = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_this_program_with_its_range_and_build_id() {
        refresh();
        let (table, length) = MODULES.current();
        // SAFETY: the current table; nobody else refreshes in this test's process to no change.
        let mut table = unsafe { std::slice::from_raw_parts(table, length as usize) };
        let mut found = Vec::new();
        while !table.is_empty() {
            let (entry, rest) = table.split_at(size_of::<ModuleEntry>());
            let entry: ModuleEntry = bytemuck::pod_read_unaligned(entry);
            let path = &rest[..entry.path_bytes as usize];
            found.push((path.to_vec(), entry));
            table = &rest[path.len().next_multiple_of(8)..];
        }
        let here = refresh as *const () as u64;
        let (path, entry) = found
            .iter()
            .find(|(_, entry)| (entry.start..entry.end).contains(&here))
            .expect("this code lies in a module");
        let own = std::env::current_exe().unwrap();
        assert_eq!(path, own.as_os_str().as_bytes());
        assert!(entry.bias <= entry.start);
        assert!(found.iter().any(|(path, _)| path.ends_with(b"libc.so.6")));
    }

    #[test]
    fn a_build_id_is_found_behind_other_notes_and_broken_notes_are_none() {
        let note = |kind: u32, content: &[u8]| {
            let mut note = Vec::new();
            note.extend(4u32.to_le_bytes());
            note.extend((content.len() as u32).to_le_bytes());
            note.extend(kind.to_le_bytes());
            note.extend(b"GNU\0");
            note.extend(content);
            note
        };
        let both = [note(1, &[0; 16]), note(3, &[7; 20])].concat();
        assert_eq!(build_id(&both), Some(&[7; 20][..]));
        for length in 0..both.len() {
            assert_eq!(build_id(&both[..length]), None, "{length}");
        }
        assert_eq!(build_id(&[0xff; 64]), None);
    }

    #[test]
    fn the_kept_part_of_a_stack_begins_at_its_pointer_and_stays_inside() {
        let stack = Region::new(64 * 1024).unwrap();
        let (low, high) = (stack.low() as u64, stack.top() as u64);
        assert_eq!(top_of_stack(&stack, high - 100), Some((high - 104, 104)));
        assert_eq!(top_of_stack(&stack, low), Some((low, STACK_MAX)));
        assert_eq!(top_of_stack(&stack, low - 64), Some((low, STACK_MAX)));
        assert_eq!(top_of_stack(&stack, high), None);
        assert_eq!(top_of_stack(&stack, 0x1000), None);
    }

    #[test]
    fn an_access_to_address_0_has_an_address_and_a_protection_fault_of_the_cpu_has_none() {
        assert_eq!(address_flag(0, libc::SIGSEGV, 1), REPORT_ADDRESS);
        assert_eq!(address_flag(0, libc::SIGSEGV, 0x80), 0);
        assert_eq!(address_flag(0, libc::SIGFPE, 1), 0);
        assert_eq!(address_flag(0x1000, 0, 0), REPORT_ADDRESS);
    }
}
