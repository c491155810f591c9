//! Writes that the second-level page table refused.

use kvm_bindings::{kvm_regs, kvm_sregs};

use super::exit::CrashReport;

/// What KVM tells about a refused access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultCause {
    /// `KVM_EXIT_MEMORY_FAULT`: the guest physical address is known.
    Address(u64),
    /// EFAULT and nothing else: the instruction has to be decoded.
    Unknown,
    /// KVM's instruction emulator carried out the instruction without its store. By the time the
    /// handler is asked, the instruction pointer is behind it.
    Emulated {
        /// Where the store would have gone.
        gpa: u64,
        /// Its length in bytes.
        len: usize,
    },
}

/// An exception that a [`FaultHandler`] wants delivered in place of the instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exception {
    /// #PF at `address` with `error_code` (Intel SDM, volume 3, section 4.7).
    PageFault {
        /// Value of CR2.
        address: u64,
        /// Error code on the guest's stack.
        error_code: u32,
    },
    /// #GP with error code 0.
    GeneralProtection,
}

/// A stopped vCPU as a [`FaultHandler`] sees it.
#[derive(Debug, Clone)]
pub struct VcpuContext {
    /// Number of the vCPU.
    pub index: u32,
    /// What KVM said.
    pub cause: FaultCause,
    /// General registers.
    pub regs: kvm_regs,
    /// Segment and control registers.
    pub sregs: kvm_sregs,
    /// The exception to deliver when the vCPU resumes, if the handler sets one.
    pub exception: Option<Exception>,
}

impl VcpuContext {
    /// The privilege level: 0 for the kernel, 3 for user mode.
    pub fn cpl(&self) -> u8 {
        // The level of the stack segment is the current one in every mode Linux uses.
        self.sregs.ss.dpl
    }
}

/// What becomes of a vCPU after a refused access.
#[derive(Debug)]
pub enum Verdict {
    /// It runs on: with the exception in its context if there is one, else it tries again.
    Resume,
    /// The guest cannot go on.
    Dead(Box<CrashReport>),
}

/// Decides about accesses that the second-level page table refused. Called in the thread of the
/// vCPU, possibly by several at once.
pub trait FaultHandler: Send + Sync {
    /// Decides about one refused access.
    fn on_memory_fault(&self, vcpu: &mut VcpuContext) -> Verdict;
}
