//! A write to another domain gets SIGSEGV at its instruction, and a system call that would write there fails with
//! EFAULT.

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{Result, ensure};
use vmsrs_protocol::incident::{KIND_FOREIGN_WRITE, KIND_MEMORY};

use crate::fault::{store_instruction, try_store};
use crate::raw::{App, peek, poke};
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "foreign_write_gets_sigsegv_and_read_gets_efault",
    machine: Machine::Usual,
    steps: &[("foreign", foreign), ("mapping", mapping)],
    host: |guest| guest.run_steps(&["foreign", "mapping"]),
};

/// Memory system calls with a wrong address do not affect the pages of another domain.
fn mapping(_: &str) -> Result<()> {
    const PAGE: usize = 4096;
    let app = App::open("foreign-mapping")?;
    let (mine, _) = app.domain("mine", 4)?;
    let (theirs, page) = app.domain("theirs", 4)?;
    let thread = app.thread()?;
    thread.commit_byte(theirs, page, 7, 0)?;
    thread.begin(&[mine])?;
    let (none, address) = (libc::PROT_NONE, page.cast());
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    let expect_refused = |what: &str, result: isize| {
        // The error number depends on the kernel.
        ensure!(result == -1, "{what} returned {result}");
        // SAFETY: readable by the whole process if the call was refused.
        ensure!(unsafe { peek(page) } == 7, "{what}: the byte has changed");
        Ok(())
    };
    // SAFETY: the calls are refused; otherwise the test fails.
    unsafe {
        expect_refused("munmap", libc::munmap(address, PAGE) as isize)?;
        expect_refused("mprotect", libc::mprotect(address, PAGE, none) as isize)?;
        let mapped = libc::mmap(address, PAGE, none, flags, -1, 0);
        expect_refused("mmap", mapped as isize)?;
        let moved = libc::mremap(address, PAGE, 2 * PAGE, libc::MREMAP_MAYMOVE);
        expect_refused("mremap", moved as isize)?;
    }
    Ok(thread.end()?)
}

fn foreign(_: &str) -> Result<()> {
    let app = App::open("foreign-write")?;
    let (mine, my_page) = app.domain("mine", 4)?;
    let (theirs, their_page) = app.domain("theirs", 4)?;
    let thread = app.thread()?;
    thread.commit_byte(theirs, their_page.wrapping_add(123), 7, 0)?;

    let expect_refused = |what: &str| -> Result<()> {
        let target = their_page.wrapping_add(123);
        // SAFETY: the target is this test's own domain.
        let fault = unsafe { try_store(target, 99) };
        let Err(fault) = fault else {
            anyhow::bail!("{what}: the store happened")
        };
        ensure!(fault.signal == libc::SIGSEGV, "{what}: {fault:?}");
        ensure!(
            fault.address == target as u64,
            "{what}: not the address of the write: {fault:x?}"
        );
        ensure!(
            fault.instruction == store_instruction(),
            "{what}: not at the store: {fault:x?}"
        );
        // The kernel writes on behalf of the process.
        let zero = File::open("/dev/zero")?;
        // SAFETY: the kernel checks the address; the target is this test's own domain.
        let got = unsafe { libc::read(zero.as_raw_fd(), target.cast(), 16) };
        let error = std::io::Error::last_os_error();
        ensure!(
            got == -1 && error.raw_os_error() == Some(libc::EFAULT),
            "{what}: read returned {got}, {error}"
        );
        // SAFETY: the page is readable by the whole process.
        ensure!(unsafe { peek(target) } == 7, "{what}: the byte has changed");
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
        "the driver has not recognized the foreign write: kind {}",
        failure.kind
    );
    thread.end()?;

    // A write that was refused to one request does not affect the thread's next request.
    let tag = thread.begin(&[mine])?;
    let failure = thread.fail(tag, KIND_MEMORY, their_page as u64 + 123)?;
    ensure!(
        failure.kind == KIND_MEMORY,
        "no write of this request was refused: kind {}",
        failure.kind
    );
    thread.end()?;

    // A page outside of all extents belongs to no domain.
    let nowhere = app.address(vmsrs_protocol::APP_PAGES - 1);
    ensure!(
        // SAFETY: nothing is mapped there.
        unsafe { try_store(nowhere, 1) }.is_err(),
        "a page of no domain is writable"
    );
    Ok(())
}
