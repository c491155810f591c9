//! The VM as a whole: configuration, assembly and life.

use std::any::Any;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread;

use kvm_bindings::{
    KVM_API_VERSION, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VmFd};
use thiserror::Error;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion,
};
use vmm_sys_util::eventfd::EventFd;

use super::acpi::{self, AcpiError};
use super::bus::{Bus, BusError, SharedDevice};
use super::console::Console;
use super::console_input::InputThread;
use super::cpu::{self, CpuError, CpuTemplate};
use super::exit::{ExitReason, StopHandle};
use super::fault::FaultHandler;
use super::irq::{Interrupt, IrqFd, register_notify};
use super::loader::{self, BootSource, Kernel, LoaderError};
use super::memory::{
    FIRMWARE_START, GuestRam, KVM_IDENTITY_MAP_ADDRESS, KVM_TSS_ADDRESS, Layout, MMIO_START,
    MemoryError, PAGE_SIZE,
};
use super::power::{self, AcpiRegisters, PowerButton, ResetLine};
use super::serial::{self, SerialPort};
use super::vcpu::{RegionPlace, Shared, Vcpu};
use crate::host_memory::HostPages;

/// Default kernel parameters; the user's come after them and take precedence.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 reboot=k panic=-1";

/// Maximum number of vCPUs a VM can have.
pub const MAX_VCPUS: u32 = 64;

/// First global system interrupt for virtio-mmio devices: those below belong to the legacy
/// devices.
const FIRST_DEVICE_GSI: u32 = 16;
/// Number of inputs of the I/O APIC from there on, and so of virtio-mmio devices.
pub const MAX_DEVICES: u32 = 8;

