//! A hostile driver of the VMSRS device: registers and rings by hand, without any of the care that
//! Linux's virtio core takes.
//!
//! The test module in the guest takes the driver's place and gives this process the registers and
//! a piece of RAM; everything else is here.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytemuck::{NoUninit, Pod, Zeroable, bytes_of};
use vmsrs_protocol::NAME_MAX;
use vmsrs_protocol::control::{
    ControlHeader, MESSAGE_OPEN_APP, OpenApp, ReplyHeader, STATUS_MALFORMED, STATUS_OK,
};

/// The module's files.
const DEBUGFS: &str = "/sys/kernel/debug/vmsrs_hostile";
/// Bytes of memory that the module gives.
const MEMORY_LENGTH: usize = 1 << 20;

/// Registers of virtio-mmio (Virtio 1.2, 4.2.2).
pub mod register {
    /// The features that the driver accepts, the half that the selector names.
    pub const DRIVER_FEATURES: u64 = 0x020;
    /// Selects that half.
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    /// Selects a queue.
    pub const QUEUE_SEL: u64 = 0x030;
    /// The selected queue's size.
    pub const QUEUE_NUM: u64 = 0x038;
    /// Whether the selected queue is ready.
    pub const QUEUE_READY: u64 = 0x044;
    /// Notifies a queue.
    pub const QUEUE_NOTIFY: u64 = 0x050;
    /// The device's status.
    pub const STATUS: u64 = 0x070;
    /// The selected queue's descriptor table, low half; the high one follows.
    pub const QUEUE_DESC: u64 = 0x080;
    /// Its available ring.
    pub const QUEUE_AVAIL: u64 = 0x090;
    /// Its used ring.
    pub const QUEUE_USED: u64 = 0x0a0;
    /// Selects a shared memory region.
    pub const SHM_SEL: u64 = 0x0ac;
    /// Its length, low half; the high one follows.
    pub const SHM_LEN: u64 = 0x0b0;
    /// Its address.
    pub const SHM_BASE: u64 = 0x0b8;
    /// The configuration space.
    pub const CONFIG: u64 = 0x100;
}

/// Values of the status register (Virtio 1.2, 2.1), each with those before it.
pub mod status {
    /// The driver knows how to drive the device.
    pub const DRIVER: u32 = 3;
    /// The features are agreed on.
    pub const FEATURES_OK: u32 = 11;
    /// The device is at work.
    pub const RUNNING: u32 = 15;
    /// The bit by which the device asks for a reset.
    pub const NEEDS_RESET: u32 = 0x40;
}

/// Number of the control queue.
pub const CONTROL: u32 = 0;
/// Number of the event queue.
pub const EVENT: u32 = 1;
/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 64;
/// There is a descriptor behind this one.
pub const NEXT: u16 = 1;
/// The device writes.
pub const WRITE: u16 = 2;
/// The descriptor names a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Where in the memory things lie; the queues are below.
pub const TABLE: u64 = 0x8_0000;
/// The message that is sent.
pub const MESSAGE: u64 = 0x2_0000;
/// Its reply.
pub const REPLY: u64 = 0x4_0000;
/// Bytes that are offered for a reply.
const REPLY_ROOM: u32 = 0x2000;
const QUEUE_DISTANCE: u64 = 0x4000;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;

/// Longest wait for the device; nothing here takes it a second.
const PATIENCE: Duration = Duration::from_secs(30);

/// A descriptor of a split virtqueue (Virtio 1.2, 2.7.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
pub struct Descriptor {
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next one, with [`NEXT`].
    pub next: u16,
}

/// What the device made of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It used the chain and says it wrote so many bytes.
    Used(u32),
    /// It stopped.
    NeedsReset,
}

/// The device in the hands of a hostile driver.
pub struct Device {
    registers: File,
    memory: NonNull<u8>,
    address: u64,
    /// Chains made available, by queue.
    offered: [u16; 2],
}

