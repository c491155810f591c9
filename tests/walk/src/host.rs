//! Boots the host, and judges what it prints.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use vmsrs_bed::console::complaint;
use vmsrs_bed::{Bed, Event, Job, System};

/// Limit of the whole walk, which takes some minutes on an idle machine. It only ends what hangs.
const LIMIT: Duration = Duration::from_secs(4 * 3600);

/// In MiB: its own, and its guest's.
const MEMORY: u32 = 4096;

/// What the test provokes in the guest.
const PROVOKED: [&str; 2] = ["sysrq triggered crash", "Kernel panic - not syncing: sysrq"];

/// The walk is on the host's console, between other lines.
struct Watch {
    step: String,
    complaints: Vec<String>,
}

impl Watch {
    fn see(&mut self, line: &str) {
        eprintln!("{line}");
        if let Some(step) = line.strip_prefix("walk: ") {
            step.clone_into(&mut self.step);
        }
        // Its own console, and the guest's by way of the journal.
        let line = line.strip_prefix("guest: ").unwrap_or(line);
        if let Some(text) = complaint(line)
            && !PROVOKED.iter().any(|provoked| text.contains(provoked))
        {
            self.complaints.push(text.to_owned());
        }
    }
}

/// Runs the host whose files are in `folder`; returns whether all went well.
///
/// # Errors
///
/// When it cannot be booted, hangs or crashes.
pub(crate) fn run(folder: &Path) -> Result<bool> {
    let system = System {
        kernel: folder.join("vmlinuz"),
        initramfs: folder.join("initrd.img"),
        disk: folder.join("disk.img"),
    };
    for file in [&system.kernel, &system.initramfs, &system.disk] {
        ensure!(
            file.is_file(),
            "there is no {}: make walk makes it",
            file.display()
        );
    }
    let job = Job::on_system(system).memory_mib(MEMORY).timeout(LIMIT);
    let mut watch = Watch {
        step: "before its beginning".to_owned(),
        complaints: Vec::new(),
    };
    let outcome = Bed::auto()?.run(&job, |event| {
        if let Event::Console(line) = event {
            watch.see(line);
        }
    })?;
    for complaint in &watch.complaints {
        println!("a kernel complained: {complaint}");
    }
    match outcome.code {
        0 => println!("every command of the walk did what the document says"),
        code => println!("the walk ended with code {code} at {}", watch.step),
    }
    Ok(outcome.success() && watch.complaints.is_empty())
}
