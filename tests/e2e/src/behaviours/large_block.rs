//! A table of 100 MiB in one block: it costs what is written of it, an error in its middle discards what the request wrote
//! there, it doubles over several requests, and a server that is killed finds it again.

use std::io::{Read as _, Write as _};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use vmsrs::{App, Domain, Error, Failure, Kind, RunError};

use crate::host::Guest;
use crate::steps;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "block_of_100_mib_costs_what_is_written",
    machine: Machine::LargeWindow,
    steps: &[
        ("build", build),
        ("fail", fail),
        ("double", double),
        ("serve", serve),
        ("kill", kill),
        ("look", look),
    ],
    host,
};

const MIB: usize = 1 << 20;

/// Words of the table at first.
const WORDS: usize = 100 * MIB / 8;

/// Entries of a request, each in a page of its own.
const BATCH: u64 = 60;

/// Entries before the table is doubled.
const ENTRIES: u64 = 5 * BATCH;

/// More pages than one request of this machine may write.
const TOO_MANY: usize = 1000;

/// What the domain's root leads to.
struct Root {
    table: *mut u64,
    words: usize,
    /// While entries are moved: the table before, and how many are moved.
    old: *mut u64,
    moved: u64,
    count: u64,
}

/// Where an entry is in a table of that many words.
fn place(entry: u64, words: usize) -> usize {
    let pages = words / 512;
    // The number is prime, and no page has two of the first entries.
    entry as usize * 7919 % pages * 512 + entry as usize % 512
}

impl Root {
    fn entry(&self, entry: u64) -> *mut u64 {
        self.table.wrapping_add(place(entry, self.words))
    }
}

fn domain() -> Result<&'static Domain> {
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open("large-block") }?;
    Ok(app.domain("table")?)
}

fn root(domain: &Domain) -> &'static mut Root {
    // SAFETY: callers are in a request that holds the domain, and use it alone.
    unsafe { &mut *domain.root_address().cast::<Root>() }
}

/// A request that must succeed.
fn request<T>(
    domain: &'static Domain,
    work: impl FnOnce(&mut Root) -> Result<T, Error>,
) -> Result<T> {
    Ok(domain.run(|_| work(root(domain)))?)
}

/// A request that must fail.
fn failure(domain: &'static Domain, work: impl FnOnce(&mut Root)) -> Result<Box<Failure>> {
    match domain.run(|_| {
        work(root(domain));
        Ok::<_, Error>(())
    }) {
        Err(RunError::Failed(failure)) => Ok(failure),
        other => anyhow::bail!("the request has not failed: {other:?}"),
    }
}

fn add(root: &mut Root, entries: u64) {
    for _ in 0..entries {
        // SAFETY: a place in the table, whose domain the caller's request holds.
        unsafe { *root.entry(root.count) = root.count + 1 };
        root.count += 1;
    }
}

/// All entries are there, and what lies next to each is zero.
fn check(domain: &'static Domain) -> Result<u64> {
    let (count, wrong) = request(domain, |root| {
        // SAFETY: places in the table, whose domain the request holds.
        let read = |entry: u64, next: usize| unsafe { *root.entry(entry).wrapping_add(next) };
        let wrong = |&entry: &u64| read(entry, 0) != entry + 1 || read(entry, 1) != 0;
        Ok((root.count, (0..root.count).find(wrong)))
    })?;
    ensure!(wrong.is_none(), "entry {wrong:?} of {count} is wrong");
    Ok(count)
}

fn host(guest: &mut Guest) -> Result<()> {
    guest.run_steps(&["build"])?;
    let before = guest.recovery_status()?["sealed_frames"].as_u64();
    ensure!(
        before < Some(2 * ENTRIES),
        "{before:?} frames are sealed for {ENTRIES} entries"
    );
    guest.run_steps(&["fail", "double"])?;
    guest.run("kill", "")?;
    guest.run("look", "")?;
    Ok(())
}

fn build(_: &str) -> Result<()> {
    let domain = domain()?;
    domain.run(|request| {
        let table = domain.allocate_zeroed(WORDS * 8, 16)?.cast().as_ptr();
        let root = Root {
            table,
            words: WORDS,
            old: std::ptr::null_mut(),
            moved: 0,
            count: 0,
        };
        let block = request.alloc(root)?;
        domain.set_root_address(std::ptr::from_mut(block).cast())
    })?;
    for _ in 0..ENTRIES / BATCH {
        request(domain, |root| {
            add(root, BATCH);
            Ok(())
        })?;
    }
    ensure!(check(domain)? == ENTRIES);
    Ok(domain.app().flush()?)
}

