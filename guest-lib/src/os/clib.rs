//! The code of the C library, of the allocator and of the dynamic linker: where it is, and what a thread in it may be
//! interrupted at.
//!
//! A request that is cut short inside `malloc` or `free` leaves the heap of the C library locked,
//! perhaps half changed: every other thread would wait for it forever. Two things keep that from
//! going unnoticed.
//!
//! - An interrupt, for a missed deadline or an error of another thread, waits until the thread has left
//!   this code, unless it sleeps there in a system call. Nothing is wrong with the heap then, and
//!   nothing stays locked. It is repeated for a while; a thread that is found there every time, in a loop
//!   with `malloc` for example, is single-stepped out (by the CPU's trap flag).
//! - After an error in this code (or an abort, which is how it says that its heap is damaged) the
//!   thread tries whether the heap works (`run/trial.rs`). If not, the process ends; all domains are as
//!   committed.
//!
//! The allocator is the C library's own, or one that replaces it: preloaded, or linked into the program. The last one's
//! code cannot be told from the program's.

use super::modules::{self, Module};
use super::weak::address_of;
use std::ffi::{c_char, c_int, c_void};
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A `syscall` instruction.
pub(super) const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// First address of code and the first one after it.
struct Place(AtomicU64, AtomicU64);

impl Place {
    const fn none() -> Self {
        Self(AtomicU64::new(0), AtomicU64::new(0))
    }

    fn set(&self, code: &Range<u64>) {
        self.0.store(code.start, Ordering::Relaxed);
        self.1.store(code.end, Ordering::Relaxed);
    }

    /// Has it reach as far as that code, too.
    fn widen(&self, code: &Range<u64>) {
        let start = match self.0.load(Ordering::Relaxed) {
            0 => code.start,
            start => start.min(code.start),
        };
        let end = self.1.load(Ordering::Relaxed).max(code.end);
        self.set(&(start..end));
    }

    fn is_set(&self) -> bool {
        self.1.load(Ordering::Relaxed) != 0
    }

    fn contains(&self, address: u64) -> bool {
        (self.0.load(Ordering::Relaxed)..self.1.load(Ordering::Relaxed)).contains(&address)
    }
}

/// The code of all of them.
static CODE: [Place; 8] = [const { Place::none() }; 8];

/// From the first of them to the last. A program's own code is mostly elsewhere.
static ALL: Place = Place::none();

/// Of these, that of the C library.
static C_LIBRARY: Place = Place::none();

/// That of the dynamic linker, where it is a program of its own.
static LINKER: Place = Place::none();

/// That of an allocator which is not the C library's.
static ALLOCATOR: Place = Place::none();

/// The allocator is part of the program, and the C library is not.
static ALLOCATOR_IN_PROGRAM: AtomicBool = AtomicBool::new(false);

/// Libraries that allocators use with their locks held: to unwind stacks, and for little else.
const HELPERS: [&[u8]; 3] = [b"libstdc++.", b"libgcc_s.", b"libunwind."];

/// Finds the code, once in a process. The caller has the lock of opening apps.
pub(crate) fn install() {
    if CODE[0].is_set() {
        return;
    }
    let c_library = libc::sigaction as *const () as u64;
    let allocator = libc::malloc as *const () as u64;
    // SAFETY: only read what the kernel has told the process.
    let (linker, program) = unsafe {
        (
            libc::getauxval(libc::AT_BASE),
            libc::getauxval(libc::AT_ENTRY),
        )
    };
    // A program may be started through the linker as a command.
    let is_linker =
        |module: &Module<'_>| module.contains(linker) || module.name().starts_with(b"ld-linux");
    let mut places = CODE.iter();
    let mut is_foreign = false;
    fill(&mut places, |module| {
        let is_c = module.contains(c_library);
        if is_c && module.contains(program) {
            return Some(first_function()..module.code().end);
        }
        // Allocators ask the kernel's code in the process for the time.
        let is_kernel = module.name().starts_with(b"linux-vdso");
        (is_c || is_linker(module) || is_kernel).then(|| module.code())
    });
    // The C library's own allocator has this function beside it.
    let has_own_allocator = address_of!("malloc_info") != 0;
    let _ = modules::each(|module| {
        if is_linker(module) {
            LINKER.set(&module.code());
        }
        if module.contains(c_library) && !module.contains(program) {
            C_LIBRARY.set(&module.code());
        } else if module.contains(c_library) && has_own_allocator {
            C_LIBRARY.set(&(first_function()..module.code().end));
        }
        if module.contains(allocator) && !module.contains(c_library) {
            is_foreign = true;
            if module.contains(program) {
                ALLOCATOR_IN_PROGRAM.store(true, Ordering::Relaxed);
            } else {
                ALLOCATOR.set(&module.code());
            }
        }
    });
    if is_foreign {
        fill(&mut places, |module| {
            let is_helper = HELPERS
                .iter()
                .any(|helper| module.name().starts_with(helper));
            is_helper.then(|| module.code())
        });
    }
}

/// Notes the code that is `wanted`, in a place for each module that has some. Without `/proc` nothing is known, and nothing
/// waited for.
fn fill<'a>(
    places: &mut impl Iterator<Item = &'a Place>,
    wanted: impl Fn(&Module<'_>) -> Option<Range<u64>>,
) {
    let _ = modules::each(|module| {
        // A program may have more modules than there are places.
        if let Some(code) = wanted(module)
            && let Some(place) = places.next()
        {
            place.set(&code);
            ALL.widen(&code);
        }
    });
}

