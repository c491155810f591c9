//! The thread of a vCPU: enters the guest, serves its exits, and reports its death.

use std::cell::Cell;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use kvm_bindings::{
    KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use super::bus::Bus;
use super::exit::{CrashReport, ExitReason, StopHandle};
use super::fault::{Exception, FaultCause, FaultHandler, VcpuContext, Verdict};
use super::kick::{self, Kicker};
use super::memory::GuestRam;
use super::poison;
use super::walk::Paging;
use crate::sandbox::{self, Role};

/// Why a guest dies whose own RAM is broken.
const BROKEN_MEMORY: &str = "it touched memory that the hardware reports as broken";

const VECTOR_GENERAL_PROTECTION: u8 = 13;
const VECTOR_PAGE_FAULT: u8 = 14;

/// How many bytes at the instruction pointer a crash report holds.
const REPORTED_CODE_LEN: usize = 15;

/// Where a shared memory region lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RegionPlace {
    /// First guest physical address.
    pub(crate) start: u64,
    /// Length in bytes.
    pub(crate) len: u64,
    /// Address in this process.
    pub(crate) host: u64,
}

impl RegionPlace {
    /// First guest physical address after it.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.len
    }

    fn contains(&self, gpa: u64) -> bool {
        (self.start..self.end()).contains(&gpa)
    }

    /// The guest physical address of an address of this process, if it lies in the region.
    fn guest_address(&self, address: usize) -> Option<u64> {
        let offset = (address as u64).checked_sub(self.host)?;
        (offset < self.len).then(|| self.start + offset)
    }
}

/// What all vCPUs of a VM share.
pub(crate) struct Shared {
    pub(crate) pio: Bus,
    pub(crate) mmio: Bus,
    pub(crate) ram: GuestRam,
    /// The shared memory regions.
    pub(crate) regions: Vec<RegionPlace>,
    pub(crate) faults: Option<Arc<dyn FaultHandler>>,
    pub(crate) stop: StopHandle,
}

impl Shared {
    /// What lies at an address of this process.
    fn broken_memory(&self, address: usize) -> BrokenMemory {
        broken_memory(&self.regions, &self.ram, address)
    }
}

/// One virtual CPU.
pub(crate) struct Vcpu {
    fd: VcpuFd,
    index: u32,
    shared: Arc<Shared>,
    /// Its last access to broken memory named an address that KVM does not use, and is being made again.
    again: Cell<bool>,
}

/// What broken memory a vCPU has met, by the address that the system has named.
#[derive(Debug, PartialEq, Eq)]
enum BrokenMemory {
    /// Of a region, at this guest physical address.
    Region(u64),
    /// Of the guest's RAM.
    Ram,
    /// The address is that of another mapping of the same memory: the system names one of all that show a page
    /// when it breaks. It has taken the page out of them by then, so the access, made again, names KVM's.
    Elsewhere,
}

/// What is left to do after an exit has been looked at.
enum Next {
    Enter,
    Fault(FaultCause),
    Stop(ExitReason),
    Crash(String, Option<u64>),
    /// KVM gave up.
    InternalError(String),
}

impl Vcpu {
    pub(crate) fn new(fd: VcpuFd, index: u32, shared: Arc<Shared>) -> Self {
        Self {
            fd,
            index,
            shared,
            again: Cell::new(false),
        }
    }

    /// Runs the guest until it ends or is stopped. Every way out of here stops the VM.
    pub(crate) fn run(mut self) {
        sandbox::confine(Role::Vcpu);
        let stop = self.shared.stop.clone();
        // A defect of a device must not leave the VM waiting for this vCPU.
        let end = panic::catch_unwind(AssertUnwindSafe(|| self.run_until_end()));
        stop.stop(end.unwrap_or(ExitReason::Stopped("a defect of the VMM (see above)")));
    }

    fn run_until_end(&mut self) -> ExitReason {
        if let Err(error) = poison::install() {
            return self.crash(format!("SIGBUS cannot be handled: {error}"), None);
        }
        match Kicker::for_this_thread(&self.fd) {
            Ok(kicker) => self.shared.stop.attach(kicker),
            Err(error) => {
                return self.crash(format!("its control page cannot be mapped: {error}"), None);
            }
        }
        let pulse = kick::pulse(self.index);
        loop {
            pulse.beat();
            match self.enter() {
                Next::Enter => {}
                Next::Stop(reason) => return reason,
                Next::Crash(what, gpa) => return self.crash(what, gpa),
                Next::InternalError(what) => {
                    return ExitReason::Crash(Box::new(CrashReport {
                        internal_error: true,
                        ..self.crash_report(what, None)
                    }));
                }
                Next::Fault(cause) => {
                    if let Err(reason) = self.handle_fault(cause) {
                        return reason;
                    }
                }
            }
            // A stop sets `immediate_exit`, so the next entry fails with EINTR and ends the loop.
        }
    }