fn fail(_: &str) -> Result<()> {
    let domain = domain()?;
    let wild = |root: &mut Root| {
        add(root, 3);
        // SAFETY: not safe: the error under test.
        unsafe { std::ptr::null_mut::<u8>().wrapping_add(8).write_volatile(1) };
    };
    let failed = failure(domain, wild)?;
    ensure!(
        failed.kind == Kind::Memory && failed.drafts >= 4,
        "{failed}"
    );
    ensure!(check(domain)? == ENTRIES);
    let overrun = |root: &mut Root| {
        // SAFETY: not safe: the error under test.
        unsafe { *root.table.wrapping_add(root.words) = 1 };
    };
    let failed = failure(domain, overrun)?;
    ensure!(failed.kind == Kind::RedZone, "{failed}");
    let middle = |root: &mut Root| {
        let middle = root.table.wrapping_add(root.words / 2).cast();
        // SAFETY: not safe: the error under test.
        let _ = unsafe { domain.deallocate(std::ptr::NonNull::new(middle).unwrap()) };
    };
    let failed = failure(domain, middle)?;
    ensure!(failed.kind == Kind::ForeignFree, "{failed}");
    // What the pool has no frames for fails as with blocks of any size.
    let failed = failure(domain, |root| {
        for page in 0..TOO_MANY {
            // SAFETY: a place in the table, whose domain the request holds.
            unsafe { *root.table.wrapping_add(page * 512 + 511) = 1 };
        }
    })?;
    ensure!(failed.kind == Kind::NoFrames, "{failed}");
    ensure!(check(domain)? == ENTRIES);
    // Nor has the window room for that.
    let refused = domain.run(|_| domain.allocate(300 * MIB, 16));
    let is_full = matches!(refused, Err(RunError::GivenUp(Error::OutOfMemory { .. })));
    ensure!(is_full, "{refused:?}");
    Ok(())
}

/// The hash table is made twice as large by several requests: one that gives it memory, and others that move entries.
fn double(_: &str) -> Result<()> {
    let domain = domain()?;
    // In its place, and back: there is room where it ended.
    request(domain, |root| {
        let table = std::ptr::NonNull::new(root.table.cast::<u8>()).expect("a block");
        for bytes in [WORDS * 4, WORDS * 8] {
            // SAFETY: the block stays where it is.
            let resized = unsafe { domain.reallocate(table, bytes) }?;
            assert_eq!(resized, table);
        }
        // What was cut off is undefined.
        for page in WORDS / 1024..WORDS / 1024 + 4 {
            // SAFETY: a page in the table.
            unsafe { root.table.wrapping_add(page * 512).write_bytes(0, 512) };
        }
        for entry in 0..root.count {
            // SAFETY: a place in the table.
            unsafe { *root.entry(entry) = entry + 1 };
        }
        Ok(())
    })?;
    check(domain)?;
    request(domain, |root| {
        root.old = root.table;
        root.words = WORDS + WORDS / 4;
        root.moved = 0;
        root.table = domain.allocate_zeroed(root.words * 8, 16)?.cast().as_ptr();
        Ok(())
    })?;
    for _ in 0..ENTRIES / BATCH {
        request(domain, |root| {
            for entry in root.moved..root.moved + BATCH {
                // SAFETY: places in both tables.
                unsafe { *root.entry(entry) = *root.old.wrapping_add(place(entry, WORDS)) };
            }
            root.moved += BATCH;
            Ok(())
        })?;
    }
    request(domain, |root| {
        let old = std::ptr::NonNull::new(root.old.cast::<u8>()).expect("a block");
        // SAFETY: nobody uses it any more.
        unsafe { domain.deallocate(old) }
    })?;
    check(domain).map(drop)
}

/// Adds entries until it is killed, and prints a byte for each that is there.
fn serve(_: &str) -> Result<()> {
    let domain = domain()?;
    let mut output = std::io::stdout().lock();
    loop {
        request(domain, |root| {
            add(root, 1);
            Ok(())
        })?;
        output.write_all(b".")?;
        output.flush()?;
    }
}

fn kill(_: &str) -> Result<()> {
    let mut server = steps::command(BEHAVIOUR.name, "serve", "")?
        .stdout(Stdio::piped())
        .spawn()?;
    let mut pipe = server.stdout.take().context("the server's output")?;
    let mut added = vec![0; 50];
    pipe.read_exact(&mut added).context("the server died")?;
    server.kill()?;
    pipe.read_to_end(&mut added)?;
    server.wait()?;
    let count = check(domain()?)?;
    let expected = ENTRIES + added.len() as u64;
    ensure!(
        (expected..=expected + 1).contains(&count),
        "{count} entries, expected {expected}"
    );
    Ok(())
}

fn look(_: &str) -> Result<()> {
    let domain = domain()?;
    ensure!(check(domain)? >= ENTRIES);
    request(domain, |root| {
        add(root, BATCH);
        Ok(())
    })?;
    check(domain).map(drop)
}
