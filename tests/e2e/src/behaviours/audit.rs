//! The audit at commit looks at every page that the request has written, in a domain of any size.

use std::ptr::NonNull;

use anyhow::{Context, Result, ensure};
use vmsrs::{App, Domain, Error, Failure, Kind, RunError};

use crate::fault::store;
use crate::host::Guest;
use crate::{Behaviour, Machine};

/// Blocks in the domain: far more than those up to which the audit looks at all of a domain.
const BLOCKS: usize = 3000;
/// How many of them one request makes: it may write half of the pool at most.
const SOME: usize = 500;
/// Bytes of each.
const SIZE: usize = 1000;
/// Pages that one request writes: more than the driver names in one answer.
const PAGES: usize = 300;

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "audit_finds_damage_in_any_written_page",
    machine: Machine::Usual,
    steps: &[("audit", audit)],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    guest.run("audit", "").map(drop)
}

/// Runs a request that has to fail with that kind.
fn fails(domain: &'static Domain, kind: Kind, body: impl FnOnce()) -> Result<Failure> {
    match domain.run(|_| {
        body();
        Ok::<_, Error>(())
    }) {
        Err(RunError::Failed(failure)) if failure.kind == kind => Ok(*failure),
        other => anyhow::bail!("not {kind}: {other:?}"),
    }
}

fn audit(_: &str) -> Result<()> {
    // SAFETY: no request here lends its locals to others.
    let app = unsafe { App::open("audit") }?;
    let domain = app.domain("large")?;
    let mut blocks: Vec<NonNull<u8>> = Vec::new();
    while blocks.len() < BLOCKS {
        let some = (0..SOME).map(|_| domain.allocate(SIZE, 16));
        blocks.extend(domain.run(|_| some.collect::<Result<Vec<_>, Error>>())?);
    }
    let freed = [blocks[100], blocks[2900]];
    domain.run(|_| {
        // SAFETY: nobody uses them afterwards, but to do damage.
        freed
            .iter()
            .try_for_each(|&block| unsafe { domain.deallocate(block) })
    })?;
    let byte = |block: NonNull<u8>, at: usize| block.as_ptr().wrapping_add(at);
    // Without the heap being called at all, far away from each other.
    for at in [0, 1, 1500, BLOCKS - 1] {
        let zone = byte(blocks[at], SIZE);
        // SAFETY: a byte of the domain, which the request holds.
        let failure = fails(domain, Kind::RedZone, || unsafe { store(zone, 0) })?;
        ensure!(failure.address == zone as u64, "{at}: {failure}");
    }
    for block in freed {
        for at in [0, 8, 500] {
            let place = byte(block, at);
            // SAFETY: as above.
            let failure = fails(domain, Kind::UseAfterFree, || unsafe { store(place, 0x41) })?;
            ensure!(failure.address & !7 == place as u64 & !7, "{at}: {failure}");
        }
    }
    // Among many pages, in the last of them.
    let step = BLOCKS / PAGES;
    let many: Vec<_> = blocks.iter().skip(200).step_by(step).take(270).collect();
    let last = **many.last().context("there are blocks")?;
    let failure = fails(domain, Kind::RedZone, || {
        for block in &many {
            // SAFETY: as above.
            unsafe { store(block.as_ptr(), 1) };
        }
        // SAFETY: as above.
        unsafe { store(byte(last, SIZE), 0) };
    })?;
    ensure!(failure.drafts > 256, "{failure:?}");
    // What was dropped with the failures is no damage.
    Ok(domain.run(|_| {
        for block in &many {
            // SAFETY: as above.
            unsafe { store(block.as_ptr(), 2) };
        }
        Ok::<_, Error>(())
    })?)
}
