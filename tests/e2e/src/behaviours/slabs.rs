//! The audit at commit checks the chunks of a slab that lie in the pages which the request has written to.

use std::ptr::NonNull;

use anyhow::{Result, ensure};
use vmsrs::{App, CHUNK_OVERHEAD, Domain, Error, Failure, Kind, RunError};

use crate::fault::store;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "errors_in_chunks_of_a_slab_cost_their_requests_alone",
    machine: Machine::LargeWindow,
    steps: &[("slabs", slabs)],
    host: |guest| guest.run_steps(&["slabs"]),
};

/// Bytes from chunk to chunk, how many there are, and how many bytes are used: of small chunks, and of some that are larger than a
/// page. The domain has more than one that is audited as a whole.
const SLABS: [(usize, usize, usize); 2] = [(96, 2000, 60), (20_016, 20, 9000)];

/// Bytes that the server keeps of a free chunk.
const KEEP: usize = 16;

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

fn slabs(_: &str) -> Result<()> {
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open("slabs") }?;
    SLABS
        .iter()
        .enumerate()
        .try_for_each(|(number, &slab)| chunks(app.domain(number.to_string())?, slab))
}

fn chunks(domain: &'static Domain, (bytes, count, size): (usize, usize, usize)) -> Result<()> {
    let slab = domain.run(|_| domain.allocate_slab(bytes, count, KEEP))?;
    let chunk = |number: usize| slab.as_ptr().wrapping_add(number * bytes);
    let pointer = |number: usize| NonNull::new(chunk(number)).ok_or(Error::NotHeld);
    // Every other one is in use; all that the server has is written to.
    domain.run(|_| {
        for number in 0..count {
            let length = match number % 2 {
                0 => KEEP,
                _ => size,
            };
            if number % 2 == 1 {
                domain.take_chunk(pointer(number)?, size)?;
            }
            // SAFETY: what the server has of the chunk.
            unsafe { chunk(number).write_bytes(number as u8, length) };
        }
        Ok::<_, Error>(())
    })?;
    let room = bytes - CHUNK_OVERHEAD;
    for number in [1, count / 2 + 1, count - 1] {
        // Past the end of the chunk; in the word before the next one; in a chunk that is free.
        let free = (number - 1, KEEP, Kind::UseAfterFree);
        for (number, at, kind) in [
            (number, size, Kind::RedZone),
            (number, room, Kind::RedZone),
            free,
        ] {
            let address = chunk(number).wrapping_add(at);
            // SAFETY: a byte of the domain, which the request holds.
            let failure = expect_failure(domain, kind, || unsafe { store(address, 1) })?;
            ensure!(
                failure.address == address as u64,
                "{number}, {at}: {failure}"
            );
        }
        // An overrun that reaches the neighbour's bytes.
        if number + 1 < count {
            let address = chunk(number).wrapping_add(size);
            expect_failure(domain, Kind::RedZone, || {
                for at in 0..bytes - size + KEEP {
                    // SAFETY: as above.
                    unsafe { store(address.wrapping_add(at), 0x41) };
                }
            })?;
        }
        // SAFETY: as above.
        let give =
            |number| unsafe { domain.give_chunk(NonNull::new_unchecked(chunk(number)), KEEP) };
        // None of these returns.
        expect_failure(domain, Kind::DoubleFree, || drop(give(number - 1)))?;
        expect_failure(domain, Kind::HeapCorrupt, || {
            drop(pointer(number).map(|chunk| domain.take_chunk(chunk, size)));
        })?;
        // Written to after it was given back, in one request.
        expect_failure(domain, Kind::UseAfterFree, || {
            drop(give(number));
            // SAFETY: as above.
            unsafe { store(chunk(number).wrapping_add(KEEP + 9), 1) };
        })?;
    }
    // Nothing of that is left: all chunks have what the server has written, and can be used.
    domain.run(|_| {
        for number in 0..count {
            let length = match number % 2 {
                0 => KEEP,
                _ => size,
            };
            // SAFETY: what the server has of the chunk.
            let bytes = unsafe { std::slice::from_raw_parts(chunk(number), length) };
            if bytes.iter().any(|&byte| byte != number as u8) {
                return Err(Error::Argument("a chunk has other bytes"));
            }
            match number % 2 {
                0 => domain.take_chunk(pointer(number)?, size)?,
                // SAFETY: not used any more.
                _ => unsafe { domain.give_chunk(pointer(number)?, KEEP)? },
            }
        }
        Ok(())
    })?;
    // SAFETY: not used any more.
    Ok(domain.run(|_| unsafe { domain.deallocate_slab(slab) })?)
}