    fn enter(&mut self) -> Next {
        // A stale reason would be taken for the one of a failed entry.
        self.fd.get_kvm_run().exit_reason = 0;
        let shared = &self.shared;
        let exit = poison::watched(|| self.fd.run());
        if exit.is_ok() {
            self.again.set(false);
        }
        match exit {
            Ok(VcpuExit::IoIn(port, data)) => shared.pio.read(port.into(), data),
            Ok(VcpuExit::IoOut(port, data)) => shared.pio.write(port.into(), data),
            Ok(VcpuExit::MmioRead(gpa, data))
                if shared.regions.iter().any(|region| region.contains(gpa)) =>
            {
                data.fill(0xff);
                return Next::Fault(FaultCause::EmulatedRead(gpa));
            }
            Ok(VcpuExit::MmioRead(address, data)) => shared.mmio.read(address, data),
            Ok(VcpuExit::MmioWrite(gpa, data))
                if shared.regions.iter().any(|region| region.contains(gpa)) =>
            {
                let len = data.len();
                return Next::Fault(FaultCause::Emulated { gpa, len });
            }
            Ok(VcpuExit::MmioWrite(address, data)) => shared.mmio.write(address, data),
            Ok(VcpuExit::MemoryFault { gpa, .. }) => {
                return Next::Fault(FaultCause::Address(gpa));
            }
            Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => {}
            Ok(VcpuExit::Shutdown) => return crash("it shut down by a triple fault"),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
                return Next::Stop(ExitReason::PowerOff);
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => {
                return Next::Stop(ExitReason::Reset);
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => {
                return crash("it told KVM that it crashed");
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                return crash(format!(
                    "the hardware refused to enter it (reason {reason:#x}, host CPU {cpu})"
                ));
            }
            Ok(VcpuExit::InternalError) => {
                return Next::InternalError(internal_error(self.fd.get_kvm_run()));
            }
            Ok(other) => return crash(format!("unexpected exit from KVM: {other:?}")),
            Err(error) => return self.entry_failed(io::Error::from(error)),
        }
        Next::Enter
    }

    fn entry_failed(&self, error: io::Error) -> Next {
        match error.raw_os_error() {
            Some(libc::EINTR) if self.shared.stop.is_stopping() => {
                // There is a reason already, so this does not wait; it is kept.
                Next::Stop(self.shared.stop.wait())
            }
            Some(libc::EINTR) => match poison::take() {
                Some(address) => self.broken(address),
                None => Next::Enter,
            },
            Some(libc::EAGAIN) => Next::Enter,
            Some(libc::EFAULT) => Next::Fault(FaultCause::Unknown),
            Some(libc::EHWPOISON) => crash(BROKEN_MEMORY),
            _ => crash(format!("KVM cannot run it: {error}")),
        }
    }

    /// The guest touched broken memory at an address of this process.
    fn broken(&self, address: usize) -> Next {
        let broken = self.shared.broken_memory(address);
        // Nothing explains another address a second time.
        let again = broken == BrokenMemory::Elsewhere && !self.again.get();
        self.again.set(again);
        match broken {
            BrokenMemory::Region(gpa) => Next::Fault(FaultCause::Broken(gpa)),
            BrokenMemory::Elsewhere if again => Next::Enter,
            // The next boot gets new RAM.
            BrokenMemory::Elsewhere | BrokenMemory::Ram => crash(BROKEN_MEMORY),
        }
    }

    /// Asks the handler about a refused access and carries out what it says.
    fn handle_fault(&mut self, cause: FaultCause) -> Result<(), ExitReason> {
        let gpa = match cause {
            FaultCause::Address(gpa)
            | FaultCause::Broken(gpa)
            | FaultCause::EmulatedRead(gpa)
            | FaultCause::Emulated { gpa, .. } => Some(gpa),
            FaultCause::Unknown => None,
        };
        let Some(handler) = self.shared.faults.clone() else {
            let what = "it touched forbidden memory, and no handler took the fault";
            return Err(self.crash(what.into(), gpa));
        };
        let is_over = matches!(
            cause,
            FaultCause::Emulated { .. } | FaultCause::EmulatedRead(_)
        );
        if is_over && !self.complete_instruction() {
            return Err(self.crash(BROKEN_MEMORY.into(), gpa));
        }
        let failed = |error: kvm_ioctls::Error| format!("KVM does not give its registers: {error}");
        let (regs, sregs) = match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(regs), Ok(sregs)) => (regs, sregs),
            (Err(error), _) | (_, Err(error)) => return Err(self.crash(failed(error), gpa)),
        };
        let mut context = VcpuContext {
            index: self.index,
            cause,
            regs,
            sregs,
            exception: None,
        };
        match handler.on_memory_fault(&mut context) {
            Verdict::Dead(report) => Err(ExitReason::Crash(report)),
            Verdict::Resume => match context.exception {
                None => Ok(()),
                Some(exception) => self
                    .deliver(exception, context)
                    .map_err(|what| self.crash(what, gpa)),
            },
        }
    }

    /// Lets KVM finish an instruction whose store it handed to us, without running the next. False
    /// when it met broken RAM there. (Broken memory of a region shows at the next access, as does one that another
    /// mapping was named for.)
    fn complete_instruction(&mut self) -> bool {
        self.fd.set_kvm_immediate_exit(1);
        // EINTR is what is asked for; anything else shows at the next entry again.
        let _ = poison::watched(|| self.fd.run().map(drop));
        self.fd.set_kvm_immediate_exit(0);
        // A stop may have set the flag that was just cleared.
        if self.shared.stop.is_stopping() {
            self.fd.set_kvm_immediate_exit(1);
        }
        let met = poison::take().map(|address| self.shared.broken_memory(address));
        met != Some(BrokenMemory::Ram)
    }

    /// Makes the next entry deliver `exception`.
    fn deliver(&self, exception: Exception, mut context: VcpuContext) -> Result<(), String> {
        let failed = |error: kvm_ioctls::Error| format!("KVM does not deliver a fault: {error}");
        let mut events = self.fd.get_vcpu_events().map_err(failed)?;
        if events.exception.injected != 0 {
            // Its own delivery of an exception was refused: a second one would be a double fault
            // whose handler meets the same stack.
            return Err("its stack for exceptions lies in protected memory".into());
        }
        let (vector, error_code) = match exception {
            Exception::PageFault {
                address,
                error_code,
            } => {
                context.sregs.cr2 = address;
                self.fd.set_sregs(&context.sregs).map_err(failed)?;
                (VECTOR_PAGE_FAULT, error_code)
            }
            Exception::GeneralProtection => (VECTOR_GENERAL_PROTECTION, 0),
        };
        events.exception.injected = 1;
        events.exception.pending = 0;
        events.exception.nr = vector;
        events.exception.has_error_code = 1;
        events.exception.error_code = error_code;
        self.fd.set_vcpu_events(&events).map_err(failed)
    }

    fn crash(&self, what: String, gpa: Option<u64>) -> ExitReason {
        ExitReason::Crash(Box::new(self.crash_report(what, gpa)))
    }

    /// Collects what is known about the vCPU's end.
    fn crash_report(&self, what: String, gpa: Option<u64>) -> CrashReport {
        let regs = self.fd.get_regs().unwrap_or_default();
        let sregs = self.fd.get_sregs().unwrap_or_default();
        let paging = Paging::from(&sregs);
        let rip = sregs.cs.base.wrapping_add(regs.rip);
        CrashReport {
            what,
            internal_error: false,
            vcpu: Some(self.index),
            rip: regs.rip,
            cr3: sregs.cr3,
            cr2: sregs.cr2,
            cpl: sregs.ss.dpl,
            gpa,
            code: paging.read_virtual(&self.shared.ram, rip, REPORTED_CODE_LEN),
        }
    }
}

