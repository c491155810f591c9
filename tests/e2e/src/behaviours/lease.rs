//! What is leased can be sent outside of requests, and stays as it was, whatever becomes of the domain.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::ptr::NonNull;
use std::thread;

use anyhow::{Result, bail, ensure};
use vmsrs::{App, Domain, Error, Lease, Request, RunError};
use vmsrs_bed::cpu::has_protection_keys;
use vmsrs_protocol::ioctl::IoctlInfo;

use crate::host::Guest;
use crate::{Behaviour, Machine, steps};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "leased_bytes_stay_as_they_were",
    machine: Machine::Usual,
    steps: &[
        ("versions", versions),
        ("gone", gone),
        ("written", written),
        ("threads", threads),
        ("limit", limit),
        ("mapping", mapping),
        ("again", again),
        ("other", other),
        ("die", die),
        ("look", look),
    ],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    guest.run_steps(&[
        "versions", "gone", "written", "threads", "limit", "mapping", "again",
    ])?;
    for _ in 0..2 {
        let answer = guest.step("die", "")?;
        ensure!(
            answer.signal == Some(libc::SIGKILL),
            "the process was not killed by SIGKILL: {answer:?}"
        );
        guest.run_steps(&["look"])?;
    }
    Ok(())
}

/// Bytes of an item: not whole pages, and more than a page fault maps ahead.
const SIZE: usize = 70 * 4096 + 1000;

fn open() -> Result<&'static App> {
    // SAFETY: no request here shares its locals with other threads.
    Ok(unsafe { App::open("lease") }?)
}

/// Requests that a domain is given to become hot.
const PATIENCE: usize = 5000;

/// What byte `place` of an item is.
fn byte(value: u8, place: usize) -> u8 {
    value ^ (place / 4096) as u8
}

/// Stores an item.
fn set(domain: &'static Domain, value: u8) -> Result<()> {
    domain.run(|request| {
        let item = match request.root::<u8>() {
            Some(item) => item,
            None => domain.allocate(SIZE, 16)?,
        };
        for place in (0..SIZE).step_by(4096) {
            let length = (SIZE - place).min(4096);
            // SAFETY: a block of that size.
            unsafe { item.add(place).write_bytes(byte(value, place), length) };
        }
        request.set_root(Some(item))
    })?;
    Ok(())
}

fn item(request: &Request) -> Option<NonNull<[u8]>> {
    let item = request.root::<u8>()?;
    Some(NonNull::slice_from_raw_parts(item, SIZE))
}

/// A lease of the item. Those of pages that are not sealed are few at a time.
fn lease(domain: &'static Domain) -> Result<Lease> {
    loop {
        match domain.lease(|request| Ok::<_, Error>(item(request))) {
            Ok(Some(lease)) => return Ok(lease),
            Ok(None) => bail!("there is no item"),
            Err(RunError::Refused(Error::Limit(_))) => domain.app().flush()?,
            Err(error) => bail!("{error}"),
        }
    }
}

/// Looks at what a lease shows.
fn check(lease: &[u8], value: u8) -> Result<()> {
    for (page, bytes) in lease.chunks(4096).enumerate() {
        let right = byte(value, page * 4096);
        if let Some(place) = bytes.iter().position(|&byte| byte != right) {
            bail!("byte {place} of page {page} of {value} is {}", bytes[place]);
        }
    }
    Ok(())
}

/// Sends what a lease shows, and looks at what arrives.
fn send(lease: &[u8], value: u8) -> Result<()> {
    let (mut sender, mut receiver) = UnixStream::pair()?;
    let received = thread::scope(|scope| {
        let receiving = scope.spawn(move || -> Result<_> {
            let mut received = Vec::new();
            receiver.read_to_end(&mut received)?;
            Ok(received)
        });
        let sent = sender.write_all(lease);
        drop(sender);
        let received = receiving.join().expect("the thread does not panic");
        sent?;
        received
    })?;
    ensure!(received.len() == lease.len(), "{} bytes", received.len());
    check(&received, value)
}

