//! An incident tells a developer where the bug is: function, line and changed bytes.

use std::cell::Cell;
use std::hint::black_box;
use std::ptr::{NonNull, without_provenance_mut};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vmsrs::{App, Error, RunError};

use crate::host::Guest;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "incident_names_function_line_and_changed_bytes",
    machine: Machine::Usual,
    steps: &[("fail", fail)],
    host,
};

/// The program in the job folder, since its path in the guest is a different one, and the libraries, whose paths are
/// the same in the guest and on the KVM host.
const SYMBOLS: [&str; 4] = ["--symbols", "vmsrs-e2e", "--symbols", "/lib"];
/// Bytes of the block that the request writes to.
const BLOCK: usize = 40;

fn host(guest: &mut Guest) -> Result<()> {
    let output = guest.run("fail", "")?;
    for line in output.lines() {
        let mut words = line.split(' ');
        let mut next = || words.next().context("kind, number and line");
        let (kind, number, line) = (next()?, next()?, next()?.parse::<u64>()?);
        let incident = incident(guest, number)?;
        if kind == AUDIT {
            check_audit(guest, number, &incident)?;
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
            "{kind} failed at line {line}: {frame:#}"
        );
        check_changed_bytes(&incident)?;
        check_left_open(&incident, kind)?;
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
        check_pages(guest, number, kind)?;
    }
    Ok(())
}

/// An incident found by the audit has no line, since the server's code has returned; its address says what was damaged.
fn check_audit(guest: &Guest, number: &str, incident: &Value) -> Result<()> {
    check_changed_bytes(incident)?;
    ensure!(incident["kind"] == "red-zone", "{}", incident["kind"]);
    let is = incident["address_is"].as_str().unwrap_or_default();
    ensure!(is.contains("past the end of the block of 40 bytes"), "{is}");
    let text = guest
        .control()
        .show(&[&["incidents", number][..], &SYMBOLS].concat())?;
    let mut rows = text
        .lines()
        .take_while(|line| !line.starts_with("backtrace"));
    let found = rows.find(|row| row.starts_with("found by") || row.starts_with("in "));
    ensure!(
        found.is_some_and(|row| row.contains("the audit at the end of the request")),
        "{found:?} in\n{text}"
    );
    eprintln!("{text}");
    Ok(())
}

/// An incident with the program's evidence, which comes after the report.
fn incident(guest: &mut Guest, number: &str) -> Result<Value> {
    guest.incident_with(number, &SYMBOLS, |facts| {
        !facts["request"]["program"].is_null()
    })
}

/// What the request has left open: the first request of a process with one thread is known to have done so.
fn check_left_open(incident: &Value, kind: &str) -> Result<()> {
    let left = &incident["request"]["left_open"];
    let expected = if kind == "null_store" { LEFT_OPEN } else { 0 };
    ensure!(left["descriptors"] == expected, "{kind}: {left}");
    let bytes = left["bytes"].as_u64().context("bytes")?;
    let range = match expected {
        0 => 0..LEFT_BYTES as u64 / 2,
        _ => LEFT_BYTES as u64..LEFT_BYTES as u64 * 5 / 4,
    };
    ensure!(range.contains(&bytes), "{kind}: {left}");
    Ok(())
}

/// The incident has the write of the block and of three bytes past its end.
fn check_changed_bytes(incident: &Value) -> Result<()> {
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
        .with_context(|| format!("the changed bytes are missing: {drafts:#?}"))?;
    let block = &change["block"];
    ensure!(block["size"] == BLOCK, "{change:#}");
    ensure!(block["address"] == change["address"], "{change:#}");
    ensure!(
        block["was"] == "live" && block["became"] == "live",
        "{change:#}"
    );
    Ok(())
}

/// Function and bytes are shown both on a terminal and in a browser.
fn check_pages(guest: &Guest, number: &str, function: &str) -> Result<()> {
    let text = guest
        .control()
        .show(&[&["incidents", number][..], &SYMBOLS].concat())?;
    let page = std::env::temp_dir().join(format!("incident-{number}.html"));
    let path = page.to_str().context("a path in UTF-8")?;
    guest
        .control()
        .show(&[&["incidents", number, "--html", path][..], &SYMBOLS].concat())?;
    let html = std::fs::read_to_string(&page)?;
    std::fs::remove_file(&page)?;
    for shown in [&text, &html] {
        ensure!(shown.contains("left open"), "{shown}");
        for part in [
            function,
            "evidence.rs:",
            "5a 5a 5a 5a",
            "40 bytes at 0x",
            "3 bytes past its end",
        ] {
            ensure!(shown.contains(part), "no {part:?} in\n{shown}");
        }
    }
    eprintln!("{text}");
    Ok(())
}

/// Fails, after it has set the line at which it will.
type Body = fn(&Cell<u32>);

/// Descriptors and bytes that one request does not give back.
const LEFT_OPEN: usize = 2;
const LEFT_BYTES: usize = 4 << 20;

#[inline(never)]
fn null_store(line: &Cell<u32>) {
    for _ in 0..LEFT_OPEN {
        // SAFETY: makes a descriptor, which is left open on purpose.
        unsafe { libc::dup(libc::STDIN_FILENO) };
    }
    black_box(Vec::<u8>::with_capacity(LEFT_BYTES)).leak();
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

/// The case in which the server's code returns and the audit finds the damage.
const AUDIT: &str = "audit";

const KINDS: &[(&str, Body)] = &[
    ("null_store", null_store),
    ("call_abort", call_abort),
    ("say_panic", say_panic),
    (AUDIT, |_| ()),
];

fn fail(_: &str) -> Result<()> {
    // SAFETY: no request here shares its locals with other threads.
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
                // SAFETY: the bytes past the end of the block are its red zone.
                unsafe { block.as_ptr().write_bytes(0x5a, BLOCK + 3) };
            }
            body(&line);
            Ok::<_, Error>(())
        });
        let Err(RunError::Failed(failure)) = result else {
            anyhow::bail!("{kind}: not detected: {result:?}")
        };
        println!("{kind} {} {}", failure.incident, line.get());
    }
    Ok(app.flush()?)
}
