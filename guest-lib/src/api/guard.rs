//! Memory outside domains that requests may read and not write.
//!
//! What lies outside domains is not restored, so a stray write there may cost the process. Where the
//! CPU has protection keys, a server can make memory read-only in requests: a write there is stopped at its
//! instruction and fails the request.

use crate::error::Error;
use crate::run::left::outside;
use crate::shared::pkru;
use crate::state::domain::App;
use std::ffi::{c_int, c_void};
use vmsrs_protocol::{APP_BASE, APP_PAGES, MAX_APPS, PAGE_SIZE};

const PAGE: usize = PAGE_SIZE as usize;

/// Bytes of address range of one app.
const APP_BYTES: u64 = APP_PAGES as u64 * PAGE_SIZE as u64;

/// Makes the `length` bytes of pages from `start` on read-only in requests. Outside of requests nothing
/// changes, and defers run outside their request (those of a task that is dropped in another request run in
/// that one). A write in a request fails it ([`crate::Kind::Memory`]); a system call that would write there
/// for it gives EFAULT.
///
/// Call it after [`crate::App::open`] and before other threads start. A thread that was started earlier
/// cannot touch the pages until its next request ends, nor can those that it starts. A thread that is
/// started inside a request may only read them until it has run a request itself. Signal handlers start
/// with all keys closed (pkeys(7)): one that touches the pages calls [`open_guard`] first. Guarding pages again does nothing.
///
/// # Errors
///
/// [`Error::Argument`] if `start` or `length` is not a multiple of 4096, or pages of domains are among them;
/// [`Error::Nested`] inside a request or a defer; [`Error::NoKeys`]; [`Error::System`] if pages are not mapped
/// (those before the first such one are guarded then).
///
/// # Safety
///
/// The pages stay mapped for reading and writing, and are the caller's. No request writes to them while it blocks
/// SIGSEGV.
pub unsafe fn guard(start: *mut u8, length: usize) -> Result<(), Error> {
    let from = start.addr();
    let end = from.checked_add(length);
    let Some(end) =
        end.filter(|_| length > 0 && from.is_multiple_of(PAGE) && length.is_multiple_of(PAGE))
    else {
        return Err(Error::Argument("only whole pages can be guarded"));
    };
    let usual = APP_BASE..APP_BASE + u64::from(MAX_APPS) * APP_BYTES;
    let is_usual = (from as u64) < usual.end && end as u64 > usual.start;
    if is_usual || App::any_in(&(from as u64..end as u64)) {
        return Err(Error::Argument("pages of domains cannot be guarded"));
    }
    outside()?;
    let key = pkru::guard_key().ok_or(Error::NoKeys)?;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the caller's pages, which stay readable and writable.
    let code = unsafe { libc::syscall(libc::SYS_pkey_mprotect, start, length, access, key) };
    match code {
        0 => Ok(()),
        _ => Err(Error::system("guarding memory")(
            std::io::Error::last_os_error(),
        )),
    }
}

/// Lets the calling thread write to guarded memory until it begins or ends a request, or returns from a
/// signal handler: for handlers, which start without access. A request that calls it may write, too. Async-signal-safe.
pub fn open_guard() {
    pkru::open_guard();
}

/// [`guard`]s the program's variables: the pages of its `.data` and `.bss` (not those of its shared libraries, nor
/// what each thread has of its own), those with the program's copies of its
/// libraries' variables among them (`stderr`, `environ`, C++'s `std::cout`, as far as it uses them). Returns
/// their size in bytes. For programs whose requests change none of them.
///
/// # Errors
///
/// As [`guard`]; [`Error::Variables`] when the program has this library in it, whose variables requests do
/// change (so do all programs in Rust), or when it binds the functions of its libraries at their first call.
///
/// # Safety
///
/// As [`guard`].
pub unsafe fn guard_variables() -> Result<usize, Error> {
    let mut found: Option<Found> = None;
    // SAFETY: the callback takes this place, which lives until the call returns.
    unsafe { libc::dl_iterate_phdr(Some(first), (&raw mut found).cast()) };
    let pages = found.unwrap_or(Err("the loader does not say where they are"));
    let pages = pages.map_err(Error::Variables)?;
    if pages.is_empty() {
        return Ok(0);
    }
    let start = std::ptr::with_exposed_provenance_mut(pages.start);
    // SAFETY: passed on to the caller.
    unsafe { guard(start, pages.len()) }?;
    Ok(pages.len())
}

