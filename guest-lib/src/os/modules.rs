//! The modules that are mapped into the process, for reports.
//!
//! They are read from `/proc/self/maps` and from the modules' own headers. To walk the dynamic linker's list would
//! wait for its lock, which a thread has that loads a library, and keeps if it is cut short there.

use super::clock;
use std::cell::UnsafeCell;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use vmsrs_protocol::incident::{BUILD_ID_MAX, MODULES_MAX, ModuleEntry};

/// Two tables, one of which is current. The driver may read one that is being written if two changes
/// come at once; a table is not believed anyway.
struct Modules {
    tables: [UnsafeCell<[u8; MODULES_MAX as usize]>; 2],
    /// Length of the current table; the top bit says which one that is.
    current: AtomicU64,
}

// SAFETY: written only by the thread that has BUSY, and read by nobody in this process.
unsafe impl Sync for Modules {}

const SECOND: u64 = 1 << 63;

static MODULES: Modules = Modules {
    tables: [const { UnsafeCell::new([0; MODULES_MAX as usize]) }; 2],
    current: AtomicU64::new(0),
};

/// A thread writes the table that is not current. Only tried, never waited for.
static BUSY: AtomicBool = AtomicBool::new(false);

/// When the table was made, on the library's clock.
static MADE: AtomicU64 = AtomicU64::new(0);

/// Nanoseconds for which [`refresh`] believes the table.
const FRESH: u64 = 1_000_000_000;

/// The same where the table is known to lack something.
const STALE: u64 = 10_000_000;

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

/// Makes the table anew, unless that was done a moment ago: the process may have loaded or unloaded libraries.
pub(crate) fn refresh() {
    make_unless(FRESH);
}

/// Makes the table anew if no module of it has one of the addresses, which are code of a failed request.
pub(crate) fn refresh_for(code: &[u64]) {
    if code
        .iter()
        .any(|&address| address != 0 && !is_listed(address))
    {
        make_unless(STALE);
    }
}

fn make_unless(fresh: u64) {
    let made = MADE.load(Ordering::Relaxed);
    if made == 0 || clock::now().saturating_sub(made) >= fresh {
        make();
    }
}

fn is_listed(address: u64) -> bool {
    let (mut place, length) = current();
    let mut left = length as usize;
    while left >= size_of::<ModuleEntry>() {
        let entry = place.cast::<ModuleEntry>();
        // SAFETY: inside the table, whatever is in it.
        let (start, end, path) = unsafe {
            (
                (&raw const (*entry).start).read_unaligned(),
                (&raw const (*entry).end).read_unaligned(),
                (&raw const (*entry).path_bytes).read_unaligned(),
            )
        };
        if (start..end).contains(&address) {
            return true;
        }
        let size = entry_size(path as usize);
        left = left.saturating_sub(size);
        place = place.wrapping_add(size);
    }
    false
}

/// Bytes of an entry with its path.
const fn entry_size(path: usize) -> usize {
    (size_of::<ModuleEntry>() + path).next_multiple_of(8)
}

fn make() {
    if BUSY.swap(true, Ordering::Acquire) {
        return;
    }
    let next = MODULES.current.load(Ordering::Relaxed) & SECOND ^ SECOND;
    // SAFETY: the table that is not current, by the only thread that may write it.
    let table = unsafe { &mut *MODULES.tables[usize::from(next != 0)].get() };
    let mut length = 0;
    let all = each(|module| {
        let size = entry_size(module.path.len());
        let Some(room) = table.get_mut(length..length + size) else {
            return;
        };
        let entry = module.entry();
        room.fill(0);
        room[..size_of::<ModuleEntry>()].copy_from_slice(bytemuck::bytes_of(&entry));
        room[size_of::<ModuleEntry>()..][..module.path.len()].copy_from_slice(module.path);
        length += size;
    });
    // A table that cannot be made leaves the last one.
    if all.is_ok() && length != 0 {
        MODULES
            .current
            .store(next | length as u64, Ordering::Release);
    }
    MADE.store(clock::now(), Ordering::Relaxed);
    BUSY.store(false, Ordering::Release);
}

/// Most program headers of a module that are looked at.
const HEADERS: usize = 32;

