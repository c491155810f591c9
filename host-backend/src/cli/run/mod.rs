//! `vmsrs run`: makes a VM of the parts and runs it to its end.
//!
//! What can be refused cheaply comes first, and everything that is made undoes itself when it is
//! dropped, so a start that fails leaves nothing behind.

pub(super) mod config;
mod console_target;
mod error;
mod report;
mod sizes;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

pub use self::error::RunError;

use self::console_target::ConsoleTarget;
use super::Target;
use super::doctor;
use super::exit::{Exit, Failure};
use crate::control::{Folder, Server};
use crate::devices::net::{Tap, TapConfig};
use crate::devices::recovery::ScrubRate;
use crate::devices::vhost_user::VhostUser;
use crate::machine::{
    Daemons, DiskOption, Machine, Notifier, OnReboot, RegionsPlan, RestartBudget, RunningVm,
    ShareOption, VhostUserOption, load_initramfs,
};
use crate::output::{self, say};
use crate::sandbox::{self, Files, Role};
use crate::service::ServiceManager;
use crate::size::Size;
use crate::vmm::loader::Kernel;
use crate::vmm::signals::Termination;
use crate::vmm::vm::MAX_DEVICES;
use crate::vmm::{ExitReason, StopHandle, Vm, VmConfig};

/// Run a virtual machine until it ends
///
/// Boots a Linux kernel with a recovery device, and with a network card if a tap interface is given.
/// While it runs, `vmsrs status` and `vmsrs incidents` reach it over its control socket. SIGINT and
/// SIGTERM end it, and so does Ctrl-A x on its console. A guest that reboots, panics or crashes is
/// restarted and finds all sealed state in place.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  A guest with its console on this terminal:
    vmsrs run --kernel vmlinuz --initramfs guest.img

  A server at 192.168.77.2, from a folder with an `init`:
    vmsrs run --kernel vmlinuz --initramfs ./guest --memory 1G --vcpus 2 \\
        --window 512M --tap tap0,192.168.77.1/24 --console guest.log

  With a disk and a folder of this machine:
    vmsrs run --kernel vmlinuz --initramfs guest.img --disk web.qcow2,format=qcow2 \\
        --share www=/srv/www

  With the options of a file, and more RAM than that says:
    vmsrs run --config /etc/vmsrs/web.toml --memory 2G

  In a script, with the report at the end:
    vmsrs run --kernel vmlinuz --initramfs guest.img --console guest.log --json | jq .reason

