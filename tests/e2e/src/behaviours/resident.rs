//! What nearly every request in a domain writes is resident: written without faults, committed and discarded like all else.

use std::fs::File;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use vmsrs::{App, Domain, Error, Kind, RunError};
use vmsrs_bed::cpu::has_protection_keys;
use vmsrs_protocol::ioctl::{DEVICE_PATH, IOCTL_INFO, IoctlInfo};

use crate::fault::{store, wild_write};
use crate::host::Guest;
use crate::mapping::lock_words;
use crate::raw::call;
use crate::steps;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "resident_pages_are_committed_and_discarded",
    machine: Machine::Usual,
    steps: &[
        ("keys", keys),
        ("commits", commits),
        ("slow", slow),
        ("blocks", blocks),
        ("sum", sum),
        ("fails", fails),
        ("strays", strays),
        ("lock word", lock_word),
        ("domains", domains),
        ("several", several),
        ("threads", threads),
        ("forks", forks),
        ("closed", closed),
        ("reads", reads),
        ("die", die),
        ("look", look),
    ],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    if guest.run("keys", "")?.trim() != "true" {
        eprintln!("skipped: this CPU has no protection keys (pku); no pages are resident");
        return Ok(());
    }
    guest.run_steps(&[
        "commits",
        "slow",
        "blocks",
        "fails",
        "strays",
        "lock word",
        "domains",
        "several",
        "threads",
        "forks",
        "closed",
        "reads",
    ])?;
    for _ in 0..3 {
        let answer = guest.step("die", "")?;
        ensure!(
            answer.signal == Some(libc::SIGKILL),
            "the process was not killed by SIGKILL: {answer:?}"
        );
        guest.run_steps(&["look"])?;
    }
    Ok(())
}

fn keys(_: &str) -> Result<()> {
    println!("{}", has_protection_keys()?);
    Ok(())
}

const PAGE: usize = 4096;

/// Pages that each request writes, but for the one with the root.
const PAGES: usize = 4;

/// Requests that a domain is given to become hot.
const PATIENCE: usize = 5000;

fn open(name: &str) -> Result<&'static App> {
    // SAFETY: no request here shares its locals with other threads.
    Ok(unsafe { App::open(name) }?)
}

/// Page faults that have made a draft, of all processes.
fn write_faults() -> Result<u64> {
    let mut info = IoctlInfo::default();
    call(&File::open(DEVICE_PATH)?, IOCTL_INFO, &mut info)?;
    Ok(info.write_faults)
}

/// A domain with a counter in each of some pages, which always have the same value after a commit.
#[derive(Clone, Copy)]
struct Counters {
    domain: &'static Domain,
    first: *mut u8,
}

// SAFETY: the counters are in a domain, which has a lock.
unsafe impl Send for Counters {}
// SAFETY: as above.
unsafe impl Sync for Counters {}

impl Counters {
    /// Those of the domain with that key, made if it has none.
    fn new(app: &'static App, key: &str) -> Result<Self> {
        let domain = app.domain(key)?;
        let first = domain.run(|request| {
            if let Some(first) = request.root::<u8>() {
                return Ok(first.as_ptr());
            }
            let first = domain.allocate(PAGES * PAGE, PAGE)?;
            request.set_root(Some(first))?;
            Ok::<_, Error>(first.as_ptr())
        })?;
        Ok(Self { domain, first })
    }

    fn counter(&self, page: usize) -> NonNull<u64> {
        NonNull::new(self.first.wrapping_add(page * PAGE).cast()).expect("an address in a domain")
    }

    fn read(&self, page: usize) -> u64 {
        // SAFETY: the page is mapped in each process that has the app open.
        unsafe { self.counter(page).read_volatile() }
    }

    fn write(&self, page: usize, value: u64) {
        // SAFETY: callers hold the domain, or the store faults.
        unsafe { self.counter(page).write_volatile(value) };
    }

    /// Increments each; from inside of a request.
    fn increment(&self) {
        for page in 0..PAGES {
            self.write(page, self.read(page) + 1);
        }
    }

    fn count(&self) -> Result<(), RunError<Error>> {
        self.domain.run(|_| {
            self.increment();
            Ok(())
        })
    }

