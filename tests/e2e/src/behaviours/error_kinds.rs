//! Every kind of error fails only the request that makes it.

use std::arch::asm;
use std::hint::black_box;
use std::ptr::{NonNull, without_provenance_mut};

use anyhow::{Result, ensure};
use vmsrs::{App, Domain, Error, Kind, Request, RunError};

use crate::fault::{store, wild_write};
use crate::host::Guest;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "every_kind_of_error_fails_only_its_request",
    machine: Machine::Usual,
    steps: &[("kinds", kinds)],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    let output = guest.run("kinds", "")?;
    // The host has each incident under the number that the server got.
    for line in output.lines() {
        let Some((incident, kind)) = line.split_once(' ') else {
            anyhow::bail!("not an incident and a kind: {line}")
        };
        let facts = guest.incident(incident)?;
        ensure!(
            facts["kind"] == kind,
            "incident {incident} is {facts}, not {kind}"
        );
        ensure!(facts["app"] == "kinds-of-error", "{facts}");
    }
    Ok(())
}

type Body = fn(&Request, &'static Domain) -> Result<(), Error>;

/// The other user's data.
fn theirs(other: &Domain) -> *mut u8 {
    other.root_address()
}

fn null_write(_: &Request, _: &'static Domain) -> Result<(), Error> {
    wild_write();
    Ok(())
}

/// Writes past the end of a block until it leaves the domain's own pages.
fn overflow(request: &Request, _: &'static Domain) -> Result<(), Error> {
    let block = request.domain().allocate(64, 16)?.as_ptr();
    for at in 0..(64 << 20) {
        // SAFETY: only domains are mapped there; the first page of another domain ends the request.
        unsafe { store(block.wrapping_add(at), 0x41) };
    }
    Ok(())
}

fn foreign_write(_: &Request, other: &'static Domain) -> Result<(), Error> {
    // SAFETY: faults, which ends the request.
    unsafe { store(theirs(other), 0) };
    Ok(())
}

fn red_zone(request: &Request, _: &'static Domain) -> Result<(), Error> {
    let block = request.domain().allocate(40, 16)?.as_ptr();
    // SAFETY: the byte after the block is part of its red zone.
    unsafe { store(block.wrapping_add(40), 0x41) };
    Ok(())
}

fn use_after_free(request: &Request, _: &'static Domain) -> Result<(), Error> {
    let block = request.domain().allocate(40, 16)?;
    // SAFETY: the write to the freed block, which stays mapped, is the error under test.
    unsafe {
        request.domain().deallocate(block)?;
        store(block.as_ptr().wrapping_add(8), 1);
    }
    Ok(())
}

fn double_free(request: &Request, _: &'static Domain) -> Result<(), Error> {
    let block = request.domain().allocate(40, 16)?;
    // SAFETY: the second call is the error under test.
    unsafe {
        request.domain().deallocate(block)?;
        request.domain().deallocate(block)
    }
}

fn foreign_free(request: &Request, other: &'static Domain) -> Result<(), Error> {
    let Some(block) = NonNull::new(theirs(other)) else {
        return Ok(());
    };
    // SAFETY: freeing a block of another domain is the error under test.
    unsafe { request.domain().deallocate(block) }
}

fn stack_overflow(_: &Request, _: &'static Domain) -> Result<(), Error> {
    fn recurse(depth: u64) -> u64 {
        let frame = black_box([depth; 64]);
        // Always true, but the compiler does not know.
        if black_box(true) {
            recurse(depth + 1) + black_box(frame)[7]
        } else {
            depth
        }
    }
    black_box(recurse(0));
    Ok(())
}

fn division(_: &Request, _: &'static Domain) -> Result<(), Error> {
    // SAFETY: the division by zero ends the request.
    unsafe { asm!("div {zero:e}", zero = in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _) };
    Ok(())
}

fn illegal(_: &Request, _: &'static Domain) -> Result<(), Error> {
    // SAFETY: the undefined instruction ends the request.
    unsafe { asm!("ud2") };
    Ok(())
}

fn abort(_: &Request, _: &'static Domain) -> Result<(), Error> {
    std::process::abort()
}

fn panic(_: &Request, _: &'static Domain) -> Result<(), Error> {
    panic!("a panic of the server's own code")
}

fn invariant(request: &Request, _: &'static Domain) -> Result<(), Error> {
    request.fail("a sum does not add up")
}

/// A jump through a pointer that was overwritten.
fn wild_jump(_: &Request, _: &'static Domain) -> Result<(), Error> {
    // SAFETY: faults at its first instruction, which ends the request.
    let function: extern "C" fn() =
        unsafe { std::mem::transmute(without_provenance_mut::<()>(0x30)) };
    function();
    Ok(())
}

const KINDS: &[(&str, Kind, Body)] = &[
    ("null write", Kind::Memory, null_write),
    ("heap overflow", Kind::ForeignWrite, overflow),
    ("foreign write", Kind::ForeignWrite, foreign_write),
    ("red zone", Kind::RedZone, red_zone),
    ("use after free", Kind::UseAfterFree, use_after_free),
    ("double free", Kind::DoubleFree, double_free),
    ("foreign free", Kind::ForeignFree, foreign_free),
    ("stack overflow", Kind::StackOverflow, stack_overflow),
    ("division by zero", Kind::Arithmetic, division),
    ("illegal instruction", Kind::Instruction, illegal),
    ("abort", Kind::Abort, abort),
    ("panic", Kind::Panic, panic),
    ("invariant", Kind::Invariant, invariant),
    ("wild jump", Kind::Memory, wild_jump),
];

/// The number that `kinds` puts at each domain's root.
fn value(domain: &Domain) -> u64 {
    // SAFETY: the root is a block with a u64, readable by the whole process.
    unsafe { domain.root_address().cast::<u64>().read_volatile() }
}

fn kinds(_: &str) -> Result<()> {
    // The panic on purpose prints nothing.
    std::panic::set_hook(Box::new(|_| {}));
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open("kinds-of-error") }?;
    let guilty = app.domain("guilty")?;
    let other = app.domain("other")?;
    for domain in [guilty, other] {
        domain.run(|request| {
            let block = request.alloc(7u64)?;
            request.set_root(Some(block.into()))
        })?;
    }
    for (count, (name, kind, body)) in (7..).zip(KINDS) {
        let result = guilty.run(|request| {
            // First a partial change, which is to be discarded.
            if let Some(mut root) = request.root::<u64>() {
                // SAFETY: the domain is held, and the block lives in it.
                unsafe { *root.as_mut() = u64::MAX };
            }
            request.alloc([0u8; 100])?;
            body(request, other)
        });
        let Err(RunError::Failed(failure)) = result else {
            anyhow::bail!("{name}: not detected: {result:?}")
        };
        ensure!(failure.kind == *kind, "{name}: {failure}");
        ensure!(
            failure.drafts > 0,
            "{name}: the partial change was not a draft"
        );
        println!(
            "{} {}",
            failure.incident,
            kind.to_string().replace(' ', "-")
        );
        ensure!(
            value(guilty) == count,
            "{name}: the failed request's data has changed"
        );
        ensure!(
            value(other) == 7,
            "{name}: the other user's data has changed"
        );
        // The same user's next request works.
        guilty.run(|request| {
            if let Some(mut root) = request.root::<u64>() {
                // SAFETY: the domain is held, and the block lives in it.
                unsafe { *root.as_mut() += 1 };
            }
            Ok::<_, Error>(())
        })?;
        ensure!(
            value(guilty) == count + 1,
            "{name}: the next request's write was not committed"
        );
    }
    Ok(app.flush()?)
}
