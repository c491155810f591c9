//! The virtio-mmio transport, version 2 (Virtio 1.2, 4.2), with the shared memory registers.
//!
//! The guest may write anything to registers. An access of a wrong width, to a wrong register or in
//! a wrong state is ignored and counted; a queue is accepted only after all of it has been checked.
//! A driver can stop its own device and nothing else.

mod queue;
mod status;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use self::queue::QueueRegisters;
use self::status::Step;
use super::{ActivateError, Activation, ActiveQueue, DeviceInterrupt, VirtioDevice};
use crate::tally::Tally;
use crate::vmm::bus::BusDevice;
use crate::vmm::irq::Interrupt;

/// Length in bytes of a device's registers and configuration space: one page.
pub const MMIO_LENGTH: u64 = 0x1000;

/// Offset of the QueueNotify register in bytes, for the ioeventfds of the queues.
pub const NOTIFY_OFFSET: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// "virt" (Virtio 1.2, 4.2.2).
const MAGIC: u32 = 0x7472_6976;
/// The version of this layout; 1 is the legacy one.
const VERSION: u32 = 2;
/// What SHMLen and SHMBase read as for a region that does not exist.
const NO_REGION: u64 = u64::MAX;

/// The interrupt of a device without power.
struct Unconnected;

impl Interrupt for Unconnected {
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A virtio device with its registers, as it sits on the MMIO bus.
pub struct MmioTransport {
    /// Names the device in the log.
    name: &'static str,
    device: Box<dyn VirtioDevice>,
    memory: GuestMemoryMmap,
    interrupt: DeviceInterrupt,
    tally: Arc<Tally>,
    queues: Vec<QueueRegisters>,
    /// Without NEEDS_RESET, which `interrupt` keeps.
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    shm_select: u32,
}

impl MmioTransport {
    /// Gives `device` its registers, without power: it needs [`Self::power_on`]. `name` names it
    /// in the log.
    ///
    /// # Errors
    ///
    /// Fails when the host has no descriptors left for the queues' events.
    pub fn new(name: &'static str, device: Box<dyn VirtioDevice>) -> io::Result<Self> {
        let queues = device
            .queue_max_sizes()
            .iter()
            .map(|&size| QueueRegisters::new(size))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            name,
            device,
            memory: GuestMemoryMmap::default(),
            interrupt: DeviceInterrupt::new(Unconnected),
            tally: Arc::default(),
            queues,
            status: status::RESET,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            shm_select: 0,
        })
    }

    /// Gives the device to a VM: `memory` is the RAM that its driver may put queues and buffers
    /// in, `line` its interrupt.
    pub fn power_on(&mut self, memory: GuestMemoryMmap, line: impl Interrupt + 'static) {
        self.memory = memory;
        self.interrupt = DeviceInterrupt::new(line);
    }

    /// Takes the device from a VM that has ended: resets it, and releases memory and interrupt.
    /// The device itself stays, for the next VM.
    pub fn power_off(&mut self) {
        self.reset();
        self.memory = GuestMemoryMmap::default();
        self.interrupt = DeviceInterrupt::new(Unconnected);
    }

    /// Errors of the driver so far, by kind.
    pub fn tally(&self) -> Arc<Tally> {
        self.tally.clone()
    }

    /// The event of each queue, in order of the queues' numbers: to be signalled when the driver
    /// writes the queue's number to QueueNotify ([`NOTIFY_OFFSET`]). Where KVM does so by itself
    /// the access never reaches the transport; it would do the same.
    pub fn kicks(&self) -> impl Iterator<Item = &EventFd> {
        self.queues.iter().map(|queue| &queue.kick)
    }

    fn refuse(&self, what: &'static str) {
        let _ = self.tally.add(self.name, what);
    }

    fn read_register(&self, register: u32) -> u32 {
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.device_id(),
            VIRTIO_MMIO_VENDOR_ID => self.device.vendor_id(),
            VIRTIO_MMIO_DEVICE_FEATURES => {
                half(self.device.features(), self.device_features_select)
            }
            VIRTIO_MMIO_QUEUE_NUM_MAX => self
                .selected_queue()
                .map_or(0, |queue| u32::from(queue.max_size())),
            VIRTIO_MMIO_QUEUE_READY => self
                .selected_queue()
                .map_or(0, |queue| u32::from(queue.is_ready())),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            VIRTIO_MMIO_STATUS => self.read_status(),
            VIRTIO_MMIO_SHM_LEN_LOW => low(self.selected_region().1),
            VIRTIO_MMIO_SHM_LEN_HIGH => high(self.selected_region().1),
            VIRTIO_MMIO_SHM_BASE_LOW => low(self.selected_region().0),
            VIRTIO_MMIO_SHM_BASE_HIGH => high(self.selected_region().0),
            VIRTIO_MMIO_CONFIG_GENERATION => self.device.config_generation(),
            _ => {
                self.refuse("the driver read a register that does not exist or is write-only");
                0
            }
        }
    }

    fn write_register(&mut self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.write_driver_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            VIRTIO_MMIO_QUEUE_NUM => self.set_up_queue(|queue| queue.size = value),
            VIRTIO_MMIO_QUEUE_READY => self.write_queue_ready(value),
            VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(value),
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.write_status(value),
            VIRTIO_MMIO_QUEUE_DESC_LOW => {
                self.set_up_queue(|queue| set_low(&mut queue.descriptors, value));
            }
            VIRTIO_MMIO_QUEUE_DESC_HIGH => {
                self.set_up_queue(|queue| set_high(&mut queue.descriptors, value));
            }
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => {
                self.set_up_queue(|queue| set_low(&mut queue.avail, value));
            }
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => {
                self.set_up_queue(|queue| set_high(&mut queue.avail, value));
            }
            VIRTIO_MMIO_QUEUE_USED_LOW => {
                self.set_up_queue(|queue| set_low(&mut queue.used, value));
            }
            VIRTIO_MMIO_QUEUE_USED_HIGH => {
                self.set_up_queue(|queue| set_high(&mut queue.used, value));
            }
            VIRTIO_MMIO_SHM_SEL => self.shm_select = value,
            _ => self.refuse("the driver wrote to a register that does not exist or is read-only"),
        }
    }

    fn selected_queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    /// Guest physical address and length of the selected region.
    fn selected_region(&self) -> (u64, u64) {
        self.device
            .shm_regions()
            .iter()
            .find(|region| region.id == self.shm_select)
            .map_or((NO_REGION, NO_REGION), |region| {
                (region.address.0, region.length)
            })
    }

    fn write_driver_features(&mut self, value: u32) {
        if self.status != status::DRIVER {
            return self.refuse("the driver chose features when it was not their time");
        }
        match self.driver_features_select {
            0 => set_low(&mut self.driver_features, value),
            1 => set_high(&mut self.driver_features, value),
            // There are no features beyond bit 63; Linux writes none either.
            _ if value == 0 => {}
            _ => self.refuse("the driver accepted features that were not offered"),
        }
    }

    /// Changes a register of the selected queue, which the driver may do between the choice of
    /// features and the start of the device, while the queue is not ready.
    fn set_up_queue(&mut self, change: impl FnOnce(&mut QueueRegisters)) {
        let in_time = self.status == status::FEATURES_OK;
        let selected = usize::try_from(self.queue_select)
            .ok()
            .and_then(|index| self.queues.get_mut(index));
        match selected {
            None => self.refuse("the driver selected a queue that does not exist"),
            Some(queue) if in_time && !queue.is_ready() => change(queue),
            Some(_) => self.refuse("the driver changed a queue when it was not the time for it"),
        }
    }

    fn write_queue_ready(&mut self, value: u32) {
        if value == 1 {
            let memory = self.memory.clone();
            let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
            let mut result = Ok(());
            self.set_up_queue(|queue| result = queue.enable(&memory, event_idx));
            if let Err(what) = result {
                self.refuse(what);
            }
            return;
        }
        // A queue of a running device belongs to the device: it can be stopped with all others,
        // by a reset, since VIRTIO_F_RING_RESET is not offered.
        let in_time = self.status != status::RUNNING;
        let selected = usize::try_from(self.queue_select)
            .ok()
            .and_then(|index| self.queues.get_mut(index));
        match selected {
            Some(queue) if in_time && value == 0 => queue.disable(),
            _ => self.refuse("the driver changed a queue when it was not the time for it"),
        }
    }

    fn notify(&self, value: u32) {
        let queue = usize::try_from(value)
            .ok()
            .and_then(|index| self.queues.get(index));
        match queue {
            // A full counter means that a kick is pending anyway.
            Some(queue) if self.status == status::RUNNING => drop(queue.kick.write(1)),
            Some(_) => self.refuse("the driver notified a queue of a device that is not running"),
            None => self.refuse("the driver notified a queue that does not exist"),
        }
    }

    fn read_status(&self) -> u32 {
        if self.interrupt.is_reset_needed() {
            self.status | status::NEEDS_RESET
        } else {
            self.status
        }
    }

    fn write_status(&mut self, value: u32) {
        // Drivers write back what they read with one bit more.
        let value = value & !status::NEEDS_RESET;
        if value == status::RESET {
            return self.reset();
        }
        if value & status::FAILED != 0 {
            self.status |= status::FAILED;
            return;
        }
        match status::step(self.status, value) {
            Some(Step::Note) => self.status = value,
            Some(Step::CheckFeatures) => {
                let known = self.driver_features & !self.device.features() == 0;
                let modern = self.driver_features & 1 << VIRTIO_F_VERSION_1 != 0;
                if known && modern {
                    self.status = value;
                } else {
                    // The driver reads the status back and finds FEATURES_OK missing
                    // (Virtio 1.2, 3.1.1, step 6).
                    self.refuse("the driver accepted features that were not offered");
                }
            }
            Some(Step::Activate) => {
                self.status = value;
                if let Err(error) = self.activate() {
                    if self.tally.add(self.name, "the device could not be started") {
                        log::warn!("{}: {}", self.name, error_chain(&error));
                    }
                    self.interrupt.needs_reset();
                }
            }
            None if value == self.status => {}
            None => self.refuse("the driver wrote a device status that may not follow"),
        }
    }

    fn activate(&mut self) -> Result<(), ActivateError> {
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, registers) in (0u16..).zip(&mut self.queues) {
            let kick = registers.kick.try_clone()?;
            if let Some(queue) = registers.take() {
                queues.push(ActiveQueue { index, queue, kick });
            }
        }
        self.device.activate(Activation {
            memory: self.memory.clone(),
            queues,
            interrupt: self.interrupt.clone(),
            features: self.driver_features,
        })
    }

    fn reset(&mut self) {
        self.device.reset();
        for queue in &mut self.queues {
            queue.reset();
        }
        self.interrupt.clear();
        self.status = status::RESET;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.shm_select = 0;
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            data.fill(0);
            self.device.read_config(offset, data);
            return;
        }
        match (u32::try_from(offset), <&mut [u8; 4]>::try_from(data)) {
            (Ok(register), Ok(data)) => *data = self.read_register(register).to_le_bytes(),
            _ => self.refuse("the driver accessed a register with a width other than 32 bits"),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            self.device.write_config(offset, data);
            return;
        }
        match (u32::try_from(offset), <[u8; 4]>::try_from(data)) {
            (Ok(register), Ok(data)) => self.write_register(register, u32::from_le_bytes(data)),
            _ => self.refuse("the driver accessed a register with a width other than 32 bits"),
        }
    }
}

impl Drop for MmioTransport {
    fn drop(&mut self) {
        self.device.reset();
    }
}

/// An error with its causes, in one line.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn low(value: u64) -> u32 {
    value as u32
}

fn high(value: u64) -> u32 {
    (value >> 32) as u32
}

/// The half of `value` that a select register with value `select` names.
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => low(value),
        1 => high(value),
        _ => 0,
    }
}

fn set_low(target: &mut u64, value: u32) {
    *target = *target & !u64::from(u32::MAX) | u64::from(value);
}

fn set_high(target: &mut u64, value: u32) {
    *target = *target & u64::from(u32::MAX) | u64::from(value) << 32;
}
