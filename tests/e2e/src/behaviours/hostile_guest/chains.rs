//! Attacks with descriptor chains and rings.

use anyhow::{Result, ensure};
use bytemuck::{bytes_of, cast_slice};
use vmsrs_protocol::ZERO_FRAME;
use vmsrs_protocol::control::MESSAGE_BYTES_MAX;
use vmsrs_protocol::device::{SHM_POOL, SHM_VAULT};

use crate::hostile::{
    Answer, CONTROL, Descriptor, Device, EVENT, INDIRECT, MESSAGE, NEXT, QUEUE_SIZE, REPLY, TABLE,
    WRITE, linked, open_app, register, status,
};
use crate::stray::Region;

pub(super) fn malformed(device: &mut Device) -> Result<()> {
    let bytes = open_app();
    let length = bytes.len() as u32;
    device.put(MESSAGE, &bytes);
    let readable = device.readable(MESSAGE, length);
    let writable = device.writable(REPLY, 64);
    device.expect_malformed("no readable part", &[writable])?;
    device.expect_malformed("readable after writable", &linked(&[writable, readable]))?;
    device.expect_malformed(
        "empty readable part",
        &linked(&[device.readable(MESSAGE, 0), writable]),
    )?;
    let long = device.readable(MESSAGE, MESSAGE_BYTES_MAX + 1);
    device.expect_malformed("too long", &linked(&[long, writable]))?;
    device.expect_no_reply("no writable part", &[readable])?;
    device.expect_no_reply("an empty descriptor", &[Descriptor::default()])
}

pub(super) fn short_replies(device: &mut Device) -> Result<()> {
    let bytes = open_app();
    device.put(MESSAGE, &bytes);
    let readable = device.readable(MESSAGE, bytes.len() as u32);
    for length in 0..8 {
        let writable = device.writable(REPLY, length);
        device.expect_no_reply(
            "reply too short for a header",
            &linked(&[readable, writable]),
        )?;
    }
    let writable = device.writable(REPLY, 8);
    device.expect_malformed(
        "reply too short for the payload",
        &linked(&[readable, writable]),
    )
}

pub(super) fn loops(device: &mut Device) -> Result<()> {
    device.put(MESSAGE, &open_app());
    let jump = |descriptor: Descriptor, next: u16| Descriptor {
        flags: descriptor.flags | NEXT,
        next,
        ..descriptor
    };
    let readable = device.readable(MESSAGE, 4);
    let writable = device.writable(REPLY, 64);
    let huge = device.readable(MESSAGE, u32::MAX);
    device.expect_malformed("a loop at the end", &[jump(readable, 1), jump(writable, 1)])?;
    device.expect_malformed("a loop of two", &[jump(writable, 1), jump(writable, 0)])?;
    device.expect_no_reply("a descriptor linked to itself", &[jump(readable, 0)])?;
    device.expect_no_reply("a loop of many gigabytes", &[jump(huge, 0)])
}

pub(super) fn outside_memory(device: &mut Device) -> Result<()> {
    let bytes = open_app();
    let length = bytes.len() as u32;
    device.put(MESSAGE, &bytes);
    let readable = device.readable(MESSAGE, length);
    let writable = device.writable(REPLY, 64);
    let (pool, _) = device.region(SHM_POOL)?;
    let (vault, _) = device.region(SHM_VAULT)?;
    // A hole, next to the device's registers, pool and vault, the end of the address space.
    for address in [
        0xf000_0000,
        0xfee0_0000,
        pool,
        pool + 1,
        vault,
        vault + 1,
        1 << 52,
        u64::MAX - 3,
    ] {
        let outside = Descriptor {
            address,
            ..readable
        };
        device.expect_malformed("a message", &linked(&[outside, writable]))?;
        let outside = Descriptor {
            address,
            ..writable
        };
        device.expect_no_reply("a reply", &linked(&[readable, outside]))?;
        device.expect_no_reply("both", &[outside])?;
    }
    for next in [QUEUE_SIZE, 0x7fff, u16::MAX] {
        let broken = Descriptor {
            flags: NEXT,
            next,
            ..readable
        };
        device.expect_no_reply("a link outside of the table", &[broken])?;
        let broken = Descriptor {
            flags: WRITE | NEXT,
            next,
            ..writable
        };
        let chain = [linked(&[readable, writable])[0], broken];
        device.expect_malformed("a link outside of the table", &chain)?;
    }
    Ok(())
}

