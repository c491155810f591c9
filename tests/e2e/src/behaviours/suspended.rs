//! A suspended request keeps its locks and drafts until its deadline or the end of its process.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use vmsrs::{App, Domain, Error, Kind, Options, Request, RunError, Step, Task};
use vmsrs_protocol::ioctl::SUSPENDED_MAX;

use crate::host::Guest;
use crate::limits::patient;
use crate::raw;
use crate::steps;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "suspended_request_holds_locks_until_deadline_or_exit",
    machine: Machine::Usual,
    steps: &[
        ("steps", steps),
        ("deadline", deadline),
        ("killed", killed),
        ("suspend and wait", suspend_and_wait),
        ("limit", limit),
        ("process ends", process_ends),
    ],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    guest.run_steps(&["steps"])?;
    let incident = guest.run("deadline", "")?;
    let facts = guest.incident(incident.trim())?;
    ensure!(
        facts["kind"] == "deadline",
        "not a missed deadline: {facts}"
    );
    guest.run_steps(&["killed", "limit", "process ends"])
}

fn domain(key: &str) -> Result<&'static Domain> {
    // SAFETY: no request here shares its locals with other threads.
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
    Ok(domain.run_with(&patient(), |request| Ok::<_, Error>(read(request)))?)
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

/// With each step on a thread of its own, the writes of one are visible in the next, and to no other request.
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
        ensure!(
            is_held(main)? && is_held(shared)?,
            "a domain is not held between steps"
        );
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
        "not committed, or still held"
    );
    let mut task = Task::new(main, Options::default())?;
    task.step(|request| {
        // An error shows below.
        let _ = set(request, 77);
        Step::<()>::Suspend
    })?;
    drop(task);
    ensure!(number(main)? == 3, "a dropped task was not given up");
    Ok(())
}

/// The deadline discards the drafts of a suspended request and releases its locks at once; the request learns of it
/// when it is resumed.
fn deadline(_: &str) -> Result<()> {
    let main = domain("deadline")?;
    main.run(|request| set(request, 5))?;
    let mut task = suspended_with_deadline(main, Duration::from_millis(50))?;
    // Waits for the lock, which only the deadline releases.
    ensure!(
        number(main)? == 5,
        "the waiter does not see the restored number"
    );
    match task.step(|_| Step::Done(())) {
        Err(RunError::Failed(failure)) if failure.kind == Kind::Deadline => {
            println!("{}", failure.incident);
        }
        other => bail!("{other:?}"),
    }
    ensure!(number(main)? == 5, "the failed task has changed the number");
    Ok(())
}

/// A task that is suspended after a write, with a deadline. On a busy machine the deadline may come before that: then
/// there is another task, with twice the time.
fn suspended_with_deadline(main: &'static Domain, mut deadline: Duration) -> Result<Task> {
    loop {
        let options = Options {
            deadline: Some(deadline),
            ..patient()
        };
        let mut task = Task::new(main, options)?;
        let outcome = task.step(|request| {
            // An error shows in the caller.
            let _ = set(request, 77);
            Step::<()>::Suspend
        });
        match outcome {
            Ok(_) => return Ok(task),
            Err(RunError::Failed(failure)) if failure.kind == Kind::Deadline => deadline *= 2,
            other => bail!("{other:?}"),
        }
    }
}

/// SIGKILL of a process with a suspended request releases its locks and discards its drafts.
fn killed(_: &str) -> Result<()> {
    let main = domain("killed")?;
    main.run(|request| set(request, 5))?;
    let mut child = steps::command(BEHAVIOUR.name, "suspend and wait", "")?
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().context("its output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    ensure!(line.trim() == "suspended", "the child printed {line}");
    ensure!(is_held(main)?, "the other process does not hold the domain");
    child.kill()?;
    child.wait()?;
    ensure!(number(main)? == 5, "the draft was not discarded");
    Ok(())
}

fn suspend_and_wait(_: &str) -> Result<()> {
    let mut task = Task::new(domain("killed")?, Options::default())?;
    task.step(|request| {
        // An error shows in the other process.
        let _ = set(request, 77);
        Step::<()>::Suspend
    })?;
    println!("suspended");
    loop {
        thread::park();
    }
}

/// Suspends `count` requests that hold no domains; returns their tags.
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

/// A process can suspend a limited number of requests; one that is given up makes room.
fn limit(_: &str) -> Result<()> {
    let app = raw::App::open("suspended")?;
    let thread = app.thread()?;
    let tags = suspend_empty(&thread, SUSPENDED_MAX)?;
    let tag = thread.begin(&[])?;
    let refused = thread
        .suspend(tag)
        .expect_err("more than the limit were suspended");
    ensure!(refused.raw_os_error() == Some(libc::EAGAIN), "{refused}");
    app.abandon(tags[0])?;
    thread.suspend(tag)?;
    thread.detach();
    for tag in tags.into_iter().skip(1).chain([tag]) {
        app.abandon(tag)?;
    }
    let refused = app
        .abandon(tag)
        .expect_err("an abandoned request was found");
    ensure!(refused.raw_os_error() == Some(libc::ENOENT), "{refused}");
    Ok(())
}

/// When a process ends, each of its suspended requests fails.
fn process_ends(_: &str) -> Result<()> {
    const COUNT: u32 = 20;
    let app = raw::App::open("suspended")?;
    let before = app.info()?.incidents;
    let suspend = || -> Result<()> {
        let file = raw::App::open("suspended")?;
        suspend_empty(&file.thread()?, COUNT).map(drop)
    };
    // SAFETY: the process has one thread, and the child ends by _exit().
    match unsafe { libc::fork() } {
        // SAFETY: ends the child.
        0 => unsafe { libc::_exit(i32::from(suspend().is_err())) },
        child => {
            let mut status = 0;
            // SAFETY: `status` is a local variable.
            let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
            ensure!(
                waited == child && status == 0,
                "the child ended with {status:#x}"
            );
        }
    }
    let failed = app.info()?.incidents - before;
    ensure!(
        failed == u64::from(COUNT),
        "{failed} of {COUNT} have failed"
    );
    Ok(())
}