/// Why a VM could not be made or run.
#[derive(Debug, Error)]
pub enum VmError {
    /// The KVM device cannot be opened.
    #[error(
        "cannot open /dev/kvm: load the module kvm_intel or kvm_amd, and join the group that owns \
         the device (usually `kvm`)"
    )]
    OpenKvm(#[source] kvm_ioctls::Error),
    /// KVM's API version is not supported.
    #[error("/dev/kvm has API version {0}, not 12: use a current Linux kernel")]
    KvmVersion(i32),
    /// The number of vCPUs is invalid.
    #[error("{0} vCPUs are not possible: give 1 to {MAX_VCPUS}")]
    Vcpus(u32),
    /// A request to KVM failed.
    #[error("KVM refused to {what}")]
    Kvm {
        /// What was requested.
        what: &'static str,
        /// The system's error.
        source: kvm_ioctls::Error,
    },
    /// An interrupt line or event could not be set up.
    #[error("cannot set up {what}")]
    Event {
        /// What was to be set up.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// No virtio-mmio slot is left.
    #[error("the VM has no slot for more than {MAX_DEVICES} virtio-mmio devices")]
    TooManyDevices,
    /// A shared memory region overlaps something or is misaligned.
    #[error("a memory region at {0:#x} overlaps RAM or another, or is not aligned to pages")]
    Region(u64),
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel, initramfs or command line.
    #[error(transparent)]
    Loader(#[from] LoaderError),
    /// A device's address range.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The firmware tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// The state of a vCPU.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// Copying the firmware tables failed.
    #[error("cannot write the firmware tables to guest memory")]
    Firmware(#[from] GuestMemoryError),
    /// A thread could not be started.
    #[error("cannot start a thread for {what}")]
    Thread {
        /// What the thread is for.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmError {
    move |source| VmError::Kvm { what, source }
}

fn event(what: &'static str) -> impl FnOnce(io::Error) -> VmError {
    move |source| VmError::Event { what, source }
}

/// What a VM is made of.
#[derive(Debug)]
pub struct VmConfig {
    /// RAM in bytes; see [`Layout::new`] for the limits.
    pub memory_bytes: u64,
    /// What RAM is made of.
    pub pages: HostPages,
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// The kernel: a bzImage or a vmlinux with a PVH note.
    pub kernel: Kernel,
    /// The initramfs, if there is one.
    pub initramfs: Option<Vec<u8>>,
    /// Kernel parameters after [`DEFAULT_CMDLINE`].
    pub cmdline: String,
    /// Where the serial console goes.
    pub console: Console,
}

/// A slot for a virtio-mmio device: registers, an interrupt, and the notification of its queues.
pub struct MmioSlot {
    info: acpi::MmioDevice,
    interrupt: Arc<IrqFd>,
    vm: Arc<VmFd>,
}

impl MmioSlot {
    /// Guest physical address of the first register.
    pub fn base(&self) -> GuestAddress {
        GuestAddress(self.info.base.into())
    }

    /// The device's interrupt line.
    pub fn interrupt(&self) -> Arc<dyn Interrupt> {
        self.interrupt.clone()
    }

    /// Makes a write of `queue` to the device's QueueNotify register signal `event`, without an
    /// exit to the device.
    ///
    /// # Errors
    ///
    /// Fails when KVM refuses it, for example for the same queue twice.
    pub fn register_queue_notify(&self, queue: u32, event: &EventFd) -> io::Result<()> {
        let register = virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
        let address = self.base().unchecked_add(register.into());
        register_notify(&self.vm, event, address.0, queue)
    }
}

/// A region's memory slot and what keeps its host memory alive.
struct Region {
    place: RegionPlace,
    _owner: Arc<dyn Any + Send + Sync>,
}

/// A virtual machine, ready for devices and then to run.
pub struct Vm {
    vm: Arc<VmFd>,
    // Declared before RAM and the regions, so that they go first.
    vcpus: Vec<kvm_ioctls::VcpuFd>,
    layout: Layout,
    ram: GuestRam,
    regions: Vec<Region>,
    pio: Bus,
    mmio: Bus,
    devices: Vec<acpi::MmioDevice>,
    faults: Option<Arc<dyn FaultHandler>>,
    serial: Arc<Mutex<SerialPort>>,
    console_input: bool,
    stop: StopHandle,
}

impl Vm {
    /// Makes a VM for one boot of the guest: allocates RAM, loads the kernel, opens KVM, sets up
    /// the vCPUs and the legacy devices. `stop` ends it.
    ///
    /// # Errors
    ///
    /// Fails with a message that names the remedy; nothing is left behind.
    pub fn new(config: &VmConfig, stop: StopHandle) -> Result<Self, VmError> {
        if !(1..=MAX_VCPUS).contains(&config.vcpus) {
            return Err(VmError::Vcpus(config.vcpus));
        }
        let layout = Layout::new(config.memory_bytes)?;
        let ram = layout.allocate(config.pages)?;
        let cmdline = match config.cmdline.trim() {
            "" => DEFAULT_CMDLINE.to_owned(),
            more => format!("{DEFAULT_CMDLINE} {more}"),
        };
        let source = BootSource {
            kernel: &config.kernel,
            initramfs: config.initramfs.as_deref(),
            cmdline: &cmdline,
            rsdp: FIRMWARE_START,
        };
        let entry = loader::load(&ram, &layout, &source)?;

        let system = Kvm::new().map_err(VmError::OpenKvm)?;
        if system.get_api_version() != KVM_API_VERSION as i32 {
            return Err(VmError::KvmVersion(system.get_api_version()));
        }

        let vm = Arc::new(create_vm(&system)?);
        map_ram(&vm, &ram)?;
        let template = CpuTemplate::new(&system, config.vcpus)?;
        let vcpus = (0..config.vcpus)
            .map(|id| {
                let vcpu = vm.create_vcpu(id.into()).map_err(kvm("create a vCPU"))?;
                let entry = (id == 0).then_some(&entry);
                cpu::set_up(&vcpu, id, &template, entry)?;
                Ok(vcpu)
            })
            .collect::<Result<_, VmError>>()?;

        let serial_irq = IrqFd::new(&vm, serial::COM1_IRQ).map_err(event("the console"))?;
        let port = SerialPort::new(serial_irq, config.console.clone());
        let serial = Arc::new(Mutex::new(port.map_err(event("the console"))?));
        Ok(Self {
            pio: legacy_devices(&serial, &stop)?,
            mmio: Bus::new(),
            vm,
            vcpus,
            layout,
            ram,
            regions: Vec::new(),
            devices: Vec::new(),
            faults: None,
            serial,
            console_input: config.console.input,
            stop,
        })
    }

    /// Guest RAM, for devices that read and write it. Shared memory regions are not part of it.
    pub fn memory(&self) -> &GuestRam {
        &self.ram
    }

    /// Where RAM lies, and shared memory regions can lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A handle to end the VM from any thread.
    pub fn stop_handle(&self) -> StopHandle {
        self.stop.clone()
    }

    /// Connects the power button. Without this nothing presses it.
    ///
    /// # Errors
    ///
    /// Fails when KVM refuses the interrupt.
    pub fn connect_power_button(&self, button: &PowerButton) -> Result<(), VmError> {
        let line = IrqFd::new(&self.vm, power::BUTTON_GSI).map_err(event("the power button"))?;
        button.connect(Arc::new(line));
        Ok(())
    }

    /// Allocates the next virtio-mmio slot.
    ///
    /// # Errors
    ///
    /// Fails when no slot is left or KVM refuses the interrupt.
    pub fn allocate_mmio_slot(&mut self) -> Result<MmioSlot, VmError> {
        let index = self.devices.len() as u32;
        if index >= MAX_DEVICES {
            return Err(VmError::TooManyDevices);
        }
        let info = acpi::MmioDevice {
            base: MMIO_START as u32 + index * PAGE_SIZE as u32,
            len: PAGE_SIZE as u32,
            gsi: FIRST_DEVICE_GSI + index,
        };
        let interrupt = IrqFd::new(&self.vm, info.gsi).map_err(event("a device's interrupt"))?;
        self.devices.push(info);
        Ok(MmioSlot {
            info,
            interrupt: Arc::new(interrupt),
            vm: self.vm.clone(),
        })
    }

    /// Puts `device` into an allocated slot. The kernel finds it by ACPI.
    ///
    /// # Errors
    ///
    /// Fails when the slot holds a device already.
    pub fn add_mmio_device(
        &mut self,
        slot: &MmioSlot,
        device: SharedDevice,
    ) -> Result<(), VmError> {
        let info = slot.info;
        self.mmio
            .insert(info.base.into(), info.len.into(), device)?;
        Ok(())
    }

    /// Shows `len` bytes of host memory at `host` to the guest at `start`, as a shared memory region.
    /// What the guest may do there is what the host mapping allows. Regions are added in the order of
    /// their addresses.
    ///
    /// `owner` is kept until no vCPU is left that could reach the memory.
    ///
    /// # Errors
    ///
    /// Fails when the region would overlap RAM or one that is there, or when addresses or length are
    /// not multiples of the page size.
    ///
    /// # Safety
    ///
    /// `host` must point to a mapping of at least `len` bytes that stays mapped as long as
    /// `owner` lives. The guest changes its bytes at any time, so no reference to them may exist.
    pub unsafe fn add_region(
        &mut self,
        start: GuestAddress,
        host: *mut u8,
        len: u64,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Result<(), VmError> {
        let host = host as u64;
        let aligned = [start.0, host, len]
            .iter()
            .all(|value| *value % PAGE_SIZE == 0);
        let fits = len != 0 && start.checked_add(len).is_some();
        let last = self.regions.last().map(|region| region.place.end());
        let free = start.0 >= last.unwrap_or(self.layout.regions_start().0);
        if !(aligned && fits && free) {
            return Err(VmError::Region(start.0));
        }
        let region = kvm_userspace_memory_region {
            slot: (self.ram.num_regions() + self.regions.len()) as u32,
            guest_phys_addr: start.0,
            memory_size: len,
            userspace_addr: host,
            flags: 0,
        };
        // SAFETY: the caller vouches for the host memory as long as `owner` lives, and `owner` is
        // stored below and dropped only after the last vCPU.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(kvm("map a region"))?;
        self.regions.push(Region {
            place: RegionPlace {
                start: start.0,
                len,
                host,
            },
            _owner: owner,
        });
        Ok(())
    }

    /// Sets the handler of accesses that the second-level page table refuses. Without one such an access
    /// ends the VM.
    pub fn set_fault_handler(&mut self, handler: Arc<dyn FaultHandler>) {
        self.faults = Some(handler);
    }

    /// Runs the guest until it ends, and returns why. All threads have ended by then, and the
    /// terminal is as it was before.
    ///
    /// # Errors
    ///
    /// Fails when the firmware tables do not fit or a thread cannot be started.
    pub fn run(self) -> Result<ExitReason, VmError> {
        let tables = acpi::build(self.vcpus.len() as u32, &self.devices)?;
        self.ram
            .write_slice(&tables.bytes, GuestAddress(tables.address))?;
        let regions = self.regions.iter().map(|region| region.place).collect();
        let shared = Arc::new(Shared {
            pio: self.pio,
            mmio: self.mmio,
            ram: self.ram.clone(),
            regions,
            faults: self.faults,
            stop: self.stop.clone(),
        });
        let input = if self.console_input {
            let thread = InputThread::spawn(self.serial.clone(), self.stop.clone());
            Some(thread.map_err(|source| VmError::Thread {
                what: "the console",
                source,
            })?)
        } else {
            None
        };
        let mut threads = Vec::new();
        let mut failure = None;
        for (index, fd) in (0u32..).zip(self.vcpus) {
            let vcpu = Vcpu::new(fd, index, shared.clone());
            let builder = thread::Builder::new().name(format!("vcpu{index}"));
            match builder.spawn(move || vcpu.run()) {
                Ok(thread) => threads.push(thread),
                Err(source) => {
                    self.stop.stop(ExitReason::Stopped("a failed start"));
                    failure = Some(VmError::Thread {
                        what: "a vCPU",
                        source,
                    });
                    break;
                }
            }
        }
        let reason = self.stop.wait();
        self.stop.detach_all();
        for thread in threads {
            // A vCPU thread that panicked has reported it on standard error; the others must still be
            // joined.
            let _ = thread.join();
        }
        drop(input);
        match failure {
            Some(failure) => Err(failure),
            None => Ok(reason),
        }
    }
}

fn create_vm(system: &Kvm) -> Result<VmFd, VmError> {
    let vm = system.create_vm().map_err(kvm("create a VM"))?;
    vm.set_identity_map_address(KVM_IDENTITY_MAP_ADDRESS)
        .map_err(kvm("place its identity map"))?;
    vm.set_tss_address(KVM_TSS_ADDRESS)
        .map_err(kvm("place its task segment"))?;
    vm.create_irq_chip()
        .map_err(kvm("create an interrupt controller"))?;
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(pit).map_err(kvm("create a timer"))?;
    Ok(vm)
}

fn map_ram(vm: &VmFd, ram: &GuestRam) -> Result<(), VmError> {
    for (slot, region) in (0u32..).zip(ram.iter()) {
        let host = ram.get_host_address(region.start_addr())?;
        let region = kvm_userspace_memory_region {
            slot,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: host as u64,
            flags: 0,
        };
        // SAFETY: the region is mapped as long as `ram` lives, and the VM keeps `ram` longer than
        // its vCPUs, through which alone KVM reaches it.
        unsafe { vm.set_user_memory_region(region) }.map_err(kvm("map the guest's RAM"))?;
    }
    Ok(())
}

fn legacy_devices(serial: &Arc<Mutex<SerialPort>>, stop: &StopHandle) -> Result<Bus, BusError> {
    let mut bus = Bus::new();
    bus.insert(serial::COM1_PORT.into(), serial::COM1_LEN, serial.clone())?;
    bus.insert(
        power::ACPI_PORT.into(),
        power::ACPI_LEN,
        Arc::new(Mutex::new(AcpiRegisters::new(stop.clone()))),
    )?;
    bus.insert(
        power::I8042_COMMAND_PORT.into(),
        1,
        Arc::new(Mutex::new(ResetLine::new(stop.clone()))),
    )?;
    Ok(bus)
}
