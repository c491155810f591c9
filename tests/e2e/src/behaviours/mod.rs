//! The behaviours, one file each.

use anyhow::{Context, Result};

use crate::Behaviour;

mod audit_written_pages;
mod boot_loop;
mod circle;
mod control_block;
mod corruption;
mod deadline;
mod discard;
mod draft_and_commit;
mod driver_unbind;
mod evidence;
mod foreign_draft;
mod foreign_write;
mod fork;
mod given_up_overdue;
mod greedy_request;
mod guard;
mod guest_reboot;
mod hostile_guest;
mod kernel_write;
mod kinds_of_error;
mod lock_after_error;
mod many_processes;
mod members;
mod process_death;
mod propagation;
mod read_only;
mod seal_batches;
mod server_killed;
mod suspended;
mod threads_and_model;
mod window_full;
mod window_mapped_writable;

/// Every behaviour, in the order of testing.
pub const ALL: &[&Behaviour] = &[
    &draft_and_commit::BEHAVIOUR,
    &discard::BEHAVIOUR,
    &foreign_write::BEHAVIOUR,
    &foreign_draft::BEHAVIOUR,
    &guard::BEHAVIOUR,
    &kernel_write::BEHAVIOUR,
    &window_mapped_writable::BEHAVIOUR,
    &corruption::MIRRORED,
    &corruption::UNMIRRORED,
    &corruption::POISONED_MIRRORED,
    &corruption::POISONED_UNMIRRORED,
    &lock_after_error::BEHAVIOUR,
    &kinds_of_error::BEHAVIOUR,
    &audit_written_pages::BEHAVIOUR,
    &evidence::BEHAVIOUR,
    &process_death::BEHAVIOUR,
    &server_killed::BEHAVIOUR,
    &seal_batches::BEHAVIOUR,
    &read_only::BEHAVIOUR,
    &deadline::BEHAVIOUR,
    &given_up_overdue::BEHAVIOUR,
    &control_block::BEHAVIOUR,
    &many_processes::BEHAVIOUR,
    &fork::BEHAVIOUR,
    &threads_and_model::BEHAVIOUR,
    &propagation::BEHAVIOUR,
    &members::BEHAVIOUR,
    &suspended::BEHAVIOUR,
    &circle::BEHAVIOUR,
    &driver_unbind::BEHAVIOUR,
    &greedy_request::BEHAVIOUR,
    // The last on its machine: domains are never given back, so the window stays full.
    &window_full::BEHAVIOUR,
    &hostile_guest::BEHAVIOUR,
    &guest_reboot::BEHAVIOUR,
    &boot_loop::BEHAVIOUR,
];

/// The behaviour with this name.
///
/// # Errors
///
/// When there is none.
pub fn find(name: &str) -> Result<&'static Behaviour> {
    ALL.iter()
        .find(|behaviour| behaviour.name == name)
        .copied()
        .with_context(|| format!("no behaviour is named {name}"))
}