    /// Whether a request that counts makes no draft.
    fn is_hot(&self) -> Result<bool> {
        let before = write_faults()?;
        self.count()?;
        Ok(write_faults()? == before)
    }

    /// Counts until the domain is hot.
    fn heat(&self) -> Result<()> {
        for _ in 0..PATIENCE {
            if self.is_hot()? {
                return Ok(());
            }
        }
        bail!("the domain does not become hot")
    }

    /// The committed value.
    fn value(&self) -> Result<u64> {
        let values = self.domain.run(|_| {
            let read: [u64; PAGES] = std::array::from_fn(|page| self.read(page));
            Ok::<_, Error>(read)
        })?;
        ensure!(
            values.iter().all(|&value| value == values[0]),
            "a commit is there in part: {values:?}"
        );
        Ok(values[0])
    }

    fn expect(&self, value: u64) -> Result<()> {
        let found = self.value()?;
        ensure!(found == value, "expected {value}, found {found}");
        Ok(())
    }
}

fn failed(outcome: Result<(), RunError<Error>>) -> Result<Kind> {
    match outcome {
        Err(RunError::Failed(failure)) => Ok(failure.kind),
        other => bail!("the request has not failed: {other:?}"),
    }
}

/// The value that another process finds.
fn other_process(name: &str) -> Result<u64> {
    let output = steps::command(BEHAVIOUR.name, "sum", name)?.output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

/// Prints the value of a counter without its lock: what is committed.
fn sum(name: &str) -> Result<()> {
    let domain = open(name)?.domain("one")?;
    let first = domain.root_address();
    let counters = Counters { domain, first };
    println!(
        "{}",
        (0..PAGES).map(|page| counters.read(page)).sum::<u64>()
    );
    Ok(())
}

fn commits(_: &str) -> Result<()> {
    let counters = Counters::new(open("resident-commits")?, "one")?;
    counters.heat()?;
    let before = counters.value()?;
    for _ in 0..100 {
        counters.count()?;
    }
    counters.expect(before + 100)?;
    // What is sealed, and a version that is not.
    counters.domain.app().flush()?;
    ensure!(
        counters.is_hot()?,
        "the answer to a batch has cooled the domain"
    );
    let committed = before + 101;
    // Another process sees what is committed, in the middle of a request too.
    let mut seen = 0;
    counters.domain.run(|_| {
        counters.increment();
        seen = other_process("resident-commits").unwrap_or(0);
        Ok::<_, Error>(())
    })?;
    ensure!(
        seen == committed * PAGES as u64,
        "another process sees {seen}, not {committed} in each page"
    );
    let seen = other_process("resident-commits")?;
    ensure!(
        seen == (committed + 1) * PAGES as u64,
        "it sees {seen} after the commit"
    );
    counters.expect(committed + 1)
}

/// Requests of which each is sealed before the next: the domain becomes hot as soon as with faster ones.
fn slow(_: &str) -> Result<()> {
    let counters = Counters::new(open("resident-slow")?, "one")?;
    let mut requests = 0;
    while !counters.is_hot()? {
        counters.domain.app().flush()?;
        requests += 1;
        ensure!(requests < 20, "not hot after {requests} slow requests");
    }
    for _ in 0..20 {
        counters.domain.app().flush()?;
        ensure!(
            counters.is_hot()?,
            "a domain that is used steadily has cooled"
        );
    }
    Ok(())
}

/// What a request does to its domain's blocks besides taking one and freeing the one before.
#[derive(Clone, Copy, Debug)]
enum Blocks {
    Whole,
    RedZone,
    UseAfterFree,
    Invariant,
}

const BLOCK: usize = 100;

/// Takes a block with that value in each byte, makes it the root, and frees the one that was.
fn turn(domain: &'static Domain, value: u8, what: Blocks) -> Result<(), RunError<Error>> {
    domain.run(|request| {
        let before = request.root::<u8>();
        let block = domain.allocate(BLOCK, 16)?;
        // SAFETY: the block is the request's; a byte more, or one that was freed, is the test.
        unsafe {
            block.write_bytes(value, BLOCK);
            if let Some(before) = before {
                domain.deallocate(before)?;
                if matches!(what, Blocks::UseAfterFree) {
                    before.write(0);
                }
            }
            if matches!(what, Blocks::RedZone) {
                block.add(BLOCK).write(0);
            }
        }
        let value = if matches!(what, Blocks::Invariant) {
            None
        } else {
            Some(block)
        };
        request.set_root(value)?;
        // Nothing is left to do if it succeeds.
        request.defer(|| ())
    })
}

/// Requests that take and free blocks, with defers and an invariant: their domain becomes hot, too, and the audit finds the
/// same there.
fn blocks(_: &str) -> Result<()> {
    let domain = open("resident-blocks")?.domain("one")?;
    let mut value = 0;
    turn(domain, value, Blocks::Whole)?;
    domain.set_invariant(|domain| match domain.root_address().is_null() {
        true => Err("no block".into()),
        false => Ok(()),
    })?;
    let heat = |value: &mut u8| {
        for _ in 0..PATIENCE {
            *value = value.wrapping_add(1);
            let before = write_faults()?;
            turn(domain, *value, Blocks::Whole)?;
            if write_faults()? == before {
                return Ok(());
            }
        }
        bail!("the domain does not become hot")
    };
    for (what, expected) in [
        (Blocks::RedZone, Kind::RedZone),
        (Blocks::UseAfterFree, Kind::UseAfterFree),
        (Blocks::Invariant, Kind::Invariant),
    ] {
        heat(&mut value)?;
        let kind = failed(turn(domain, value.wrapping_add(1), what))?;
        ensure!(kind == expected, "{what:?} is found as {kind:?}");
        let root = domain.root_address();
        // SAFETY: the block that was committed last.
        let bytes = unsafe { std::slice::from_raw_parts(root, BLOCK) };
        ensure!(
            bytes.iter().all(|&byte| byte == value),
            "after {what:?}: {bytes:?}, not {value} in each byte"
        );
    }
    heat(&mut value)
}

fn fails(_: &str) -> Result<()> {
    let counters = Counters::new(open("resident-fails")?, "one")?;
    for _ in 0..3 {
        counters.heat()?;
        let before = counters.value()?;
        let outcome = counters.domain.run(|_| {
            counters.increment();
            wild_write();
            Ok::<_, Error>(())
        });
        let Err(RunError::Failed(failure)) = outcome else {
            bail!("the request has not failed: {outcome:?}")
        };
        ensure!(
            failure.drafts == PAGES as u32,
            "{} pages were dropped, not {PAGES}",
            failure.drafts
        );
        counters.expect(before)?;
        counters.heat()?;
        let before = counters.value()?;
        // Given up.
        let outcome = counters.domain.run(|_| {
            counters.increment();
            Err::<(), _>(Error::Limit("given up"))
        });
        ensure!(outcome.is_err(), "it was not given up");
        counters.expect(before)?;
    }
    Ok(())
}

/// A thread outside of requests, and requests in other domains, hot ones too, cannot write to resident pages.
fn strays(_: &str) -> Result<()> {
    let app = open("resident-strays")?;
    let [one, two] = [Counters::new(app, "one")?, Counters::new(app, "two")?];
    two.heat()?;
    one.heat()?;
    let before = one.value()?;
    for counters in [one, two] {
        ensure!(counters.is_hot()?, "a domain has cooled");
    }
    let kind = failed(two.domain.run(|_| {
        two.increment();
        // SAFETY: faults.
        unsafe { store(one.first, 99) };
        Ok(())
    }))?;
    ensure!(kind == Kind::ForeignDraft, "a stray write is {kind:?}");
    let reads = two.domain.run(|_| Ok::<_, Error>(one.read(0)))?;
    ensure!(reads == before + 1, "a read finds {reads}");
    one.expect(before + 1)
}

/// A stray write clears the lock's word of a hot domain: two requests are inside, and neither commits.
fn lock_word(_: &str) -> Result<()> {
    let app = open("resident-lock")?;
    let counters = Counters::new(app, "one")?;
    counters.heat()?;
    let before = counters.value()?;
    let word = lock_words()?.wrapping_add(counters.domain.number() as usize);
    // SAFETY: an aligned word of a mapping that stays.
    let word = unsafe { AtomicU64::from_ptr(word) };
    let (inside, cleared) = (Barrier::new(2), Barrier::new(2));
    let (first, second) = thread::scope(|scope| {
        let first = scope.spawn(|| {
            counters.domain.run(|_| {
                counters.increment();
                inside.wait();
                cleared.wait();
                Ok(())
            })
        });
        inside.wait();
        word.store(0, Ordering::SeqCst);
        let second = counters.count();
        cleared.wait();
        (first.join(), second)
    });
    ensure!(
        failed(second)? == Kind::Memory,
        "the second request's failure"
    );
    let first = first.ok().context("the thread panicked")?;
    ensure!(
        failed(first)? == Kind::Memory,
        "the first request's failure"
    );
    counters.expect(before)?;
    counters.count()?;
    counters.expect(before + 1)
}

/// More hot domains than keys.
fn domains(_: &str) -> Result<()> {
    let app = open("resident-domains")?;
    let all: Vec<_> = (0..9)
        .map(|number| Counters::new(app, &format!("domain {number}")))
        .collect::<Result<_>>()?;
    for _ in 0..400 {
        for counters in &all {
            counters.count()?;
        }
    }
    for counters in &all {
        counters.expect(400)?;
    }
    for counters in &all {
        counters.heat()?;
        counters.count()?;
    }
    Ok(())
}

/// Requests with several domains, hot ones among them, with parts that are committed, and with a ticket.
fn several(_: &str) -> Result<()> {
    let app = open("resident-several")?;
    let [one, two, other] = ["one", "two", "other"].map(|key| Counters::new(app, key));
    let (one, two, other) = (one?, two?, other?);
    let heat = || -> Result<[u64; 3]> {
        one.heat()?;
        two.heat()?;
        Ok([one.value()?, two.value()?, other.value()?])
    };
    let expect = |values: [u64; 3]| -> Result<()> {
        for (counters, value) in [one, two, other].iter().zip(values) {
            counters.expect(value)?;
        }
        Ok(())
    };
    for fail in [false, true] {
        let before = heat()?;
        let outcome = one.domain.run(|request| {
            one.increment();
            request.enter_all(&[two.domain, other.domain])?;
            two.increment();
            other.increment();
            if fail {
                wild_write();
            }
            Ok::<_, Error>(())
        });
        ensure!(outcome.is_err() == fail, "{outcome:?}");
        expect(before.map(|value| value + u64::from(!fail)))?;
    }
    // Committed in the middle, and then failed.
    let before = heat()?;
    let outcome = one.domain.run(|request| {
        one.increment();
        request.commit(false)?;
        one.increment();
        wild_write();
        Ok::<_, Error>(())
    });
    failed(outcome)?;
    expect([before[0] + 1, before[1], before[2]])?;
    // Another thread works for it, too.
    let before = heat()?;
    one.domain.run(|request| {
        one.increment();
        let ticket = request.ticket()?;
        let joined = thread::scope(|scope| {
            let part = scope.spawn(|| {
                ticket.join(|_| {
                    one.increment();
                    Ok::<_, Error>(())
                })
            });
            part.join()
        });
        ensure_joined(joined.is_ok_and(|joined| joined.is_ok()))
    })?;
    expect([before[0] + 2, before[1], before[2]])
}

fn ensure_joined(joined: bool) -> Result<(), Error> {
    joined
        .then_some(())
        .ok_or(Error::Limit("a thread could not join"))
}

/// Threads that use a hot domain one after the other, and one that ends inside.
fn threads(_: &str) -> Result<()> {
    let counters = Counters::new(open("resident-threads")?, "one")?;
    counters.heat()?;
    let before = counters.value()?;
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..200).try_for_each(|_| counters.count()).unwrap());
        }
    });
    counters.expect(before + 800)?;
    counters.heat()?;
    let before = counters.value()?;
    let (send, receive) = mpsc::channel();
    let thread = thread::spawn(move || {
        let _ = counters.domain.run(|_| {
            counters.increment();
            send.send(()).unwrap();
            // SAFETY: ends the thread without its end handlers, as an error of the server may.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
            Ok::<_, Error>(())
        });
    });
    receive.recv()?;
    std::mem::forget(thread);
    // Waits until the driver has found that out.
    counters.expect(before)?;
    counters.count()?;
    counters.expect(before + 1)
}

