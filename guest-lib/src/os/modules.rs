//! The modules that are mapped into the process, for reports.
//!
//! The table is made by [`refresh`] outside requests: walking the loader's list takes its lock,
//! which a request that was cut short may still hold.

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use vmsrs_protocol::incident::{BUILD_ID_MAX, MODULES_MAX, ModuleEntry};

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

/// Place and length of the current table.
pub(crate) fn current() -> (*const u8, u32) {
    MODULES.current()
}

impl Modules {
    /// Place and length of the current table.
    fn current(&self) -> (*const u8, u32) {
        let current = self.current.load(Ordering::Acquire);
        let table = &self.tables[usize::from(current & SECOND != 0)];
        (table.get().cast(), (current & !SECOND) as u32)
    }
}

/// Rebuilds the table of modules if the loader has added or removed some. Outside of requests.
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
    fn table_lists_this_program() {
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
    fn build_id_is_found_after_other_notes() {
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
}
