//! A server that is killed while it commits finds every sealed commit after its restart.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{Read as _, Write as _};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use vmsrs_protocol::ioctl::COMMIT_SEAL;

use crate::host::Guest;
use crate::raw::{App, Domain};
use crate::steps;
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "sealed_commits_survive_sigkill_of_the_server",
    machine: Machine::Usual,
    steps: &[("serve", serve), ("kill", kill), ("look", look)],
    host,
};

/// How often the server is killed.
const ROUNDS: usize = 8;

fn host(guest: &mut Guest) -> Result<()> {
    let mut committed = 0;
    for _ in 0..ROUNDS {
        let enough = 1 + RandomState::new().build_hasher().finish() % 100;
        let returned: u64 = guest.run("kill", &enough.to_string())?.trim().parse()?;
        ensure!(returned >= enough, "only {returned} commits have returned");
        let found: u64 = guest.run("look", "")?.trim().parse()?;
        // The commit that the kill interrupted is there as a whole or not at all.
        let expected = committed + returned..=committed + returned + 1;
        ensure!(
            expected.contains(&found),
            "expected {expected:?} commits, found {found}"
        );
        committed = found;
    }
    Ok(())
}

/// Two domains, each with the number of commits in its first two pages.
fn open(app: &App) -> Result<[(Domain, *mut u64); 2]> {
    let domain = |key| -> Result<_> {
        let (domain, page) = app.domain(key, 4)?;
        Ok((domain, page.cast()))
    };
    Ok([domain("alice")?, domain("bob")?])
}

fn words(first: *mut u64) -> [*mut u64; 2] {
    [first, first.wrapping_byte_add(4096)]
}

/// Commits to both domains at once and prints a byte for every commit that has returned, until it is killed.
fn serve(_: &str) -> Result<()> {
    let app = App::open("server-killed")?;
    let domains = open(&app)?;
    let thread = app.thread()?;
    let mut output = std::io::stdout().lock();
    loop {
        let tag = thread.begin(&domains.map(|(domain, _)| domain))?;
        for word in domains.iter().flat_map(|&(_, first)| words(first)) {
            // SAFETY: the pages are the domains', which the request holds.
            unsafe { word.write_volatile(word.read_volatile() + 1) };
        }
        thread.commit(tag, COMMIT_SEAL)?;
        thread.end()?;
        output.write_all(b".")?;
        output.flush()?;
    }
}

/// Runs the server until `enough` commits have returned, kills it, and prints how many have returned in all.
fn kill(enough: &str) -> Result<()> {
    let mut server = steps::command(BEHAVIOUR.name, "serve", "")?
        .stdout(Stdio::piped())
        .spawn()?;
    let mut pipe = server.stdout.take().context("the server's output")?;
    let mut returned = vec![0; enough.parse()?];
    pipe.read_exact(&mut returned).context("the server died")?;
    server.kill()?;
    pipe.read_to_end(&mut returned)?;
    server.wait()?;
    println!("{}", returned.len());
    Ok(())
}

fn look(_: &str) -> Result<()> {
    let app = App::open("server-killed")?;
    let words = open(&app)?.map(|(_, first)| words(first));
    // SAFETY: the pages are readable by the whole process.
    let counts = words.map(|words| words.map(|word| unsafe { word.read_volatile() }));
    let count = counts[0][0];
    ensure!(
        counts == [[count; 2]; 2],
        "a commit is there in part: {counts:?}"
    );
    println!("{count}");
    Ok(())
}