/// A fork outside of requests and inside: the child has the app for itself.
fn forks(_: &str) -> Result<()> {
    let counters = Counters::new(open("resident-forks")?, "one")?;
    counters.heat()?;
    let before = counters.value()?;
    // SAFETY: the process has one thread.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let outcome = (0..50).try_for_each(|_| counters.count());
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(outcome.is_err())) };
    }
    (0..50).try_for_each(|_| counters.count())?;
    reap(child)?;
    counters.expect(before + 100)?;
    counters.heat()?;
    let before = counters.value()?;
    let mut child = 0;
    let outcome = counters.domain.run(|_| {
        counters.increment();
        // SAFETY: the process has one thread.
        child = unsafe { libc::fork() };
        Ok::<_, Error>(())
    });
    match outcome {
        Ok(()) => {}
        Err(RunError::Refused(Error::Forked)) => {
            let outcome = counters.count();
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(outcome.is_err())) };
        }
        Err(error) => bail!("{error}"),
    }
    reap(child)?;
    counters.expect(before + 2)
}

/// A request inside a hot domain closes all descriptors of the driver's file: it is committed through another one.
fn closed(_: &str) -> Result<()> {
    let counters = Counters::new(open("resident-closed")?, "one")?;
    for fail in [false, true] {
        counters.heat()?;
        let before = counters.value()?;
        let outcome = counters.domain.run(|_| {
            counters.increment();
            for entry in std::fs::read_dir("/proc/self/fd")
                .into_iter()
                .flatten()
                .flatten()
            {
                let is_driver = std::fs::read_link(entry.path())
                    .is_ok_and(|path| path.as_os_str() == DEVICE_PATH);
                let number = entry.file_name().to_string_lossy().parse();
                if let (true, Ok(number)) = (is_driver, number) {
                    // SAFETY: it is not; that is the test.
                    unsafe { libc::close(number) };
                }
            }
            if fail {
                wild_write();
            }
            Ok::<_, Error>(())
        });
        ensure!(outcome.is_err() == fail, "{outcome:?}");
        let before = before + u64::from(!fail);
        counters.expect(before)?;
        for _ in 0..100 {
            counters.count()?;
        }
        counters.expect(before + 100)?;
    }
    // A thread that registers with the new file.
    thread::scope(|scope| {
        let part = scope.spawn(|| (0..50).try_for_each(|_| counters.count()));
        part.join().is_ok_and(|counted| counted.is_ok())
    })
    .then_some(())
    .context("another thread's requests failed")
}

