//! A first write makes a draft, and a commit publishes it.

use anyhow::{Context, Result, ensure};

use crate::host::Guest;
use crate::raw::{App, peek, poke};
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "first_write_makes_draft_and_commit_publishes_it",
    machine: Machine::Usual,
    steps: &[("write", write), ("read", read), ("refused", refused)],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    let sealed = |guest: &Guest| -> Result<u64> {
        guest.recovery_status()?["sealed_frames"]
            .as_u64()
            .context("the number of sealed frames")
    };
    let before = sealed(guest)?;
    guest.run_steps(&["write"])?;
    ensure!(
        sealed(guest)? == before + 1,
        "the host has not sealed exactly one more page"
    );
    guest.run_steps(&["read", "refused"])
}

/// Commits that the driver refuses, after which the right one works.
fn refused(_: &str) -> Result<()> {
    use vmsrs_protocol::ioctl::{ADVICE_COMMIT, COMMIT_ALONE, COMMIT_SEAL, commit_length};
    use vmsrs_protocol::{MAX_DOMAINS, NONE};

    let app = App::open("draft-and-commit")?;
    let (domain, page) = app.domain("refused", 4)?;
    let thread = app.thread()?;
    let tag = thread.begin(&[domain])?;
    // SAFETY: the page is the domain's, which the request holds.
    unsafe { poke(page, 1) };
    let all = commit_length(NONE, 0);
    let unknown = commit_length(NONE, !(COMMIT_SEAL | COMMIT_ALONE));
    let [beyond, last] = [MAX_DOMAINS, NONE - 1].map(|domain| commit_length(domain, 0));
    let wrong = [
        (tag, unknown, ADVICE_COMMIT, libc::EINVAL),
        (tag, beyond, ADVICE_COMMIT, libc::EINVAL),
        (tag, last, ADVICE_COMMIT, libc::EINVAL),
        (0, all, ADVICE_COMMIT, libc::EINVAL),
        (tag + 1, all, ADVICE_COMMIT, libc::EPERM),
        (u64::MAX, all, ADVICE_COMMIT, libc::EPERM),
        (tag, all, libc::POSIX_FADV_NORMAL, libc::EINVAL),
        (tag, all, ADVICE_COMMIT + 1, libc::EINVAL),
    ];
    for (tag, length, advice, error) in wrong {
        let found = app.advise(tag, length, advice);
        ensure!(
            found == Some(error),
            "{tag:#x}, {length:#x}, {advice:#x}: {found:?}"
        );
    }
    let found = std::thread::scope(|scope| {
        let other = scope.spawn(|| app.advise(tag, all, ADVICE_COMMIT));
        other.join().expect("no panic")
    });
    ensure!(
        found == Some(libc::EPERM),
        "a thread that is not registered has committed: {found:?}"
    );
    thread.commit(tag, COMMIT_SEAL)?;
    thread.end()?;
    // SAFETY: the page is readable by the whole process.
    ensure!(unsafe { peek(page) } == 1, "the commit is lost");
    Ok(())
}

fn write(_: &str) -> Result<()> {
    let app = App::open("draft-and-commit")?;
    let (domain, page) = app.domain("user", 4)?;
    let thread = app.thread()?;
    let before = app.info()?;

    let tag = thread.begin(&[domain])?;
    ensure!(
        thread.written_pages().is_empty(),
        "a draft before the first write"
    );
    // SAFETY: the page is the domain's, which the request holds.
    unsafe {
        ensure!(
            peek(page) == 0,
            "a page that was never committed is not zero"
        );
        poke(page, 0x5a);
        poke(page.add(100), 0xa5);
        ensure!(peek(page) == 0x5a, "the request does not see its write");
    }
    ensure!(
        thread.written_pages().len() == 1,
        "two writes to one page made {} drafts",
        thread.written_pages().len()
    );
    ensure!(
        app.info()?.drafts == before.drafts + 1,
        "the driver has not counted the draft"
    );
    thread.commit(tag, vmsrs_protocol::ioctl::COMMIT_SEAL)?;
    ensure!(
        thread.written_pages().is_empty(),
        "a draft after the commit"
    );
    thread.end()?;

    let after = app.info()?;
    ensure!(
        after.drafts == before.drafts,
        "a draft is left after the commit"
    );
    ensure!(
        after.commits == before.commits + 1,
        "the driver has not counted the commit"
    );
    ensure!(
        after.sealed_pages == before.sealed_pages + 1,
        "the driver has not counted the sealed page"
    );
    // SAFETY: the page is readable by the whole process.
    unsafe {
        ensure!(
            peek(page) == 0x5a && peek(page.add(100)) == 0xa5,
            "the commit is not visible"
        )
    };
    Ok(())
}

/// In a later process, the app has the page at the same address.
fn read(_: &str) -> Result<()> {
    let app = App::open("draft-and-commit")?;
    let (_, page) = app.domain("user", 4)?;
    // SAFETY: the page is readable by the whole process.
    unsafe {
        ensure!(
            peek(page) == 0x5a && peek(page.add(100)) == 0xa5,
            "the commit did not outlive its process"
        )
    };
    Ok(())
}
