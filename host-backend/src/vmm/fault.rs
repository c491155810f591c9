//! Writes that the second-level page table refused: finding the address, suppressing the
//! instruction, and reporting it.
//!
//! The vault is never writable by the guest. A store into it leaves the guest with EFAULT, and in most
//! kernels without an address. [`VaultGuard`] finds the address by decoding the instruction and walking
//! the guest's page tables, and lets an exception take the place of the instruction:
//!
//! - in user mode, and in the kernel's accesses to user addresses, #PF with the protection-key bit.
//!   Without that bit Linux would take a fault on a writable entry for a stale TLB and retry
//!   forever; with it the thread gets SIGSEGV, and a system call that copies there gets EFAULT.
//! - for the kernel's own addresses #GP, for which Linux has fix-ups or an oops of that task alone.
//!   A #PF with the protection-key bit would be a contradiction there.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use kvm_bindings::{kvm_regs, kvm_sregs};
use vmsrs_protocol::NONE;
use vmsrs_protocol::incident::{self, REGISTERS};

use crate::engine::Retry;

use super::decode::{DecodedWrite, MAX_INSTRUCTION_LEN, RegisterFile, decode_write};
use super::exit::CrashReport;
use super::memory::PAGE_SIZE;
use super::walk::{Paging, PhysicalMemory};

/// Page-fault error code: the page is present, the access was a write, a protection key forbids
/// it (Intel SDM, volume 3, section 4.7).
const PF_PRESENT: u32 = 1 << 0;
const PF_WRITE: u32 = 1 << 1;
const PF_USER: u32 = 1 << 2;
const PF_PROTECTION_KEY: u32 = 1 << 5;

/// How often a vCPU may fault with the same registers before the guest is stopped, or its access fails.
const MAX_RETRIES: u32 = 64;
/// The first retries are immediate; the delay of later ones grows by this, to about a second in all.
/// That bridges a change of the guest's page tables, or of what backs a frame, that another thread has
/// started and not finished.
const RETRY_DELAY: Duration = Duration::from_micros(500);
const IMMEDIATE_RETRIES: u32 = 4;

/// What KVM reports about a refused access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultCause {
    /// `KVM_EXIT_MEMORY_FAULT`: the guest physical address is known.
    Address(u64),
    /// The memory at this guest physical address is broken, and nothing was accessed.
    Broken(u64),
    /// EFAULT and nothing else: the instruction has to be decoded.
    Unknown,
    /// KVM's instruction emulator found no memory to read at this guest physical address of a region, since
    /// it is broken, and read ones. By the time the handler is asked, the instruction is over.
    EmulatedRead(u64),
    /// KVM's instruction emulator carried out the instruction without its store. By the time the
    /// handler is asked, the instruction pointer is past it.
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
    /// What KVM reported.
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
    /// The guest cannot continue.
    Dead(Box<CrashReport>),
}

/// Decides about accesses that the second-level page table refused. Called in the thread of the
/// vCPU, possibly by several at once.
pub trait FaultHandler: Send + Sync {
    /// Decides about one refused access.
    fn on_memory_fault(&self, vcpu: &mut VcpuContext) -> Verdict;
}

/// A store into the vault that was suppressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The vCPU.
    pub vcpu: u32,
    /// The vault frame.
    pub frame: u32,
    /// Guest physical address of the first byte in the vault.
    pub gpa: u64,
    /// Its virtual address, if the instruction could be decoded.
    pub gva: Option<u64>,
    /// The instruction pointer.
    pub rip: u64,
    /// The privilege level: 0 for the kernel, 3 for user mode.
    pub cpl: u8,
    /// Root of the page tables, which names the process.
    pub cr3: u64,
    /// General registers, in the order of an incident's.
    pub registers: [u64; REGISTERS],
    /// The bytes at the instruction pointer, as far as they could be read.
    pub code: Vec<u8>,
    /// What the guest gets in its place.
    pub exception: Exception,
}

/// Records suppressed stores. Called in the vCPU's thread before it resumes.
pub trait ViolationSink: Send + Sync {
    /// Records one.
    fn violation(&self, violation: &Violation);

    /// Reports a vault frame's broken memory, and returns what becomes of the access.
    fn broken(&self, _frame: u32) -> Retry {
        Retry::Never
    }
}

