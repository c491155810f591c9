//! Attacks on the frames of pool and vault.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Result, ensure};
use vmsrs_protocol::control::{STATUS_MALFORMED, STATUS_STALE};
use vmsrs_protocol::seal::{SEAL_LAST, SealRecord};
use vmsrs_protocol::{PAGE_SIZE, ZERO_FRAME};

use super::engine::{
    Page, accepted, domain, draft_report, no_pages, pages, pool_frames, record, seal_accepted,
    seal_refused, vault_frames,
};
use crate::hostile::Device;
use crate::raw::{peek, poke};
use crate::stray::{DEBUGFS, Region};

pub(super) fn every_kind_of_frame(device: &mut Device) -> Result<()> {
    let page = domain(device, "kinds")?;
    for frame in 0..4 {
        pool_is_writable(frame, 0x55)?;
    }
    let sealed = seal_accepted(device, &[record(page, 0)], SEAL_LAST)?[0];
    let staged = seal_accepted(device, &[record(page.after(1), 1)], 0)?[0];
    let report = draft_report(device, page, sealed)?;
    accepted(device, &report)?;

    let vault = [ZERO_FRAME, sealed, staged, vault_frames(device)? - 1];
    let no_store_reaches_the_vault = |when: &str| -> Result<()> {
        for frame in vault {
            let error = Region::Vault.store(frame, 11, 0x66)?;
            ensure!(
                error == Some(libc::EFAULT),
                "{when}: vault frame {frame}: {error:?}"
            );
        }
        Ok(())
    };
    no_store_reaches_the_vault("in a batch")?;
    let last = pool_frames(device)? - 1;
    for frame in [0, 1, 2, last] {
        pool_is_writable(frame, 0x66)?;
    }

    // The reset drops the batch. The sealed page keeps its content.
    device.start()?;
    no_store_reaches_the_vault("after a reset")?;
    pool_is_writable(last, 0x77)?;
    let found = pages(device, page)?;
    ensure!(
        found.len() == 1 && (found[0].page, found[0].frame) == (page.page, sealed),
        "after a reset: {found:?}"
    );
    Region::Vault.store(sealed, 11, 0x77)?;
    let byte = fs::read_to_string(format!("{DEBUGFS}/byte"))?;
    ensure!(byte.trim() == "85", "the sealed byte is {byte}");
    // As if it had not been sealed.
    seal_refused(device, &[record(page, 0)], STATUS_STALE)
}

fn pool_is_writable(frame: u32, value: u8) -> Result<()> {
    let error = Region::Pool.store(frame, 11, value)?;
    ensure!(error.is_none(), "pool frame {frame}: {error:?}");
    Ok(())
}

/// Pool frames change all the time, also while the host copies them: a sealed page never does.
pub(super) fn changing_frames(device: &mut Device) -> Result<()> {
    const FRAMES: u32 = 4;
    const BATCHES: u32 = 200;
    let page = domain(device, "changing")?;
    let pool = Region::Pool.map(FRAMES as usize)?.expose_provenance();
    let vault = Region::Vault.map(vault_frames(device)? as usize)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let pool = std::ptr::with_exposed_provenance_mut::<u8>(pool);
            let size = (FRAMES * PAGE_SIZE) as usize;
            for value in (0..=u8::MAX).cycle() {
                for at in (0..size).step_by(64) {
                    // SAFETY: within the mapping, which no one else uses as Rust memory.
                    unsafe { poke(pool.add(at), value) };
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let result = seal_changing(device, page, FRAMES, BATCHES, vault);
        stop.store(true, Ordering::Relaxed);
        result
    })?;
    // The host compares what is there with the checksum of what it has copied ("damaged" below is 0).
    Ok(())
}

fn seal_changing(
    device: &mut Device,
    page: Page,
    frames: u32,
    batches: u32,
    vault: *mut u8,
) -> Result<()> {
    let content = |frame: u32| -> Vec<u8> {
        let start = vault.wrapping_add((frame * PAGE_SIZE) as usize);
        (0..PAGE_SIZE as usize)
            // SAFETY: a frame of the mapping.
            .map(|at| unsafe { peek(start.add(at)) })
            .collect()
    };
    let mut sealed: Option<Vec<u32>> = None;
    for _ in 0..batches {
        let records: Vec<SealRecord> = (0..frames)
            .map(|number| {
                let first = record(page.after(number), number);
                match &sealed {
                    Some(sealed) => SealRecord {
                        vault_frame: sealed[number as usize],
                        ..first
                    },
                    None => first,
                }
            })
            .collect();
        let new = seal_accepted(device, &records, SEAL_LAST)?;
        let copies: Vec<_> = new.iter().map(|&frame| content(frame)).collect();
        device.expect_working()?;
        for (&frame, copy) in new.iter().zip(&copies) {
            ensure!(&content(frame) == copy, "sealed frame {frame} has changed");
        }
        sealed = Some(new);
    }
    Ok(())
}

/// Batches that never end hold no frames: each is dropped by the reset after it.
pub(super) fn unfinished_batches(device: &mut Device) -> Result<()> {
    let page = domain(device, "unfinished")?;
    for round in 0..200 {
        let records: Vec<_> = (0..4)
            .map(|number| record(page.after(number), number))
            .collect();
        for record in &records {
            seal_accepted(device, &[*record], 0)?;
        }
        if round % 2 == 0 {
            device.start()?;
        } else {
            // Named again, which refuses the batch.
            seal_refused(device, &records[..1], STATUS_MALFORMED)?;
        }
        no_pages(device, page)?;
    }
    Ok(())
}