pub(super) fn indirect_tables(device: &mut Device) -> Result<()> {
    // Indirect descriptors were not negotiated, so all of these are malformed chains.
    const ENTRIES: u16 = 0x8000;
    device.put(MESSAGE, &open_app());
    let entry = device.readable(MESSAGE, 1);
    let table: Vec<Descriptor> = (1..=ENTRIES)
        .map(|next| Descriptor {
            flags: NEXT,
            next: next % ENTRIES,
            ..entry
        })
        .collect();
    device.put(TABLE, cast_slice(&table));
    let bytes = u32::from(ENTRIES) * size_of::<Descriptor>() as u32;
    let writable = device.writable(REPLY, 64);
    for length in [bytes, 0xf_fff0, 0xffff_fff0, u32::MAX, 1, 0] {
        let indirect = Descriptor {
            flags: INDIRECT,
            ..device.readable(TABLE, length)
        };
        device.expect_no_reply("a table", &[indirect])?;
        device.expect_no_reply("a table and more", &linked(&[indirect, writable]))?;
        let malformed = [linked(&[writable, indirect])[0], indirect];
        device.expect_malformed("a table at the end", &malformed)?;
    }
    // A table that refers to itself.
    let nested = Descriptor {
        flags: INDIRECT,
        ..device.readable(TABLE, 16)
    };
    device.put(TABLE, bytes_of(&nested));
    device.expect_no_reply("a table in itself", &[nested])
}

pub(super) fn heads_out_of_range(device: &mut Device) -> Result<()> {
    // Many times, since the host's log must not grow with them.
    for head in (QUEUE_SIZE..=u16::MAX).step_by(977) {
        device.offer(CONTROL, head, 1)?;
        let answer = device.wait(CONTROL)?;
        ensure!(answer == Answer::NeedsReset, "head {head}: {answer:?}");
        // A stopped device ignores this.
        device.write(register::QUEUE_NOTIFY, CONTROL)?;
        device.start()?;
    }
    device.expect_working()
}

pub(super) fn index_far_ahead(device: &mut Device) -> Result<()> {
    for count in [QUEUE_SIZE + 1, 1000, 0x8000, u16::MAX] {
        device.offer(CONTROL, 0, count)?;
        let answer = device.wait(CONTROL)?;
        ensure!(answer == Answer::NeedsReset, "{count} ahead: {answer:?}");
        device.start()?;
    }
    // A full ring, all entries the same chain, is carried out.
    let bytes = open_app();
    device.put(MESSAGE, &bytes);
    let chain = linked(&[
        device.readable(MESSAGE, bytes.len() as u32),
        device.writable(REPLY, 64),
    ]);
    device.put_table(CONTROL, &chain);
    device.offer(CONTROL, 0, QUEUE_SIZE)?;
    let answer = device.wait(CONTROL)?;
    ensure!(matches!(answer, Answer::Used(16)), "{answer:?}");
    Ok(())
}

pub(super) fn overlapping_rings(device: &mut Device) -> Result<()> {
    for queue in [CONTROL, EVENT] {
        // The used ring overlaps the available ring, so the device reads what it writes as new chains.
        device.negotiate()?;
        for number in [CONTROL, EVENT] {
            let mut addresses = device.queue_addresses(number);
            if number == queue {
                addresses[2] = addresses[1];
            }
            let ready = device.set_up_queue(number, QUEUE_SIZE.into(), addresses)?;
            ensure!(ready, "queue {number} is not ready");
        }
        device.write(register::STATUS, status::RUNNING)?;
        // Causes an event, for the event queue.
        ensure!(
            Region::Vault.store(ZERO_FRAME, 11, 1)? == Some(libc::EFAULT),
            "the store was not stopped"
        );
        device.offer(queue, 0, 1)?;
        // The device must see the reset while it processes the rings.
        device.write(register::STATUS, 0)?;
        device.start()?;
        device.expect_working()?;
    }
    Ok(())
}