impl<F: Fn(&Violation) + Send + Sync> ViolationSink for F {
    fn violation(&self, violation: &Violation) {
        self(violation);
    }
}

/// The fault handler of a VM with a vault, which the guest cannot write, and a pool, which it can.
pub struct VaultGuard<M> {
    memory: M,
    vault: Range<u64>,
    pool: Range<u64>,
    sink: Arc<dyn ViolationSink>,
    /// Broken memory of the pool has been logged.
    pool_broken: AtomicBool,
    /// Guards, per vCPU, the registers at its last fault without a finding and how often they
    /// have come since.
    retries: Mutex<HashMap<u32, (kvm_regs, u32)>>,
}

/// A byte of the vault that an instruction writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Target {
    gva: u64,
    gpa: u64,
}

impl<M: PhysicalMemory> VaultGuard<M> {
    /// Makes a handler for vault and pool at these guest physical addresses; `memory` is the guest's
    /// RAM.
    pub fn new(
        memory: M,
        vault: Range<u64>,
        pool: Range<u64>,
        sink: Arc<dyn ViolationSink>,
    ) -> Self {
        Self {
            memory,
            vault,
            pool,
            sink,
            pool_broken: AtomicBool::new(false),
            retries: Mutex::default(),
        }
    }

    fn decide(&self, vcpu: &mut VcpuContext) -> Verdict {
        let known = match vcpu.cause {
            FaultCause::Emulated { gpa, .. } if self.pool.contains(&gpa) => {
                return self.broken(vcpu, gpa);
            }
            FaultCause::EmulatedRead(gpa) => {
                let verdict = self.broken(vcpu, gpa);
                if matches!(verdict, Verdict::Resume) {
                    // Also if the frame has been repaired: what was read is wrong, and must not be used.
                    vcpu.exception = Some(Exception::GeneralProtection);
                }
                return verdict;
            }
            FaultCause::Emulated { gpa, .. } => {
                // The store is gone already and its instruction over: there is nothing to decode
                // and nothing to try again.
                let code = self.code(vcpu);
                self.suppress(vcpu, gpa, None, code);
                return Verdict::Resume;
            }
            FaultCause::Address(gpa) if !self.in_regions(gpa) => {
                let what = "it touched an address that is neither RAM nor a device";
                return self.dead(vcpu, what.into(), Some(gpa));
            }
            FaultCause::Broken(gpa) => return self.broken(vcpu, gpa),
            FaultCause::Address(gpa) => Some(gpa),
            FaultCause::Unknown => None,
        };

        let registers = RegisterFile {
            regs: &vcpu.regs,
            sregs: &vcpu.sregs,
        };
        let paging = Paging::from(&vcpu.sregs);
        let code = self.code(vcpu);
        let decoded = decode_write(&code, &registers);
        let target = decoded
            .as_ref()
            .and_then(|write| self.find_target(&paging, write));
        match (decoded, target, known) {
            (Some(write), Some(target), _) => {
                self.suppress(vcpu, target.gpa, Some(target.gva), write.code);
                Verdict::Resume
            }
            (_, _, Some(gpa)) if self.vault.contains(&gpa) => {
                self.suppress(vcpu, gpa, None, code);
                Verdict::Resume
            }
            (decoded, ..) => self.retry(vcpu, decoded.is_some(), known),
        }
    }

    /// Handles an access to broken memory of a region.
    ///
    /// In the vault: if the frame's content has been restored, the access is retried. If a committed page
    /// is lost, a process retries until the driver has unmapped the page; if that takes too long, its access
    /// fails. The kernel may be holding what the driver needs for that, so its access fails at once; a copy
    /// that is prepared for faults ends, anything else is an oops of that task.
    ///
    /// In the pool: the frame is the driver's and its content is lost, so the access fails. The frame stays
    /// broken until the next boot, so that what was committed in it is not taken for something else.
    fn broken(&self, vcpu: &mut VcpuContext, gpa: u64) -> Verdict {
        if let Some(frame) = frame(&self.vault, gpa) {
            match self.sink.broken(frame) {
                Retry::Now => return Verdict::Resume,
                Retry::Later if vcpu.cpl() == 3 && self.may_retry(vcpu) => return Verdict::Resume,
                Retry::Later | Retry::Never => {}
            }
        } else if let Some(frame) = frame(&self.pool, gpa) {
            // Said once: the guest can touch it as often as it likes.
            if !self.pool_broken.swap(true, Ordering::Relaxed) {
                log::error!("the memory of frame {frame} of the pool is broken");
            }
        } else {
            return self.dead(vcpu, "it touched broken memory".into(), Some(gpa));
        }
        vcpu.exception = Some(Exception::GeneralProtection);
        Verdict::Resume
    }