/// The state of the driver once nothing is on its way.
fn at_rest(app: &App) -> Result<IoctlInfo> {
    loop {
        app.flush()?;
        let info = app.info()?;
        if info.unsealed == 0 && info.reports == 0 {
            return Ok(info);
        }
        thread::yield_now();
    }
}

/// Frames of the pool that are neither free nor resident when nothing is on its way.
fn frames_kept(app: &App) -> Result<u32> {
    let info = at_rest(app)?;
    Ok(info.pool_frames - info.pool_free - info.resident)
}

/// Leases of one item's versions, taken before and after they were sealed, while frames of pool and vault are used again.
fn versions(_: &str) -> Result<()> {
    let app = open()?;
    let [user, others] = [app.domain("versions")?, app.domain("others")?];
    let mut leases = Vec::new();
    for value in 0..24 {
        set(user, value)?;
        if value % 2 == 0 {
            app.flush()?;
        }
        leases.push((value, lease(user)?));
        set(others, 100 + value)?;
        app.flush()?;
        set(others, 200 + value)?;
        for (value, lease) in &leases {
            check(lease, *value)?;
        }
        if leases.len() == 3 {
            let (value, lease) = leases.swap_remove(usize::from(value) % 3);
            send(&lease, value)?;
        }
    }
    drop(leases);
    let kept = frames_kept(app)?;
    ensure!(kept == 0, "{kept} frames are kept for no lease");
    user.delete()?;
    Ok(others.delete()?)
}

/// What is leased is freed, cleared and deleted, and the room used by others.
fn gone(_: &str) -> Result<()> {
    let app = open()?;
    for (sealed, way) in [(false, 0), (true, 0), (false, 1), (true, 1), (false, 2)] {
        let user = app.domain("gone")?;
        set(user, 7)?;
        if sealed {
            app.flush()?;
        }
        let lease = lease(user)?;
        match way {
            0 => user.delete()?,
            1 => drop(user.clear()?),
            _ => user.run(|request| {
                let item = request.root::<u8>().expect("there is one");
                request.set_root::<u8>(None)?;
                // SAFETY: nobody uses it any more.
                unsafe { request.free(item) }
            })?,
        }
        app.flush()?;
        let others = app.domain("gone others")?;
        for value in 0..6 {
            set(others, value)?;
            app.flush()?;
        }
        check(&lease, 7)?;
        send(&lease, 7)?;
        drop(lease);
        others.delete()?;
        if way == 2 {
            user.delete()?;
        }
    }
    let kept = frames_kept(app)?;
    ensure!(kept == 0, "{kept} frames are kept for no lease");
    Ok(())
}

/// Only committed bytes are leased.
fn written(_: &str) -> Result<()> {
    let app = open()?;
    let user = app.domain("written")?;
    set(user, 3)?;
    // With the root, the block and its neighbours, in the same page.
    let count = |request: &Request| {
        let item = request.root::<u8>().expect("there is one");
        // SAFETY: a byte of the block.
        unsafe { item.write(item.read().wrapping_add(1)) };
        item
    };
    // With resident pages, too, where there are keys.
    let has_keys = has_protection_keys()?;
    let mut before = 0_u8;
    for _ in 0..PATIENCE {
        if !has_keys || app.info()?.resident > 0 {
            break;
        }
        user.run(|request| {
            count(request);
            Ok::<_, Error>(())
        })?;
        before = before.wrapping_add(1);
    }
    ensure!(!has_keys || app.info()?.resident > 0, "no page is resident");
    for round in 0..50 {
        let refused = user.lease(|request| {
            count(request);
            Ok::<_, Error>(item(request))
        });
        ensure!(
            matches!(refused, Err(RunError::Refused(Error::Uncommitted))),
            "round {round}: {refused:?}"
        );
        let rest = user.lease(|request| {
            let item = count(request);
            // SAFETY: inside of the block.
            let rest = unsafe { item.add(1) };
            Ok::<_, Error>(Some(NonNull::slice_from_raw_parts(rest, SIZE - 1)))
        });
        let rest = match rest {
            Err(RunError::Refused(Error::Limit(_))) => {
                // It was given up, with what it has counted.
                app.flush()?;
                continue;
            }
            rest => rest?.expect("it was found"),
        };
        before = before.wrapping_add(1);
        let wrong = (1..10_000).find(|&place| rest[place - 1] != byte(3, place));
        ensure!(wrong.is_none(), "round {round}: {wrong:?}");
        drop(rest);
        let first = lease(user)?[0];
        ensure!(
            first == before.wrapping_add(3),
            "{first} after round {round}"
        );
    }
    Ok(user.delete()?)
}