Exit codes: 0 the guest powered off or was stopped, 1 unexpected error, 2 invalid command line,
3 not supported by this machine, 5 the guest crashed, 6 the guest reset itself (a reboot or a
kernel panic), 7 the control socket, the tap interface or a disk's image is in use. With 5 and 6 restarts were
turned off, or the guest went down too often.")]
pub(super) struct Arguments {
    /// File in TOML with a key for each of the other options, named like it; what the command line says
    /// takes precedence (packaging/vmsrs.toml.example)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Kernel: a bzImage (vmlinuz), or a vmlinux with a PVH entry point
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initramfs: a cpio archive, compressed or not, or a folder that is packed on the fly
    #[arg(long, value_name = "FILE|FOLDER")]
    initramfs: Option<PathBuf>,
    /// The guest's RAM, without pool and vault: 64M to 1T; Debian's kernel needs 68M
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    memory: Size,
    /// Number of virtual CPUs
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    vcpus: u32,
    /// Memory for the pages of all domains and the drafts of requests: vault and pool together
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    window: Size,
    /// Number of 4 KiB frames of the pool, for drafts and for what is not sealed yet; the rest of the
    /// window is the vault [default: an eighth, at most 16384]
    #[arg(long, value_name = "FRAMES")]
    pool: Option<u32>,
    /// Use huge pages of 2M that are reserved on this machine, for RAM, pool and vault. Without it
    /// transparent huge pages are used where the machine allows them
    #[arg(
        long,
        value_name = "true|false",
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false"
    )]
    hugepages: bool,
    /// Rate of the background check of sealed pages, in bytes per second; 0 turns it off
    #[arg(long, value_name = "SIZE", default_value = "16M")]
    scrub: Size,
    /// Tap interface for the guest's network card; with an address the host's side is configured too. With a
    /// number, one that is open already, as this descriptor
    #[arg(long, value_name = "NAME[,ADDRESS/PREFIX]|fd=NUMBER")]
    tap: Option<TapConfig>,
    /// Disk of the guest, /dev/vda and so on: an image or a block device, which qemu-storage-daemon serves;
    /// may be given several times
    #[arg(long, value_name = "FILE[,format=raw|qcow2][,readonly]")]
    disk: Vec<DiskOption>,
    /// Folder of this machine that the guest can mount (`mount -t virtiofs TAG ...`), which virtiofsd
    /// serves; may be given several times
    #[arg(long, value_name = "TAG=FOLDER")]
    share: Vec<ShareOption>,
    /// Device that a running daemon serves, which speaks vhost-user; may be given several times
    #[arg(
        long,
        value_name = "blk,socket=PATH|fs,socket=PATH,tag=TAG|net,socket=PATH[,mtu=BYTES]"
    )]
    vhost_user: Vec<VhostUserOption>,
    /// Additional kernel parameters
    #[arg(
        long,
        value_name = "PARAMETERS",
        default_value = "",
        allow_hyphen_values = true
    )]
    cmdline: String,
    /// Where the guest's serial console goes: stdio, the journal, none, or a file
    #[arg(long, value_name = "stdio|journal|none|FILE", default_value = "stdio")]
    console: ConsoleTarget,
    /// What to do when the guest reboots, panics or crashes
    #[arg(long, value_name = "ACTION", default_value = "restart")]
    on_reboot: OnReboot,
    /// Maximum number of restarts within 60 seconds; if the guest needs more, the VM ends
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    restarts: u32,
    /// Whether threads that work for the guest keep only the system calls and files that they need
    #[arg(long, value_name = "MODE", default_value = "on")]
    sandbox: SandboxMode,
    #[command(flatten)]
    target: Target,
    /// Write a report as one line of JSON at the end (docs/reference-cli.md describes it)
    #[arg(
        long,
        value_name = "true|false",
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        default_value = "false"
    )]
    pub(super) json: bool,
}

/// Whether the threads of the VM are confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum SandboxMode {
    /// They can do what they need
    On,
    /// They can do what the user can, for comparison
    Off,
}

/// Assembles the VM, runs it, reports.
pub(super) fn run(arguments: Arguments) -> Result<Exit, Failure> {
    let engine = sizes::check(&arguments)?;
    let kernel = Kernel::open(&arguments.kernel)?;
    let initramfs = arguments
        .initramfs
        .as_deref()
        .map(|path| load_initramfs(path, &arguments.cmdline, arguments.memory))
        .transpose()?;
    // Before there is anything to undo, and before the first thread, since threads inherit it.
    let termination = Termination::block()?;
    let socket_path = arguments.target.path()?;
    match arguments.sandbox {
        SandboxMode::On => sandbox::enable(Files {
            socket: Some(socket_path.clone()),
            has_daemons: arguments.daemons() != 0,
            ..Files::default()
        })
        .map_err(|error| Failure::new(Exit::Machine, error))?,
        SandboxMode::Off => log::warn!(
            "the sandbox is off: whoever takes this process over has all rights of its user"
        ),
    }
    output::relay_stderr()?;
    let folder = match arguments.target.socket {
        Some(_) => Folder::MustExist,
        None => Folder::MayBeMade,
    };
    let socket = Server::reserve(&socket_path, folder)?;
    let tap = arguments.tap.as_ref().map(Tap::open).transpose()?;
    let (daemons, served) = start_daemons(&arguments)?;
    let console = arguments.console.open(&arguments.target.name)?;

    let config = VmConfig {
        memory_bytes: arguments.memory.0,
        pages: sizes::pages(&arguments),
        vcpus: arguments.vcpus,
        kernel,
        initramfs,
        cmdline: arguments.cmdline,
        console: console.clone(),
    };
    let stop = StopHandle::default();
    let regions = RegionsPlan {
        engine,
        scrub: ScrubRate {
            bytes_per_second: arguments.scrub.0,
        },
    };
    let machine = Machine::new(config, regions, tap, served, stop.clone())?;
    let vm = machine.power_on()?;
    termination.stops(stop.clone())?;

    let operator = Arc::new(RunningVm {
        name: arguments.target.name,
        started: Instant::now(),
        vcpus: arguments.vcpus,
        memory: arguments.memory,
        restarts: Mutex::default(),
        recovery: machine.recovery(),
        network: machine.network(),
        daemons: daemons.statuses.clone(),
        tallies: machine.tallies(),
        console,
        stop,
        power_button: machine.power_button(),
    });
    let server = socket.serve(operator.clone())?;
    let notifier = ServiceManager::from_environment()
        .map(|manager| Notifier::start(manager, operator.clone()))
        .transpose()?;
    let limit = match arguments.on_reboot {
        OnReboot::Restart => Some(arguments.restarts),
        OnReboot::Exit => None,
    };
    let is_fit_kvm = doctor::has_second_level_paging();
    sandbox::confine(Role::Main);
    let end = run_boots(&machine, vm, &operator, limit, is_fit_kvm)?;
    drop(notifier);
    drop(server);
    drop(machine);
    drop(daemons);
    report::report(&operator, &end, arguments.json)
}

