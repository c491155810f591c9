//! The serial console: a 16550 at COM1, its output and its input.

use std::io::{self, Write};
use std::sync::Arc;

use vm_superio::Serial;
use vm_superio::serial::SerialEvents;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::bus::BusDevice;
use super::console::Console;
use super::irq::IrqFd;

/// First port of COM1.
pub const COM1_PORT: u16 = 0x3f8;
/// Number of its ports.
pub const COM1_LEN: u64 = 8;
/// Its interrupt.
pub const COM1_IRQ: u32 = 4;

/// Tells the input thread that the guest has emptied the receive buffer.
struct InputEvents {
    emptied: Arc<EventFd>,
}

impl SerialEvents for InputEvents {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        // The counter of an event cannot overflow by ones in any machine's life.
        let _ = self.emptied.write(1);
    }
}

/// Output of the console: it never fails and never waits, since a console that has gone away must not be
/// the guest's trouble.
struct Output(Console);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The serial port as a device of the port bus.
pub(crate) struct SerialPort {
    uart: Serial<IrqFd, InputEvents, Output>,
    emptied: Arc<EventFd>,
}

impl SerialPort {
    /// A port that writes to `console` and interrupts by `irq`.
    pub(crate) fn new(irq: IrqFd, console: Console) -> io::Result<Self> {
        let emptied = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let events = InputEvents {
            emptied: emptied.clone(),
        };
        Ok(Self {
            uart: Serial::with_events(irq, events, Output(console)),
            emptied,
        })
    }

    /// Signalled when the receive buffer has room again.
    pub(crate) fn emptied(&self) -> Arc<EventFd> {
        self.emptied.clone()
    }

    /// Gives the guest as much of `input` as its receive buffer takes, and returns how much that
    /// was.
    pub(crate) fn receive(&mut self, input: &[u8]) -> usize {
        let room = self.uart.fifo_capacity().min(input.len());
        if room == 0 {
            return 0;
        }
        self.uart
            .enqueue_raw_bytes(&input[..room])
            .unwrap_or_else(|error| {
                log::debug!("console input is lost: {error}");
                room
            })
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // Registers are one byte wide; a wider read gets all ones beyond the first.
        if let [first, ..] = data {
            *first = self.uart.read(offset as u8);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        if let Err(error) = self.uart.write(offset as u8, value) {
            log::debug!("serial port: {error}");
        }
    }
}