/// A file of code that is mapped.
pub(crate) struct Module<'a> {
    pub(crate) path: &'a [u8],
    bias: u64,
    start: u64,
    end: u64,
    headers: [libc::Elf64_Phdr; HEADERS],
    count: usize,
}

impl<'a> Module<'a> {
    /// The module whose first page is at an address, if one is there.
    fn at(start: u64, path: &'a [u8]) -> Option<Self> {
        // SAFETY: all zero is a header.
        let mut file: libc::Elf64_Ehdr = unsafe { std::mem::zeroed() };
        read(start, std::slice::from_mut(&mut file))?;
        if file.e_ident[..4] != *b"\x7fELF"
            || file.e_phentsize as usize != size_of::<libc::Elf64_Phdr>()
        {
            return None;
        }
        let count = usize::from(file.e_phnum).min(HEADERS);
        // SAFETY: all zero is a header.
        let mut headers = [unsafe { std::mem::zeroed::<libc::Elf64_Phdr>() }; HEADERS];
        read(start.checked_add(file.e_phoff)?, &mut headers[..count])?;
        let loaded = || {
            headers[..count]
                .iter()
                .filter(|header| header.p_type == libc::PT_LOAD)
        };
        let low = loaded().map(|header| header.p_vaddr).min()?;
        let bias = start.wrapping_sub(low & !0xfff);
        let ends = loaded().map(|header| header.p_vaddr.saturating_add(header.p_memsz));
        let end = bias.wrapping_add(ends.max()?);
        let is_code = loaded().any(|header| header.p_flags & libc::PF_X != 0);
        (is_code && start < end).then_some(Self {
            path,
            bias,
            start: bias.wrapping_add(low),
            end,
            headers,
            count,
        })
    }

    fn headers(&self, kind: u32) -> impl Iterator<Item = &libc::Elf64_Phdr> {
        let headers = self.headers[..self.count].iter();
        headers.filter(move |header| header.p_type == kind)
    }

    /// Whether the address is one of the module's.
    pub(crate) fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }

    /// The file's name, without its folder.
    pub(crate) fn name(&self) -> &'a [u8] {
        let name = self.path.rsplit(|&byte| byte == b'/').next();
        name.unwrap_or(self.path)
    }

    /// First address of its code and the first one after it.
    pub(crate) fn code(&self) -> std::ops::Range<u64> {
        let code = || {
            let loaded = self.headers(libc::PT_LOAD);
            loaded.filter(|header| header.p_flags & libc::PF_X != 0)
        };
        let start = |header: &libc::Elf64_Phdr| self.bias.wrapping_add(header.p_vaddr);
        let end = |header: &libc::Elf64_Phdr| start(header).wrapping_add(header.p_memsz);
        code().map(start).min().unwrap_or(0)..code().map(end).max().unwrap_or(0)
    }

    fn entry(&self) -> ModuleEntry {
        let mut entry = ModuleEntry {
            bias: self.bias,
            start: self.start,
            end: self.end,
            path_bytes: self.path.len() as u32,
            ..ModuleEntry::default()
        };
        for header in self.headers(libc::PT_NOTE) {
            let mut notes = [0; 512];
            let notes = &mut notes[..(header.p_memsz as usize).min(512)];
            let found =
                read(self.bias.wrapping_add(header.p_vaddr), notes).and_then(|()| build_id(notes));
            if let Some(id) = found {
                let length = id.len().min(BUILD_ID_MAX);
                entry.build_id[..length].copy_from_slice(&id[..length]);
                entry.build_id_bytes = length as u32;
            }
        }
        entry
    }
}

