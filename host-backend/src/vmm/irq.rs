//! Interrupts: how a device raises one, and how the event descriptors reach KVM.

use std::io;
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// An interrupt line as a device sees it.
///
/// The lines of this VM are edge-triggered: a trigger is one edge, and there is no line to lower.
pub trait Interrupt: Send + Sync {
    /// Raises the interrupt once.
    ///
    /// # Errors
    ///
    /// Fails when the line's event descriptor cannot be written.
    fn trigger(&self) -> io::Result<()>;

    /// Says that the device has met memory that the hardware reports as broken, in the RAM that its
    /// driver gave it. On a real machine that would be a machine check; here it is the end of the
    /// guest, whose next boot gets new RAM. A line without a machine does nothing.
    fn machine_check(&self) {}
}

impl<I: Interrupt + ?Sized> Interrupt for Arc<I> {
    fn trigger(&self) -> io::Result<()> {
        (**self).trigger()
    }

    fn machine_check(&self) {
        (**self).machine_check();
    }
}

/// An interrupt line backed by an irqfd: triggering it needs no exit and no lock.
#[derive(Debug)]
pub struct IrqFd {
    event: EventFd,
    gsi: u32,
}

impl IrqFd {
    /// Connects a new event descriptor to the global system interrupt `gsi` of the in-kernel
    /// interrupt controller.
    ///
    /// # Errors
    ///
    /// Fails when the descriptor cannot be created or KVM refuses it (no interrupt controller
    /// yet, or no such line).
    pub fn new(vm: &VmFd, gsi: u32) -> io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK)?;
        vm.register_irqfd(&event, gsi)?;
        Ok(Self { event, gsi })
    }

    /// The global system interrupt this line is connected to.
    pub fn gsi(&self) -> u32 {
        self.gsi
    }
}

impl Interrupt for IrqFd {
    fn trigger(&self) -> io::Result<()> {
        self.event.write(1)
    }
}

// vm-superio's serial port takes its interrupt line in this form.
impl vm_superio::Trigger for IrqFd {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        Interrupt::trigger(self)
    }
}

/// Makes KVM signal `event`, without an exit to us, when the guest writes the 32-bit value
/// `value` to the guest physical address `address`: the QueueNotify register of virtio-mmio
/// (virtio 1.2, section 4.2.2) with a queue's number.
///
/// # Errors
///
/// Fails when KVM refuses the registration, for example because the pair is registered already.
pub fn register_notify(vm: &VmFd, event: &EventFd, address: u64, value: u32) -> io::Result<()> {
    vm.register_ioevent(event, &IoEventAddress::Mmio(address), value)?;
    Ok(())
}
