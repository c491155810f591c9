//! Deleted domains: what they had is the window's again, and nobody has a part of one any more.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail, ensure};
use vmsrs::{App, Error, Kind, RunError};
use vmsrs_protocol::ioctl::COMMIT_SEAL;
use vmsrs_protocol::shared::{LOCK_DELETED, LOCK_TAG, LOCK_WAITERS};

use crate::counter::Counter;
use crate::host::Guest;
use crate::limits::patient;
use crate::mapping::lock_words;
use crate::{Behaviour, Machine, fault, raw, steps};

/// The behaviour in a window that ten times as many pages come and go in as it has.
pub(super) const WINDOW: Behaviour = Behaviour {
    name: "deleted_domains_give_back_what_they_had",
    machine: Machine::SmallWindow,
    steps: &[
        ("come-and-go", come_and_go),
        ("waiter", waiter),
        ("processes", processes),
        ("other", other),
        ("forged", forged),
    ],
    host: window,
};

/// The behaviour when the guest ends.
pub(super) const CUT: Behaviour = Behaviour {
    name: "deleted_domain_is_there_whole_or_gone_whole_after_a_crash",
    machine: Machine::Restarting,
    steps: &[("look", look), ("delete", delete)],
    host: cut,
};

fn window(guest: &mut Guest) -> Result<()> {
    let pages = |guest: &Guest| -> Result<u64> {
        let status = guest.recovery_status()?;
        let pages = status["pages"].as_u64();
        pages.with_context(|| format!("pages in {status}"))
    };
    let before = pages(guest)?;
    guest.run_steps(&["come-and-go", "waiter", "processes", "forged"])?;
    let left = pages(guest)? - before;
    ensure!(left < 64, "{left} pages of deleted domains are left");
    Ok(())
}

fn open(name: &str) -> Result<&'static App> {
    // SAFETY: no request here shares its locals with other threads.
    Ok(unsafe { App::open(name) }?)
}

/// Users that come and go have ten times as many pages as the window.
fn come_and_go(_: &str) -> Result<()> {
    let app = open("deletion")?;
    let room = u64::from(app.info()?.vault_frames);
    let (mut pages, mut users, mut numbers) = (0, 0, 0);
    while pages < 10 * room {
        let domain = app.domain(format!("user {users}"))?;
        let size = 4096 * (1 + users as usize * 7 % 90);
        domain.run(|request| {
            ensure_new(request.root::<u64>().is_none())?;
            let block = domain.allocate(size, 16)?;
            // SAFETY: a new block of that size.
            unsafe { block.as_ptr().write_bytes(users as u8, size) };
            request.set_root(Some(block))
        })?;
        let info = domain.info()?;
        ensure!(
            info.committed as usize >= size / 4096 && info.drafts == 0,
            "{size} bytes committed: {info:?}"
        );
        pages += u64::from(info.pages);
        numbers = numbers.max(domain.number());
        users += 1;
        domain.delete()?;
        ensure!(matches!(domain.info(), Err(Error::Deleted)));
    }
    app.flush()?;
    println!("{users} users with {pages} pages; the largest number is {numbers}");
    // Numbers come back with batches; the vault cannot be full of deleted domains meanwhile.
    ensure!(u64::from(numbers) < users, "no number was used again");
    let info = app.info()?;
    ensure!(
        info.drafts == 0
            && info.unsealed == 0
            && info.pool_free + info.resident == info.pool_frames,
        "frames are missing: {info:?}"
    );
    Ok(())
}

fn ensure_new(is_new: bool) -> Result<(), Error> {
    match is_new {
        true => Ok(()),
        false => Err(Error::Argument("a new domain has a root")),
    }
}

