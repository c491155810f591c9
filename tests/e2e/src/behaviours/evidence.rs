//! An incident tells a developer where the bug is: function, line, and the bytes it changed.

use std::cell::Cell;
use std::hint::black_box;
use std::ptr::{NonNull, without_provenance_mut};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmsrs::{App, Error, RunError};

use crate::host::Guest;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "an_incident_tells_the_function_the_line_and_the_changed_bytes",
    machine: Machine::Usual,
    steps: &[("fail", fail)],
    host,
};

/// The program in the job folder, since the one in the guest has another path, and the libraries, which have the same
/// paths in the guest and on the KVM host.
const SYMBOLS: [&str; 4] = ["--symbols", "vmsrs-e2e", "--symbols", "/lib"];
/// Longest that the driver may take to send what the program kept, on a machine with much else to do.
const LIMIT: Duration = Duration::from_secs(60);
/// Bytes of the block that the request writes to.
const BLOCK: usize = 40;

fn host(guest: &mut Guest) -> Result<()> {
    let output = guest.run("fail", "")?;
    for told in output.lines() {
        let mut told = told.split(' ');
        let mut next = || told.next().context("kind, number and line");
        let (kind, number, line) = (next()?, next()?, next()?.parse::<u64>()?);
        let incident = incident(guest, number)?;
        if kind == AUDIT {
            found_by_audit(guest, number, &incident)?;
            continue;
        }
        let frames = incident["frames"].as_array().context("frames")?;
        let frame = frames
            .iter()
            .find(|frame| {
                frame["function"]
                    .as_str()
                    .is_some_and(|name| name.contains(kind))
            })
            .with_context(|| format!("no frame of {kind}: {frames:#?}"))?;
        let file = frame["file"].as_str().unwrap_or_default();
        ensure!(file.ends_with("behaviours/evidence.rs"), "{frame:#}");
        ensure!(
            frame["line"]
                .as_u64()
                .is_some_and(|found| (line..line + 2).contains(&found)),
            "{kind} failed in line {line}: {frame:#}"
        );
        changed_bytes(&incident)?;
        match kind {
            "null_store" => {
                ensure!(incident["address"] == 0, "{}", incident["address"]);
                let is = incident["address_is"].as_str().unwrap_or_default();
                ensure!(is.contains("null pointer"), "{is}");
            }
            "say_panic" => {
                let message = &incident["request"]["program"]["message"];
                ensure!(message == "a panic of the server's own code", "{message}");
            }
            _ => {}
        }
        pages(guest, number, kind)?;
    }
    Ok(())
}

/// What the audit finds is laid at no line, since the server's code has returned; the address tells what it is.
fn found_by_audit(guest: &Guest, number: &str, incident: &Value) -> Result<()> {
    changed_bytes(incident)?;
    ensure!(incident["kind"] == "red-zone", "{}", incident["kind"]);
    let is = incident["address_is"].as_str().unwrap_or_default();
    ensure!(
        is.contains("past the end of the block of 40 bytes"),
        "{is}"
    );
    let text = guest.show(&[&["incidents", number][..], &SYMBOLS].concat())?;
    let mut rows = text
        .lines()
        .take_while(|line| !line.starts_with("backtrace"));
    let found = rows.find(|row| row.starts_with("found by") || row.starts_with("in "));
    ensure!(
        found.is_some_and(|row| row.contains("the audit at the request's end")),
        "{found:?} in\n{text}"
    );
    eprintln!("{text}");
    Ok(())
}

/// An incident with what the program kept, which comes behind the report.
fn incident(guest: &Guest, number: &str) -> Result<Value> {
    guest.incident(number)?;
    let start = Instant::now();
    loop {
        let incident = guest.vmsrs(&[&["incidents", number][..], &SYMBOLS].concat())?;
        if !incident["request"]["program"].is_null() {
            return Ok(incident);
        }
        ensure!(start.elapsed() < LIMIT, "nothing kept of incident {number}");
    }
}

/// The dropped draft has three bytes behind the block, and the incident says so.
fn changed_bytes(incident: &Value) -> Result<()> {
    let drafts = incident["request"]["drafts"].as_array().context("drafts")?;
    let mut changes = drafts
        .iter()
        .flat_map(|draft| draft["changes"].as_array().into_iter().flatten());
    let change = changes
        .find(|change| {
            change["new"]
                .as_str()
                .is_some_and(|new| new.contains(&"5a".repeat(BLOCK + 3)))
        })
        .with_context(|| format!("the changed bytes: {drafts:#?}"))?;
    let block = &change["block"];
    ensure!(block["size"] == BLOCK, "{change:#}");
    ensure!(block["address"] == change["address"], "{change:#}");
    ensure!(
        block["was"] == "live" && block["became"] == "live",
        "{change:#}"
    );
    Ok(())
}

/// What people read has the function and the bytes, on a terminal and in a browser.
fn pages(guest: &Guest, number: &str, function: &str) -> Result<()> {
    let text = guest.show(&[&["incidents", number][..], &SYMBOLS].concat())?;
    let page = std::env::temp_dir().join(format!("incident-{number}.html"));
    let path = page.to_str().context("a path of letters")?;
    guest.show(&[&["incidents", number, "--html", path][..], &SYMBOLS].concat())?;
    let html = std::fs::read_to_string(&page)?;
    std::fs::remove_file(&page)?;
    for shown in [&text, &html] {
        for part in [
            function,
            "evidence.rs:",
            "5a 5a 5a 5a",
            "40 bytes at 0x1",
            "3 bytes past its end",
        ] {
            ensure!(shown.contains(part), "no {part:?} in\n{shown}");
        }
    }
    eprintln!("{text}");
    Ok(())
}

/// Fails; says before in which line.
type Body = fn(&Cell<u32>);

#[inline(never)]
fn null_store(line: &Cell<u32>) {
    line.set(line!() + 2);
    // SAFETY: faults, which ends the request.
    unsafe { black_box(without_provenance_mut::<u32>(0)).write_volatile(1) };
}

#[inline(never)]
fn call_abort(line: &Cell<u32>) {
    line.set(line!() + 1);
    std::process::abort();
}

#[inline(never)]
fn say_panic(line: &Cell<u32>) {
    line.set(line!() + 1);
    panic!("a panic of the server's own code");
}

/// The name of the case in which the server's code returns, and the audit finds what it has done.
const AUDIT: &str = "audit";

const KINDS: &[(&str, Body)] = &[
    ("null_store", null_store),
    ("call_abort", call_abort),
    ("say_panic", say_panic),
    (AUDIT, |_| ()),
];

fn fail(_: &str) -> Result<()> {
    // SAFETY: no request here lends its locals to others.
    let app = unsafe { App::open("evidence") }?;
    let user = app.domain("guilty")?;
    user.run(|request| {
        let block = request.alloc([1u8; BLOCK])?;
        request.set_root(Some(NonNull::from(block)))
    })?;
    for (kind, body) in KINDS {
        let line = Cell::new(0);
        let result = user.run(|request| {
            if let Some(block) = request.root::<u8>() {
                // SAFETY: the bytes behind the block are its red zone: that is the bug.
                unsafe { block.as_ptr().write_bytes(0x5a, BLOCK + 3) };
            }
            body(&line);
            Ok::<_, Error>(())
        });
        let Err(RunError::Failed(failure)) = result else {
            anyhow::bail!("not noticed: {result:?}")
        };
        println!("{kind} {} {}", failure.incident, line.get());
    }
    Ok(app.flush()?)
}
