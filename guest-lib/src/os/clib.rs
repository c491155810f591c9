//! The C library's code: where it is, and what a thread in it may be interrupted at.
//!
//! A request that is cut short inside `malloc` or `free` leaves the heap of the C library locked,
//! perhaps half changed: every other thread would wait for it forever. Two things keep that from
//! going unnoticed.
//!
//! - An interrupt, for a missed deadline or an error of another thread, waits until the thread has left
//!   the C library, unless it sleeps there in a system call. Nothing is wrong with the heap then, and
//!   nothing stays locked. It is repeated for a while; a thread that is found there every time, in a loop
//!   with `malloc` for example, is single-stepped out (by the CPU's trap flag).
//! - After an error in the C library (or an abort, which is how it says that its heap is damaged) the
//!   thread tries whether the heap works (`run/trial.rs`). If not, the process ends; all domains are as
//!   committed.

use std::ffi::{CStr, c_int, c_void};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

/// The C library's code: first address, and the first one after it.
static START: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

/// Finds the C library, once in a process. In a program that is linked statically it is a part of the program's
/// own code: linkers put it last, in the order of its archive, so it is taken to reach from the first of
/// some of its functions to the end. Other code that lies there is waited for, too, which costs time alone.
pub(crate) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the callback has the right signature and keeps nothing.
        unsafe { libc::dl_iterate_phdr(Some(look), std::ptr::null_mut()) };
        if END.load(Ordering::Relaxed) == 0 {
            // SAFETY: as above.
            unsafe { libc::dl_iterate_phdr(Some(look_in_program), std::ptr::null_mut()) };
        }
    });
}

/// Where the C library may begin in a program that it is linked into. None of these is chosen when the program
/// starts, as `memcpy` is, or is rarely run, and put to the front for that, as `abort` is.
fn first_function() -> u64 {
    let functions = [
        libc::sigaction as *const () as u64,
        libc::getenv as *const () as u64,
        libc::malloc as *const () as u64,
        libc::calloc as *const () as u64,
        libc::realloc as *const () as u64,
        libc::free as *const () as u64,
    ];
    functions.into_iter().min().unwrap_or(u64::MAX)
}

unsafe extern "C" fn look_in_program(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _argument: *mut c_void,
) -> c_int {
    // SAFETY: dl_iterate_phdr() passes an object that is alive.
    let object = unsafe { &*object };
    let first = first_function();
    for (start, end) in code(object) {
        if (start..end).contains(&first) {
            START.store(first, Ordering::Relaxed);
            END.store(end, Ordering::Relaxed);
            return 1;
        }
    }
    0
}

/// First address of an object's code and the first one after it, for each segment.
fn code(object: &libc::dl_phdr_info) -> impl Iterator<Item = (u64, u64)> {
    (0..object.dlpi_phnum).filter_map(|place| {
        // SAFETY: there are that many headers.
        let header = unsafe { &*object.dlpi_phdr.add(place.into()) };
        let start = object.dlpi_addr + header.p_vaddr;
        (header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0)
            .then_some((start, start + header.p_memsz))
    })
}

unsafe extern "C" fn look(
    object: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    _argument: *mut c_void,
) -> c_int {
    // SAFETY: dl_iterate_phdr() passes an object that is alive.
    let object = unsafe { &*object };
    if object.dlpi_name.is_null() {
        return 0;
    }
    // SAFETY: a C string, from the dynamic linker.
    let path = unsafe { CStr::from_ptr(object.dlpi_name) }.to_bytes();
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
    if !name.starts_with(b"libc.so") && !name.starts_with(b"libc-") {
        return 0;
    }
    for (start, end) in code(object) {
        START.store(start, Ordering::Relaxed);
        END.store(end, Ordering::Relaxed);
    }
    1
}

/// Whether an instruction is the C library's. Async-signal-safe.
pub(crate) fn contains(instruction: u64) -> bool {
    (START.load(Ordering::Relaxed)..END.load(Ordering::Relaxed)).contains(&instruction)
}

/// Whether a thread that a signal has interrupted there is about something in the C library: not if
/// the signal has woken it from a system call, in which nobody sleeps with the heap locked.
/// `result` is RAX. Async-signal-safe.
pub(crate) fn is_busy(instruction: u64, result: u64) -> bool {
    const SYSCALL: [u8; 2] = [0x0f, 0x05];
    if !contains(instruction) || !contains(instruction - 2) {
        return false;
    }
    // SAFETY: code of the C library, which stays mapped.
    let before = unsafe { *((instruction - 2) as *const [u8; 2]) };
    !(before == SYSCALL && result == -i64::from(libc::EINTR) as u64)
}

/// Whether a thread in the C library can be single-stepped through the next instruction. Not if that is a system call,
/// which may block the signal that each step gives, or start a thread that is single-stepped too; those of the heap
/// do neither. Nor if it is a string instruction, which traps for each byte that it copies. `number` is RAX.
/// Async-signal-safe.
pub(crate) fn can_step(instruction: u64, number: u64) -> bool {
    const OF_THE_HEAP: [libc::c_long; 6] = [
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_mprotect,
        libc::SYS_madvise,
        libc::SYS_brk,
    ];
    if !contains(instruction + 3) {
        return false;
    }
    // SAFETY: code of the C library, which stays mapped.
    let next = unsafe { *(instruction as *const [u8; 3]) };
    match next {
        [0x0f, 0x05, _] => OF_THE_HEAP.iter().any(|&call| call as u64 == number),
        // REP, and REX perhaps.
        [0xf2 | 0xf3, 0x40..=0x4f, operation] | [0xf2 | 0xf3, operation, _] => {
            !matches!(operation, 0xa4..=0xa7 | 0xaa | 0xab | 0xae | 0xaf)
        }
        _ => true,
    }
}

/// Whether a request that ended there may have left the C library's heap locked.
pub(crate) fn is_suspect(signal: i32, instruction: u64) -> bool {
    signal == libc::SIGABRT || contains(instruction)
}