/// What sleeps for the lock of a domain is told that it is deleted.
fn waiter(_: &str) -> Result<()> {
    let app = raw::App::open("deletion-raw")?;
    let thread = app.thread()?;
    let (domain, page) = app.domain("user", 4)?;
    thread.commit_byte(domain, page, 1, COMMIT_SEAL)?;
    thread.commit_byte(domain, page, 2, 0)?;
    let tag = thread.begin(&[domain])?;
    let word = app.lock_word(domain);
    std::thread::scope(|scope| -> Result<()> {
        let app = &app;
        let sleepers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(move || -> Result<_> {
                    let thread = app.thread()?;
                    let tag = thread.begin(&[])?;
                    let outcome = thread.lock_wait(tag, domain, 600_000);
                    thread.end()?;
                    Ok(outcome)
                })
            })
            .collect();
        while word.load(Ordering::SeqCst) & LOCK_WAITERS == 0 {
            std::thread::yield_now();
        }
        thread.delete(tag, domain)?;
        ensure!(word.load(Ordering::SeqCst) & LOCK_TAG == LOCK_DELETED);
        thread.end()?;
        for sleeper in sleepers {
            let outcome = sleeper.join().expect("the thread does not panic")?;
            let error = outcome.err().and_then(|error| error.raw_os_error());
            ensure!(error == Some(libc::EIDRM), "the wait ended with {error:?}");
        }
        Ok(())
    })?;
    // With a word that a stray write has freed, there is nothing to write to either.
    word.store(0, Ordering::SeqCst);
    let tag = thread.begin(&[domain])?;
    let again = thread.delete(tag, domain);
    ensure!(again.is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL)));
    ensure!(
        app.extent(domain, 1, 4).is_err(),
        "a deleted domain has grown"
    );
    thread.end()?;
    let (domain, page) = app.domain("user", 4)?;
    // SAFETY: readable by the whole process.
    let first = unsafe { page.read_volatile() };
    ensure!(first == 0, "a new domain has {first}");
    thread.commit_byte(domain, page, 3, COMMIT_SEAL)
}

/// Another process has the domain open when it is deleted, and finds it gone at once.
fn processes(_: &str) -> Result<()> {
    let app = open("deletion-shared")?;
    for round in 0..3u64 {
        let user = Counter::open(app, "user")?;
        user.domain().run(|_| {
            user.add(41 + round);
            Ok::<_, Error>(())
        })?;
        let mut child = steps::command(WINDOW.name, "other", &round.to_string())?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("a pipe")?;
        let mut lines = BufReader::new(output).lines();
        let mut expect = |expected: &str| -> Result<()> {
            let line = lines.next().context("the other process ended")??;
            ensure!(line == expected, "the other process says {line}");
            Ok(())
        };
        expect("open")?;
        user.domain().delete()?;
        child.stdin.take().context("a pipe")?.write_all(b"\n")?;
        expect("gone")?;
        ensure!(child.wait()?.success(), "the other process failed");
        let next = Counter::open(app, "user")?;
        let found = next.read()?;
        ensure!(found == 7, "the new domain has {found}");
        next.domain().delete()?;
    }
    Ok(())
}

fn other(argument: &str) -> Result<()> {
    let round: u64 = argument.parse()?;
    let app = open("deletion-shared")?;
    let (user, own) = (Counter::open(app, "user")?, Counter::open(app, "own")?);
    let found = user.read()?;
    ensure!(found == 41 + round, "the domain has {found}");
    let place = user.domain().root_address().cast::<u64>();
    println!("open");
    std::io::stdin().read_line(&mut String::new())?;
    // What is mapped here is gone, too.
    let outcome = own.domain().run(|_| {
        // SAFETY: an address of the app: the access fails the request.
        Ok::<_, Error>(unsafe { place.read_volatile() })
    });
    match outcome {
        Err(RunError::Failed(failure)) if failure.kind == Kind::Memory => {}
        outcome => bail!("the page is still there: {outcome:?}"),
    }
    let refused = user.domain().run(|_| Ok::<_, Error>(()));
    ensure!(
        matches!(refused, Err(RunError::Refused(Error::Deleted))),
        "{refused:?}"
    );
    let entered = own
        .domain()
        .run(|request| request.enter(user.domain()).map(drop));
    ensure!(
        matches!(entered, Err(RunError::GivenUp(Error::Deleted))),
        "{entered:?}"
    );
    let new = Counter::open(app, "user")?;
    new.domain().run(|_| {
        new.add(7);
        Ok::<_, Error>(())
    })?;
    println!("gone");
    Ok(())
}

