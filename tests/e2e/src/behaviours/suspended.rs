//! Requests in steps: suspended they keep what they hold, and lose it with their deadline or process.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vmsrs::{App, Domain, Error, Kind, Options, Request, RunError, Step, Task};
use vmsrs_protocol::ioctl::SUSPENDED_MAX;

use crate::host::Guest;
use crate::raw;
use crate::{Behaviour, Machine};

const NAME: &str = "suspended_request_holds_locks_until_deadline_or_exit";

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: NAME,
    machine: Machine::Usual,
    steps: &[
        ("steps", steps),
        ("deadline", deadline),
        ("killed", killed),
        ("suspend and wait", suspend_and_wait),
        ("limit", limit),
        ("left behind", left_behind),
    ],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    guest.run("steps", "")?;
    let incident = guest.run("deadline", "")?;
    let facts = guest.incident(incident.trim())?;
    ensure!(facts["kind"] == "deadline", "its kind: {facts}");
    guest.run("killed", "")?;
    guest.run("limit", "")?;
    guest.run("left behind", "").map(drop)
}

fn domain(key: &str) -> Result<&'static Domain> {
    // SAFETY: no request here lends its locals to others.
    let app = unsafe { App::open("suspended") }?;
    Ok(app.domain(key)?)
}

/// Sets the number at the domain's root, which is there from the first time on.
fn set(request: &Request, value: u64) -> Result<(), Error> {
    if let Some(mut number) = request.root::<u64>() {
        // SAFETY: the request holds the domain, whose root is a number.
        unsafe { *number.as_mut() = value };
        return Ok(());
    }
    let number = request.alloc(value)?;
    request.set_root(Some(number.into()))
}

fn number(domain: &'static Domain) -> Result<u64> {
    let read = |request: &Request| {
        let number = request.root::<u64>();
        // SAFETY: as in set().
        number.map_or(0, |number| unsafe { *number.as_ref() })
    };
    Ok(domain.run(|request| Ok::<_, Error>(read(request)))?)
}

fn is_held(domain: &'static Domain) -> Result<bool> {
    let options = Options {
        lock_timeout: Some(Duration::from_millis(1)),
        ..Options::default()
    };
    match domain.run_with(&options, |_| Ok::<_, Error>(())) {
        Ok(()) => Ok(false),
        Err(RunError::Refused(Error::LockTimeout { .. })) => Ok(true),
        other => bail!("{other:?}"),
    }
}

/// Each step on a thread of its own; what is written in one is there in the next, and for nobody else.
fn steps(_: &str) -> Result<()> {
    let (main, shared) = (domain("steps")?, domain("steps, shared")?);
    let mut task = Task::new(main, Options::default())?;
    for step in 1..=3 {
        task = thread::spawn(move || -> Result<Task> {
            let mut entered = Ok(());
            let outcome = task.step(|request| {
                if step == 1 {
                    entered = request.enter(shared).map(|entered| {
                        entered.keep();
                    });
                }
                if entered.is_ok() {
                    entered = set(request, step);
                }
                Step::<()>::Suspend
            })?;
            entered?;
            ensure!(outcome == Step::Suspend, "{outcome:?}");
            Ok(task)
        })
        .join()
        .ok()
        .context("a step panicked")??;
        ensure!(is_held(main)? && is_held(shared)?, "held between the steps");
    }
    let seen = task.step(|request| {
        // SAFETY: as in set().
        Step::Done(
            request
                .root::<u64>()
                .map(|number| unsafe { *number.as_ref() }),
        )
    })?;
    ensure!(seen == Step::Done(Some(3)), "{seen:?}");
    ensure!(
        number(main)? == 3 && !is_held(shared)?,
        "committed, and free"
    );
    let mut task = Task::new(main, Options::default())?;
    task.step(|request| {
        // What is lost here is seen below.
        let _ = set(request, 77);
        Step::<()>::Suspend
    })?;
    drop(task);
    ensure!(number(main)? == 3, "a dropped task is given up");
    Ok(())
}

