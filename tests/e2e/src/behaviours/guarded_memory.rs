//! Where the CPU has protection keys, guarded memory is read-only in requests.

use std::process::Command;
use std::sync::Barrier;
use std::thread;

use anyhow::{Context, Result, ensure};
use vmsrs::{App, Domain, Error, Failure, Kind, Options, RunError, Step, Task};
use vmsrs_bed::cpu::has_protection_keys;
use vmsrs_protocol::PAGE_SIZE;

use super::foreign_draft::{kernel_writes, pkru};
use crate::fault::store;
use crate::host::Guest;
use crate::mapping;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "guarded_memory_is_read_only_in_requests",
    machine: Machine::Usual,
    steps: &[
        ("guarded", guarded),
        ("variables", variables),
        ("late", late),
        ("off", off),
    ],
    host,
};

const PAGES: usize = 2;
/// What the guarded pages hold, and what is written to them.
const BEFORE: u8 = 7;
const AFTER: u8 = 9;
/// Protection keys that a process can allocate.
const KEYS: usize = 15;

fn host(guest: &mut Guest) -> Result<()> {
    guest.run_steps(&["off"])?;
    let incidents = guest.run("guarded", "")?;
    guest.run_steps(&["variables", "late"])?;
    for line in incidents.lines() {
        let (incident, address) = line.split_once(' ').context("incident and address")?;
        let facts = guest.incident(incident)?;
        ensure!(
            facts["kind"] == "memory" && facts["address"].as_u64() == address.parse().ok(),
            "not the address of the write: {facts}"
        );
    }
    Ok(())
}

fn open() -> Result<&'static Domain> {
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open("guard") }?;
    Ok(app.domain("owner")?)
}

/// New pages, filled with [`BEFORE`].
fn pages() -> Result<*mut u8> {
    let pages = mapping::anonymous(PAGES * PAGE_SIZE as usize)?.as_ptr();
    // SAFETY: the mapping has this length.
    unsafe { pages.write_bytes(BEFORE, PAGES * PAGE_SIZE as usize) };
    Ok(pages)
}

fn failure<T, E>(outcome: Result<T, RunError<E>>) -> Option<Box<Failure>> {
    match outcome {
        Err(RunError::Failed(failure)) => Some(failure),
        _ => None,
    }
}

fn guard(pages: *mut u8) -> Result<(), Error> {
    // SAFETY: the pages are never unmapped, and no request here blocks signals.
    unsafe { vmsrs::guard(pages, PAGES * PAGE_SIZE as usize) }
}