    fn in_regions(&self, gpa: u64) -> bool {
        self.vault.contains(&gpa) || self.pool.contains(&gpa)
    }

    /// The first byte of the vault among those that an instruction writes.
    fn find_target(&self, paging: &Paging, write: &DecodedWrite) -> Option<Target> {
        write.ranges.iter().find_map(|range| {
            let mut gva = range.start;
            let mut left = range.len;
            while left > 0 {
                // An unmapped page ends the range: the instruction never gets beyond it.
                let gpa = paging.translate(&self.memory, gva)?.gpa;
                if self.vault.contains(&gpa) {
                    return Some(Target { gva, gpa });
                }
                let step = (PAGE_SIZE - gva % PAGE_SIZE).min(left);
                gva = gva.wrapping_add(step);
                left -= step;
            }
            None
        })
    }

    /// Sets the exception that replaces the instruction, and reports the store.
    fn suppress(&self, vcpu: &mut VcpuContext, gpa: u64, gva: Option<u64>, code: Vec<u8>) {
        let cpl = vcpu.cpl();
        let exception = match gva {
            Some(address) if cpl == 3 || Paging::is_user_address(address) => {
                let user = if cpl == 3 { PF_USER } else { 0 };
                Exception::PageFault {
                    address,
                    error_code: PF_PRESENT | PF_WRITE | PF_PROTECTION_KEY | user,
                }
            }
            _ => Exception::GeneralProtection,
        };
        vcpu.exception = Some(exception);
        self.lock_retries().remove(&vcpu.index);
        let violation = Violation {
            vcpu: vcpu.index,
            // Every address that comes here lies in the vault.
            frame: frame(&self.vault, gpa).unwrap_or(NONE),
            gpa,
            gva,
            rip: vcpu.regs.rip,
            cpl,
            cr3: vcpu.sregs.cr3,
            registers: in_order(&vcpu.regs),
            code,
            exception,
        };
        self.sink.violation(&violation);
    }

    /// Lets the vCPU retry, since page tables may have changed; a bounded number of times.
    fn retry(&self, vcpu: &VcpuContext, decoded: bool, gpa: Option<u64>) -> Verdict {
        if self.may_retry(vcpu) {
            return Verdict::Resume;
        }
        let what = if decoded {
            "its store kept failing, and the vault does not explain it"
        } else {
            "its access was refused, and its instruction cannot be decoded"
        };
        self.dead(vcpu, what.into(), gpa)
    }

    /// Waits, the longer the more often the vCPU has come with the same registers; false if that is too
    /// often.
    fn may_retry(&self, vcpu: &VcpuContext) -> bool {
        let count = {
            let mut retries = self.lock_retries();
            let (regs, count) = retries.entry(vcpu.index).or_insert((vcpu.regs, 0));
            if *regs == vcpu.regs {
                *count += 1;
            } else {
                (*regs, *count) = (vcpu.regs, 1);
            }
            *count
        };
        if count > MAX_RETRIES {
            return false;
        }
        match count.checked_sub(IMMEDIATE_RETRIES) {
            None | Some(0) => thread::yield_now(),
            Some(beyond) => thread::sleep(RETRY_DELAY * beyond),
        }
        true
    }

    fn lock_retries(&self) -> std::sync::MutexGuard<'_, HashMap<u32, (kvm_regs, u32)>> {
        // Each entry is whole after every statement, so a panic elsewhere does no harm.
        self.retries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bytes at the instruction pointer, as far as they can be read.
    fn code(&self, vcpu: &VcpuContext) -> Vec<u8> {
        let registers = RegisterFile {
            regs: &vcpu.regs,
            sregs: &vcpu.sregs,
        };
        let rip = registers.linear_rip();
        Paging::from(&vcpu.sregs).read_virtual(&self.memory, rip, MAX_INSTRUCTION_LEN)
    }