/// Threads send while others set, delete and fail.
fn threads(_: &str) -> Result<()> {
    let app = open()?;
    let user = app.domain("threads")?;
    set(user, 0)?;
    thread::scope(|scope| -> Result<()> {
        let setting = scope.spawn(move || -> Result<()> {
            for value in 0..60_u8 {
                set(user, value)?;
                let failed = user.run(|request| {
                    let item = request.root::<u8>().expect("there is one");
                    // SAFETY: a block of that size.
                    unsafe { item.as_ptr().write_bytes(0xee, SIZE) };
                    request.fail("on purpose");
                    #[expect(unreachable_code, reason = "for the type")]
                    Ok::<_, Error>(())
                });
                ensure!(matches!(failed, Err(RunError::Failed(_))), "{failed:?}");
            }
            Ok(())
        });
        let sending: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(move || -> Result<()> {
                    for _ in 0..60 {
                        let lease = lease(user)?;
                        let value = lease[0];
                        check(&lease, value)?;
                        send(&lease, value)?;
                    }
                    Ok(())
                })
            })
            .collect();
        setting.join().expect("the thread does not panic")?;
        for sender in sending {
            sender.join().expect("the thread does not panic")?;
        }
        Ok(())
    })?;
    user.delete()?;
    let kept = frames_kept(app)?;
    ensure!(kept == 0, "{kept} frames are kept for no lease");
    Ok(())
}

/// Leases that nobody ends: at some point no more are given, and requests go on.
fn limit(_: &str) -> Result<()> {
    let app = open()?;
    let user = app.domain("limit")?;
    let frames = app.info()?.pool_frames as usize;
    set(user, 0)?;
    for sealed in [true, false] {
        let mut leases = Vec::new();
        let refused = loop {
            // Another version for each.
            set(user, leases.len() as u8)?;
            if sealed {
                app.flush()?;
            }
            match user.lease(|request| Ok::<_, Error>(item(request))) {
                Ok(lease) => leases.push(lease.expect("there is an item")),
                Err(refused) => break refused,
            }
        };
        ensure!(
            matches!(refused, RunError::Refused(Error::Limit("leased pages"))),
            "{refused:?}"
        );
        let pages = leases.len() * SIZE.div_ceil(4096);
        println!(
            "{} leases of {frames} frames; sealed: {sealed}",
            leases.len()
        );
        ensure!(pages <= frames, "{pages} of {frames} pages are leased");
        let kept = frames_kept(app)? as usize;
        ensure!(kept <= frames / 8, "{kept} of {frames} frames are leased");
        for value in 0..20 {
            set(user, value)?;
        }
        for (value, lease) in leases.iter().enumerate() {
            check(lease, value as u8)?;
        }
        drop(leases);
        let kept = frames_kept(app)?;
        ensure!(kept == 0, "{kept} frames are kept for no lease");
        drop(lease(user)?);
    }
    Ok(user.delete()?)
}

