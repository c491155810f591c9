//! The device as a driver sees it, without any of a driver's checks.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use bytemuck::cast_slice;
use vmsrs_protocol::control::{ReplyHeader, STATUS_MALFORMED, STATUS_OK};

use super::chain::{Descriptor, WRITE, linked};
use super::message::open_app;
use super::registers::{register, status};
use crate::limits::EVENT_LIMIT;
use crate::mapping;

/// The test module's files.
const DEBUGFS: &str = "/sys/kernel/debug/vmsrs_hostile";
/// Length of the memory that the module provides, in bytes.
const MEMORY_LENGTH: usize = 1 << 20;

/// Index of the control queue.
pub const CONTROL: u32 = 0;
/// Index of the event queue.
pub const EVENT: u32 = 1;
/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 64;

/// Offset into the memory of an indirect table; the queues lie below [`MESSAGE`].
pub const TABLE: u64 = 0x8_0000;
/// Offset of the message to send.
pub const MESSAGE: u64 = 0x2_0000;
/// Offset of its reply.
pub const REPLY: u64 = 0x4_0000;
/// Size of the reply buffer in bytes.
const REPLY_LENGTH: u32 = 0x2000;
/// Distance between the queues.
const QUEUE_STRIDE: u64 = 0x4000;
/// Offset of the available ring within a queue.
const AVAIL: u64 = 0x1000;
/// Offset of the used ring within a queue.
const USED: u64 = 0x2000;

/// How the device answered a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It used the chain and claims to have written this many bytes.
    Used(u32),
    /// It stopped and asks for a reset.
    NeedsReset,
}

/// The device, driven by this process.
pub struct Device {
    registers: File,
    memory: NonNull<u8>,
    address: u64,
    /// Available index of each queue.
    available: [u16; 2],
}

