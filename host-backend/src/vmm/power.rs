//! How the guest turns itself off or restarts: the ACPI sleep and reset registers and the reset
//! line of the keyboard controller; and the button that asks it to.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::bus::BusDevice;
use super::exit::{ExitReason, StopHandle};
use super::irq::Interrupt;

/// First port of the ACPI registers.
pub const ACPI_PORT: u16 = 0x600;
/// Number of ports of the ACPI registers.
pub const ACPI_LEN: u64 = 4;
/// Sleep control register (ACPI 6.5, section 4.8.3.7).
pub const SLEEP_CONTROL_PORT: u16 = ACPI_PORT;
/// Sleep status register (the same section); it reads as 0, since the machine never sleeps.
pub const SLEEP_STATUS_PORT: u16 = ACPI_PORT + 1;
/// Reset register (ACPI 6.5, section 4.8.3.6).
pub const RESET_PORT: u16 = ACPI_PORT + 2;
/// The value that resets.
pub const RESET_VALUE: u8 = 1;
/// The sleep type that turns the machine off, as `_S5_` tells the kernel.
pub const SLEEP_TYPE_OFF: u8 = 5;

/// Global system interrupt of the power button: a pin of the I/O APIC that no other device has.
pub const BUTTON_GSI: u32 = 9;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;

/// Command port of the keyboard controller.
pub const I8042_COMMAND_PORT: u16 = 0x64;
/// The command that pulses the CPU's reset line.
const I8042_RESET_CPU: u8 = 0xfe;

/// The ACPI sleep control, sleep status and reset registers.
pub(crate) struct AcpiRegisters {
    stop: StopHandle,
}

impl AcpiRegisters {
    pub(crate) fn new(stop: StopHandle) -> Self {
        Self { stop }
    }
}

impl BusDevice for AcpiRegisters {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        const CONTROL: u64 = (SLEEP_CONTROL_PORT - ACPI_PORT) as u64;
        const RESET: u64 = (RESET_PORT - ACPI_PORT) as u64;
        let &[value] = data else { return };
        let sleep_type = (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK;
        match offset {
            CONTROL if value & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_OFF => {
                self.stop.stop(ExitReason::PowerOff);
            }
            RESET if value == RESET_VALUE => self.stop.stop(ExitReason::Reset),
            _ => log::debug!("ignored: the guest wrote {value:#x} to ACPI register {offset}"),
        }
    }
}

/// The power button of a VM, which asks the guest to turn itself off. Clones are the same button; it stays the same
/// over all boots of the guest.
#[derive(Clone, Default)]
pub struct PowerButton {
    /// The interrupt line of the current boot.
    line: Arc<Mutex<Option<Arc<dyn Interrupt>>>>,
}

impl PowerButton {
    /// Connects it to the interrupt line of the next boot.
    pub(crate) fn connect(&self, line: Arc<dyn Interrupt>) {
        *self.line() = Some(line);
    }

    /// Presses it once. A guest that has not loaded its driver yet does not notice.
    ///
    /// # Errors
    ///
    /// Fails when the interrupt line cannot be raised.
    pub fn press(&self) -> io::Result<()> {
        match &*self.line() {
            Some(line) => line.trigger(),
            None => Ok(()),
        }
    }

    fn line(&self) -> std::sync::MutexGuard<'_, Option<Arc<dyn Interrupt>>> {
        // One value, whole after every statement.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is left of the keyboard controller: its reset line, which Linux pulls for `reboot=k`.
pub(crate) struct ResetLine {
    stop: StopHandle,
}

impl ResetLine {
    pub(crate) fn new(stop: StopHandle) -> Self {
        Self { stop }
    }
}

impl BusDevice for ResetLine {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // Input buffer empty: the controller takes the next command at once.
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data == [I8042_RESET_CPU] {
            self.stop.stop(ExitReason::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn soft_off_in_the_sleep_control_register_powers_off() {
        let stop = StopHandle::default();
        let mut registers = AcpiRegisters::new(stop.clone());
        registers.write(1, &[0x80]);
        registers.write(0, &[5 << 2]);
        registers.write(0, &[SLEEP_ENABLE | (3 << 2)]);
        assert!(!stop.is_stopping());
        registers.write(0, &[SLEEP_ENABLE | (5 << 2)]);
        assert!(matches!(stop.wait(), ExitReason::PowerOff));
    }

    #[test]
    fn the_reset_register_resets() {
        let stop = StopHandle::default();
        let mut registers = AcpiRegisters::new(stop.clone());
        registers.write(2, &[0]);
        registers.write(2, &[1, 1]);
        assert!(!stop.is_stopping());
        registers.write(2, &[RESET_VALUE]);
        assert!(matches!(stop.wait(), ExitReason::Reset));
    }

    #[test]
    fn a_button_presses_the_line_of_the_current_boot() {
        #[derive(Default)]
        struct Line(AtomicU32);
        impl Interrupt for Line {
            fn trigger(&self) -> io::Result<()> {
                self.0.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        }
        let button = PowerButton::default();
        button.press().unwrap();
        let lines = [(); 2].map(|()| Arc::new(Line::default()));
        for line in &lines {
            button.connect(line.clone());
            button.clone().press().unwrap();
        }
        let pressed = lines.map(|line| line.0.load(Ordering::Relaxed));
        assert_eq!(pressed, [1, 1]);
    }

    #[test]
    fn the_keyboard_controller_resets_on_its_command_alone() {
        let stop = StopHandle::default();
        let mut line = ResetLine::new(stop.clone());
        line.write(0, &[0xd1]);
        assert!(!stop.is_stopping());
        line.write(0, &[0xfe]);
        assert!(matches!(stop.wait(), ExitReason::Reset));
    }
}
