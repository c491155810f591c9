//! Attacks with register accesses.

use anyhow::{Result, ensure};
use vmsrs_protocol::device::{SHM_POOL, SHM_VAULT};

use crate::hostile::{CONTROL, Device, EVENT, QUEUE_SIZE, register, status};

pub(super) fn spurious_notifications(device: &mut Device) -> Result<()> {
    for _ in 0..1000 {
        for queue in [CONTROL, EVENT] {
            device.write(register::QUEUE_NOTIFY, queue)?;
        }
    }
    for queue in [2, 0xff, 0x10000, u32::MAX] {
        device.write(register::QUEUE_NOTIFY, queue)?;
    }
    for width in [1, 2, 8] {
        device.access(register::QUEUE_NOTIFY, &vec![0; width])?;
    }
    device.expect_working()?;
    // Notifications of a device that is not running.
    device.negotiate()?;
    for queue in [CONTROL, EVENT, 2] {
        device.write(register::QUEUE_NOTIFY, queue)?;
    }
    device.start()
}

pub(super) fn unaligned_accesses(device: &mut Device) -> Result<()> {
    let config = |device: &Device| device.peek(register::CONFIG, 8);
    let before = config(device)?;
    for offset in 0..0x110 {
        for width in [1, 2, 4, 8] {
            // Accesses of whole registers belong to the other attacks.
            if width == 4 && offset % 4 == 0 && offset < register::CONFIG {
                continue;
            }
            device.peek(offset, width)?;
            device.access(offset, &vec![0xff; width])?;
        }
    }
    // Registers that do not exist.
    for offset in [0x01c, 0x028, 0x054, 0x0c0, 0x0f8] {
        device.peek(offset, 4)?;
        device.write(offset, u32::MAX)?;
    }
    for (offset, width) in [(0xfff, 1), (0xffe, 2), (0xffc, 4), (0xff8, 8)] {
        let bytes = device.peek(offset, width)?;
        ensure!(
            bytes.iter().all(|&byte| byte == 0),
            "beyond the end: {bytes:x?}"
        );
        device.access(offset, &vec![0xff; width])?;
    }
    ensure!(config(device)? == before, "the configuration has changed");
    ensure!(
        device.read(register::STATUS)? == status::RUNNING,
        "the device has stopped"
    );
    Ok(())
}

pub(super) fn unknown_regions(device: &mut Device) -> Result<()> {
    let regions = |device: &Device| -> Result<_> {
        Ok([device.region(SHM_POOL)?, device.region(SHM_VAULT)?])
    };
    let before = regions(device)?;
    ensure!(before[0] != before[1], "one region: {before:x?}");
    for region in [2, 0xff, 0x100, 0x8000_0000, u32::MAX] {
        let found = device.region(region)?;
        ensure!(
            found == (u64::MAX, u64::MAX),
            "region {region:#x}: {found:x?}"
        );
    }
    device.write(register::SHM_LEN, 0)?;
    device.write(register::SHM_BASE, 0)?;
    device.write(register::STATUS, 0)?;
    ensure!(regions(device)? == before, "a region has moved");
    device.start()
}

pub(super) fn invalid_queues(device: &mut Device) -> Result<()> {
    device.negotiate()?;
    let (pool, _) = device.region(SHM_POOL)?;
    let (vault, _) = device.region(SHM_VAULT)?;
    let good = device.queue_addresses(CONTROL);
    for size in [0, 3, 65, 128, 0x1_0000, 0x8000_0040, u32::MAX] {
        ensure!(
            !device.set_up_queue(CONTROL, size, good)?,
            "a queue of size {size} is ready"
        );
    }
    for part in 0..3 {
        for address in [
            0,
            good[part] + 1,
            0xf000_0000,
            pool,
            vault,
            1 << 52,
            u64::MAX - 15,
        ] {
            let mut addresses = good;
            addresses[part] = address;
            let ready = device.set_up_queue(CONTROL, QUEUE_SIZE.into(), addresses)?;
            ensure!(!ready, "a queue with part {part} at {address:#x} is ready");
        }
    }
    for queue in [2, 0xffff, u32::MAX] {
        ensure!(
            !device.set_up_queue(queue, 64, good)?,
            "queue {queue:#x} is ready"
        );
    }
    // A device without its queues does not start.
    device.write(register::STATUS, status::RUNNING)?;
    let status = device.read(register::STATUS)?;
    ensure!(status & status::NEEDS_RESET != 0, "status {status:#x}");
    device.start()?;
    // Queues of a running device cannot be changed.
    device.set_up_queue(CONTROL, 32, [pool; 3])?;
    device.write(register::QUEUE_READY, 0)?;
    device.expect_working()
}

pub(super) fn invalid_statuses(device: &mut Device) -> Result<()> {
    for first in [1, 3, 11, 15, 0x80, 0xc0, 0x10, 0xffff_ff00, u32::MAX] {
        for second in [15, 11, 0x40, 0x4f, 0x80, 7, u32::MAX] {
            device.write(register::STATUS, 0)?;
            device.write(register::STATUS, first)?;
            device.write(register::STATUS, second)?;
            device.write(register::QUEUE_NOTIFY, CONTROL)?;
        }
    }
    // Features that the device does not offer.
    for half in [0, 1] {
        device.write(register::STATUS, 0)?;
        device.write(register::STATUS, 1)?;
        device.write(register::STATUS, status::DRIVER)?;
        device.write(register::DRIVER_FEATURES_SEL, half)?;
        device.write(register::DRIVER_FEATURES, u32::MAX)?;
        device.write(register::STATUS, status::FEATURES_OK)?;
        let status = device.read(register::STATUS)?;
        ensure!(status == status::DRIVER, "features: status {status:#x}");
    }
    // Resets in quick succession.
    for _ in 0..100 {
        device.start()?;
    }
    Ok(())
}
