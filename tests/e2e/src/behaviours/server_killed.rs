//! A server that is killed in the middle of commits has every sealed one of them when it is back.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use vmsrs_protocol::ioctl::COMMIT_SEAL;

use crate::host::Guest;
use crate::raw::{App, Domain};
use crate::{Behaviour, Machine};

const NAME: &str = "sealed_commits_survive_sigkill_of_the_server";

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: NAME,
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
        ensure!(returned >= enough, "only {returned} commits returned");
        let found: u64 = guest.run("look", "")?.trim().parse()?;
        // The commit that the kill interrupted is there or not, as a whole.
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

/// Commits to both domains at once, and writes a byte to standard output for every commit that
/// returned, until it is killed.
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

/// Runs the server until so many commits returned, kills it, and prints how many it were in all.
fn kill(enough: &str) -> Result<()> {
    let mut server = Command::new(std::env::current_exe()?)
        .args(["guest", NAME, "serve", ""])
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
        "a commit is there as a whole or not at all: {counts:?}"
    );
    println!("{count}");
    Ok(())
}