impl Device {
    /// Opens the module's files; the memory stays mapped until the process ends.
    ///
    /// # Errors
    ///
    /// Fails when the module is not loaded.
    pub fn open() -> Result<Self> {
        let open = |name: &str| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(format!("{DEBUGFS}/{name}"))
                .with_context(|| format!("open the module's file {name}"))
        };
        let file = open("memory")?;
        let memory = mapping::file(&file, MEMORY_LENGTH).context("map the module's memory")?;
        let address = fs::read_to_string(format!("{DEBUGFS}/address"))?;
        let address = u64::from_str_radix(address.trim().trim_start_matches("0x"), 16)?;
        Ok(Self {
            registers: open("registers")?,
            memory,
            address,
            available: [0; 2],
        })
    }

    /// Reads a register with a 32-bit access.
    ///
    /// # Errors
    ///
    /// Fails beyond the page of the registers.
    pub fn read(&self, offset: u64) -> Result<u32> {
        let mut bytes = [0; 4];
        self.registers.read_exact_at(&mut bytes, offset)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Reads a pair of registers, low half first.
    ///
    /// # Errors
    ///
    /// As [`Device::read`].
    pub fn read_pair(&self, offset: u64) -> Result<u64> {
        Ok(u64::from(self.read(offset)?) | u64::from(self.read(offset + 4)?) << 32)
    }

    /// Writes a register with a 32-bit access.
    ///
    /// # Errors
    ///
    /// As [`Device::read`].
    pub fn write(&self, offset: u64, value: u32) -> Result<()> {
        self.access(offset, &value.to_le_bytes())
    }

    /// Writes 1, 2, 4 or 8 bytes at any offset into the registers.
    ///
    /// # Errors
    ///
    /// As [`Device::read`].
    pub fn access(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.registers.write_all_at(bytes, offset)?)
    }

    /// Reads 1, 2, 4 or 8 bytes at any offset into the registers.
    ///
    /// # Errors
    ///
    /// As [`Device::read`].
    pub fn peek(&self, offset: u64, width: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; width];
        self.registers.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Guest physical address and length of a shared memory region; all bits are set if there is none.
    ///
    /// # Errors
    ///
    /// As [`Device::read`].
    pub fn region(&self, number: u32) -> Result<(u64, u64)> {
        self.write(register::SHM_SEL, number)?;
        Ok((
            self.read_pair(register::SHM_BASE)?,
            self.read_pair(register::SHM_LEN)?,
        ))
    }

    /// Guest physical address of an offset into the memory.
    pub fn address(&self, offset: u64) -> u64 {
        self.address + offset
    }

    /// Writes bytes to the memory.
    pub fn put(&self, offset: u64, bytes: &[u8]) {
        let start = offset as usize;
        assert!(start + bytes.len() <= MEMORY_LENGTH);
        for (index, &byte) in bytes.iter().enumerate() {
            // SAFETY: within the mapping, as asserted above; the device may read concurrently.
            unsafe { self.memory.add(start + index).write_volatile(byte) };
        }
    }

    /// Reads bytes from the memory.
    pub fn get(&self, offset: u64, length: usize) -> Vec<u8> {
        let start = offset as usize;
        assert!(start + length <= MEMORY_LENGTH);
        (start..start + length)
            // SAFETY: within the mapping, as asserted above; the device may write concurrently.
            .map(|index| unsafe { self.memory.add(index).read_volatile() })
            .collect()
    }

    /// An aligned 16-bit word, which is loaded and stored in one access.
    fn word(&self, offset: u64) -> NonNull<u16> {
        assert!(offset.is_multiple_of(2) && offset < MEMORY_LENGTH as u64);
        // SAFETY: within the mapping, as asserted above.
        unsafe { self.memory.add(offset as usize) }.cast()
    }

    /// Resets the device and negotiates the features; queues are not set up yet.
    ///
    /// # Errors
    ///
    /// Fails when the device does not follow the specification.
    pub fn negotiate(&mut self) -> Result<()> {
        self.write(register::STATUS, 0)?;
        ensure!(
            self.read(register::STATUS)? == 0,
            "the status is not 0 after a reset"
        );
        self.put(0, &[0; 2 * QUEUE_STRIDE as usize]);
        self.available = [0; 2];
        for status in [1, status::DRIVER] {
            self.write(register::STATUS, status)?;
        }
        // The device's event feature, and VIRTIO_F_VERSION_1.
        for half in [0, 1] {
            self.write(register::DRIVER_FEATURES_SEL, half)?;
            self.write(register::DRIVER_FEATURES, 1)?;
        }
        self.write(register::STATUS, status::FEATURES_OK)?;
        let status = self.read(register::STATUS)?;
        ensure!(status == status::FEATURES_OK, "features: {status:#x}");
        Ok(())
    }

    /// Sets a queue up at these addresses; returns whether the device accepts it.
    ///
    /// # Errors
    ///
    /// As [`Device::read`].
    pub fn set_up_queue(&self, queue: u32, size: u32, addresses: [u64; 3]) -> Result<bool> {
        self.write(register::QUEUE_SEL, queue)?;
        self.write(register::QUEUE_NUM, size)?;
        let registers = [
            register::QUEUE_DESC,
            register::QUEUE_AVAIL,
            register::QUEUE_USED,
        ];
        for (register, address) in registers.into_iter().zip(addresses) {
            self.write(register, address as u32)?;
            self.write(register + 4, (address >> 32) as u32)?;
        }
        self.write(register::QUEUE_READY, 1)?;
        Ok(self.read(register::QUEUE_READY)? == 1)
    }

    /// The regular addresses of a queue: descriptor table, available ring, used ring.
    pub fn queue_addresses(&self, queue: u32) -> [u64; 3] {
        [0, AVAIL, USED].map(|part| self.address(u64::from(queue) * QUEUE_STRIDE + part))
    }

    /// Starts the device as the specification says.
    ///
    /// # Errors
    ///
    /// Fails when it does not start.
    pub fn start(&mut self) -> Result<()> {
        self.negotiate()?;
        for queue in [CONTROL, EVENT] {
            let ready = self.set_up_queue(queue, QUEUE_SIZE.into(), self.queue_addresses(queue))?;
            ensure!(ready, "queue {queue} is not ready");
        }
        self.write(register::STATUS, status::RUNNING)?;
        let status = self.read(register::STATUS)?;
        ensure!(
            status == status::RUNNING,
            "the device does not run: {status:#x}"
        );
        Ok(())
    }

    /// Writes descriptors to a queue's table unchanged, from the first entry on.
    pub fn put_table(&self, queue: u32, table: &[Descriptor]) {
        self.put(u64::from(queue) * QUEUE_STRIDE, cast_slice(table));
    }

    /// Makes `count` chains available, all starting at the descriptor `head`, and notifies the device.
    ///
    /// # Errors
    ///
    /// As [`Device::read`].
    pub fn offer(&mut self, queue: u32, head: u16, count: u16) -> Result<()> {
        let start = u64::from(queue) * QUEUE_STRIDE + AVAIL;
        let mut index = self.available[queue as usize];
        for _ in 0..count.min(QUEUE_SIZE) {
            let slot = u64::from(index % QUEUE_SIZE);
            self.put(start + 4 + slot * 2, &head.to_le_bytes());
            index = index.wrapping_add(1);
        }
        let index = self.available[queue as usize].wrapping_add(count);
        self.available[queue as usize] = index;
        fence(Ordering::SeqCst);
        // No interrupts. The index is stored in one access, since the device may read it at any time.
        self.put(start, &1u16.to_le_bytes());
        let index_word = self.word(start + 2);
        // SAFETY: an aligned word of the mapping; the device may read concurrently.
        unsafe { index_word.write_volatile(index) };
        fence(Ordering::SeqCst);
        self.write(register::QUEUE_NOTIFY, queue)
    }

    /// Waits until the device has used every available chain, or has stopped. Polls, since this driver has no
    /// interrupt.
    ///
    /// # Errors
    ///
    /// Fails when the device does neither within [`EVENT_LIMIT`].
    pub fn wait(&self, queue: u32) -> Result<Answer> {
        let start = u64::from(queue) * QUEUE_STRIDE + USED;
        let available = self.available[queue as usize];
        let waiting_since = Instant::now();
        while waiting_since.elapsed() < EVENT_LIMIT {
            let index_word = self.word(start + 2);
            // SAFETY: an aligned word of the mapping; the device may write concurrently.
            let used = unsafe { index_word.read_volatile() };
            if used == available {
                fence(Ordering::SeqCst);
                let slot = u64::from(used.wrapping_sub(1) % QUEUE_SIZE);
                let length = self.get(start + 4 + slot * 8 + 4, 4);
                return Ok(Answer::Used(bytemuck::pod_read_unaligned(&length)));
            }
            if self.read(register::STATUS)? & status::NEEDS_RESET != 0 {
                return Ok(Answer::NeedsReset);
            }
            thread::yield_now();
        }
        bail!("the device neither used the chains nor stopped")
    }

    /// Sends a descriptor table whose first entry is the head of a chain.
    ///
    /// # Errors
    ///
    /// As [`Device::wait`].
    pub fn send(&mut self, table: &[Descriptor]) -> Result<Answer> {
        self.put(REPLY, &[0xee; size_of::<ReplyHeader>()]);
        self.put_table(CONTROL, table);
        self.offer(CONTROL, 0, 1)?;
        self.wait(CONTROL)
    }

    /// A descriptor of a device-readable part of the memory.
    pub fn readable(&self, offset: u64, length: u32) -> Descriptor {
        Descriptor {
            address: self.address(offset),
            length,
            ..Descriptor::default()
        }
    }

    /// A descriptor of a device-writable part of the memory.
    pub fn writable(&self, offset: u64, length: u32) -> Descriptor {
        Descriptor {
            flags: WRITE,
            ..self.readable(offset, length)
        }
    }

    /// Sends bytes as a message and returns the status and payload of the reply.
    ///
    /// # Errors
    ///
    /// Fails when there is no reply.
    pub fn call(&mut self, message: &[u8]) -> Result<(u32, Vec<u8>)> {
        self.put(MESSAGE, message);
        let chain = linked(&[
            self.readable(MESSAGE, message.len() as u32),
            self.writable(REPLY, REPLY_LENGTH),
        ]);
        match self.send(&chain)? {
            Answer::Used(length) if length as usize >= size_of::<ReplyHeader>() => Ok(self.reply()),
            answer => bail!("no reply: {answer:?}"),
        }
    }

    /// Status and payload in the reply buffer.
    pub fn reply(&self) -> (u32, Vec<u8>) {
        let header = self.get(REPLY, size_of::<ReplyHeader>());
        let header: ReplyHeader = bytemuck::pod_read_unaligned(&header);
        let length = header.length.min(REPLY_LENGTH - 8) as usize;
        (header.status, self.get(REPLY + 8, length))
    }

    /// Sends bytes that must be refused with the status `expected`.
    ///
    /// # Errors
    ///
    /// Fails when they are not.
    pub fn expect_refused(&mut self, what: &str, message: &[u8], expected: u32) -> Result<()> {
        let (status, payload) = self.call(message)?;
        ensure!(
            status == expected && payload.is_empty(),
            "{what}: status {status} with {} bytes, expected {expected}",
            payload.len()
        );
        Ok(())
    }

    /// Sends a table as [`Device::send`] does; the reply must say that the message is malformed.
    ///
    /// # Errors
    ///
    /// Fails when it does not.
    pub fn expect_malformed(&mut self, what: &str, table: &[Descriptor]) -> Result<()> {
        let answer = self.send(table)?;
        let (status, _) = self.reply();
        ensure!(
            answer == Answer::Used(8) && status == STATUS_MALFORMED,
            "{what}: {answer:?}, status {status}"
        );
        Ok(())
    }

    /// Sends a table as [`Device::send`] does; it must be used without a reply.
    ///
    /// # Errors
    ///
    /// Fails when it is not.
    pub fn expect_no_reply(&mut self, what: &str, table: &[Descriptor]) -> Result<()> {
        let answer = self.send(table)?;
        ensure!(answer == Answer::Used(0), "{what}: {answer:?}");
        Ok(())
    }

    /// Checks that the device carries out a well-formed message.
    ///
    /// # Errors
    ///
    /// Fails when it does not.
    pub fn expect_working(&mut self) -> Result<()> {
        let (status, _) = self.call(&open_app())?;
        ensure!(
            status == STATUS_OK,
            "a well-formed message: status {status}"
        );
        Ok(())
    }
}
