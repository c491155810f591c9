//! C programs in which requests fail by what they do to the rest of their process, with a device and deadlines: the same
//! that the library's own tests run without.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::{Behaviour, Machine};

/// Children that share memory.
pub(super) const CHILDREN: Behaviour = Behaviour {
    name: "child_of_vfork_has_no_part_in_the_request",
    machine: Machine::Usual,
    steps: &[("children", children)],
    host: |guest| guest.run_steps(&["children"]),
};

/// The dynamic linker's lock.
pub(super) const LOADER: Behaviour = Behaviour {
    name: "requests_begin_while_a_library_is_loaded",
    machine: Machine::Usual,
    steps: &[("loader", loader)],
    host: |guest| guest.run_steps(&["loader"]),
};

/// Deadlines in an allocator that is preloaded.
pub(super) const ALLOCATOR: Behaviour = Behaviour {
    name: "deadline_waits_until_thread_has_left_any_allocator",
    machine: Machine::Usual,
    steps: &[("allocator", allocator)],
    host: |guest| guest.run_steps(&["allocator"]),
};

/// Deadlines in the allocators that servers preload.
pub(super) const KNOWN_ALLOCATORS: Behaviour = Behaviour {
    name: "deadlines_in_jemalloc_tcmalloc_and_mimalloc_cost_their_requests",
    machine: Machine::Usual,
    steps: &[("known-allocators", known_allocators)],
    host: |guest| guest.run_steps(&["known-allocators"]),
};

/// Wild arguments, and errors of other threads in the middle of any call.
pub(super) const WILD: Behaviour = Behaviour {
    name: "wild_arguments_cost_their_request",
    machine: Machine::Usual,
    steps: &[("wild", wild)],
    host: |guest| guest.run_steps(&["wild"]),
};

/// What requests do to their process, and mutexes of the C library in domains.
pub(super) const PROCESS: Behaviour = Behaviour {
    name: "what_a_request_does_to_its_process_harms_no_other_request",
    machine: Machine::Usual,
    steps: &[("process", process)],
    host: |guest| guest.run_steps(&["process"]),
};

/// Sanitizers of the compiler.
pub(super) const SANITIZED: Behaviour = Behaviour {
    name: "programs_with_sanitizers_use_the_device",
    machine: Machine::Usual,
    steps: &[("sanitized", sanitized)],
    host: |guest| guest.run_steps(&["sanitized"]),
};

/// Sanitizers that a program for the guest has.
pub const SANITIZERS: [&str; 4] = ["address", "thread", "undefined", "leak"];

fn succeeds(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?}: {}: {errors}",
        output.status
    );
    Ok(())
}

fn children(_: &str) -> Result<()> {
    let anywhere = ["crash", "abort", "raise", "fail", "exit", "run", "commit"];
    let in_clone = ["alloc", "enter", "free"];
    let outside = ["crash", "abort", "raise", "fail", "exit", "write", "end"];
    for (parent, deeds) in [
        ("vfork", &anywhere[..]),
        ("vfork", &["damage"]),
        ("clone", &anywhere),
        ("clone", &in_clone),
        ("outside", &outside),
    ] {
        for deed in deeds {
            succeeds(Command::new("/bin/children").args([parent, deed]))?;
        }
    }
    Ok(())
}

fn loader(_: &str) -> Result<()> {
    for constructor in ["crash", "wait"] {
        succeeds(Command::new("/bin/loader").args([constructor, "/lib/constructor.so"]))?;
    }
    Ok(())
}

fn allocator(_: &str) -> Result<()> {
    succeeds(Command::new("/bin/allocator").env("LD_PRELOAD", "/lib/allocator.so"))
}

fn known_allocators(_: &str) -> Result<()> {
    // Threads are single-stepped out of the allocator, which takes long on an emulated CPU.
    const DEADLINES: &str = "4";
    for name in ["jemalloc", "tcmalloc", "mimalloc"] {
        let mut program = Command::new("/bin/allocator");
        program.args(["mixed", DEADLINES]);
        succeeds(program.env("LD_PRELOAD", format!("/lib/{name}.so")))?;
    }
    Ok(())
}

fn wild(_: &str) -> Result<()> {
    succeeds(&mut Command::new("/bin/wild"))
}

fn process(_: &str) -> Result<()> {
    for what in ["numbers", "timers", "settings", "mutexes"] {
        succeeds(Command::new("/bin/process").arg(what))?;
    }
    Ok(())
}

/// All but the thread sanitizer leave room for apps.
fn sanitized(_: &str) -> Result<()> {
    for sanitizer in SANITIZERS {
        let device = match sanitizer {
            "thread" => "refused",
            _ => "device",
        };
        succeeds(Command::new(format!("/bin/sanitized-{sanitizer}")).arg(device))?;
    }
    succeeds(Command::new("/bin/sanitized-thread").env("VMSRS_DEVICE", "none"))
}
