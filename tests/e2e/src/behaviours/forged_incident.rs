//! A process can report only kinds of errors that it finds itself.

use std::io;

use anyhow::{Result, ensure};
use vmsrs_protocol::incident::{
    KIND_CHECKSUM, KIND_DAMAGED, KIND_FOREIGN_DRAFT, KIND_FOREIGN_WRITE, KIND_MAX, KIND_NO_FRAMES,
    KIND_POISON, KIND_PROCESS_DEATH, KIND_SEALED_WRITE,
};

use crate::host::Guest;
use crate::raw::{App, poke};
use crate::{Behaviour, Machine};

/// The behaviour.
pub(super) const BEHAVIOUR: Behaviour = Behaviour {
    name: "process_cannot_forge_incidents_of_driver_or_host",
    machine: Machine::Usual,
    steps: &[("forge", forge)],
    host,
};

fn host(guest: &mut Guest) -> Result<()> {
    let hardware = |guest: &Guest| -> Result<usize> {
        Ok(guest.incidents("checksum")?.len() + guest.incidents("poison")?.len())
    };
    let before = hardware(guest)?;
    guest.run_steps(&["forge"])?;
    ensure!(
        hardware(guest)? == before,
        "a process has forged a failure of the host's memory"
    );
    Ok(())
}

/// Kinds that only the driver or the host can find. A process that could report them would forge a failure of the
/// host's memory, or blame another request.
const FOUND_OUTSIDE: [u32; 8] = [
    KIND_FOREIGN_WRITE,
    KIND_SEALED_WRITE,
    KIND_PROCESS_DEATH,
    KIND_NO_FRAMES,
    KIND_FOREIGN_DRAFT,
    KIND_CHECKSUM,
    KIND_POISON,
    KIND_DAMAGED,
];

fn forge(_: &str) -> Result<()> {
    let app = App::open("forged-incident")?;
    let (domain, page) = app.domain("user", 4)?;
    let thread = app.thread()?;
    let tag = thread.begin(&[domain])?;
    let incidents = app.info()?.incidents;
    for kind in FOUND_OUTSIDE.into_iter().chain([0, KIND_MAX + 1, u32::MAX]) {
        let error = thread.fail(tag, kind, 0).err();
        ensure!(
            error.as_ref().and_then(io::Error::raw_os_error) == Some(libc::EINVAL),
            "kind {kind} was not refused: {error:?}"
        );
    }
    ensure!(
        app.info()?.incidents == incidents,
        "the driver has counted an incident"
    );
    // The request has not failed.
    // SAFETY: the page is the domain's, which the request holds.
    unsafe { poke(page, 1) };
    thread.commit(tag, 0)?;
    thread.end()?;
    Ok(app.flush()?)
}