    fn dead(&self, vcpu: &VcpuContext, what: String, gpa: Option<u64>) -> Verdict {
        Verdict::Dead(Box::new(CrashReport {
            what,
            internal_error: false,
            vcpu: Some(vcpu.index),
            rip: vcpu.regs.rip,
            cr3: vcpu.sregs.cr3,
            cr2: vcpu.sregs.cr2,
            cpl: vcpu.cpl(),
            gpa,
            code: self.code(vcpu),
        }))
    }
}

/// Which frame of a region lies at a guest physical address.
fn frame(region: &Range<u64>, gpa: u64) -> Option<u32> {
    if !region.contains(&gpa) {
        return None;
    }
    u32::try_from((gpa - region.start) / PAGE_SIZE).ok()
}

/// The registers in the order of an incident's.
fn in_order(regs: &kvm_regs) -> [u64; REGISTERS] {
    let mut ordered = [0; REGISTERS];
    ordered[incident::REG_RAX] = regs.rax;
    ordered[incident::REG_RBX] = regs.rbx;
    ordered[incident::REG_RCX] = regs.rcx;
    ordered[incident::REG_RDX] = regs.rdx;
    ordered[incident::REG_RSI] = regs.rsi;
    ordered[incident::REG_RDI] = regs.rdi;
    ordered[incident::REG_RBP] = regs.rbp;
    ordered[incident::REG_RSP] = regs.rsp;
    ordered[incident::REG_R8] = regs.r8;
    ordered[incident::REG_R9] = regs.r9;
    ordered[incident::REG_R10] = regs.r10;
    ordered[incident::REG_R11] = regs.r11;
    ordered[incident::REG_R12] = regs.r12;
    ordered[incident::REG_R13] = regs.r13;
    ordered[incident::REG_R14] = regs.r14;
    ordered[incident::REG_R15] = regs.r15;
    ordered[incident::REG_RIP] = regs.rip;
    ordered[incident::REG_RFLAGS] = regs.rflags;
    ordered
}