/// A request that marks another user's domain as deleted, and fails, has deleted nothing.
fn forged(_: &str) -> Result<()> {
    let app = open("deletion-forged")?;
    let (alice, bob) = (Counter::open(app, "alice")?, Counter::open(app, "bob")?);
    let add = || {
        alice.domain().run_with(&patient(), |_| {
            alice.add(1);
            Ok::<_, Error>(())
        })
    };
    add()?;
    let word = lock_words()?.wrapping_add(alice.domain().number() as usize);
    // SAFETY: an aligned word of a mapping that stays.
    let word = unsafe { AtomicU64::from_ptr(word) };
    for mark in [LOCK_DELETED, u64::MAX] {
        let outcome = bob.domain().run(|_| {
            word.store(mark, Ordering::SeqCst);
            fault::wild_write();
            Ok::<_, Error>(())
        });
        ensure!(outcome.is_err(), "the request has not failed");
        let info = alice.domain().info();
        ensure!(info.is_ok(), "the domain counts as deleted: {info:?}");
        let same = std::ptr::eq(app.domain("alice")?, alice.domain());
        ensure!(same, "the domain was opened anew");
        add()?;
    }
    let found = alice.read()?;
    ensure!(found == 3, "the domain has {found}");
    bob.domain().delete()?;
    Ok(alice.domain().delete()?)
}

/// Users before the guest's end, each with its number as the value.
const USERS: u64 = 8;

/// What a boot finds: the value of each user's domain, 0 if it is new; and that of the journal.
fn look(_: &str) -> Result<()> {
    let app = open("deletion-cut")?;
    let mut values = Vec::new();
    for user in 0..USERS {
        values.push(Counter::open(app, &format!("user {user}"))?.read()?);
    }
    let journal = Counter::open(app, "journal")?.read()?;
    println!("{}", serde_json::to_string(&(values, journal))?);
    Ok(())
}

/// Gives all users their values, sealed. Then deletes one after the other, and notes in the journal how many; the first
/// `argument` of them for good.
fn delete(argument: &str) -> Result<()> {
    let sealed: u64 = argument.parse()?;
    let app = open("deletion-cut")?;
    let journal = Counter::open(app, "journal")?;
    let set = |counter: Counter, value| {
        counter.domain().run(|_| {
            counter.set(value);
            Ok::<_, Error>(())
        })
    };
    set(journal, 0)?;
    for user in 0..USERS {
        let counter = Counter::open(app, &format!("user {user}"))?;
        set(counter, user + 100)?;
    }
    app.flush()?;
    for user in 0..USERS {
        app.domain(format!("user {user}"))?.delete()?;
        set(journal, user + 1)?;
        if user + 1 == sealed {
            app.flush()?;
        }
    }
    std::fs::write("/proc/sysrq-trigger", "c")?;
    bail!("the guest did not go down")
}

fn cut(guest: &mut Guest) -> Result<()> {
    guest.expect_complaint("sysrq triggered crash");
    for sealed in [0, 3, USERS] {
        guest.run_down("delete", &sealed.to_string())?;
        let (values, journal): (Vec<u64>, u64) = serde_json::from_str(&guest.run("look", "")?)?;
        let gone = values.iter().filter(|&&value| value == 0).count() as u64;
        for (user, &value) in (0..).zip(&values) {
            // In the order of the deletions, each whole.
            let expected = if user < gone { 0 } else { user + 100 };
            ensure!(value == expected, "{values:?} after the crash");
        }
        // A cut between two commits: the journal follows each deletion.
        ensure!(
            gone == journal || gone == journal + 1,
            "{gone} users are gone, the journal says {journal}"
        );
        ensure!(
            gone >= sealed,
            "{gone} users are gone for good, not {sealed}"
        );
    }
    Ok(())
}
