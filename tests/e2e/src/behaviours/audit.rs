//! The audit at commit checks every page that the request has written to, in a domain of any size.

use std::ptr::NonNull;

use anyhow::{Context, Result, ensure};
use vmsrs::{App, Domain, Error, Failure, Kind, RunError};

use crate::fault::store;
use crate::{Behaviour, Machine};

/// Blocks in the domain, far more than in a domain that the audit checks as a whole.
const BLOCKS: usize = 3000;
/// How many of them one request allocates, since it may write to half of the pool at most.
const PER_REQUEST: usize = 500;
/// Size of a block in bytes.
const SIZE: usize = 1000;
/// Pages that one request writes to, more than the driver lists in one reply.
const PAGES: usize = 300;

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "audit_finds_damage_in_any_written_page",
    machine: Machine::Usual,
    steps: &[("audit", audit)],
    host: |guest| guest.run_steps(&["audit"]),
};

/// Runs a request that must fail with this kind.
fn expect_failure(domain: &'static Domain, kind: Kind, body: impl FnOnce()) -> Result<Failure> {
    match domain.run(|_| {
        body();
        Ok::<_, Error>(())
    }) {
        Err(RunError::Failed(failure)) if failure.kind == kind => Ok(*failure),
        other => anyhow::bail!("expected {kind}: {other:?}"),
    }
}

fn audit(_: &str) -> Result<()> {
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open("audit") }?;
    let domain = app.domain("large")?;
    let mut blocks: Vec<NonNull<u8>> = Vec::new();
    while blocks.len() < BLOCKS {
        let some = (0..PER_REQUEST).map(|_| domain.allocate(SIZE, 16));
        blocks.extend(domain.run(|_| some.collect::<Result<Vec<_>, Error>>())?);
    }
    let freed = [blocks[100], blocks[2900]];
    domain.run(|_| {
        // SAFETY: used afterwards only to do damage.
        freed
            .iter()
            .try_for_each(|&block| unsafe { domain.deallocate(block) })
    })?;
    let byte = |block: NonNull<u8>, at: usize| block.as_ptr().wrapping_add(at);
    // Damage far apart, by requests that do not call the heap.
    for at in [0, 1, 1500, BLOCKS - 1] {
        let red_zone = byte(blocks[at], SIZE);
        // SAFETY: a byte of the domain, which the request holds.
        let failure = expect_failure(domain, Kind::RedZone, || unsafe { store(red_zone, 0) })?;
        ensure!(failure.address == red_zone as u64, "{at}: {failure}");
    }
    for block in freed {
        for at in [0, 8, 500] {
            let address = byte(block, at);
            // SAFETY: as above.
            let failure = expect_failure(domain, Kind::UseAfterFree, || unsafe {
                store(address, 0x41)
            })?;
            ensure!(
                failure.address & !7 == address as u64 & !7,
                "{at}: {failure}"
            );
        }
    }
    // Damage in the last of many pages.
    let step = BLOCKS / PAGES;
    let many: Vec<_> = blocks.iter().skip(200).step_by(step).take(270).collect();
    let last = **many.last().context("no blocks")?;
    let failure = expect_failure(domain, Kind::RedZone, || {
        for block in &many {
            // SAFETY: as above.
            unsafe { store(block.as_ptr(), 1) };
        }
        // SAFETY: as above.
        unsafe { store(byte(last, SIZE), 0) };
    })?;
    ensure!(failure.drafts > 256, "{failure:?}");
    // The discarded writes have left no damage.
    Ok(domain.run(|_| {
        for block in &many {
            // SAFETY: as above.
            unsafe { store(block.as_ptr(), 2) };
        }
        Ok::<_, Error>(())
    })?)
}
