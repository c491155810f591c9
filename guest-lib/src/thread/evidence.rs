//! What a failed request leaves for finding the bug: the top of its stack, the modules
//! that were mapped, and what it said.
//!
//! With one exception nothing is copied here: at its landing the thread only tells the driver where
//! the bytes are, and the driver reads them once the drafts are discarded and the locks released. The
//! request stack is as the error left it until the next request. The exception is a panic, whose
//! unwinding overwrites the stack: a panic hook copies the top of it to the stack's unused low end.

use super::{Thread, current};
use crate::os::modules;
use crate::os::region::Region;
use std::ptr;
use std::sync::Once;
use vmsrs_protocol::incident::{
    KIND_PANIC, KIND_STACK_OVERFLOW, REG_R12, REG_R13, REG_R14, REG_R15, REG_RBP, REG_RBX, REG_RIP,
    REG_RSP, REGISTERS, STACK_MAX,
};
use vmsrs_protocol::ioctl::IoctlFail;

/// Room between the copy of a panic's stack and the frames that are still in use on that stack.
const HEADROOM: u64 = 32 * 1024;

/// Bytes that are kept of a stack that ran over: its frames are mostly the same ones again and again, and the driver has
/// memory ready for so many beside the modules.
const OVERFLOW_MAX: u32 = 6 * 1024;

/// `si_code` of a SIGSEGV at an address where nothing is mapped.
const SEGV_MAPERR: i32 = 1;

/// Completes the report of a failed request at its landing, by its stack and what it said. The driver reads both
/// before the next request can change them.
pub(crate) fn attach(record: &mut IoctlFail, thread: &Thread) {
    let text = thread.message();
    modules::refresh_for(&code(record));
    let (modules, length) = modules::current();
    record.modules = modules as u64;
    record.modules_bytes = length;
    record.text = text.as_ptr() as u64;
    // At most MESSAGE bytes.
    record.text_bytes = text.len() as u32;
    let Some(stack) = thread.stack_region() else {
        return;
    };
    record.stack_low = stack.low() as u64;
    record.stack_high = stack.top() as u64;
    let saved = thread.panic.take().filter(|saved| saved.tag == record.tag);
    if let (KIND_PANIC, Some(saved)) = (record.kind, saved) {
        // The bytes have moved, the addresses in them have not.
        record.registers = saved.registers;
        record.stack = saved.place;
        record.stack_bytes = saved.bytes;
        return;
    }
    let most = match record.kind {
        KIND_STACK_OVERFLOW => OVERFLOW_MAX,
        _ => STACK_MAX,
    };
    if let Some((from, bytes)) = top_of_stack(stack, record.registers[REG_RSP], most) {
        record.stack = from;
        record.stack_bytes = bytes;
    }
}

/// What modules are looked for: the instruction, and its first few callers, since to find one costs a look at the whole table.
/// 0 for an instruction that is nowhere, as after a wild jump: the kernel has just said that nothing is mapped there, so reading
/// the process's mappings again finds no module either.
fn code(record: &IoctlFail) -> [u64; 3] {
    let instruction = record.registers[REG_RIP];
    let is_nowhere = record.signal == libc::SIGSEGV
        && record.code == SEGV_MAPERR
        && record.address == instruction;
    let instruction = if is_nowhere { 0 } else { instruction };
    [instruction, record.backtrace[0], record.backtrace[1]]
}

/// The bytes that are kept of a stack whose pointer is `rsp`, at `most`: from there on, or from the lowest byte
/// if it ran over. `None` if that is another stack.
fn top_of_stack(stack: &Region, rsp: u64, most: u32) -> Option<(u64, u32)> {
    let (low, high) = (stack.low() as u64, stack.top() as u64);
    if !(low..high).contains(&rsp) && !stack.is_below(rsp) {
        return None;
    }
    let from = rsp.max(low) & !7;
    Some((from, (high - from).min(most.into()) as u32))
}

// Panics.

/// The copied stack of a panic.
#[derive(Clone, Copy)]
pub(super) struct SavedStack {
    tag: u64,
    registers: [u64; REGISTERS],
    place: u64,
    bytes: u32,
}

/// Installs the panic hook, once in a process; the one before is called after it.
pub(crate) fn install() {
    // Under the lock of opening apps, where nothing is cut short: nobody waits here.
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |information| {
            let thread = current().filter(|thread| thread.can_divert());
            if thread.is_some_and(|thread| !thread.note_panic()) {
                return;
            }
            save_panic_stack();
            // The request ends soon in any case. The hook would be cut short, with locks of Rust's library.
            if thread.is_some_and(Thread::has_grace) {
                return;
            }
            let note = |runs| {
                if let Some(thread) = thread {
                    thread.in_hook.set(runs);
                }
            };
            note(true);
            previous(information);
            note(false);
        }));
    });
}

impl Thread {
    /// Whether the code that was cut short was a panic hook, for the first who asks.
    pub(crate) fn take_hook(&self) -> bool {
        self.in_hook.take()
    }
}

/// Copies the top of the request stack, on which this runs, to its low end.
#[inline(never)]
fn save_panic_stack() {
    let Some(thread) = current().filter(|thread| thread.can_divert()) else {
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
    let Some((from, bytes)) = top_of_stack(stack, registers[REG_RSP], STACK_MAX) else {
        return;
    };
    if from < low + u64::from(bytes) + HEADROOM {
        return;
    }
    // SAFETY: both lie in the request stack, apart from one another, and the target below everything
    // that runs on it by the headroom.
    unsafe { ptr::copy_nonoverlapping(from as *const u8, stack.low(), bytes as usize) };
    thread.panic.set(Some(SavedStack {
        tag: thread.tag(),
        registers,
        place: low,
        bytes,
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_that_is_nowhere_is_not_looked_for() {
        let mut record = IoctlFail {
            signal: libc::SIGSEGV,
            code: SEGV_MAPERR,
            address: 0x30,
            ..IoctlFail::default()
        };
        record.registers[REG_RIP] = 0x30;
        record.backtrace[..2].copy_from_slice(&[0x50_0000, 0x60_0000]);
        assert_eq!(code(&record), [0, 0x50_0000, 0x60_0000]);
        // Data, or what a library that was loaded since has there.
        record.code = SEGV_MAPERR + 1;
        assert_eq!(code(&record)[0], 0x30);
        (record.code, record.address) = (SEGV_MAPERR, 16);
        assert_eq!(code(&record)[0], 0x30);
    }

    #[test]
    fn kept_stack_starts_at_rsp_and_stays_inside() {
        let stack = Region::new(64 * 1024).unwrap();
        let (low, high) = (stack.low() as u64, stack.top() as u64);
        let top_of_stack = |rsp, most| top_of_stack(&stack, rsp, most);
        let all = STACK_MAX;
        assert_eq!(top_of_stack(high - 100, all), Some((high - 104, 104)));
        assert_eq!(top_of_stack(low, all), Some((low, all)));
        assert_eq!(top_of_stack(low - 64, 4096), Some((low, 4096)));
        assert_eq!(top_of_stack(high, all), None);
        assert_eq!(top_of_stack(0x1000, all), None);
    }
}
