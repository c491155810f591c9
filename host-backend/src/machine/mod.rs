//! The parts of a VM that outlive its guest's kernel, and the VM of each boot that is made of them.
//!
//! The window with its protection, the recovery engine, the devices with their tap interface, the
//! console and what is booted stay. RAM, vCPUs and the whole of KVM's VM are new for each
//! boot, so that nothing of one kernel is left to the next.

mod initramfs;
mod operator;
mod pack;
mod restart;

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use crate::devices::VirtioDevice;
use crate::devices::mmio::MmioTransport;
use crate::devices::net::{self, Net, NetCounters};
use crate::devices::recovery::{RecoveryDevice, RecoveryDeviceError, ScrubRate};
use crate::engine::EngineConfig;
use crate::engine_handle::EngineHandle;
use crate::size::Size;
use crate::tally::Tally;
use crate::vmm::fault::WindowGuard;
use crate::vmm::irq::Interrupt;
use crate::vmm::memory::{Layout, MemoryError, for_devices};
use crate::vmm::{CrashReport, ExitReason, StopHandle, Vm, VmConfig, VmError};
use crate::window::{Window, WindowError};

pub use initramfs::{InitramfsError, load as load_initramfs};
pub(crate) use operator::RunningVm;
pub use pack::PackError;
pub(crate) use restart::{OnReboot, PERIOD as RESTART_PERIOD, RestartBudget};

/// Why a machine could not be made or started.
#[derive(Debug, Error)]
pub enum MachineError {
    /// KVM, the guest's memory or its kernel.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The window.
    #[error(transparent)]
    Window(#[from] WindowError),
    /// The recovery device.
    #[error(transparent)]
    Recovery(#[from] RecoveryDeviceError),
    /// The host has no descriptor left for a device's queues.
    #[error(transparent)]
    Host(#[from] io::Error),
}

impl From<MemoryError> for MachineError {
    fn from(error: MemoryError) -> Self {
        Self::Vm(error.into())
    }
}

/// The lasting parts of a VM.
pub(crate) struct Machine {
    config: VmConfig,
    stop: StopHandle,
    window: Arc<Window>,
    recovery: EngineHandle,
    network: Option<Arc<NetCounters>>,
    devices: Vec<Device>,
}

/// The window to be made.
pub(crate) struct WindowPlan {
    pub(crate) size: Size,
    /// The engine's limits, for that size.
    pub(crate) engine: EngineConfig,
    /// Rate of the check of sealed pages.
    pub(crate) scrub: ScrubRate,
}

/// A device with its registers.
struct Device {
    name: &'static str,
    transport: Arc<Mutex<MmioTransport>>,
}

impl Device {
    fn new(name: &'static str, device: Box<dyn VirtioDevice>) -> Result<Self, MachineError> {
        let transport = MmioTransport::new(name, device)?;
        Ok(Self {
            name,
            transport: Arc::new(Mutex::new(transport)),
        })
    }

    fn transport(&self) -> MutexGuard<'_, MmioTransport> {
        // A device that panicked in a vCPU's thread is reset at the end of the boot.
        self.transport
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A device's interrupt line, and the way in which the device ends a guest whose RAM is broken.
struct DeviceLine {
    interrupt: Arc<dyn Interrupt>,
    stop: StopHandle,
}

impl Interrupt for DeviceLine {
    fn trigger(&self) -> io::Result<()> {
        self.interrupt.trigger()
    }

    fn machine_check(&self) {
        self.stop.stop(ExitReason::Crash(Box::new(CrashReport {
            what: "a device accessed guest memory that the hardware reports as broken".into(),
            ..CrashReport::default()
        })));
    }
}

impl Machine {
    /// Makes the lasting parts: the window as planned, the recovery device, and a network card on `tap` (the
    /// interface's name, and the interface). `stop` ends every boot.
    pub(crate) fn new(
        config: VmConfig,
        plan: WindowPlan,
        tap: Option<(&str, File)>,
        stop: StopHandle,
    ) -> Result<Self, MachineError> {
        let start = Layout::new(config.memory_bytes)?.window_start();
        let (window, protection) = Window::new(plan.size.0)?;
        let recovery =
            RecoveryDevice::new(plan.engine, window.clone(), protection, start, plan.scrub)?;
        let handle = recovery.handle();
        let mut devices = vec![Device::new("vmsrs", Box::new(recovery))?];
        let mut network = None;
        if let Some((name, tap)) = tap {
            let net = Net::new(tap, net::mac_for(name));
            network = Some(net.counters());
            devices.push(Device::new("net", Box::new(net))?);
        }
        Ok(Self {
            config,
            stop,
            window,
            recovery: handle,
            network,
            devices,
        })
    }

    /// The recovery engine.
    pub(crate) fn recovery(&self) -> EngineHandle {
        self.recovery.clone()
    }

    /// The network card's counters, if there is one.
    pub(crate) fn network(&self) -> Option<Arc<NetCounters>> {
        self.network.clone()
    }

    /// Register errors of the driver, for each device.
    pub(crate) fn tallies(&self) -> Vec<Arc<Tally>> {
        self.devices
            .iter()
            .map(|device| device.transport().tally())
            .collect()
    }

    /// Makes the VM of the next boot.
    pub(crate) fn power_on(&self) -> Result<Vm, MachineError> {
        let mut vm = Vm::new(&self.config, self.stop.clone())?;
        let (start, size) = (vm.layout().window_start(), self.window.size());
        let mapping = self.window.guest_mapping();
        // SAFETY: the mapping is as long as the window and stays as long as the window lives, which
        // is the owner. Nothing in this process makes references to it.
        unsafe { vm.add_window(start, mapping, size, self.window.clone()) }?;
        vm.set_fault_handler(Arc::new(WindowGuard::new(
            vm.memory().clone(),
            start.0..start.0 + size,
            Arc::new(self.recovery.clone()),
            Arc::new(self.recovery.clone()),
        )));
        let ram = for_devices(vm.memory()).map_err(VmError::from)?;
        for device in &self.devices {
            let slot = vm.allocate_mmio_slot()?;
            let mut transport = device.transport();
            let line = DeviceLine {
                interrupt: slot.interrupt(),
                stop: self.stop.clone(),
            };
            transport.power_on(ram.clone(), line);
            for (queue, kick) in (0..).zip(transport.kicks()) {
                if let Err(error) = slot.register_queue_notify(queue, kick) {
                    // Notifications are then exits, which is only slower.
                    let name = device.name;
                    log::info!("{name}: queue {queue} is notified by exits: {error}");
                }
            }
            drop(transport);
            vm.add_mmio_device(&slot, device.transport.clone())?;
        }
        Ok(vm)
    }

    /// Detaches the devices from a VM that has ended for `reason`.
    pub(crate) fn power_off(&self, reason: &ExitReason) {
        for device in &self.devices {
            device.transport().power_off();
        }
        // A VM that is stopped on purpose loses what is in flight, which is not an incident.
        if reason.allows_restart() {
            self.recovery.guest_down(&reason.to_string());
        }
    }
}