/// Calls `use_it` for each module of the process. Takes no lock and no memory.
///
/// # Errors
///
/// When `/proc` cannot be read.
pub(crate) fn each(mut use_it: impl FnMut(&Module<'_>)) -> io::Result<()> {
    let mut end = 0;
    each_line(|line| {
        let Some((start, path)) = first_of_file(line).filter(|&(start, _)| start >= end) else {
            return;
        };
        if let Some(module) = Module::at(start, path) {
            end = module.end;
            use_it(&module);
        }
    })
}

/// Address and path of a mapping that begins a file's: a line of `/proc/self/maps`, see `proc_pid_maps(5)`.
fn first_of_file(line: &[u8]) -> Option<(u64, &[u8])> {
    let mut fields = line.splitn(6, |&byte| byte == b' ');
    let range = std::str::from_utf8(fields.next()?).ok()?;
    let start = u64::from_str_radix(range.split('-').next()?, 16).ok()?;
    let (access, offset) = (fields.next()?, fields.next()?);
    let path = fields.nth(2)?.trim_ascii_start();
    let is_first = access.first() == Some(&b'r') && offset.iter().all(|&digit| digit == b'0');
    if path == b"[vdso]" {
        return is_first.then_some((start, b"linux-vdso.so.1"));
    }
    // A device may do anything when it is read.
    let is_file = path.first() == Some(&b'/') && !path.starts_with(b"/dev/");
    let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
    (is_first && is_file).then_some((start, path))
}

/// Gives each line of `/proc/self/maps`.
pub(super) fn each_line(mut use_it: impl FnMut(&[u8])) -> io::Result<()> {
    // SAFETY: a C string.
    let file = unsafe {
        libc::open(
            c"/proc/self/maps".as_ptr(),
            libc::O_RDONLY | libc::O_CLOEXEC,
        )
    };
    if file < 0 {
        return Err(io::Error::last_os_error());
    }
    // A path has at most 4096 bytes.
    let mut text = [0; 8192];
    let mut filled = 0;
    let outcome = loop {
        let room = &mut text[filled..];
        // SAFETY: as long as said.
        let count = unsafe { libc::read(file, room.as_mut_ptr().cast(), room.len()) };
        match usize::try_from(count) {
            Ok(0) => break Ok(()),
            Ok(count) => filled += count,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                break Err(error);
            }
        }
        let mut used = 0;
        while let Some(length) = text[used..filled].iter().position(|&byte| byte == b'\n') {
            use_it(&text[used..used + length]);
            used += length + 1;
        }
        if used == 0 && filled == text.len() {
            break Err(io::ErrorKind::InvalidData.into());
        }
        text.copy_within(used..filled, 0);
        filled -= used;
    };
    // SAFETY: opened above.
    unsafe { libc::close(file) };
    outcome
}

/// Copies from the process's own memory, which may be unmapped at any moment: then `None`.
pub(super) fn read<T: Copy>(address: u64, to: &mut [T]) -> Option<()> {
    let length = size_of_val(to);
    let (local, remote) = (
        libc::iovec {
            iov_base: to.as_mut_ptr().cast(),
            iov_len: length,
        },
        libc::iovec {
            iov_base: address as *mut _,
            iov_len: length,
        },
    );
    // SAFETY: writes at most the slice, whose elements may be anything by the callers; the kernel checks the rest.
    let read = unsafe {
        libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
    };
    (usize::try_from(read) == Ok(length)).then_some(())
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
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn table_lists_this_program() {
        make();
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
        assert!(is_listed(here) && !is_listed(8));
    }

    #[test]
    fn mappings_that_begin_a_file_are_read_from_maps() {
        let first = |line: &'static str| first_of_file(line.as_bytes());
        let line = "7f1000-7f2000 r--p 00000000 fe:00 326279                     /lib/a b.so";
        assert_eq!(first(line), Some((0x7f_1000, &b"/lib/a b.so"[..])));
        let gone = "7f1000-7f2000 r-xp 00000000 fe:00 326279  /lib/a.so (deleted)";
        assert_eq!(first(gone), Some((0x7f_1000, &b"/lib/a.so"[..])));
        for other in [
            "7f1000-7f2000 r-xp 00026000 fe:00 326279                     /lib/a.so",
            "7f1000-7f2000 ---p 00000000 fe:00 326279                     /lib/a.so",
            "7f1000-7f2000 rw-s 00000000 00:05 12                         /dev/vmsrs",
            "7f1000-7f2000 rw-p 00000000 00:00 0 ",
            "7f1000-7f2000 rw-p 00000000 00:00 0                          [heap]",
            "",
        ] {
            assert_eq!(first(other), None, "{other}");
        }
    }

    #[test]
    fn memory_that_is_gone_is_not_read() {
        assert_eq!(read(8, &mut [0_u8; 8]), None);
        let (mut copy, here) = ([0_u64], 7_u64);
        assert_eq!(read((&raw const here).addr() as u64, &mut copy), Some(()));
        assert_eq!(copy, [7]);
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
