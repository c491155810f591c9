//! The driver is unbound while requests are running, and bound again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use vmsrs_protocol::incident::KIND_INVARIANT;
use vmsrs_protocol::ioctl::COMMIT_SEAL;
use vmsrs_protocol::shared::LOCK_WAITERS;

use crate::fault::try_store;
use crate::host::Guest;
use crate::limits::EVENT_LIMIT;
use crate::raw::{App, Thread, peek, poke};
use crate::steps;
use crate::{Behaviour, Machine};

/// The driver's directory in sysfs.
const DRIVER: &str = "/sys/bus/virtio/drivers/vmsrs";
const PAGES: u32 = 64;

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "unbinding_driver_ends_requests_and_keeps_domains",
    machine: Machine::Usual,
    steps: &[("unbind", unbind), ("look", look)],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    let before = guest.incidents("sealed-write")?.len();
    guest.run_steps(&["unbind"])?;
    let after = guest.incidents("sealed-write")?.len();
    ensure!(before == after, "a write hit the vault");
    Ok(())
}

/// The device's name in sysfs.
fn device() -> Result<PathBuf> {
    fs::read_dir(DRIVER)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"virtio"))
        })
        .context("a device of the driver")
}

fn write_name(file: &str, device: &Path) -> Result<()> {
    let name = device.file_name().context("the device's name")?;
    fs::write(Path::new(DRIVER).join(file), name.as_encoded_bytes())
        .with_context(|| format!("{file} {device:?}"))
}

/// Writes to all pages of the domain again and again until a write faults.
fn write_until_fault(thread: &Thread<'_>, page: *mut u8, tag: u64) -> Result<()> {
    for round in 0u32.. {
        let address = page.wrapping_add((round % PAGES) as usize * 4096 + 1);
        // SAFETY: the page is the domain's, which the request holds.
        if let Err(fault) = unsafe { try_store(address, round as u8) } {
            ensure!(fault.signal == libc::SIGBUS, "{fault:?}");
            break;
        }
        if round % PAGES == PAGES - 1 {
            // Discard, so that drafts are made all the time.
            match thread.discard(tag) {
                Err(error) if error.raw_os_error() != Some(libc::ENODEV) => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
    }
    thread
        .fail(tag, KIND_INVARIANT, 0)
        .context("fail without a host")?;
    Ok(thread.end()?)
}

fn unbind(_: &str) -> Result<()> {
    let app = App::open("driver-unbind")?;
    let (domain, page) = app.domain("written", PAGES)?;
    let (quiet, quiet_page) = app.domain("quiet", 4)?;
    let page_address = page as usize;
    let device = device()?;
    std::thread::scope(|scope| -> Result<()> {
        let (ready, started) = std::sync::mpsc::channel();
        let app = &app;
        let writer = scope.spawn(move || -> Result<()> {
            let thread = app.thread()?;
            let tag = thread.begin(&[domain])?;
            ready.send(()).context("nobody waits for the writer")?;
            write_until_fault(&thread, page_address as *mut u8, tag)
        });
        started.recv().context("the writer failed")?;
        let waiter = scope.spawn(move || -> Result<std::io::Result<()>> {
            let thread = app.thread()?;
            let tag = thread.begin(&[])?;
            Ok(thread.lock_wait(tag, domain, EVENT_LIMIT.as_millis() as u32))
        });
        while app.lock_word(domain).load(Ordering::Acquire) & LOCK_WAITERS == 0 {
            std::thread::yield_now();
        }
        // Committed right before the driver is unbound: the host does not have it yet.
        let thread = app.thread()?;
        let tag = thread.begin(&[quiet])?;
        // SAFETY: the page is the domain's, which the request holds.
        unsafe { poke(quiet_page, 7) };
        thread.commit(tag, 0)?;
        write_name("unbind", &device)?;

        writer.join().ok().context("the writer panicked")??;
        let waited = waiter.join().ok().context("the waiter panicked")??;
        // The writer may have released the lock before the waiter looked again.
        if let Err(error) = waited {
            ensure!(
                error.raw_os_error() == Some(libc::ENODEV),
                "the waiter got {error}"
            );
        }
        let errors = [
            thread.commit(tag, 0),
            app.flush(),
            app.extent(quiet, 1, 4).map(drop),
        ];
        for outcome in errors {
            let code = outcome
                .as_ref()
                .err()
                .and_then(std::io::Error::raw_os_error);
            ensure!(code == Some(libc::ENODEV), "without a device: {outcome:?}");
        }
        Ok(())
    })?;
    // The old file and its mappings still exist.
    write_name("bind", &device)?;
    let look = steps::command(BEHAVIOUR.name, "look", "")?.status()?;
    ensure!(look.success(), "a domain is not whole afterwards: {look}");
    Ok(())
}

fn look(_: &str) -> Result<()> {
    let app = App::open("driver-unbind")?;
    let (domain, page) = app.domain("written", PAGES)?;
    let (quiet, quiet_page) = app.domain("quiet", 4)?;
    // SAFETY: the pages are readable by the whole process.
    unsafe {
        ensure!(peek(quiet_page) == 7, "the commit is lost");
        for number in 0..PAGES as usize {
            let seen = peek(page.add(number * 4096 + 1));
            ensure!(
                seen == 0,
                "page {number} holds {seen}, which was never committed"
            );
        }
    }
    let thread = app.thread()?;
    let tag = thread.begin(&[domain, quiet])?;
    // SAFETY: the pages are the domains', which the request holds.
    unsafe {
        poke(page, 1);
        poke(quiet_page, 8);
    }
    thread.commit(tag, COMMIT_SEAL)?;
    Ok(thread.end()?)
}