type Found = Result<std::ops::Range<usize>, &'static str>;

/// Takes the first object, which is the program.
unsafe extern "C" fn first(
    information: *mut libc::dl_phdr_info,
    _size: usize,
    found: *mut c_void,
) -> c_int {
    // SAFETY: guard_variables() passes its place, the loader valid information.
    unsafe {
        let information = &*information;
        let headers =
            std::slice::from_raw_parts(information.dlpi_phdr, information.dlpi_phnum.into());
        let bias = information.dlpi_addr as usize;
        *found.cast::<Option<Found>>() = Some(variables(bias, headers).and_then(|pages| {
            if binds_late(bias, headers) {
                return Err("it binds functions at their first call; link it with -z now");
            }
            Ok(pages)
        }));
    }
    1
}

/// The pages of a module's variables: what of its writable segments the loader has not made read-only. Linkers
/// put both into one segment, or each into one of its own.
fn variables(bias: usize, headers: &[libc::Elf64_Phdr]) -> Found {
    let range = |header: &libc::Elf64_Phdr| {
        let start = bias.wrapping_add(header.p_vaddr as usize);
        start..start + header.p_memsz as usize
    };
    let sealed = headers
        .iter()
        .find(|header| header.p_type == libc::PT_GNU_RELRO)
        .map(range);
    let own = (&raw const OWN).addr();
    let mut found = 0..0;
    for header in headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W != 0)
    {
        let (segment, executable) = (range(header), header.p_flags & libc::PF_X != 0);
        if segment.contains(&own) {
            return Err("the library is part of it; link it with libvmsrs.so");
        }
        // As the loader rounds.
        let end = segment.end.next_multiple_of(PAGE);
        let start = match &sealed {
            Some(sealed) if segment.contains(&sealed.start) => sealed.end / PAGE * PAGE,
            _ => segment.start / PAGE * PAGE,
        };
        if start < end && executable {
            return Err("they lie in a segment with code");
        }
        if start < end && !found.is_empty() {
            return Err("they lie in more than one segment");
        }
        if start < end {
            found = start..end;
        }
    }
    Ok(found)
}

/// A variable of the library, to find where its variables are. Not constant, so that it lies among them.
static OWN: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(1);