impl Arguments {
    /// Number of devices that daemons serve.
    fn daemons(&self) -> usize {
        self.disk.len() + self.share.len() + self.vhost_user.len()
    }
}

/// Starts the daemons that are asked for and connects to the others; the devices are in the order of the options' kinds.
fn start_daemons(arguments: &Arguments) -> Result<(Daemons, Vec<VhostUser>), Failure> {
    let count = arguments.daemons();
    // The others are the recovery device and the network card.
    let most = MAX_DEVICES as usize - 2;
    if count > most {
        return Err(RunError::TooManyDaemons { count, most }.into());
    }
    let mut daemons = Daemons::default();
    let mut served = Vec::new();
    for disk in &arguments.disk {
        served.push(daemons.disk(disk)?);
    }
    for share in &arguments.share {
        served.push(daemons.share(share)?);
    }
    for device in &arguments.vhost_user {
        served.push(daemons.operators(device)?);
    }
    Ok((daemons, served))
}

/// How the last boot ended.
struct End {
    reason: ExitReason,
    /// The guest would have been started again, but went down too often: so many restarts were
    /// allowed.
    gave_up_after: Option<u32>,
    /// KVM gave up, and a restart would only repeat it: it has no second-level page tables.
    unfit_kvm: bool,
}

/// Runs `vm`, and the guest's next boots as long as it goes down by itself and `limit` (restarts in
/// a period, if there are to be any) allows. A KVM that is not fit has no second-level page tables.
fn run_boots(
    machine: &Machine,
    mut vm: Vm,
    operator: &RunningVm,
    limit: Option<u32>,
    is_fit_kvm: bool,
) -> Result<End, Failure> {
    let mut budget = limit.map(RestartBudget::new);
    loop {
        let reason = vm.run()?;
        machine.power_off(&reason);
        let mut end = End {
            unfit_kvm: !is_fit_kvm && is_given_up_by_kvm(&reason),
            reason,
            gave_up_after: None,
        };
        if end.unfit_kvm {
            return Ok(end);
        }
        let Some(budget) = budget.as_mut().filter(|_| end.reason.allows_restart()) else {
            return Ok(end);
        };
        if let Err(ordered) = operator.stop.rearm() {
            end.reason = ordered;
            return Ok(end);
        }
        if !budget.take(Instant::now()) {
            end.gave_up_after = limit;
            return Ok(end);
        }
        say(format_args!("{}: restarting it", end.reason));
        operator.restarting(&end.reason);
        vm = machine.power_on()?;
    }
}

/// Whether the guest ended because KVM gave up. One that interprets parts of guests does so at an instruction that it
/// does not know.
fn is_given_up_by_kvm(reason: &ExitReason) -> bool {
    matches!(reason, ExitReason::Crash(report) if report.internal_error)
}
