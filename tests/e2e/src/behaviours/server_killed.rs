//! A server that is killed while it commits finds whole commits only after its restart, and every sealed one.

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
/// Pages of the two domains that a commit writes. It needs several seal messages, which have 256 records each.
const PAGES: [u32; 2] = [2, 300];

fn host(guest: &mut Guest) -> Result<()> {
    let mut committed = 0;
    for round in 0..ROUNDS {
        let enough = 1 + RandomState::new().build_hasher().finish() % 40;
        // A commit that has returned stays, also when no one has waited for its seal: the driver has it.
        let flags = if round % 2 == 0 { COMMIT_SEAL } else { 0 };
        let returned = guest.run("kill", &format!("{flags} {enough}"))?;
        let returned: u64 = returned.trim().parse()?;
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

/// Two domains, each with the number of commits at the start of each page.
fn open(app: &App) -> Result<[(Domain, *mut u64); 2]> {
    let domain = |key, pages| -> Result<_> {
        let (domain, page) = app.domain(key, pages)?;
        Ok((domain, page.cast()))
    };
    Ok([domain("alice", PAGES[0])?, domain("bob", PAGES[1])?])
}

/// The words of both domains that a commit writes.
fn words(domains: &[(Domain, *mut u64); 2]) -> impl Iterator<Item = *mut u64> {
    domains.iter().zip(PAGES).flat_map(|(&(_, first), pages)| {
        (0..pages as usize).map(move |page| first.wrapping_byte_add(page * 4096))
    })
}

/// Commits to both domains at once and prints a byte for every commit that has returned, until it is killed.
fn serve(flags: &str) -> Result<()> {
    let flags = flags.parse()?;
    let app = App::open("server-killed")?;
    let domains = open(&app)?;
    let thread = app.thread()?;
    let mut output = std::io::stdout().lock();
    loop {
        let tag = thread.begin(&domains.map(|(domain, _)| domain))?;
        for word in words(&domains) {
            // SAFETY: the pages are the domains', which the request holds.
            unsafe { word.write_volatile(word.read_volatile() + 1) };
        }
        thread.commit(tag, flags)?;
        thread.end()?;
        output.write_all(b".")?;
        output.flush()?;
    }
}

/// Runs the server until enough commits have returned, kills it, and prints how many have returned in all.
fn kill(argument: &str) -> Result<()> {
    let (flags, enough) = argument.split_once(' ').context("flags and number")?;
    let mut server = steps::command(BEHAVIOUR.name, "serve", flags)?
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
    let counts: Vec<u64> = words(&open(&app)?)
        // SAFETY: the pages are readable by the whole process.
        .map(|word| unsafe { word.read_volatile() })
        .collect();
    let count = counts[0];
    ensure!(
        counts.iter().all(|&other| other == count),
        "a commit is there in part: {counts:?}"
    );
    println!("{count}");
    Ok(())
}
