//! What a request has done after its commit, and variables outside of domains that it keeps: both say what is committed, also where
//! requests of other threads fail at the same time.

use std::ptr;
use std::sync::Mutex;
use std::thread;

use anyhow::{Result, ensure};
use vmsrs::{App, Options, RunError};

use crate::counter::Counter;
use crate::fault::wild_write;
use crate::host::Guest;
use crate::limits::patient;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "messages_and_counts_outside_of_domains_follow_commits",
    machine: Machine::LargeWindow,
    steps: &[("messages", messages)],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    guest.run_steps(&["messages"])
}

const THREADS: u64 = 4;
const REQUESTS: u64 = 200;

/// Requests that have changed the shared domain, as they count outside of it. That domain's lock guards it.
static mut COUNT: u64 = 0;

/// What was sent: the user's number and its count.
static SENT: Mutex<Vec<(u64, u64)>> = Mutex::new(Vec::new());

/// Whether that request fails, and how: after it has changed everything.
fn fails(request: u64) -> bool {
    request % 7 == 3
}

/// The requests of one user; returns how many have failed.
fn serve(number: u64, user: &Counter, shared: &Counter) -> Result<u64> {
    let options = Options {
        keep_arena: true,
        ..patient()
    };
    let (mut failed, mut count) = (0, 0_u64);
    for request in 0..REQUESTS {
        let outcome = user.domain().run_with(&options, |running| {
            running.enter(shared.domain())?.keep();
            // SAFETY: the domain's lock guards it, from before the copy to the end of the request.
            unsafe {
                let place = &raw mut COUNT;
                running.keep(place)?;
                place.write(place.read() + 1);
            }
            user.add(1);
            shared.add(1);
            // What is sent lies in the arena, before a page that nobody can touch.
            let message = running.arena().input(&(count + 1).to_le_bytes());
            let message = message.map_or(0, |bytes| bytes.as_ptr().expose_provenance());
            running.on_commit(move || {
                let bytes = ptr::with_exposed_provenance::<[u8; 8]>(message);
                // SAFETY: kept until the thread's next request begins.
                let count = u64::from_le_bytes(unsafe { bytes.read() });
                SENT.lock().unwrap().push((number, count));
            })?;
            match request % 3 {
                _ if !fails(request) => Ok(true),
                0 => {
                    wild_write();
                    Ok(false)
                }
                1 => running.fail("on purpose"),
                _ => Err(vmsrs::Error::Ended),
            }
        });
        match outcome {
            Ok(_) => count += 1,
            Err(RunError::Failed(failure)) => {
                ensure!(failure.defers_failed == 0, "{failure:?}");
                failed += 1;
            }
            Err(RunError::GivenUp(vmsrs::Error::Ended)) => failed += 1,
            Err(error) => anyhow::bail!("{error}"),
        }
        ensure!(user.read()? == count, "user {number}");
    }
    Ok(failed)
}

fn messages(_: &str) -> Result<()> {
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open("after commit") }?;
    let shared = Counter::open(app, "shared")?;
    let users: Vec<_> = (0..THREADS)
        .map(|number| Counter::open(app, &format!("user {number}")))
        .collect::<Result<_>>()?;
    let failed = thread::scope(|scope| -> Result<u64> {
        let shared = &shared;
        let threads: Vec<_> = (0..)
            .zip(&users)
            .map(|(number, user)| scope.spawn(move || serve(number, user, shared)))
            .collect();
        let mut failed = 0;
        for thread in threads {
            failed += thread.join().expect("the thread does not panic")?;
        }
        Ok(failed)
    })?;
    let expected = (0..REQUESTS).filter(|&request| fails(request)).count() as u64;
    ensure!(failed == THREADS * expected, "{failed} have failed");
    let committed = THREADS * REQUESTS - failed;
    // SAFETY: no request runs.
    let count = unsafe { (&raw const COUNT).read() };
    ensure!(
        shared.read()? == committed && count == committed,
        "{committed} committed, {count} counted"
    );
    let sent = SENT.lock().unwrap();
    for number in 0..THREADS {
        let of_user = sent.iter().filter(|(user, _)| *user == number);
        ensure!(
            of_user.map(|(_, count)| *count).eq(1..=REQUESTS - expected),
            "user {number}: not all in order"
        );
    }
    Ok(())
}