fn reap(child: libc::pid_t) -> Result<()> {
    let mut status = 0;
    // SAFETY: waits for a child of this process.
    let reaped = unsafe { libc::waitpid(child, &raw mut status, 0) };
    ensure!(
        reaped == child && status == 0,
        "the child ended with {status:#x}"
    );
    Ok(())
}

/// A hot domain that is only read cools, and so does a page that is not written any more.
fn reads(_: &str) -> Result<()> {
    let counters = Counters::new(open("resident-reads")?, "one")?;
    counters.heat()?;
    let before = counters.value()?;
    for _ in 0..20 {
        counters.value()?;
    }
    ensure!(!counters.is_hot()?, "a domain that is only read stays hot");
    counters.expect(before + 1)?;
    counters.heat()?;
    for _ in 0..20 {
        counters.domain.run(|_| {
            counters.write(0, counters.read(0) + 1);
            Ok::<_, Error>(())
        })?;
    }
    let faults = write_faults()?;
    counters.count()?;
    let faults = write_faults()? - faults;
    ensure!(
        (1..PAGES as u64).contains(&faults),
        "{faults} faults: not the pages that were not written"
    );
    Ok(())
}

/// Is killed inside of a request.
fn die(_: &str) -> Result<()> {
    let counters = Counters::new(open("resident-death")?, "one")?;
    counters.heat()?;
    counters.domain.run(|_| {
        for page in 0..PAGES / 2 {
            counters.write(page, u64::MAX);
        }
        // SAFETY: a process may kill itself.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        Ok::<_, Error>(())
    })?;
    bail!("SIGKILL does not return")
}

fn look(_: &str) -> Result<()> {
    let app = open("resident-death")?;
    let counters = Counters::new(app, "one")?;
    let value = counters.value()?;
    ensure!(
        value < u64::MAX / 2,
        "what was not committed is there: {value}"
    );
    app.flush()?;
    counters.count()?;
    counters.expect(value + 1)
}