impl<M: PhysicalMemory + Send + Sync> FaultHandler for VaultGuard<M> {
    fn on_memory_fault(&self, vcpu: &mut VcpuContext) -> Verdict {
        self.decide(vcpu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::walk::tests::{TestMemory, long_mode};
    use kvm_bindings::kvm_segment;
    use vmsrs_protocol::incident::{REG_RCX, REG_RDI, REG_RIP};

    const POOL: u64 = 0x1_0000_0000;
    const VAULT: u64 = 0x2_0000_0000;
    const CODE: u64 = 0x40_0000;
    const USER: u64 = 0x7000_0000;
    const KERNEL: u64 = 0xffff_8880_0000_0000;
    const MAPPED: u64 = 7;

    struct Bench {
        guard: VaultGuard<TestMemory>,
        seen: Arc<Mutex<Vec<Violation>>>,
    }

    impl Bench {
        /// Two pages are mapped one after the other, at a user and at a kernel address: frames 0 and 1 of
        /// the vault where they are in `sealed`, else of the pool. `code` is at the instruction pointer.
        fn new(code: &[u8], sealed: &[u64]) -> Self {
            let memory = TestMemory::new();
            memory.map(4, CODE, 1, 0x9000 | MAPPED);
            memory.store(0x9000, &[0x90; 16]);
            memory.store(0x9000, code);
            for base in [USER, KERNEL] {
                for frame in 0..2 {
                    let offset = frame * PAGE_SIZE;
                    let region = if sealed.contains(&frame) { VAULT } else { POOL };
                    memory.map(4, base + offset, 1, (region + offset) | MAPPED);
                }
            }
            let seen = Arc::new(Mutex::new(Vec::new()));
            let sink = seen.clone();
            Self {
                guard: VaultGuard::new(
                    memory,
                    VAULT..VAULT + 16 * PAGE_SIZE,
                    POOL..POOL + 16 * PAGE_SIZE,
                    Arc::new(move |violation: &Violation| {
                        sink.lock().unwrap().push(violation.clone());
                    }),
                ),
                seen,
            }
        }

        fn fault(&self, cause: FaultCause, cpl: u8, rdi: u64) -> (Verdict, Option<Exception>) {
            let paging = long_mode(4);
            let mut vcpu = VcpuContext {
                index: 1,
                cause,
                regs: kvm_regs {
                    rip: CODE,
                    rdi,
                    rcx: 0x1000,
                    ..Default::default()
                },
                sregs: kvm_sregs {
                    cr0: paging.cr0,
                    cr3: paging.cr3,
                    cr4: paging.cr4,
                    efer: paging.efer,
                    cs: kvm_segment {
                        l: 1,
                        ..Default::default()
                    },
                    ss: kvm_segment {
                        dpl: cpl,
                        ..Default::default()
                    },
                    ..Default::default()
                },
                exception: None,
            };
            let verdict = self.guard.decide(&mut vcpu);
            (verdict, vcpu.exception)
        }

        fn exception(&self, cause: FaultCause, cpl: u8, rdi: u64) -> Option<Exception> {
            let (verdict, exception) = self.fault(cause, cpl, rdi);
            assert!(matches!(verdict, Verdict::Resume), "{verdict:?}");
            exception
        }
    }

    /// mov [rdi], rax
    const STORE: &[u8] = &[0x48, 0x89, 0x07];
    /// rep movsb
    const COPY: &[u8] = &[0xf3, 0xa4];

    fn page_fault(address: u64, error_code: u32) -> Option<Exception> {
        Some(Exception::PageFault {
            address,
            error_code,
        })
    }

    #[test]
    fn a_store_in_user_mode_gets_a_page_fault_by_protection_key() {
        let bench = Bench::new(STORE, &[0]);
        let exception = bench.exception(FaultCause::Unknown, 3, USER + 8);
        assert_eq!(exception, page_fault(USER + 8, 0x27));
        let seen = bench.seen.lock().unwrap();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].frame, 0);
        assert_eq!(seen[0].gpa, VAULT + 8);
        assert_eq!(seen[0].gva, Some(USER + 8));
        assert_eq!((seen[0].vcpu, seen[0].cpl, seen[0].rip), (1, 3, CODE));
        assert_eq!(seen[0].code, STORE);
        assert_eq!(seen[0].cr3, long_mode(4).cr3);
        let registers = seen[0].registers;
        assert_eq!(
            (registers[REG_RCX], registers[REG_RDI], registers[REG_RIP]),
            (0x1000, USER + 8, CODE)
        );
    }

    #[test]
    fn kernel_copy_to_user_address_gets_kernel_page_fault() {
        let bench = Bench::new(COPY, &[1]);
        let exception = bench.exception(FaultCause::Unknown, 0, USER + 0x800);
        assert_eq!(exception, page_fault(USER + 0x1000, 0x23));
        assert_eq!(bench.seen.lock().unwrap()[0].frame, 1);
    }

    #[test]
    fn kernel_store_gets_general_protection_fault() {
        let bench = Bench::new(STORE, &[0]);
        let exception = bench.exception(FaultCause::Unknown, 0, KERNEL);
        assert_eq!(exception, Some(Exception::GeneralProtection));
        assert_eq!(bench.seen.lock().unwrap()[0].gva, Some(KERNEL));
    }

    #[test]
    fn a_store_across_two_pages_reports_the_first_protected_byte() {
        let bench = Bench::new(STORE, &[1]);
        let exception = bench.exception(FaultCause::Unknown, 3, USER + 0xffc);
        assert_eq!(exception, page_fault(USER + 0x1000, 0x27));
    }

    #[test]
    fn a_known_address_suppresses_even_what_cannot_be_decoded() {
        // An opcode that does not exist.
        let bench = Bench::new(&[0x0f, 0x0a], &[0]);
        let exception = bench.exception(FaultCause::Address(VAULT), 0, 0);
        assert_eq!(exception, Some(Exception::GeneralProtection));
        assert_eq!(bench.seen.lock().unwrap()[0].gva, None);
    }