/// Its deadline takes drafts and locks from a suspended request at once, and tells it later.
fn deadline(_: &str) -> Result<()> {
    let main = domain("deadline")?;
    main.run(|request| set(request, 5))?;
    let options = Options {
        deadline: Some(Duration::from_millis(50)),
        ..Options::default()
    };
    let mut task = Task::new(main, options)?;
    task.step(|request| {
        // What is lost here is seen below.
        let _ = set(request, 77);
        Step::<()>::Suspend
    })?;
    // Waits for the lock, which only the deadline frees.
    ensure!(number(main)? == 5, "the waiter sees what was restored");
    match task.step(|_| Step::Done(())) {
        Err(RunError::Failed(failure)) if failure.kind == Kind::Deadline => {
            println!("{}", failure.incident);
        }
        other => bail!("{other:?}"),
    }
    ensure!(number(main)? == 5, "and nobody else loses anything");
    Ok(())
}

/// `kill -9` of a process with a suspended request frees its locks and drops its drafts.
fn killed(_: &str) -> Result<()> {
    let main = domain("killed")?;
    main.run(|request| set(request, 5))?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["guest", NAME, "suspend and wait", ""])
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().context("its output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    ensure!(line.trim() == "suspended", "it said {line}");
    ensure!(is_held(main)?, "the other process holds it");
    child.kill()?;
    child.wait()?;
    ensure!(number(main)? == 5, "the draft is gone, the lock free");
    Ok(())
}

fn suspend_and_wait(_: &str) -> Result<()> {
    let mut task = Task::new(domain("killed")?, Options::default())?;
    task.step(|request| {
        // What is lost here is seen by the other process.
        let _ = set(request, 77);
        Step::<()>::Suspend
    })?;
    println!("suspended");
    loop {
        thread::park();
    }
}

/// Suspends `count` requests that hold nothing, and returns their tags.
fn suspend_empty(thread: &raw::Thread<'_>, count: u32) -> Result<Vec<u64>> {
    (0..count)
        .map(|_| {
            let tag = thread.begin(&[])?;
            let suspended = thread.suspend(tag);
            thread.detach();
            suspended.map(|()| tag).map_err(Into::into)
        })
        .collect()
}

/// One program can suspend so many requests and no more; one that is given up makes room.
fn limit(_: &str) -> Result<()> {
    let app = raw::App::open("suspended")?;
    let thread = app.thread()?;
    let tags = suspend_empty(&thread, SUSPENDED_MAX)?;
    let tag = thread.begin(&[])?;
    let refused = thread.suspend(tag).expect_err("one too many");
    ensure!(refused.raw_os_error() == Some(libc::EAGAIN), "{refused}");
    app.abandon(tags[0])?;
    thread.suspend(tag)?;
    thread.detach();
    for tag in tags.into_iter().skip(1).chain([tag]) {
        app.abandon(tag)?;
    }
    let gone = app.abandon(tag).expect_err("nothing of it is left");
    ensure!(gone.raw_os_error() == Some(libc::ENOENT), "{gone}");
    Ok(())
}

/// Suspended requests of a process that ends fail one by one.
fn left_behind(_: &str) -> Result<()> {
    const COUNT: u32 = 20;
    let app = raw::App::open("suspended")?;
    let before = app.info()?.incidents;
    let suspend = || -> Result<()> {
        let file = raw::App::open("suspended")?;
        suspend_empty(&file.thread()?, COUNT).map(drop)
    };
    // SAFETY: the guest's process of a step has one thread, and the child only leaves by _exit().
    match unsafe { libc::fork() } {
        // SAFETY: always sound.
        0 => unsafe { libc::_exit(i32::from(suspend().is_err())) },
        child => {
            let mut status = 0;
            // SAFETY: the status is a variable of this function.
            let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
            ensure!(waited == child && status == 0, "the child: {status}");
        }
    }
    let failed = app.info()?.incidents - before;
    ensure!(
        failed == u64::from(COUNT),
        "{failed} of {COUNT} have failed"
    );
    Ok(())
}