/// The mapping of a lease is whole, and read only.
fn mapping(_: &str) -> Result<()> {
    let app = open()?;
    let user = app.domain("mapping")?;
    set(user, 5)?;
    let lease = lease(user)?;
    let first = lease.as_ptr() as usize & !4095;
    let page = |number: usize| (first + number * 4096) as *mut libc::c_void;
    // SAFETY: calls that are refused.
    let refused = unsafe {
        [
            libc::munmap(page(1), 4096),
            libc::mprotect(page(0), 4096, libc::PROT_READ | libc::PROT_WRITE),
            i32::from(
                libc::mremap(page(0), 71 * 4096, 72 * 4096, libc::MREMAP_MAYMOVE)
                    == libc::MAP_FAILED,
            ) - 1,
        ]
    };
    ensure!(refused == [-1, -1, 0], "{refused:?}");
    // The kernel does not write there, either.
    let zero = std::fs::File::open("/dev/zero")?;
    // SAFETY: a page of the lease, which cannot be written.
    let read = unsafe { libc::read(zero.as_raw_fd(), page(1), 8) };
    ensure!(read == -1, "{read} bytes are written to a lease");
    check(&lease, 5)?;
    // A child of a fork does not have it: it cannot end it, either.
    // SAFETY: the child calls nothing that may wait for a lock.
    let child = unsafe { libc::fork() };
    if child == 0 {
        drop(lease);
        // SAFETY: ends the child.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: waits for the child.
    ensure!(unsafe { libc::waitpid(child, &raw mut status, 0) } == child && status == 0);
    check(&lease, 5)?;
    // Another process deletes the domain, and ends.
    let mut command: Command = steps::command(BEHAVIOUR.name, "other", "")?;
    ensure!(command.status()?.success(), "the other process failed");
    app.flush()?;
    check(&lease, 5)?;
    send(&lease, 5)
}

/// A domain has a lease, against the rules: a request ends it and fails, so it is there again, and another one ends it.
fn again(_: &str) -> Result<()> {
    let app = open()?;
    let [user, others] = [app.domain("again")?, app.domain("again others")?];
    set(others, 8)?;
    let first = lease(others)?;
    let address = first.as_ptr();
    user.run(|request| {
        let kept = NonNull::from(request.alloc(first)?);
        request.set_root(Some(kept))
    })?;
    // SAFETY: the block has a lease, or what a rollback has made of one, which can be dropped.
    let end = |request: &Request| unsafe {
        request
            .root::<Lease>()
            .expect("it is there")
            .drop_in_place();
    };
    let failed = user.run(|request| {
        end(request);
        request.fail("on purpose");
        #[expect(unreachable_code, reason = "for the type")]
        Ok::<_, Error>(())
    });
    ensure!(matches!(failed, Err(RunError::Failed(_))), "{failed:?}");
    let mut leases = vec![lease(others)?];
    while leases.last().expect("there is one").as_ptr() != address {
        ensure!(leases.len() < 10, "no lease is where the first one was");
        leases.push(lease(others)?);
    }
    user.run(|request| {
        end(request);
        Ok::<_, Error>(())
    })?;
    for lease in &leases {
        send(lease, 8)?;
        check(lease, 8)?;
    }
    drop(leases);
    user.delete()?;
    others.delete()?;
    let kept = frames_kept(app)?;
    ensure!(kept == 0, "{kept} frames are kept for no lease");
    Ok(())
}

fn other(_: &str) -> Result<()> {
    let app = open()?;
    let user = app.domain("mapping")?;
    let lease = lease(user)?;
    user.delete()?;
    app.flush()?;
    check(&lease, 5)
}

/// Is killed with leases.
fn die(_: &str) -> Result<()> {
    let app = open()?;
    let user = app.domain("die")?;
    let mut leases = Vec::new();
    for value in 0..6 {
        set(user, value)?;
        if value % 3 == 0 {
            app.flush()?;
        }
        match user.lease(|request| Ok::<_, Error>(item(request))) {
            Ok(lease) => leases.push(lease),
            // Too many that are not sealed.
            Err(RunError::Refused(Error::Limit(_))) => {}
            Err(error) => bail!("{error}"),
        }
    }
    ensure!(leases.len() > 1, "{} leases", leases.len());
    // SAFETY: a process may kill itself.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    bail!("the process lives")
}

fn look(_: &str) -> Result<()> {
    let app = open()?;
    let kept = frames_kept(app)?;
    ensure!(
        kept == 0,
        "{kept} frames are kept for a process that has ended"
    );
    drop(lease(app.domain("die")?)?);
    Ok(())
}
