//! A foreign write raises SIGSEGV at the very instruction, and a system call that would write to a
//! foreign page gives EFAULT.

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{Result, ensure};
use vmsrs_protocol::incident::{KIND_FOREIGN_WRITE, KIND_MEMORY};

use crate::fault::{store_instruction, try_store};
use crate::host::Guest;
use crate::raw::{App, peek, poke};
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "foreign_write_gets_sigsegv_and_read_gets_efault",
    machine: Machine::Usual,
    steps: &[("foreign", foreign), ("mapping", mapping)],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    guest.run("foreign", "")?;
    guest.run("mapping", "").map(drop)
}

/// A request that gives system calls a wrong address takes no page from another domain.
fn mapping(_: &str) -> Result<()> {
    const PAGE: usize = 4096;
    let app = App::open("foreign-mapping")?;
    let (mine, _) = app.domain("mine", 4)?;
    let (theirs, page) = app.domain("theirs", 4)?;
    let thread = app.thread()?;
    let tag = thread.begin(&[theirs])?;
    // SAFETY: the page is the domain's, which the request holds.
    unsafe { poke(page, 7) };
    thread.commit(tag, 0)?;
    thread.end()?;
    thread.begin(&[mine])?;
    let (none, place) = (libc::PROT_NONE, page.cast());
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let refused = |what: &str, given: isize| {
        // Which error it is, is the kernel's affair.
        ensure!(given == -1, "{what} gave {given}");
        // SAFETY: readable by the whole process, if the call was refused.
        ensure!(unsafe { peek(page) } == 7, "{what}: the byte is unharmed");
        Ok(())
    };
    // SAFETY: the calls are refused; were they not, the test would find it.
    unsafe {
        refused("munmap", libc::munmap(place, PAGE) as isize)?;
        refused("mprotect", libc::mprotect(place, PAGE, none) as isize)?;
        let mapped = libc::mmap(place, PAGE, none, flags, -1, 0);
        refused("mmap", mapped as isize)?;
        let moved = libc::mremap(place, PAGE, 2 * PAGE, libc::MREMAP_MAYMOVE);
        refused("mremap", moved as isize)?;
    }
    Ok(thread.end()?)
}

fn foreign(_: &str) -> Result<()> {
    let app = App::open("foreign-write")?;
    let (mine, my_page) = app.domain("mine", 4)?;
    let (theirs, their_page) = app.domain("theirs", 4)?;
    let thread = app.thread()?;
    let tag = thread.begin(&[theirs])?;
    // SAFETY: the page is the domain's, which the request holds.
    unsafe { poke(their_page.add(123), 7) };
    thread.commit(tag, 0)?;
    thread.end()?;

    let expect_refused = |what: &str| -> Result<()> {
        let target = their_page.wrapping_add(123);
        // SAFETY: nothing but this test's own domain lies there.
        let fault = unsafe { try_store(target, 99) };
        let Err(fault) = fault else {
            anyhow::bail!("{what}: the store happened")
        };
        ensure!(fault.signal == libc::SIGSEGV, "{what}: {fault:?}");
        ensure!(
            fault.address == target as u64,
            "{what}: the address is exact: {fault:x?}"
        );
        ensure!(
            fault.instruction == store_instruction(),
            "{what}: {fault:x?}"
        );
        // A kernel's write on behalf of the program.
        let zero = File::open("/dev/zero")?;
        // SAFETY: the kernel checks the address itself; nothing of ours lies there.
        let got = unsafe { libc::read(zero.as_raw_fd(), target.cast(), 16) };
        let error = std::io::Error::last_os_error();
        ensure!(
            got == -1 && error.raw_os_error() == Some(libc::EFAULT),
            "{what}: read gave {got}, {error}"
        );
        // SAFETY: the page is readable by the whole process.
        ensure!(unsafe { peek(target) } == 7, "{what}: the byte is unharmed");
        Ok(())
    };
    expect_refused("without a request")?;
    let tag = thread.begin(&[mine])?;
    // SAFETY: the page is the domain's, which the request holds.
    unsafe { poke(my_page, 1) };
    expect_refused("in a request that holds another domain")?;
    let failure = thread.fail(tag, KIND_MEMORY, their_page as u64 + 123)?;
    ensure!(
        failure.kind == KIND_FOREIGN_WRITE,
        "the driver knows better than SIGSEGV: {}",
        failure.kind
    );
    thread.end()?;

    // What was refused to one request says nothing about the thread's next one.
    let tag = thread.begin(&[mine])?;
    let failure = thread.fail(tag, KIND_MEMORY, their_page as u64 + 123)?;
    ensure!(
        failure.kind == KIND_MEMORY,
        "nothing was refused to this request: {}",
        failure.kind
    );
    thread.end()?;

    // A page in no extent belongs to nobody.
    let nowhere = app.address(vmsrs_protocol::APP_PAGES - 1);
    ensure!(
        // SAFETY: nothing lies there.
        unsafe { try_store(nowhere, 1) }.is_err(),
        "an address of no domain is not writable"
    );
    Ok(())
}