fn guarded(_: &str) -> Result<()> {
    let domain = open()?;
    let pages = pages()?;
    if !has_protection_keys()? {
        ensure!(
            matches!(guard(pages), Err(Error::NoKeys)),
            "guarding does not fail without protection keys"
        );
        eprintln!("skipped: this CPU has no protection keys (pku); memory cannot be guarded here");
        return Ok(());
    }
    guard(pages)?;
    guard(pages).context("guarding again does nothing")?;
    // The last byte of the second page.
    let target = pages.wrapping_add(PAGES * PAGE_SIZE as usize - 1);
    let address = target.expose_provenance();
    // SAFETY: the pages are mapped, and writes to them are sound or fault.
    let (read, write) = (
        move || unsafe { std::ptr::with_exposed_provenance::<u8>(address).read_volatile() },
        move |value| unsafe { store(std::ptr::with_exposed_provenance_mut(address), value) },
    );

    // In a request.
    let expect_refused = |what: &str, failure: Option<Box<Failure>>| -> Result<()> {
        let failure =
            failure.with_context(|| format!("{what}: a request wrote to guarded memory"))?;
        ensure!(
            failure.kind == Kind::Memory && failure.address == address as u64,
            "{what}: {failure}"
        );
        ensure!(
            failure.defers_failed == 0,
            "{what}: a defer could not write"
        );
        println!("{} {}", failure.incident, failure.address);
        ensure!(
            read() == AFTER,
            "{what}: not only its defer has written: {}",
            read()
        );
        write(BEFORE);
        Ok(())
    };
    let outcome = domain.run(|request| {
        assert_eq!(read(), BEFORE, "a request cannot read");
        request.defer(move || write(AFTER))?;
        write(0);
        Ok::<_, Error>(())
    });
    expect_refused("the request's thread", failure(outcome))?;
    let outcome = domain.run(|request| {
        request.defer(move || write(AFTER))?;
        request
            .fan_out(vec![move |_: &vmsrs::Request| write(0)])
            .map(drop)
    });
    expect_refused("a member", failure(outcome))?;
    let mut task = Task::new(domain, Options::default())?;
    let first = thread::scope(|scope| {
        let first = scope.spawn(|| {
            task.step(|request| {
                let defer = request.defer(move || write(AFTER));
                defer.expect("room for a defer");
                Step::<()>::Suspend
            })
            .map(|_| {
                // Between steps, this thread is outside of the request.
                write(AFTER);
                write(BEFORE);
            })
        });
        first.join()
    });
    first.ok().context("the first step panicked")??;
    let outcome = task.step(|_| {
        write(0);
        Step::Done(())
    });
    expect_refused("a resumed task", failure(outcome))?;
    let mut inside = Ok(());
    let outcome = domain.run(|request| {
        request.defer(move || write(AFTER))?;
        inside = guard(pages);
        // Neither guarding nor a new task opens the key.
        let task = Task::new(domain, Options::default());
        write(0);
        task.map(drop)
    });
    ensure!(matches!(inside, Err(Error::Nested)), "{inside:?}");
    expect_refused("a request that guards", failure(outcome))?;
    let mut written = Ok(true);
    domain.run(|_| {
        written = kernel_writes(std::ptr::with_exposed_provenance_mut(address));
        Ok::<_, Error>(())
    })?;
    ensure!(!written?, "read(2) in a request does not fail with EFAULT");

    // Outside of requests, however the last one ended.
    write(AFTER);
    let new_thread = thread::spawn(move || {
        write(AFTER + 1);
        read()
    });
    let seen = new_thread.join().ok().context("the new thread panicked")?;
    ensure!(
        seen == AFTER + 1,
        "a new thread cannot read and write: {seen}"
    );
    ensure!(
        kernel_writes(std::ptr::with_exposed_provenance_mut(address))?,
        "read(2) outside of a request does not write"
    );
    Ok(())
}

/// A server in C that guards all of its variables (`tests/e2e/programs/variables.c`).
fn variables(_: &str) -> Result<()> {
    let output = Command::new("/bin/variables").output()?;
    let expected = if has_protection_keys()? { 0 } else { 77 };
    ensure!(
        output.status.code() == Some(expected),
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Guarding fails while requests have all keys, and they keep theirs; it succeeds afterwards, however many threads have
/// run requests.
fn late(_: &str) -> Result<()> {
    if !has_protection_keys()? {
        return Ok(());
    }
    open()?;
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open("guard") }?;
    let barrier = Barrier::new(KEYS + 1);
    thread::scope(|scope| {
        let busy: Vec<_> = (0..KEYS)
            .map(|number| {
                let barrier = &barrier;
                scope.spawn(move || {
                    let domain = app.domain(format!("busy {number}"))?;
                    domain.run(|_| {
                        let before = pkru();
                        barrier.wait();
                        barrier.wait();
                        Ok::<_, Error>(pkru() == before)
                    })
                })
            })
            .collect();
        barrier.wait();
        let late = pages().map(guard);
        barrier.wait();
        ensure!(
            matches!(late, Ok(Err(Error::NoKeys))),
            "guarding while all keys are taken: {late:?}"
        );
        for thread in busy {
            let kept = thread.join().ok().context("a busy thread panicked")??;
            ensure!(kept, "a running request has lost its key");
        }
        Ok(())
    })?;
    Ok(guard(pages()?)?)
}

/// Guarding fails when protection keys are turned off.
fn off(_: &str) -> Result<()> {
    // SAFETY: the process has only one thread.
    unsafe { std::env::set_var("VMSRS_PKU", "off") };
    open()?;
    ensure!(
        matches!(guard(pages()?), Err(Error::NoKeys)),
        "guarding without keys"
    );
    Ok(())
}
