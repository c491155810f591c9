//! The campaign's guest: the server with the injector, and a supervisor that restarts it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use vmsrs_bed::{cc, project};
use vmsrs_ledger::guest::image::{Parts, network, start};
use vmsrs_ledger::program::Server;
use vmsrs_report::folder as results;
use vmsrs_report::steps::Steps;

use crate::console::SUPERVISOR;
use crate::wild;

/// Port in the guest that reports what its processes do.
pub(crate) const STATE_PORT: u16 = 7879;
/// Port in the guest where the supervisor kills a process by its number.
pub(crate) const SUPERVISOR_PORT: u16 = 7880;

/// Kills the process whose number it reads, and answers whether it existed.
const END_PROCESS: &str = r#"#!/bin/sh
read process
if kill -9 "$process"; then echo ended; else echo gone; fi
"#;

const STATE: &str = r#"#!/bin/sh
ps -o pid,stat,time,comm
for task in /proc/[0-9]*/task/[0-9]*; do
	[ -s "$task/cmdline" ] || continue
	echo "$task $(cat $task/comm) $(cat $task/wchan) syscall: $(cat $task/syscall)"
	cat $task/stack
done
echo l >/proc/sysrq-trigger
dmesg | tail -n 100
"#;

/// Sources of the injector.
const INJECTOR: [&str; 14] = [
    "calls.c",
    "errors.c",
    "exception.cc",
    "handler.c",
    "leave.c",
    "line.c",
    "memory.c",
    "moment.c",
    "process.c",
    "real.c",
    "requests.c",
    "state.c",
    "threads.c",
    "wild.c",
];

/// Builds the programs into `folder` and packs the guest's image, which has no name there.
///
/// # Errors
///
/// When something cannot be built.
pub(crate) fn build(steps: &Steps, parts: &Parts, folder: &Path, server: Server) -> Result<File> {
    let step = steps.begin("build the server and the injector");
    let programs = Programs::build(folder, server)?;
    step.end("libvmsrs.so below libinject.so");

    let step = steps.begin("pack the guest");
    let mut image = parts
        .image(&programs.server)?
        .module_file(&parts.driver)
        .module_file_unloaded(&parts.stray)
        .library_folder(folder);
    if let Some(injector) = &programs.injector {
        image = image.binary(injector, "/lib/libinject.so");
    }
    let image = image
        .text("/bin/state", 0o755, STATE)
        .text("/bin/end-process", 0o755, END_PROCESS)
        .init(&init(programs.injector.is_some()))
        .write_unnamed(&parts.kernel, folder)?;
    step.end("stock Debian, busybox, server");
    Ok(image)
}

/// The guest's init: a supervisor that restarts the server whenever it ends, and the two ports.
fn init(injector: bool) -> String {
    let preload = match injector {
        true => "LD_PRELOAD=/lib/libinject.so ",
        false => "",
    };
    format!(
        "{}\
         mount -t debugfs debugfs /sys/kernel/debug\n\
         insmod /lib/modules/vmsrs_stray.ko\n\
         echo 1 >/proc/sys/kernel/sysrq\n\
         (while :; do nc -l -p {STATE_PORT} -e /bin/state; done) >/dev/null 2>&1 &\n\
         (while :; do nc -l -p {SUPERVISOR_PORT} -e /bin/end-process; done) >/dev/null 2>&1 &\n\
         # The kernel's log goes to the console in whole lines, whatever programs write there.\n\
         echo on >/proc/sys/kernel/printk_devkmsg\n\
         boot=$(cat /proc/sys/kernel/random/boot_id)\n\
         while :; do\n\
         \t{preload}{} &\n\
         \tserver=$!\n\
         \twait $server\n\
         \techo \"{SUPERVISOR}$server of boot $boot ended with code $?\" >/dev/kmsg\n\
         done\n",
        network(),
        start()
    )
}

/// What is built for the guest.
struct Programs {
    server: PathBuf,
    injector: Option<PathBuf>,
}

impl Programs {
    /// Links the server in C to the shared library, so that the injector can interpose. The one in Rust is linked to the
    /// library statically.
    fn build(folder: &Path, server: Server) -> Result<Self> {
        let library = project::built("libvmsrs.so")?;
        let libraries = library.parent().unwrap_or(Path::new("/"));
        project::link_library(&library, folder)?;
        // By name: its path in the guest is another one.
        let link = [
            "-L".as_ref(),
            libraries,
            "-lvmsrs".as_ref(),
            // Requests must not change the server's GOT.
            "-Wl,-z,now".as_ref(),
        ];
        let injector = match server {
            Server::Rust => None,
            Server::C => Some(build_injector(folder)?),
        };
        Ok(Self {
            server: server.build(folder, &link)?,
            injector,
        })
    }
}

/// Builds `libinject.so` into the folder.
///
/// # Errors
///
/// When it cannot be built.
pub fn build_injector(folder: &Path) -> Result<PathBuf> {
    let injector = folder.join("libinject.so");
    let root = project::root();
    let include = root.join("guest-lib/include");
    let header = include.join("vmsrs.h");
    let header = fs::read_to_string(&header).with_context(|| header.display().to_string())?;
    results::write(folder, "wild_calls.h", &wild::calls(&header))?;
    cc::compile(
        &INJECTOR.map(|name| Path::new("tests/campaign/inject").join(name)),
        &injector,
        &[
            "-lstdc++".as_ref(),
            "-fno-builtin".as_ref(),
            "-fPIC".as_ref(),
            "-shared".as_ref(),
            "-fvisibility=hidden".as_ref(),
            "-I".as_ref(),
            &include,
            "-I".as_ref(),
            &root.join("guest-kmod"),
            "-I".as_ref(),
            folder,
        ],
    )?;
    Ok(injector)
}

#[cfg(test)]
mod tests {
    use super::build_injector;
    use std::{env, fs, process};

    /// Its calls are made from `vmsrs.h`: a new type of an argument stops the compiler.
    #[test]
    fn injector_knows_the_arguments_of_every_public_function() {
        let folder = env::temp_dir().join(format!("vmsrs-injector-{}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        let built = build_injector(&folder);
        fs::remove_dir_all(&folder).unwrap();
        built.unwrap();
    }
}
