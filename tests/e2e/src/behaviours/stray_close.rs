//! A request that closes the library's descriptors, as a double close does, costs nobody anything.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::UnixDatagram;

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
            for (socket, peer) in sockets {
                socket.send(b"still a socket")?;
                let mut text = [0; 14];
                ensure!(peer.recv(&mut text)? == 14, "the socket has lost a message");
            }
            let after = descriptors()?;
            ensure!(
                after.len() == before.len(),
                "a descriptor is not made again: {after:?} for {before:?}"
            );
        }
    }
    take(alice, bob)
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
        for &number in descriptors {
            // SAFETY: it is not: the descriptor is the library's. That is the test.
            unsafe { libc::close(number) };
        }
        for &number in descriptors.iter().filter(|_| reuse) {
            let Ok((socket, peer)) = UnixDatagram::pair() else {
                continue;
            };
            // SAFETY: nobody has the number.
            let moved = unsafe {
                libc::dup2(socket.as_raw_fd(), number);
                UnixDatagram::from_raw_fd(number)
            };
            sockets.push((moved, peer));
        }
        Ok::<_, Error>(())
    })?;
    Ok(sockets)
}

fn count(counter: Counter) -> Result<()> {
    counter.domain().run_with(&patient(), |_| {
        counter.add(1);
        Ok::<_, Error>(())
    })?;
    Ok(())
}
