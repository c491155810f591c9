//! What went wrong, as a thread noted it when it was cut short.

use crate::failure::{Kind, MESSAGE, Message};
use crate::os::clock;
use crate::os::region::Region;
use std::cell::{Cell, UnsafeCell};
use vmsrs_protocol::incident::{BACKTRACE, REG_RBP, REG_RIP, REG_RSP, REGISTERS, REPORT_ADDRESS};
use vmsrs_protocol::ioctl::IoctlFail;

/// A thread's notes on its last error. Only the thread itself uses it: its signal handler writes,
/// its landing reads.
#[derive(Debug)]
pub(crate) struct Record {
    report: UnsafeCell<IoctlFail>,
    message: UnsafeCell<[u8; MESSAGE]>,
    message_length: Cell<usize>,
}

impl Record {
    pub(crate) fn new() -> Self {
        Self {
            report: UnsafeCell::default(),
            message: UnsafeCell::new([0; MESSAGE]),
            message_length: Cell::new(0),
        }
    }

    /// Notes an error. Async-signal-safe.
    #[inline]
    pub(crate) fn note(&self, fill: impl FnOnce(&mut IoctlFail)) {
        // SAFETY: this thread's own, read after the landing only.
        let report = unsafe { &mut *self.report.get() };
        *report = IoctlFail::default();
        fill(report);
    }

    /// Gives the report. Nothing runs aside meanwhile.
    pub(crate) fn with_report<T>(&self, code: impl FnOnce(&mut IoctlFail) -> T) -> T {
        // SAFETY: the thread has landed: its handler of signals notes nothing before it runs something again.
        code(unsafe { &mut *self.report.get() })
    }

    /// Replaces the message. Async-signal-safe.
    pub(crate) fn set_message(&self, message: &[u8]) {
        let length = message.len().min(MESSAGE);
        // SAFETY: this thread's own, and no reference into it is alive.
        unsafe { (&mut *self.message.get())[..length].copy_from_slice(&message[..length]) };
        self.message_length.set(length);
    }

    pub(crate) fn message_copied(&self) -> Message {
        Message::new(self.message())
    }

    /// One of the registers.
    pub(crate) fn register(&self, register: usize) -> u64 {
        // SAFETY: as in with_report().
        unsafe { (&raw const (*self.report.get()).registers[register]).read() }
    }

    pub(crate) fn message(&self) -> &[u8] {
        // SAFETY: as in with_report().
        let message = unsafe { &*self.message.get() };
        &message[..self.message_length.get().min(MESSAGE)]
    }
}

/// Notes stack pointer, frame pointer and instruction pointer of the caller, for an error that the library
/// itself found.
#[inline]
pub(crate) fn registers(registers: &mut [u64; REGISTERS]) {
    let (rsp, rbp, rip): (u64, u64, u64);
    // SAFETY: reads registers.
    unsafe {
        std::arch::asm!(
            "mov {}, rsp", "mov {}, rbp", "lea {}, [rip]",
            out(reg) rsp, out(reg) rbp, out(reg) rip,
            options(nomem, nostack, preserves_flags)
        );
    }
    registers[REG_RBP] = rbp;
    registers[REG_RSP] = rsp;
    registers[REG_RIP] = rip;
}

/// Follows the frame pointers, inside the request stack and upwards only, so that no damage
/// can lead it astray. Frames of code without frame pointers are missing.
fn backtrace(stack: &Region, mut frame: u64, addresses: &mut [u64; BACKTRACE]) {
    for entry in addresses {
        let whole = stack.holds_word(frame) && stack.holds_word(frame.wrapping_add(8));
        if !whole || !frame.is_multiple_of(8) {
            break;
        }
        // SAFETY: two aligned words inside the request stack.
        let (next, address) = unsafe { (*(frame as *const u64), *((frame + 8) as *const u64)) };
        *entry = address;
        if next <= frame {
            break;
        }
        frame = next;
    }
}

/// Whether `address` of an error with this signal and code says anything. A general protection fault
/// (`SI_KERNEL`: the address was not canonical) comes without one.
fn address_flag(address: u64, signal: i32, code: i32) -> u32 {
    const SI_KERNEL: i32 = 0x80;
    let faulted = matches!(signal, libc::SIGSEGV | libc::SIGBUS) && code > 0 && code != SI_KERNEL;
    if faulted || address != 0 {
        REPORT_ADDRESS
    } else {
        0
    }
}

/// Fills a report, which is all 0 but for the registers, on an error of a kind.
#[inline]
pub(crate) fn fill(
    report: &mut IoctlFail,
    kind: Kind,
    address: u64,
    (signal, code): (i32, i32),
    stack: Option<&Region>,
) {
    report.detected_ns = clock::now();
    report.address = address;
    report.kind = kind.number();
    report.signal = signal;
    report.code = code;
    if let Some(stack) = stack {
        let frame = report.registers[REG_RBP];
        backtrace(stack, frame, &mut report.backtrace);
    }
    report.flags = address_flag(address, signal, code);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_faults_with_an_address_report_one() {
        assert_eq!(address_flag(0, libc::SIGSEGV, 1), REPORT_ADDRESS);
        assert_eq!(address_flag(0, libc::SIGSEGV, 0x80), 0);
        assert_eq!(address_flag(0, libc::SIGFPE, 1), 0);
        assert_eq!(address_flag(0x1000, 0, 0), REPORT_ADDRESS);
    }
}
