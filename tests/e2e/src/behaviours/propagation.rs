//! Corrupted bytes do not propagate: does to a protected server's state what the study in `tests/propagation` does to
//! that of an unprotected one.

use anyhow::{Context, Result, bail, ensure};
use vmsrs::{App, Domain, Error, Kind, RunError};

use crate::fault::store;
use crate::{Behaviour, Machine};

/// Users, each with a domain.
const USERS: usize = 6;
/// Size of a user's state in bytes: several pages.
const SIZE: usize = 20_000;
/// Bytes to corrupt in a request's own state, and in another user's.
const TRIALS: usize = 200;

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "corruption_by_failed_request_reaches_no_other",
    machine: Machine::Usual,
    steps: &[("propagation", propagation)],
    host: |guest| guest.run_steps(&["propagation"]),
};

/// A user's domain and the state in it.
struct User {
    domain: &'static Domain,
    state: *mut u8,
}

/// Pseudo-random numbers, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        // Knuth's multiplier for 64 bits; the upper half is more random.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) as usize % limit
    }
}

fn byte(user: usize, at: usize) -> u8 {
    (user * 31 + at * 7) as u8
}

impl User {
    fn new(app: &'static App, number: usize) -> Result<Self> {
        let domain = app.domain(format!("user {number}"))?;
        let state = domain.run(|_| {
            let block = domain.allocate(SIZE, 16)?;
            for at in 0..SIZE {
                // SAFETY: within the new block.
                unsafe { block.as_ptr().add(at).write(byte(number, at)) };
            }
            Ok::<_, Error>(block)
        })?;
        Ok(Self {
            domain,
            state: state.as_ptr(),
        })
    }

    fn address(&self, at: usize) -> *mut u8 {
        self.state.wrapping_add(at)
    }

    /// What a request of this user reads in the state of `other`.
    fn reads(&self, other: &User, at: usize) -> Result<u8> {
        Ok(self.domain.run(|_| {
            // SAFETY: within the block; all requests of an app can read its pages.
            Ok::<_, Error>(unsafe { other.address(at).read_volatile() })
        })?)
    }
}

fn propagation(_: &str) -> Result<()> {
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open("propagation") }?;
    let users: Vec<User> = (0..USERS)
        .map(|number| User::new(app, number))
        .collect::<Result<_>>()?;
    let mut numbers = Numbers(1);
    for trial in 0..TRIALS {
        let guilty = numbers.below(USERS);
        let victim = (guilty + 1 + numbers.below(USERS - 1)) % USERS;
        let at = numbers.below(SIZE);
        let damage = 1 << numbers.below(8);
        own_state(&users, guilty, victim, at, damage)
            .and_then(|()| state_of_another(&users, guilty, victim, at, damage))
            .with_context(|| format!("trial {trial}: user {guilty}, byte {at}"))?;
    }
    for (number, user) in users.iter().enumerate() {
        for at in 0..SIZE {
            // SAFETY: as in reads(); no request is running.
            let found = unsafe { user.address(at).read_volatile() };
            ensure!(found == byte(number, at), "user {number}, byte {at}");
        }
    }
    Ok(())
}

/// A request corrupts its own user's state and fails later.
fn own_state(users: &[User], guilty: usize, other: usize, at: usize, damage: u8) -> Result<()> {
    let user = &users[guilty];
    let good = byte(guilty, at);
    let outcome = user.domain.run(|request| -> Result<(), Error> {
        // SAFETY: the request's own state; the wrong value is the error under test.
        unsafe { store(user.address(at), good ^ damage) };
        request.fail("found later")
    });
    match outcome {
        Err(RunError::Failed(failure)) if failure.kind == Kind::Invariant => {}
        other => bail!("the request did not fail: {other:?}"),
    }
    for reader in [other, guilty] {
        let found = users[reader].reads(user, at)?;
        ensure!(found == good, "user {reader} reads what was discarded");
    }
    Ok(())
}

/// A request writes to another user's state.
fn state_of_another(
    users: &[User],
    guilty: usize,
    victim: usize,
    at: usize,
    damage: u8,
) -> Result<()> {
    let (user, victim_state) = (&users[guilty], &users[victim]);
    let address = victim_state.address(at);
    let good = byte(victim, at);
    let outcome = user.domain.run(|_| {
        // SAFETY: faults, which ends the request.
        unsafe { store(address, good ^ damage) };
        Ok::<(), Error>(())
    });
    match outcome {
        Err(RunError::Failed(failure)) if failure.kind == Kind::ForeignWrite => {
            ensure!(failure.address == address as u64, "{failure}");
        }
        other => bail!("the store was not refused: {other:?}"),
    }
    for reader in [victim, guilty] {
        let found = users[reader].reads(victim_state, at)?;
        ensure!(found == good, "user {reader} reads what was refused");
    }
    Ok(())
}
