//! The behaviours, one file each.

use anyhow::{Context, Result};

use crate::Behaviour;

mod after_commit;
mod audit;
mod boot_loop;
mod control_block;
mod corruption;
mod deadline;
mod deadlock;
mod deletion;
mod discard;
mod disks;
mod draft_and_commit;
mod drafted_ahead;
mod driver_unbind;
mod error_kinds;
mod evidence;
mod foreign_draft;
mod foreign_write;
mod forged_incident;
mod fork;
mod give_up_at_deadline;
mod guarded_memory;
mod guest_reboot;
mod hostile_guest;
mod kernel_write;
mod large_block;
mod lease;
mod lock_release;
mod many_processes;
mod members;
mod mutex;
mod neighbours;
mod pool_limit;
mod pool_waits;
mod power_button;
mod process_death;
mod propagation;
mod random_requests;
mod read_only;
mod read_only_vault;
mod recycled_frames;
mod resident;
mod seal_batches;
mod server_killed;
mod shares;
mod slabs;
mod stray_close;
mod suspended;
mod thread_state;
mod window_full;

pub use disks::INIT as DISK_INIT;
pub use neighbours::SANITIZERS;
pub use power_button::INIT as BUTTON_INIT;
pub use shares::{INIT as SHARE_INIT, NAME as SHARE};

/// Every behaviour, in the order of testing.
pub const ALL: &[&Behaviour] = &[
    &draft_and_commit::BEHAVIOUR,
    &discard::BEHAVIOUR,
    &drafted_ahead::BEHAVIOUR,
    &foreign_write::BEHAVIOUR,
    &foreign_draft::BEHAVIOUR,
    &resident::BEHAVIOUR,
    &guarded_memory::BEHAVIOUR,
    &kernel_write::BEHAVIOUR,
    &lease::BEHAVIOUR,
    &corruption::MIRRORED,
    &corruption::UNMIRRORED,
    &corruption::POISONED_MIRRORED,
    &corruption::POISONED_UNMIRRORED,
    &corruption::POISONED_POOL,
    &corruption::POISONED_COMMIT,
    &lock_release::BEHAVIOUR,
    &error_kinds::BEHAVIOUR,
    &neighbours::CHILDREN,
    &neighbours::LOADER,
    &neighbours::ALLOCATOR,
    &neighbours::KNOWN_ALLOCATORS,
    &neighbours::WILD,
    &neighbours::PROCESS,
    &neighbours::SANITIZED,
    &stray_close::BEHAVIOUR,
    &audit::BEHAVIOUR,
    &slabs::BEHAVIOUR,
    &evidence::BEHAVIOUR,
    &thread_state::BEHAVIOUR,
    &forged_incident::BEHAVIOUR,
    &process_death::BEHAVIOUR,
    &server_killed::BEHAVIOUR,
    &seal_batches::BATCHES,
    &seal_batches::COALESCED,
    &recycled_frames::STRANGERS,
    &recycled_frames::READERS,
    &read_only::BEHAVIOUR,
    &deadline::BEHAVIOUR,
    &give_up_at_deadline::BEHAVIOUR,
    &control_block::BEHAVIOUR,
    &many_processes::BEHAVIOUR,
    &fork::BEHAVIOUR,
    &random_requests::BEHAVIOUR,
    &propagation::BEHAVIOUR,
    &members::BEHAVIOUR,
    &after_commit::BEHAVIOUR,
    &mutex::BEHAVIOUR,
    &suspended::BEHAVIOUR,
    &deadlock::BEHAVIOUR,
    &driver_unbind::BEHAVIOUR,
    &read_only_vault::BEHAVIOUR,
    &power_button::BEHAVIOUR,
    &disks::DISK,
    &disks::OPERATORS,
    &shares::BEHAVIOUR,
    &pool_limit::BEHAVIOUR,
    &pool_waits::BEHAVIOUR,
    &deletion::WINDOW,
    // The last on its machine: its domain is not deleted, so the vault stays full.
    &window_full::BEHAVIOUR,
    &large_block::BEHAVIOUR,
    &hostile_guest::BEHAVIOUR,
    &guest_reboot::BEHAVIOUR,
    &deletion::CUT,
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
