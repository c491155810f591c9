//! Kinds of errors.

use crate::failure::Kind;
use std::ffi::c_char;

/// SIGSEGV or SIGBUS without a more precise kind, for example a null write.
pub const VMSRS_KIND_MEMORY: u32 = 1;
/// SIGFPE, for example an integer division by zero.
pub const VMSRS_KIND_ARITHMETIC: u32 = 2;
/// SIGILL or SIGTRAP.
pub const VMSRS_KIND_INSTRUCTION: u32 = 3;
/// SIGABRT: failed assertion, heap check of glibc, stack protector, C++ terminate,
/// Rust abort. SIGPIPE, SIGXFSZ or SIGSYS, where the server has not said what they are to do.
pub const VMSRS_KIND_ABORT: u32 = 4;
/// The request ran into the guard below its stack.
pub const VMSRS_KIND_STACK_OVERFLOW: u32 = 5;
/// A write to a page of a domain that the request does not hold.
pub const VMSRS_KIND_FOREIGN_WRITE: u32 = 6;
/// A write to a sealed frame, stopped by the host.
pub const VMSRS_KIND_SEALED_WRITE: u32 = 7;
/// A block was freed twice.
pub const VMSRS_KIND_DOUBLE_FREE: u32 = 8;
/// A pointer that is not a block of the domain was freed.
pub const VMSRS_KIND_FOREIGN_FREE: u32 = 9;
/// Bytes after the end of a block were overwritten.
pub const VMSRS_KIND_RED_ZONE: u32 = 10;
/// A freed block was written to.
pub const VMSRS_KIND_USE_AFTER_FREE: u32 = 11;
/// The metadata of the heap is damaged.
pub const VMSRS_KIND_HEAP_CORRUPT: u32 = 12;
/// A Rust panic left the request.
pub const VMSRS_KIND_PANIC: u32 = 13;
/// The request missed its deadline.
pub const VMSRS_KIND_DEADLINE: u32 = 14;
/// A thread of the request ended inside it, or left it by `longjmp()`.
pub const VMSRS_KIND_THREAD_DEATH: u32 = 15;
/// The process ended with the request in flight.
pub const VMSRS_KIND_PROCESS_DEATH: u32 = 16;
/// The pool of frames ran dry while the request wrote.
pub const VMSRS_KIND_NO_FRAMES: u32 = 17;
/// The server failed the request: `vmsrs_fail()`, or an invariant did not hold.
pub const VMSRS_KIND_INVARIANT: u32 = 18;
/// A read or write of a page that another request was writing, stopped by a
/// protection key.
pub const VMSRS_KIND_FOREIGN_DRAFT: u32 = 19;
/// The content of a sealed frame did not match its checksum. Reported by the host only.
pub const VMSRS_KIND_CHECKSUM: u32 = 20;
/// Memory of the host is broken. Reported by the host only.
pub const VMSRS_KIND_POISON: u32 = 21;
/// The request touched a page whose content the host has lost.
pub const VMSRS_KIND_DAMAGED: u32 = 22;
/// So many requests of the domain have failed that it is refused for a while. In
/// incidents only.
pub const VMSRS_KIND_QUARANTINE: u32 = 23;

/// Names a kind of failure: "memory", "double free". The tools of the host print it with
/// hyphens: "double-free".
///
/// @param kind A value of enum `vmsrs_kind`; the name of any other is "unknown".
/// @return A constant string, never null.
///
/// cbindgen:prefix=VMSRS_TEXT
#[unsafe(no_mangle)]
pub extern "C" fn vmsrs_kind_name(kind: u32) -> *const c_char {
    Kind::from_number(kind)
        .map_or(c"unknown", Kind::c_name)
        .as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmsrs_protocol::incident;

    #[test]
    fn kinds_are_those_of_the_protocol() {
        let kinds = [
            (VMSRS_KIND_MEMORY, incident::KIND_MEMORY),
            (VMSRS_KIND_ARITHMETIC, incident::KIND_ARITHMETIC),
            (VMSRS_KIND_INSTRUCTION, incident::KIND_INSTRUCTION),
            (VMSRS_KIND_ABORT, incident::KIND_ABORT),
            (VMSRS_KIND_STACK_OVERFLOW, incident::KIND_STACK_OVERFLOW),
            (VMSRS_KIND_FOREIGN_WRITE, incident::KIND_FOREIGN_WRITE),
            (VMSRS_KIND_SEALED_WRITE, incident::KIND_SEALED_WRITE),
            (VMSRS_KIND_DOUBLE_FREE, incident::KIND_DOUBLE_FREE),
            (VMSRS_KIND_FOREIGN_FREE, incident::KIND_FOREIGN_FREE),
            (VMSRS_KIND_RED_ZONE, incident::KIND_RED_ZONE),
            (VMSRS_KIND_USE_AFTER_FREE, incident::KIND_USE_AFTER_FREE),
            (VMSRS_KIND_HEAP_CORRUPT, incident::KIND_HEAP_CORRUPT),
            (VMSRS_KIND_PANIC, incident::KIND_PANIC),
            (VMSRS_KIND_DEADLINE, incident::KIND_DEADLINE),
            (VMSRS_KIND_THREAD_DEATH, incident::KIND_THREAD_DEATH),
            (VMSRS_KIND_PROCESS_DEATH, incident::KIND_PROCESS_DEATH),
            (VMSRS_KIND_NO_FRAMES, incident::KIND_NO_FRAMES),
            (VMSRS_KIND_INVARIANT, incident::KIND_INVARIANT),
            (VMSRS_KIND_FOREIGN_DRAFT, incident::KIND_FOREIGN_DRAFT),
            (VMSRS_KIND_CHECKSUM, incident::KIND_CHECKSUM),
            (VMSRS_KIND_POISON, incident::KIND_POISON),
            (VMSRS_KIND_DAMAGED, incident::KIND_DAMAGED),
            (VMSRS_KIND_QUARANTINE, incident::KIND_QUARANTINE),
        ];
        for (number, (ours, protocol)) in (1..).zip(kinds) {
            assert_eq!((ours, protocol), (number, number));
        }
        assert_eq!(kinds.len(), incident::KIND_MAX as usize);
    }
}
