//! The thread's restartable sequence: code that the kernel sends elsewhere when it takes the CPU from the thread. The C library
//! registers an area for it, in which the thread says where it is.

use std::arch::asm;

/// `struct rseq`, its first version.
#[repr(C, align(32))]
struct Area {
    cpu_id_start: u32,
    /// Below 0 when the area is not registered.
    cpu_id: i32,
    /// The sequence that the thread is in, or 0.
    sequence: u64,
    flags: u32,
}

/// What an area is registered with, before the code that the kernel sends the thread to.
const SIGNATURE: u32 = 0x5305_3053;

/// The area of the thread that it was made on, if it is registered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rseq(Option<*mut Area>);

impl Rseq {
    /// That of the calling thread.
    pub(crate) fn of_this_thread() -> Self {
        let (offset, size): (*const isize, *const u32);
        let pointer: *mut Area;
        // SAFETY: reads the thread pointer, and the addresses of variables, 0 before version 2.35 of the C library.
        unsafe {
            asm!(
                ".weak __rseq_offset",
                ".weak __rseq_size",
                "mov {}, [rip + __rseq_offset@GOTPCREL]",
                "mov {}, [rip + __rseq_size@GOTPCREL]",
                "mov {}, fs:0",
                out(reg) offset,
                out(reg) size,
                out(reg) pointer,
                options(nostack, preserves_flags, readonly)
            );
        }
        // SAFETY: null, or the C library's variables.
        let (offset, size) = unsafe { (offset.as_ref(), size.as_ref()) };
        let (Some(&offset), Some(&size)) = (offset, size) else {
            return Self(None);
        };
        let area = pointer.wrapping_byte_offset(offset);
        // SAFETY: a part of the thread's own memory.
        let is_registered =
            size != 0 && unsafe { (&raw const (*area).cpu_id).read_volatile() } >= 0;
        Self(is_registered.then_some(area))
    }

    /// The thread is in no sequence, and its area is registered. On that thread.
    pub(crate) fn restore(self) {
        let Some(area) = self.0 else {
            return;
        };
        // SAFETY: the area stays as long as the thread. The kernel takes what it is registered with.
        unsafe {
            (&raw mut (*area).sequence).write_volatile(0);
            if (&raw const (*area).cpu_id).read_volatile() < 0 {
                libc::syscall(libc::SYS_rseq, area, size_of::<Area>(), 0, SIGNATURE);
            }
        }
    }
}
