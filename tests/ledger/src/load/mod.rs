//! The load: many clients, a model of every user, and a comparison of everything at the end.
//!
//! Each user belongs to one connection. A request is sent while the model of the users that it
//! involves is locked, so the model knows the exact answer whatever the other connections do.

mod options;
pub mod outcome;
pub mod pace;
mod worker;
mod world;

use std::thread;
use std::time::Duration;

use crate::client::{Client, NoServer};
pub use crate::load::options::Options;
use crate::load::outcome::{Outcome, Progress};
use crate::load::worker::Worker;
use crate::load::world::World;
use crate::plan::SMALLEST_GROUP;
use crate::users::{TooFewUsers, check_spread};

/// Why the load could not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There are more connections than users.
    #[error(transparent)]
    Users(#[from] TooFewUsers),
    /// A fatal request may need others to prepare it.
    #[error("one request in {one_in} cannot be fatal; ask for one in {SMALLEST_GROUP} at most")]
    TooManyFatal {
        /// The requested share.
        one_in: usize,
    },
    /// There is no new server at the address.
    #[error(transparent)]
    Server(#[from] NoServer),
}

/// Runs the load to its end; `on_progress` is called several times a second.
///
/// # Errors
///
/// When the load cannot begin. The death of the server is an outcome, not an error.
pub fn run(options: &Options, mut on_progress: impl FnMut(Progress)) -> Result<Outcome, Error> {
    check_spread(options.users, options.connections)?;
    if options.fatal_one_in < SMALLEST_GROUP {
        return Err(Error::TooManyFatal {
            one_in: options.fatal_one_in,
        });
    }
    let no_server = |doing| NoServer::at(options.address, doing);
    let mut control =
        Client::connect(options.address, options.reply_timeout).map_err(no_server("connecting"))?;
    let before = control.stats().map_err(no_server("asking for STATS"))?;

    let per_connection = options
        .requests
        .div_ceil(options.connections)
        .next_multiple_of(options.fatal_one_in);
    let world = World::new(options, (per_connection * options.connections) as u64);
    world
        .set_up(&mut control)
        .map_err(no_server("adding the users"))?;

    let start = world.pace.start();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..options.connections)
            .map(|connection| {
                let world = &world;
                scope.spawn(move || Worker::new(world, connection).run(per_connection, start))
            })
            .collect();
        while !workers.iter().all(thread::ScopedJoinHandle::is_finished) {
            on_progress(world.progress());
            thread::sleep(Duration::from_millis(100));
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    on_progress(world.progress());

    if world.death().is_none() {
        world.compare_everything();
    }
    let after = Client::connect(options.address, options.reply_timeout)
        .and_then(|mut client| client.stats());
    Ok(world.outcome(&before, after.ok().as_ref(), seconds))
}
