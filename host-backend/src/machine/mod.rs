//! The parts of a VM that outlive its guest's kernel, and the VM of each boot that is made of them.
//!
//! The vault, the recovery engine, the devices with their tap interface, the console and what is booted
//! stay. RAM, the pool's memory, vCPUs and the whole of KVM's VM are new for each boot, so that nothing
//! of one kernel is left to the next.

mod daemons;
mod initramfs;
mod notifier;
mod operator;
mod pack;
mod restart;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use crate::devices::VirtioDevice;
use crate::devices::mmio::MmioTransport;
use crate::devices::net::{self, Net, NetCounters, Tap};
use crate::devices::recovery::{RecoveryDevice, RecoveryDeviceError, RegionAddresses, ScrubRate};
use crate::devices::vhost_user::VhostUser;
use crate::engine::EngineConfig;
use crate::engine_handle::EngineHandle;
use crate::regions::{Regions, RegionsError};
use crate::tally::Tally;
use crate::vmm::fault::VaultGuard;
use crate::vmm::irq::Interrupt;
use crate::vmm::memory::{Layout, MemoryError, for_devices};
use crate::vmm::{CrashReport, ExitReason, PowerButton, StopHandle, Vm, VmConfig, VmError};

pub(crate) use daemons::Daemons;
pub use daemons::{DaemonError, DaemonOptionError, DiskOption, ShareOption, VhostUserOption};
pub use initramfs::{InitramfsError, load as load_initramfs};
pub(crate) use notifier::Notifier;
pub(crate) use operator::RunningVm;
pub use pack::PackError;
pub(crate) use restart::{OnReboot, PERIOD as RESTART_PERIOD, RestartBudget};

/// Why a machine could not be made or started.
#[derive(Debug, Error)]
pub enum MachineError {
    /// KVM, the guest's memory or its kernel.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// Pool and vault.
    #[error(transparent)]
    Regions(#[from] RegionsError),
    /// The pool cannot get new memory for the next boot.
    #[error("no memory for the pool of the next boot")]
    Pool(#[source] io::Error),
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
    power_button: PowerButton,
    regions: Regions,
    addresses: RegionAddresses,
    recovery: EngineHandle,
    network: Option<Arc<NetCounters>>,
    devices: Vec<Device>,
    /// What drivers did wrong with queues that a daemon serves.
    queue_tallies: Vec<Arc<Tally>>,
}

/// The regions to be made, and what uses them.
pub(crate) struct RegionsPlan {
    /// Sizes of pool and vault, and the engine's other limits.
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
    /// Makes the lasting parts: the regions as planned, of the same pages as RAM, the recovery device,
    /// a network card on `tap`, and what daemons serve. `stop` ends every boot.
    pub(crate) fn new(
        config: VmConfig,
        plan: RegionsPlan,
        tap: Option<Tap>,
        served: Vec<VhostUser>,
        stop: StopHandle,
    ) -> Result<Self, MachineError> {
        let layout = Layout::new(config.memory_bytes)?;
        let engine = plan.engine;
        let regions = Regions::new(engine.pool_frames, engine.vault_frames, config.pages)?;
        let [pool, vault] = layout.place([regions.pool.size(), regions.vault.size()]);
        let addresses = RegionAddresses { pool, vault };
        let recovery = RecoveryDevice::new(engine, regions.clone(), addresses, plan.scrub)?;
        let handle = recovery.handle();
        let mut devices = vec![Device::new("vmsrs", Box::new(recovery))?];
        let mut network = None;
        if let Some(tap) = tap {
            let mac = net::mac_for(tap.name());
            let net = Net::new(tap, mac);
            network = Some(net.counters());
            devices.push(Device::new("net", Box::new(net))?);
        }
        let queue_tallies = served.iter().map(VhostUser::tally).collect();
        for device in served {
            devices.push(Device::new(device.name(), Box::new(device))?);
        }
        Ok(Self {
            config,
            stop,
            power_button: PowerButton::default(),
            regions,
            addresses,
            recovery: handle,
            network,
            devices,
            queue_tallies,
        })
    }

    /// The recovery engine.
    pub(crate) fn recovery(&self) -> EngineHandle {
        self.recovery.clone()
    }

    /// The power button.
    pub(crate) fn power_button(&self) -> PowerButton {
        self.power_button.clone()
    }

    /// The network card's counters, if there is one.
    pub(crate) fn network(&self) -> Option<Arc<NetCounters>> {
        self.network.clone()
    }

    /// Errors of the driver with registers of each device, and with queues that a daemon serves.
    pub(crate) fn tallies(&self) -> Vec<Arc<Tally>> {
        let registers = self.devices.iter().map(|device| device.transport().tally());
        registers
            .chain(self.queue_tallies.iter().cloned())
            .collect()
    }

    /// Makes the VM of the next boot. The VM of the last boot has ended.
    pub(crate) fn power_on(&self) -> Result<Vm, MachineError> {
        let mut vm = Vm::new(&self.config, self.stop.clone())?;
        vm.connect_power_button(&self.power_button)?;
        let Regions { pool, vault, .. } = &self.regions;
        // No vCPU runs, so nobody reads or writes the pool; after the reset of the device the engine names
        // none of its frames.
        pool.renew().map_err(MachineError::Pool)?;
        let RegionAddresses {
            pool: pool_start,
            vault: vault_start,
        } = self.addresses;
        // SAFETY: each mapping is as long as its region and stays as long as the region lives, which is the
        // owner. Nothing in this process makes references to it.
        unsafe {
            vm.add_region(pool_start, pool.guest_mapping(), pool.size(), pool.clone())?;
            vm.add_region(
                vault_start,
                vault.guest_mapping(),
                vault.size(),
                vault.clone(),
            )?;
        }
        vm.set_fault_handler(Arc::new(VaultGuard::new(
            vm.memory().clone(),
            vault_start.0..vault_start.0 + vault.size(),
            pool_start.0..pool_start.0 + pool.size(),
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
