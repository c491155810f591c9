//! A thread is as its request found it, whatever a failed one has done to it, and a request that is left by `longjmp` ends.

use std::ffi::c_int;
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::process::Command;
use std::ptr;

use anyhow::{Context, Result, ensure};
use vmsrs::{App, Domain, Error, Kind, RunError};
use vmsrs_bed::cpu::has_protection_keys;

use super::foreign_draft::pkru;
use crate::fault::wild_write;
use crate::host::Guest;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "failed_request_leaves_its_thread_as_it_found_it",
    machine: Machine::Usual,
    steps: &[
        ("signals", signals),
        ("keys", keys),
        ("thread-state", thread_state),
        ("leaving", leaving),
    ],
    host,
};

/// What the failure of a request says that was left by `longjmp`, and of one that was failed by a signal handler.
const MESSAGES: [(&str, &str); 2] = [
    ("thread-death", "by longjmp"),
    ("memory", "in a signal handler"),
];

fn host(guest: &mut Guest) -> Result<()> {
    guest.run_steps(&["signals", "keys", "thread-state", "leaving"])?;
    for (kind, message) in MESSAGES {
        let incidents = guest.incidents(kind)?;
        let says = |incident: &serde_json::Value| incident.to_string().contains(message);
        ensure!(
            incidents.iter().any(says),
            "no incident of kind {kind} says {message:?}: {incidents:?}"
        );
    }
    Ok(())
}

fn open() -> Result<[&'static Domain; 2]> {
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open("thread-state") }?;
    Ok([app.domain("alice")?, app.domain("bob")?])
}

/// Runs a request that fails after that.
fn fail(domain: &'static Domain, change: impl Fn()) -> Result<()> {
    let outcome = domain.run(|request| {
        request.alloc(1u8)?;
        change();
        wild_write();
        Ok::<_, Error>(())
    });
    ensure!(
        matches!(&outcome, Err(RunError::Failed(failure)) if failure.kind == Kind::Memory),
        "{outcome:?}"
    );
    Ok(())
}

/// Changes the signals that the calling thread blocks; returns those from before, as the kernel has them.
fn block(how: c_int, signals: &[c_int]) -> u64 {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: fills both; changes this thread's alone. The first word is the kernel's set.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for &signal in signals {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(how, set.as_ptr(), before.as_mut_ptr());
        before.as_ptr().cast::<u64>().read()
    }
}

fn recurse(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if black_box(true) {
        recurse(depth + 1) + black_box(frame)[7]
    } else {
        depth
    }
}

fn signals(_: &str) -> Result<()> {
    let [alice, bob] = open()?;
    block(libc::SIG_BLOCK, &[libc::SIGUSR1]);
    let before = block(libc::SIG_BLOCK, &[]);
    fail(alice, || {
        block(libc::SIG_SETMASK, &[libc::SIGTERM, libc::SIGCHLD]);
        let none = libc::stack_t {
            ss_sp: ptr::null_mut(),
            ss_flags: libc::SS_DISABLE,
            ss_size: 0,
        };
        // SAFETY: takes the stack of signal handlers away.
        unsafe { libc::sigaltstack(&raw const none, ptr::null_mut()) };
    })?;
    let found = bob.run(|_| Ok::<_, Error>(block(libc::SIG_BLOCK, &[])))?;
    ensure!(found == before, "{found:#x} are blocked, not {before:#x}");
    let outcome = bob.run(|_| {
        black_box(recurse(0));
        Ok::<_, Error>(())
    });
    ensure!(
        matches!(&outcome, Err(RunError::Failed(failure)) if failure.kind == Kind::StackOverflow),
        "{outcome:?}"
    );
    Ok(())
}

/// Rights of a key of the server's own.
fn keys(_: &str) -> Result<()> {
    const DISABLE_ACCESS: libc::c_ulong = 1;
    if !has_protection_keys()? {
        eprintln!("skipped: this CPU has no protection keys (pku)");
        return Ok(());
    }
    // Before the library takes the rest.
    // SAFETY: a new key, which guards nothing.
    let key = unsafe { libc::syscall(libc::SYS_pkey_alloc, 0, DISABLE_ACCESS) };
    let key = u32::try_from(key).context("no key")?;
    let [alice, bob] = open()?;
    let rights = || (pkru() >> (2 * key)) & 3;
    ensure!(rights() == 1, "the key is open: {}", rights());
    fail(alice, || {
        let open = pkru() & !(3 << (2 * key));
        // SAFETY: opens a key that guards nothing.
        unsafe { std::arch::asm!("wrpkru", in("eax") open, in("ecx") 0, in("edx") 0) };
    })?;
    let found = bob.run(|_| Ok::<_, Error>(rights()))?;
    ensure!(found == 1, "the next request has the key open: {found}");
    Ok(())
}

/// Runs parts of a program of the library's tests.
fn run(program: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        let output = Command::new(program).arg(part).output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{program} {part}: {}\n{errors}",
            output.status
        );
    }
    Ok(())
}

fn thread_state(_: &str) -> Result<()> {
    run("/bin/thread-state", &["print", "cleanup", "program"])
}

fn leaving(_: &str) -> Result<()> {
    run(
        "/bin/leaving",
        &[
            "requests",
            "calls",
            "deadline",
            "defers",
            "steps",
            "member",
            "handler",
            "failing-handler",
            "failing-handler-in-library",
        ],
    )
}
