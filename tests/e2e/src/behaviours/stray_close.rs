//! A request that closes the library's descriptors, as a double close does, costs nobody anything.

use std::ffi::c_void;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use vmsrs::{App, Error};

use crate::counter::Counter;
use crate::limits::patient;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "stray_close_costs_nobody_anything",
    machine: Machine::Usual,
    steps: &[("close", close)],
    host: |guest| guest.run_steps(&["close"]),
};

/// The library's descriptors.
fn descriptors() -> Result<Vec<RawFd>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        // The one that reads the folder is gone by now.
        if fs::read_link(entry.path()).is_ok_and(|target| target.ends_with("vmsrs")) {
            let name = entry.file_name().into_string().ok().context("a number")?;
            found.push(name.parse()?);
        }
    }
    Ok(found)
}

fn close(_: &str) -> Result<()> {
    // SAFETY: no request here shares its locals with other threads.
    let app = unsafe { App::open("stray close") }?;
    let [alice, bob] = [Counter::open(app, "alice")?, Counter::open(app, "bob")?];
    for close_all in [false, true] {
        for reuse in [false, true] {
            let before = descriptors()?;
            ensure!(!before.is_empty(), "the library has no descriptor");
            let closed = if close_all { before.len() } else { 1 };
            let sockets = closes(alice, &before[..closed], reuse)?;
            count(bob)?;
            count(alice)?;
            let other = std::thread::spawn(move || count(bob));
            other.join().ok().context("a panic")??;
            still_sockets(sockets)?;
            let after = descriptors()?;
            ensure!(
                after.len() == before.len(),
                "a descriptor is not made again: {after:?} for {before:?}"
            );
        }
    }
    register(alice)?;
    take(alice, bob)
}

/// Descriptors that another thread closes while a new one maps what it has registered.
struct Race {
    /// The library's.
    ours: Vec<RawFd>,
    closed: Vec<RawFd>,
    /// The numbers are given to sockets.
    reuse: bool,
    /// Mappings that come before.
    earlier: usize,
    sockets: Vec<(UnixDatagram, UnixDatagram)>,
}

static RACE: Mutex<Option<Race>> = Mutex::new(None);

/// The C library's, which the library calls by this name: the descriptors of a [`Race`] are closed just before.
///
/// # Safety
///
/// As `mmap`.
// SAFETY: nothing else in this program has the name.
#[unsafe(no_mangle)]
unsafe extern "C" fn mmap(
    address: *mut c_void,
    length: usize,
    protection: i32,
    flags: i32,
    fd: RawFd,
    offset: libc::off_t,
) -> *mut c_void {
    if fd >= 0
        && let Some(race) = &mut *race()
        && race.ours.contains(&fd)
    {
        race.meet();
    }
    // SAFETY: passed on to the caller.
    unsafe {
        libc::syscall(
            libc::SYS_mmap,
            address,
            length,
            protection,
            flags,
            fd,
            offset,
        ) as _
    }
}

fn race() -> MutexGuard<'static, Option<Race>> {
    RACE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Race {
    /// One of the library's descriptors is about to be mapped.
    fn meet(&mut self) {
        if self.earlier > 0 {
            self.earlier -= 1;
            return;
        }
        self.ours.clear();
        self.sockets = close_all(&self.closed, self.reuse);
    }
}

/// New threads whose descriptors are closed in the middle of their registration.
fn register(counter: Counter) -> Result<()> {
    let before = descriptors()?.len();
    for earlier in 0..2 {
        for reuse in [false, true] {
            // One of them, or all.
            for which in 0..=before {
                let ours = descriptors()?;
                let closed = match ours.get(which) {
                    Some(&one) => vec![one],
                    None => ours.clone(),
                };
                *race() = Some(Race {
                    ours,
                    closed,
                    reuse,
                    earlier,
                    sockets: Vec::new(),
                });
                let counted = std::thread::spawn(move || count(counter)).join();
                let met = race().take().context("the race")?;
                let what = || format!("{which}, {earlier} earlier, reuse: {reuse}");
                counted.ok().context("a panic")?.with_context(what)?;
                ensure!(met.ours.is_empty(), "nothing was mapped: {}", what());
                still_sockets(met.sockets)?;
                count(counter)?;
                let after = descriptors()?.len();
                ensure!(
                    after == before,
                    "{after} descriptors, not {before}: {}",
                    what()
                );
            }
        }
    }
    Ok(())
}

/// Another app's file gets the number of the library's descriptor: it refuses the calls, which the right one gets.
fn take(alice: Counter, bob: Counter) -> Result<()> {
    let ours = descriptors()?;
    // SAFETY: as above.
    let other = Counter::open(unsafe { App::open("stray other") }?, "carol")?;
    let others = descriptors()?;
    let others = others.iter().find(|number| !ours.contains(number));
    let &others = others.context("the other app has no descriptor")?;
    let (before, expected) = (alice.read()?, other.read()?);
    alice.domain().run_with(&patient(), |_| {
        alice.add(1);
        for &number in &ours {
            // SAFETY: it is not: that is the test.
            unsafe { libc::dup2(others, number) };
        }
        Ok::<_, Error>(())
    })?;
    count(bob)?;
    ensure!(
        alice.read()? == before + 1 && other.read()? == expected,
        "a call went to another app"
    );
    count(other)?;
    Ok(())
}

/// A request that writes, then closes descriptors, and gives their numbers to sockets perhaps.
fn closes(
    counter: Counter,
    descriptors: &[RawFd],
    reuse: bool,
) -> Result<Vec<(UnixDatagram, UnixDatagram)>> {
    let mut sockets = Vec::new();
    counter.domain().run_with(&patient(), |_| {
        counter.add(1);
        sockets = close_all(descriptors, reuse);
        Ok::<_, Error>(())
    })?;
    Ok(sockets)
}

/// Closes descriptors, and may give their numbers to sockets.
fn close_all(numbers: &[RawFd], reuse: bool) -> Vec<(UnixDatagram, UnixDatagram)> {
    for &number in numbers {
        // SAFETY: it is not: the descriptor is the library's. That is the test.
        unsafe { libc::close(number) };
    }
    let reused = numbers.iter().filter(|_| reuse).filter_map(|&number| {
        let (socket, peer) = UnixDatagram::pair().ok()?;
        // SAFETY: nobody has the number.
        let moved = unsafe {
            libc::dup2(socket.as_raw_fd(), number);
            UnixDatagram::from_raw_fd(number)
        };
        Some((moved, peer))
    });
    reused.collect()
}

fn still_sockets(sockets: Vec<(UnixDatagram, UnixDatagram)>) -> Result<()> {
    for (socket, peer) in sockets {
        socket.send(b"still a socket")?;
        let mut text = [0; 14];
        ensure!(peer.recv(&mut text)? == 14, "the socket has lost a message");
    }
    Ok(())
}

fn count(counter: Counter) -> Result<()> {
    counter.domain().run_with(&patient(), |_| {
        counter.add(1);
        Ok::<_, Error>(())
    })?;
    Ok(())
}