    #[test]
    fn an_emulated_store_is_reported_and_suppressed() {
        let bench = Bench::new(STORE, &[0]);
        let cause = FaultCause::Emulated {
            gpa: VAULT + 4,
            len: 4,
        };
        let exception = bench.exception(cause, 3, 0);
        assert_eq!(exception, Some(Exception::GeneralProtection));
        let seen = bench.seen.lock().unwrap();
        assert_eq!(seen[0].gpa, VAULT + 4);
        assert_eq!(&seen[0].code[..3], STORE);
    }

    #[test]
    fn a_store_into_the_pool_is_no_violation() {
        let bench = Bench::new(STORE, &[1]);
        for cause in [FaultCause::Unknown, FaultCause::Address(POOL)] {
            assert_eq!(bench.exception(cause, 3, USER), None);
        }
        assert!(bench.seen.lock().unwrap().is_empty());
    }

    #[test]
    fn access_to_broken_pool_memory_fails_and_is_no_violation() {
        let bench = Bench::new(STORE, &[]);
        let lost = FaultCause::Emulated { gpa: POOL, len: 8 };
        for cause in [FaultCause::Broken(POOL + 8), lost] {
            for cpl in [0, 3] {
                let exception = bench.exception(cause, cpl, USER + 8);
                assert_eq!(exception, Some(Exception::GeneralProtection));
            }
        }
        assert!(bench.seen.lock().unwrap().is_empty());
    }

    #[test]
    fn a_read_that_kvm_emulated_of_broken_memory_is_not_used() {
        let bench = Bench::new(STORE, &[]);
        for gpa in [POOL + 8, VAULT] {
            for cpl in [0, 3] {
                let exception = bench.exception(FaultCause::EmulatedRead(gpa), cpl, USER);
                assert_eq!(exception, Some(Exception::GeneralProtection));
            }
        }
        assert!(bench.seen.lock().unwrap().is_empty(), "no write");
    }

    /// A sink that says the same of every broken frame.
    struct Broken(Retry);

    impl ViolationSink for Broken {
        fn violation(&self, violation: &Violation) {
            panic!("{violation:?}");
        }

        fn broken(&self, _: u32) -> Retry {
            self.0
        }
    }

    #[test]
    fn a_process_waits_for_the_driver_to_remove_a_lost_page_and_then_fails_alone() {
        let bench = |retry| {
            let mut bench = Bench::new(STORE, &[]);
            bench.guard.sink = Arc::new(Broken(retry));
            bench
        };
        let failed = Some(Exception::GeneralProtection);
        let later = bench(Retry::Later);
        assert_eq!(later.exception(FaultCause::Broken(VAULT), 0, USER), failed);
        for _ in 0..MAX_RETRIES {
            assert_eq!(later.exception(FaultCause::Broken(VAULT), 3, USER), None);
        }
        assert_eq!(later.exception(FaultCause::Broken(VAULT), 3, USER), failed);
        let now = bench(Retry::Now);
        assert_eq!(now.exception(FaultCause::Broken(VAULT), 0, USER), None);
        let read = FaultCause::EmulatedRead(VAULT);
        assert_eq!(now.exception(read, 0, USER), failed);
    }

    #[test]
    fn a_vcpu_without_progress_is_given_up_with_a_report() {
        let bench = Bench::new(STORE, &[]);
        for _ in 0..MAX_RETRIES {
            assert_eq!(bench.exception(FaultCause::Unknown, 3, USER), None);
        }
        let (verdict, _) = bench.fault(FaultCause::Unknown, 3, USER);
        let Verdict::Dead(report) = verdict else {
            panic!("{verdict:?}");
        };
        assert_eq!((report.rip, report.vcpu), (CODE, Some(1)));
        assert_eq!(&report.code[..3], STORE);
    }

    #[test]
    fn progress_between_faults_restarts_the_count() {
        let bench = Bench::new(STORE, &[]);
        for round in 0..2 * u64::from(MAX_RETRIES) {
            let rdi = USER + round % 2 * 8;
            assert_eq!(bench.exception(FaultCause::Unknown, 3, rdi), None);
        }
    }

    #[test]
    fn an_address_outside_of_the_regions_ends_the_guest() {
        let bench = Bench::new(STORE, &[0]);
        let (verdict, _) = bench.fault(FaultCause::Address(0x1000), 0, USER);
        assert!(matches!(verdict, Verdict::Dead(report) if report.gpa == Some(0x1000)));
    }
}