impl Device {
    /// Opens the module's files; the memory stays mapped until the process ends.
    ///
    /// # Errors
    ///
    /// When the module is not loaded.
    pub fn open() -> Result<Self> {
        let open = |name: &str| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(format!("{DEBUGFS}/{name}"))
                .with_context(|| format!("open the module's {name}"))
        };
        let file = open("memory")?;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                MEMORY_LENGTH,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        ensure!(
            memory != libc::MAP_FAILED,
            "map the module's memory: {}",
            std::io::Error::last_os_error()
        );
        let address = fs::read_to_string(format!("{DEBUGFS}/address"))?;
        let address = u64::from_str_radix(address.trim().trim_start_matches("0x"), 16)?;
        Ok(Self {
            registers: open("registers")?,
            memory: NonNull::new(memory.cast()).context("an address that is not null")?,
            address,
            offered: [0; 2],
        })
    }

    /// Reads a register as drivers do.
    ///
    /// # Errors
    ///
    /// When the module refuses, which it does beyond the registers' page alone.
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

    /// Writes a register as drivers do.
    ///
    /// # Errors
    ///
    /// As [`Device::read`].
    pub fn write(&self, offset: u64, value: u32) -> Result<()> {
        self.access(offset, &value.to_le_bytes())
    }

    /// Writes 1, 2, 4 or 8 bytes anywhere in the registers.
    ///
    /// # Errors
    ///
    /// As [`Device::read`].
    pub fn access(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.registers.write_all_at(bytes, offset)?)
    }

    /// Reads 1, 2, 4 or 8 bytes anywhere in the registers.
    ///
    /// # Errors
    ///
    /// As [`Device::read`].
    pub fn peek(&self, offset: u64, width: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; width];
        self.registers.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Guest physical address of an offset into the memory.
    pub fn at(&self, offset: u64) -> u64 {
        self.address + offset
    }

    /// Puts bytes into the memory.
    pub fn put(&self, offset: u64, bytes: &[u8]) {
        let start = offset as usize;
        assert!(start + bytes.len() <= MEMORY_LENGTH);
        for (index, &byte) in bytes.iter().enumerate() {
            // SAFETY: in the mapping, as checked above; the device may be looking.
            unsafe { self.memory.add(start + index).write_volatile(byte) };
        }
    }

    /// Takes bytes out of the memory.
    pub fn get(&self, offset: u64, length: usize) -> Vec<u8> {
        let start = offset as usize;
        assert!(start + length <= MEMORY_LENGTH);
        (start..start + length)
            // SAFETY: in the mapping, as checked above; the device may be writing.
            .map(|index| unsafe { self.memory.add(index).read_volatile() })
            .collect()
    }

    /// The place of two bytes at an even offset, which are loaded and stored at once.
    fn half(&self, offset: u64) -> NonNull<u16> {
        assert!(offset.is_multiple_of(2) && offset < MEMORY_LENGTH as u64);
        // SAFETY: in the mapping, as checked above.
        unsafe { self.memory.add(offset as usize) }.cast()
    }

    /// Resets the device and negotiates up to the setting up of queues.
    ///
    /// # Errors
    ///
    /// When the device does not play by the rules.
    pub fn negotiate(&mut self) -> Result<()> {
        self.write(register::STATUS, 0)?;
        ensure!(self.read(register::STATUS)? == 0, "a reset resets");
        self.put(0, &[0; 2 * QUEUE_DISTANCE as usize]);
        self.offered = [0; 2];
        for status in [1, status::DRIVER] {
            self.write(register::STATUS, status)?;
        }
        // Events, and VIRTIO_F_VERSION_1.
        for half in [0, 1] {
            self.write(register::DRIVER_FEATURES_SEL, half)?;
            self.write(register::DRIVER_FEATURES, 1)?;
        }
        self.write(register::STATUS, status::FEATURES_OK)?;
        let status = self.read(register::STATUS)?;
        ensure!(status == status::FEATURES_OK, "features: {status:#x}");
        Ok(())
    }

    /// Makes a queue ready at these addresses; whether the device takes it is in the answer.
    ///
    /// # Errors
    ///
    /// As [`Device::read`].
    pub fn set_up(&self, queue: u32, size: u32, places: [u64; 3]) -> Result<bool> {
        self.write(register::QUEUE_SEL, queue)?;
        self.write(register::QUEUE_NUM, size)?;
        let registers = [
            register::QUEUE_DESC,
            register::QUEUE_AVAIL,
            register::QUEUE_USED,
        ];
        for (register, place) in registers.into_iter().zip(places) {
            self.write(register, place as u32)?;
            self.write(register + 4, (place >> 32) as u32)?;
        }
        self.write(register::QUEUE_READY, 1)?;
        Ok(self.read(register::QUEUE_READY)? == 1)
    }

    /// Where the parts of a queue lie when nothing hostile is meant.
    pub fn places(&self, queue: u32) -> [u64; 3] {
        [0, AVAIL, USED].map(|part| self.at(u64::from(queue) * QUEUE_DISTANCE + part))
    }

    /// Starts the device by the rules.
    ///
    /// # Errors
    ///
    /// When it does not start.
    pub fn start(&mut self) -> Result<()> {
        self.negotiate()?;
        for queue in [CONTROL, EVENT] {
            let ready = self.set_up(queue, QUEUE_SIZE.into(), self.places(queue))?;
            ensure!(ready, "queue {queue} is ready");
        }
        self.write(register::STATUS, status::RUNNING)?;
        let status = self.read(register::STATUS)?;
        ensure!(status == status::RUNNING, "the device runs: {status:#x}");
        Ok(())
    }

    /// Puts descriptors into a queue's table as they are, from the first entry on.
    pub fn put_table(&self, queue: u32, table: &[Descriptor]) {
        self.put(
            u64::from(queue) * QUEUE_DISTANCE,
            bytemuck::cast_slice(table),
        );
    }

    /// Makes `count` chains available, all beginning at the descriptor `head`, and notifies.
    ///
    /// # Errors
    ///
    /// As [`Device::read`].
    pub fn offer(&mut self, queue: u32, head: u16, count: u16) -> Result<()> {
        let start = u64::from(queue) * QUEUE_DISTANCE + AVAIL;
        let mut index = self.offered[queue as usize];
        for _ in 0..count.min(QUEUE_SIZE) {
            let slot = u64::from(index % QUEUE_SIZE);
            self.put(start + 4 + slot * 2, &head.to_le_bytes());
            index = index.wrapping_add(1);
        }
        let index = self.offered[queue as usize].wrapping_add(count);
        self.offered[queue as usize] = index;
        fence(Ordering::SeqCst);
        // No interrupt is wanted. The index is stored whole: the device may be looking.
        self.put(start, &1u16.to_le_bytes());
        let place = self.half(start + 2);
        // SAFETY: an aligned place in the mapping; the device may be looking.
        unsafe { place.write_volatile(index) };
        fence(Ordering::SeqCst);
        self.write(register::QUEUE_NOTIFY, queue)
    }

    /// Waits until the device has used everything offered, or has stopped. The rings are looked at
    /// in a loop, since this driver has no interrupt.
    ///
    /// # Errors
    ///
    /// When it does neither.
    pub fn wait(&self, queue: u32) -> Result<Answer> {
        let start = u64::from(queue) * QUEUE_DISTANCE + USED;
        let offered = self.offered[queue as usize];
        let limit = Instant::now() + PATIENCE;
        while Instant::now() < limit {
            let place = self.half(start + 2);
            // SAFETY: an aligned place in the mapping; the device may be writing.
            let used = unsafe { place.read_volatile() };
            if used == offered {
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
        bail!("the device does not answer")
    }

    /// Sends a table whose first descriptor is the head of a chain.
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

    /// A readable descriptor for a part of the memory.
    pub fn readable(&self, offset: u64, length: u32) -> Descriptor {
        Descriptor {
            address: self.at(offset),
            length,
            ..Descriptor::default()
        }
    }

    /// A writable one.
    pub fn writable(&self, offset: u64, length: u32) -> Descriptor {
        Descriptor {
            flags: WRITE,
            ..self.readable(offset, length)
        }
    }

    /// Sends bytes as a message, and gives the reply's status and payload.
    ///
    /// # Errors
    ///
    /// When there is no reply.
    pub fn call(&mut self, message: &[u8]) -> Result<(u32, Vec<u8>)> {
        self.put(MESSAGE, message);
        let chain = linked(&[
            self.readable(MESSAGE, message.len() as u32),
            self.writable(REPLY, REPLY_ROOM),
        ]);
        match self.send(&chain)? {
            Answer::Used(length) if length as usize >= size_of::<ReplyHeader>() => Ok(self.reply()),
            answer => bail!("no reply: {answer:?}"),
        }
    }

    /// The status and the payload that lie in the place for replies.
    pub fn reply(&self) -> (u32, Vec<u8>) {
        let header = self.get(REPLY, size_of::<ReplyHeader>());
        let header: ReplyHeader = bytemuck::pod_read_unaligned(&header);
        let length = header.length.min(REPLY_ROOM - 8) as usize;
        (header.status, self.get(REPLY + 8, length))
    }

    /// Sends bytes that must be refused with this status.
    ///
    /// # Errors
    ///
    /// When they are not.
    pub fn refused(&mut self, what: &str, message: &[u8], expected: u32) -> Result<()> {
        let (status, payload) = self.call(message)?;
        ensure!(
            status == expected && payload.is_empty(),
            "{what}: status {status} with {} bytes, not {expected}",
            payload.len()
        );
        Ok(())
    }

    /// Sends a table as [`Device::send`] does; it must be answered as a malformed message.
    ///
    /// # Errors
    ///
    /// When it is not.
    pub fn malformed(&mut self, what: &str, table: &[Descriptor]) -> Result<()> {
        let answer = self.send(table)?;
        let (status, _) = self.reply();
        ensure!(
            answer == Answer::Used(8) && status == STATUS_MALFORMED,
            "{what}: {answer:?}, status {status}"
        );
        Ok(())
    }

    /// Sends a table as [`Device::send`] does; it must come back without an answer.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub fn unanswered(&mut self, what: &str, table: &[Descriptor]) -> Result<()> {
        let answer = self.send(table)?;
        ensure!(answer == Answer::Used(0), "{what}: {answer:?}");
        Ok(())
    }

    /// Sees that a well-formed message is carried out.
    ///
    /// # Errors
    ///
    /// When it is not.
    pub fn works(&mut self) -> Result<()> {
        let (status, _) = self.call(&open_app())?;
        ensure!(
            status == STATUS_OK,
            "a well-formed message: status {status}"
        );
        Ok(())
    }
}

/// Links descriptors, in their order, into one chain from entry 0 on.
pub fn linked(chain: &[Descriptor]) -> Vec<Descriptor> {
    let last = chain.len().saturating_sub(1);
    let link = |(index, descriptor): (usize, &Descriptor)| Descriptor {
        flags: descriptor.flags | if index < last { NEXT } else { 0 },
        next: index as u16 + 1,
        ..*descriptor
    };
    chain.iter().enumerate().map(link).collect()
}

/// A message whose header says what is in it.
pub fn message<T: NoUninit>(kind: u32, payload: &T, list: &[u8]) -> Vec<u8> {
    let payload = [bytes_of(payload), list].concat();
    let header = ControlHeader {
        kind,
        length: payload.len() as u32,
    };
    [bytes_of(&header), &payload].concat()
}

/// A well-formed message.
pub fn open_app() -> Vec<u8> {
    let mut name = [0; NAME_MAX];
    name[..7].copy_from_slice(b"hostile");
    message(MESSAGE_OPEN_APP, &OpenApp { name }, &[])
}