fn broken_memory(regions: &[RegionPlace], ram: &GuestRam, address: usize) -> BrokenMemory {
    let is_in = |region: &GuestRegionMmap| {
        let start = region.as_ptr() as usize;
        address
            .checked_sub(start)
            .is_some_and(|offset| (offset as u64) < region.len())
    };
    let region = regions
        .iter()
        .find_map(|region| region.guest_address(address));
    match region {
        Some(gpa) => BrokenMemory::Region(gpa),
        None if ram.iter().any(is_in) => BrokenMemory::Ram,
        None => BrokenMemory::Elsewhere,
    }
}

fn crash(what: impl Into<String>) -> Next {
    Next::Crash(what.into(), None)
}

fn internal_error(run: &kvm_run) -> String {
    // SAFETY: KVM fills this member of the union for KVM_EXIT_INTERNAL_ERROR, and every bit
    // pattern is a valid value of it.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let data = &internal.data[..internal.data.len().min(internal.ndata as usize)];
    format!(
        "KVM met an internal error (suberror {}, data {data:x?})",
        internal.suberror
    )
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryBackend};

    use super::*;
    use crate::host_memory::HostPages;
    use crate::vmm::memory::{Layout, MIN_RAM, for_devices};

    #[test]
    fn broken_memory_is_known_by_the_mapping_that_kvm_uses() {
        let layout = Layout::new(MIN_RAM).unwrap();
        let ram = layout.allocate(HostPages::Standard).unwrap();
        let devices = for_devices(&ram).unwrap();
        let address = |ram: &GuestRam| ram.get_host_address(GuestAddress(4096)).unwrap() as usize;
        let region = RegionPlace {
            start: 1 << 40,
            len: 8192,
            host: 0x1000_0000,
        };
        let broken = |address| broken_memory(&[region], &ram, address);
        assert_eq!(
            broken(0x1000_1fff),
            BrokenMemory::Region((1 << 40) + 0x1fff)
        );
        assert_eq!(broken(0x1000_2000), BrokenMemory::Elsewhere);
        assert_eq!(broken(address(&ram)), BrokenMemory::Ram);
        // The same page by another mapping: the access is made once more.
        assert_eq!(broken(address(&devices)), BrokenMemory::Elsewhere);
    }
}