/// Where the C library may begin in a program that it is linked into: linkers put it last, in the order of its
/// archive, so it is taken to reach from the first of some of its functions to the end of the code. Other code that lies
/// there is waited for, too, which costs time alone. None of these is chosen when the program
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

/// Whether an instruction is in this code. Async-signal-safe.
pub(crate) fn contains(instruction: u64) -> bool {
    let is_in_code =
        || ALL.contains(instruction) && CODE.iter().any(|place| place.contains(instruction));
    is_in_code() || is_in_allocator(instruction)
}

/// Whether an instruction is in the C library itself, or in the dynamic linker. Not in a statically linked program whose allocator
/// is another one: it may lie among the C library's functions, and its own must not be unwound, since they would unlock a heap that is
/// half changed. Async-signal-safe.
pub(crate) fn is_own(instruction: u64) -> bool {
    C_LIBRARY.contains(instruction) || is_in_linker(instruction)
}

/// Whether it is in the dynamic linker. Async-signal-safe.
pub(crate) fn is_in_linker(instruction: u64) -> bool {
    LINKER.contains(instruction)
}

/// The same for the code of an allocator that is not the C library's. Async-signal-safe.
pub(super) fn is_in_allocator(instruction: u64) -> bool {
    ALLOCATOR.contains(instruction)
}

/// Whether a thread in the C library can be single-stepped through the next instruction: see [`is_steppable`]. `number` is
/// RAX. Async-signal-safe.
pub(crate) fn can_step(instruction: u64, number: u64) -> bool {
    if !contains(instruction + 3) {
        return false;
    }
    // SAFETY: code of the C library, which stays mapped.
    let next = unsafe { *(instruction as *const [u8; 3]) };
    is_steppable(next, number)
}

/// System calls that are not single-stepped: they may block the signal which each step gives or change what it does, start a
/// thread or a program that is single-stepped too, or end this one.
const NOT_STEPPABLE: [libc::c_long; 13] = [
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_ptrace,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Whether an instruction that begins like that can be single-stepped. Not if it is a system call of those above. Nor if it is a string
/// instruction, which traps for each byte that it copies, or a `PAUSE`: the thread waits for another one, to which steps bring
/// it no nearer, and would use up all that it has.
fn is_steppable(next: [u8; 3], number: u64) -> bool {
    match next {
        [first, second, _] if [first, second] == SYSCALL => {
            NOT_STEPPABLE.iter().all(|&call| call as u64 != number)
        }
        [0xf3, 0x90, _] => false,
        // REP, and REX perhaps.
        [0xf2 | 0xf3, 0x40..=0x4f, operation] | [0xf2 | 0xf3, operation, _] => {
            !matches!(operation, 0xa4..=0xa7 | 0xaa | 0xab | 0xae | 0xaf)
        }
        _ => true,
    }
}

/// Whether a request that ended there may have left the heap locked. Where the allocator is part of the program, any
/// may.
#[inline]
pub(crate) fn is_suspect(signal: i32, instruction: u64) -> bool {
    signal == libc::SIGABRT || contains(instruction) || ALLOCATOR_IN_PROGRAM.load(Ordering::Relaxed)
}

/// Whether the allocator is known not to be the C library's.
pub(crate) fn has_other_allocator() -> bool {
    ALLOCATOR.is_set() || ALLOCATOR_IN_PROGRAM.load(Ordering::Relaxed)
}

/// Asks jemalloc, if that is the allocator, for its statistics: it takes all of its locks for them.
pub(crate) fn ask_allocator() {
    type Control =
        unsafe extern "C" fn(*const c_char, *mut c_void, *mut usize, *mut c_void, usize) -> c_int;
    let function = address_of!("mallctl");
    if function != 0 {
        let mut epoch = 1_u64;
        let place = (&raw mut epoch).cast();
        // SAFETY: jemalloc's function of this type, with its name's argument.
        unsafe {
            let control = std::mem::transmute::<usize, Control>(function);
            control(
                c"epoch".as_ptr(),
                ptr::null_mut(),
                ptr::null_mut(),
                place,
                size_of::<u64>(),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_wanted_modules_take_a_place() {
        let here = only_wanted_modules_take_a_place as *const () as u64;
        let c_library = libc::sigaction as *const () as u64;
        let last = || {
            let mut last = 0;
            modules::each(|module| last = module.code().start).unwrap();
            last
        };
        for wanted in [here, c_library, last()] {
            let places = [const { Place::none() }; 1];
            fill(&mut places.iter(), |module| {
                module.contains(wanted).then(|| module.code())
            });
            assert!(places[0].contains(wanted), "{wanted:#x}");
        }
    }

    #[test]
    fn threads_are_stepped_through_what_does_not_wait() {
        let futex = libc::SYS_futex as u64;
        let mask = libc::SYS_rt_sigprocmask as u64;
        for (next, number, is) in [
            // mov eax, [rdi]
            ([0x8b, 0x07, 0xc3], 0, true),
            // syscall
            ([0x0f, 0x05, 0xc3], futex, true),
            ([0x0f, 0x05, 0xc3], mask, false),
            // rep movsb, rep stosq, repne scasb
            ([0xf3, 0xa4, 0xc3], 0, false),
            ([0xf3, 0x48, 0xab], 0, false),
            ([0xf2, 0xae, 0xc3], 0, false),
            // movss xmm0, [rdi]
            ([0xf3, 0x0f, 0x10], 0, true),
            // pause
            ([0xf3, 0x90, 0xc3], 0, false),
        ] {
            assert_eq!(is_steppable(next, number), is, "{next:x?}");
        }
    }
}