/// Whether the loader writes to a module's table of functions when one is called for the first time.
///
/// # Safety
///
/// The headers are those of a module that is mapped at `bias`.
unsafe fn binds_late(bias: usize, headers: &[libc::Elf64_Phdr]) -> bool {
    const DT_JMPREL: i64 = 23;
    const DT_BIND_NOW: i64 = 24;
    const DT_FLAGS: i64 = 30;
    const DT_FLAGS_1: i64 = 0x6fff_fffb;
    const DF_BIND_NOW: u64 = 8;
    const DF_1_NOW: u64 = 1;

    let Some(dynamic) = headers
        .iter()
        .find(|header| header.p_type == libc::PT_DYNAMIC)
    else {
        return false;
    };
    let entries = bias.wrapping_add(dynamic.p_vaddr as usize) as *const [u64; 2];
    let count = dynamic.p_memsz as usize / size_of::<[u64; 2]>();
    // SAFETY: the table of a mapped module, by contract.
    let entries = unsafe { std::slice::from_raw_parts(entries, count) };
    let has = |wanted: i64, flag: Option<u64>| {
        entries
            .iter()
            .take_while(|[tag, _]| *tag != 0)
            .any(|&[tag, value]| {
                tag.cast_signed() == wanted && flag.is_none_or(|flag| value & flag != 0)
            })
    };
    let at_once = has(DT_BIND_NOW, None)
        || has(DT_FLAGS, Some(DF_BIND_NOW))
        || has(DT_FLAGS_1, Some(DF_1_NOW))
        || std::env::var_os("LD_BIND_NOW").is_some_and(|value| !value.is_empty());
    has(DT_JMPREL, None) && !at_once
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u32, flags: u32, address: usize, length: usize) -> libc::Elf64_Phdr {
        libc::Elf64_Phdr {
            p_type: kind,
            p_flags: flags,
            p_offset: 0,
            p_vaddr: address as u64,
            p_paddr: 0,
            p_filesz: 0,
            p_memsz: length as u64,
            p_align: PAGE as u64,
        }
    }

    #[test]
    fn variables_are_whole_pages_outside_relro() {
        let (read, write) = (libc::PF_R, libc::PF_R | libc::PF_W);
        let text = header(libc::PT_LOAD, read | libc::PF_X, 0x2000, 0x3000);
        let data = header(libc::PT_LOAD, write, 0x6cb0, 0x5d8);
        let relro = header(libc::PT_GNU_RELRO, read, 0x6cb0, 0x350);
        let pages = |headers: &[libc::Elf64_Phdr]| variables(0x1_0000, headers);
        assert_eq!(pages(&[text, data, relro]), Ok(0x1_7000..0x1_8000));
        assert_eq!(pages(&[text, data]), Ok(0x1_6000..0x1_8000));
        assert_eq!(pages(&[text]), Ok(0..0), "a program without variables");
        assert!(pages(&[text, data, data]).is_err());
        let both = header(libc::PT_LOAD, write | libc::PF_X, 0x2000, 0x3000);
        assert!(pages(&[both]).is_err(), "code would be executable no more");
        // As lld lays them out.
        let (sealed, rest) = (
            header(libc::PT_LOAD, write, 0x6cb0, 0x350),
            header(libc::PT_LOAD, write, 0x8000, 0x1234),
        );
        assert_eq!(pages(&[text, sealed, rest, relro]), Ok(0x1_8000..0x1_a000));
    }

    #[test]
    fn lazy_binding_is_read_from_the_dynamic_section() {
        const JMPREL: [u64; 2] = [23, 0x1000];
        let binds_late = |entries: &[[u64; 2]]| {
            let dynamic = header(
                libc::PT_DYNAMIC,
                libc::PF_R,
                entries.as_ptr().expose_provenance(),
                size_of_val(entries),
            );
            // SAFETY: a table in memory.
            unsafe { super::binds_late(0, &[dynamic]) }
        };
        assert!(binds_late(&[[1, 0], JMPREL, [0, 0]]));
        for at_once in [[24, 0], [30, 8], [0x6fff_fffb, 1]] {
            assert!(!binds_late(&[JMPREL, at_once, [0, 0]]), "{at_once:?}");
            assert!(binds_late(&[JMPREL, [0, 0], at_once]), "after the end");
        }
        assert!(
            binds_late(&[JMPREL, [30, 4], [0x6fff_fffb, 2], [0, 0]]),
            "other flags"
        );
        assert!(!binds_late(&[[1, 0], [0, 0]]), "no functions of libraries");
        // SAFETY: no table.
        assert!(!unsafe { super::binds_late(0, &[]) });
    }

    #[test]
    fn variables_of_the_library_are_never_guarded() {
        let own = (&raw const OWN).addr();
        let data = header(libc::PT_LOAD, libc::PF_R | libc::PF_W, own - 8, 64);
        assert!(variables(0, &[data]).is_err());
        // SAFETY: refused.
        let refused = unsafe { guard_variables() };
        assert!(matches!(refused, Err(Error::Variables(_))), "{refused:?}");
    }

    #[test]
    fn ranges_other_than_whole_pages_are_refused() {
        let mut page = [0_u8; 2 * PAGE];
        let aligned = page
            .as_mut_ptr()
            .map_addr(|address| address.next_multiple_of(PAGE));
        let domain = std::ptr::without_provenance_mut(APP_BASE as usize + PAGE);
        for (start, length) in [
            (aligned, 0),
            (aligned, 100),
            (aligned.wrapping_add(16), PAGE),
            (
                std::ptr::without_provenance_mut(usize::MAX - PAGE + 1),
                PAGE,
            ),
            (domain, PAGE),
        ] {
            // SAFETY: refused.
            let refused = unsafe { guard(start, length) };
            assert!(matches!(refused, Err(Error::Argument(_))), "{refused:?}");
        }
    }

    #[test]
    fn without_protection_keys_memory_cannot_be_guarded() {
        let mut page = [0_u8; 2 * PAGE];
        let aligned = page
            .as_mut_ptr()
            .map_addr(|address| address.next_multiple_of(PAGE));
        // SAFETY: refused, since no app with a device is open.
        let refused = unsafe { guard(aligned, PAGE) };
        assert!(matches!(refused, Err(Error::NoKeys)), "{refused:?}");
    }
}
