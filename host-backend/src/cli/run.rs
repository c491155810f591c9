//! `vmsrs run`: makes a VM of the parts and runs it to its end.
//!
//! What can be refused cheaply comes first, and everything that is made undoes itself when it is
//! dropped, so a start that fails leaves nothing behind.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use thiserror::Error;

use super::Target;
use super::doctor;
use super::exit::{Exit, Failure};
use super::initramfs::{self, InitramfsError};
use super::machine::{Machine, WindowPlan};
use super::newc::PackError;
use super::restart::{self, Budget, OnReboot};
use super::size::Size;
use super::text::{duration, write_json};
use crate::control::{Folder, Operator, Restart, ScrubStep, Server, ServerError, VmStatus};
use crate::devices::Tally;
use crate::devices::net::{self, NetCounters, TapConfig, TapError};
use crate::devices::recovery::{RecoveryDeviceError, RecoveryHandle, ScrubRate};
use crate::engine::{
    ConfigError, Count, EngineConfig, IncidentDetail, IncidentSummary, Position, Scope, Status,
};
use crate::vmm::console::Console;
use crate::vmm::loader::{Kernel, LoaderError};
use crate::vmm::memory::{Layout, MemoryError};
use crate::vmm::signals::Termination;
use crate::vmm::vm::MAX_VCPUS;
use crate::vmm::{CrashReport, ExitReason, StopHandle, Vm, VmConfig, VmError};
use crate::window::{Window, WindowError};

/// Run a virtual machine until it ends
///
/// Boots a Linux kernel with a recovery device, and with a network card if there is a tap
/// interface. While it runs, `vmsrs status` and `vmsrs incidents` reach it over its control socket.
/// SIGINT and SIGTERM end it, and so does Ctrl-A x on its console. A guest that reboots, panics or
/// dies is started again and finds all sealed state in place.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  A guest on this terminal:
    vmsrs run --kernel vmlinuz --initramfs guest.img

  A server that is reached at 192.168.77.2, from a folder with an `init`:
    vmsrs run --kernel vmlinuz --initramfs ./guest --memory 1G --vcpus 2 \\
        --window 512M --tap tap0,192.168.77.1/24 --console guest.log

  In a script, with the report at the end:
    vmsrs run --kernel vmlinuz --initramfs guest.img --console guest.log --json | jq .reason

Exit codes: 0 the guest turned itself off or was stopped, 1 unexpected, 2 the command line makes no
sense, 3 this machine cannot do it, 5 the guest died, 6 the guest reset itself (a restart or a
kernel panic), 7 the control socket or the tap interface is in use. With 5 and 6 the guest was not
to be started again, or went down too often.")]
pub(super) struct Arguments {
    /// Kernel: a bzImage (vmlinuz), or a vmlinux with a PVH entry point
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Initramfs: a cpio archive, compressed or not, or a folder that is packed on the fly
    #[arg(long, value_name = "FILE|FOLDER")]
    initramfs: Option<PathBuf>,
    /// The guest's RAM, without the window: 64M to 1T
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    memory: Size,
    /// Number of virtual CPUs
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    vcpus: u32,
    /// The window: memory for the pages of all domains and the drafts of requests
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    window: Size,
    /// Most frames of 4 KiB that the guest may write at a time [default: an eighth of the window,
    /// at most 16384]
    #[arg(long, value_name = "FRAMES")]
    pool: Option<u32>,
    /// How fast sealed pages are checked in the background, in bytes a second; 0 for not at all
    #[arg(long, value_name = "SIZE", default_value = "16M")]
    scrub: Size,
    /// Tap interface for the guest's network card; with an address the host's side is set up too
    #[arg(long, value_name = "NAME[,ADDRESS/PREFIX]")]
    tap: Option<TapConfig>,
    /// Kernel parameters besides those that every guest gets
    #[arg(
        long,
        value_name = "PARAMETERS",
        default_value = "",
        allow_hyphen_values = true
    )]
    cmdline: String,
    /// Where the guest's serial console goes: stdio, none, or a file
    #[arg(long, value_name = "stdio|none|FILE", default_value = "stdio")]
    console: ConsoleTarget,
    /// What to do when the guest reboots, panics or dies
    #[arg(long, value_name = "ACTION", default_value = "restart")]
    on_reboot: OnReboot,
    /// Most restarts within 60 seconds; a guest that needs more ends the VM
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    restarts: u32,
    #[command(flatten)]
    target: Target,
    /// Write a report as one line of JSON at the end (docs/reference-cli.md describes it)
    #[arg(long)]
    pub(super) json: bool,
}

/// Where the serial console goes.
#[derive(Debug, Clone)]
enum ConsoleTarget {
    Stdio,
    None,
    File(PathBuf),
}

impl FromStr for ConsoleTarget {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "stdio" => Self::Stdio,
            "none" => Self::None,
            file => Self::File(file.into()),
        })
    }
}

/// Why a VM could not be started, beyond what its parts say themselves.
#[derive(Debug, Error)]
pub enum RunError {
    /// More memory than there is.
    #[error(
        "the guest's memory and window together ({wanted}) are more than this machine has \
         ({available}): give less to --memory or --window"
    )]
    TooMuchMemory {
        /// RAM and window.
        wanted: Size,
        /// Memory and swap of the host.
        available: Size,
    },
    /// A number of vCPUs that makes no sense.
    #[error("{0} vCPUs are not possible: give 1 to {MAX_VCPUS} with --vcpus")]
    Vcpus(u32),
    /// A pool without frames.
    #[error("a pool of 0 frames lets the guest write nothing: give at least 1 to --pool")]
    NoPool,
    /// The pool leaves no room for pages.
    #[error(
        "a pool of {pool} frames is too large for a window of {window}: give at most {most} to \
         --pool, or more to --window"
    )]
    PoolTooLarge {
        /// Frames of the pool.
        pool: u32,
        /// The window.
        window: Size,
        /// Most frames that a pool can have in this window.
        most: u64,
    },
    /// The window is too small for any pool, or for its own.
    #[error("a window of {window} is too small: give at least 1M to --window")]
    WindowTooSmall {
        /// The window.
        window: Size,
    },
    /// The console's file cannot be written.
    #[error("cannot write the console to {}: check the path and its permissions", .path.display())]
    Console {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Assembles the VM, runs it, reports.
pub(super) fn run(arguments: Arguments) -> Result<Exit, Failure> {
    // First, since threads inherit it.
    let termination = Termination::block()?;

    let engine = check_sizes(&arguments)?;
    let kernel = Kernel::open(&arguments.kernel)?;
    let initramfs = arguments
        .initramfs
        .as_deref()
        .map(|path| initramfs::load(path, &arguments.cmdline, arguments.memory))
        .transpose()?;
    let folder = match arguments.target.socket {
        Some(_) => Folder::MustExist,
        None => Folder::MayBeMade,
    };
    let socket = Server::reserve(&arguments.target.path()?, folder)?;
    let tap = match &arguments.tap {
        Some(config) => Some((config.name.as_str(), net::open_tap(config)?)),
        None => None,
    };
    let console = open_console(&arguments.console)?;

    let config = VmConfig {
        memory_bytes: arguments.memory.0,
        vcpus: arguments.vcpus,
        kernel,
        initramfs,
        cmdline: arguments.cmdline,
        console,
    };
    let stop = StopHandle::default();
    let window = WindowPlan {
        size: arguments.window,
        engine,
        scrub: ScrubRate {
            bytes_per_second: arguments.scrub.0,
        },
    };
    let machine = Machine::new(config, window, tap, stop.clone())?;
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
        tallies: machine.tallies(),
        stop,
    });
    let server = socket.serve(operator.clone())?;
    let limit = match arguments.on_reboot {
        OnReboot::Restart => Some(arguments.restarts),
        OnReboot::Exit => None,
    };
    let end = run_boots(&machine, vm, &operator, limit)?;
    drop(server);
    report(&operator, &end, arguments.json)
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
/// a period, if there are to be any) allows.
fn run_boots(
    machine: &Machine,
    mut vm: Vm,
    operator: &RunningVm,
    limit: Option<u32>,
) -> Result<End, Failure> {
    let mut budget = limit.map(Budget::new);
    loop {
        let reason = vm.run()?;
        machine.power_off(&reason);
        let mut end = End {
            unfit_kvm: is_unfit_kvm(&reason),
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
        eprintln!("vmsrs: {}: starting it again", end.reason);
        operator.restarting(&end.reason);
        vm = machine.power_on()?;
    }
}

/// Whether the guest ended because of a KVM that cannot run stock guests: it interprets parts of
/// them, and met an instruction that it does not know.
fn is_unfit_kvm(reason: &ExitReason) -> bool {
    matches!(reason, ExitReason::Crash(report) if report.internal_error)
        && !doctor::has_second_level_paging()
}

/// Checks the sizes before anything is made; gives the engine's limits.
fn check_sizes(arguments: &Arguments) -> Result<EngineConfig, Failure> {
    if !(1..=MAX_VCPUS).contains(&arguments.vcpus) {
        return Err(RunError::Vcpus(arguments.vcpus).into());
    }
    Layout::new(arguments.memory.0)?;
    let frames = Window::frames_of_size(arguments.window.0)?;
    let mut engine = EngineConfig::for_window(frames);
    if let Some(pool) = arguments.pool {
        engine.pool_frames = pool;
    }
    if engine.pool_frames == 0 && arguments.pool.is_some() {
        return Err(RunError::NoPool.into());
    }
    engine.page_frames().map_err(|error| match error {
        ConfigError::WindowTooSmall { needed, .. } => {
            let window = arguments.window;
            // What is needed beside the pool.
            let rest = needed - u64::from(engine.pool_frames);
            match arguments.pool {
                Some(pool) if rest < frames.into() => Failure::from(RunError::PoolTooLarge {
                    pool,
                    window,
                    most: u64::from(frames) - rest,
                }),
                _ => RunError::WindowTooSmall { window }.into(),
            }
        }
        error => Failure::new(Exit::Usage, error),
    })?;
    if let Some(available) = host_memory() {
        // Neither is above 2^44: the sum fits.
        let wanted = Size(arguments.memory.0 + arguments.window.0);
        if wanted > available {
            return Err(RunError::TooMuchMemory { wanted, available }.into());
        }
    }
    Ok(engine)
}

/// Memory and swap of this machine, if the system tells.
fn host_memory() -> Option<Size> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let kibibytes = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let total = kibibytes("MemTotal:")? + kibibytes("SwapTotal:").unwrap_or(0);
    Some(Size(total << 10))
}

fn open_console(target: &ConsoleTarget) -> Result<Console, Failure> {
    Ok(match target {
        ConsoleTarget::Stdio => Console::stdio(),
        ConsoleTarget::None => Console::output_to(io::sink()),
        ConsoleTarget::File(path) => {
            let file = File::create(path).map_err(|source| RunError::Console {
                path: path.clone(),
                source,
            })?;
            Console::output_to(file)
        }
    })
}

/// The VM as the control socket sees it.
struct RunningVm {
    name: String,
    started: Instant,
    vcpus: u32,
    memory: Size,
    restarts: Mutex<Restarts>,
    recovery: RecoveryHandle,
    network: Option<Arc<NetCounters>>,
    /// What drivers do wrong with the registers of each device.
    tallies: Vec<Arc<Tally>>,
    stop: StopHandle,
}

/// Pages that are checked for one request: a client that waits gets an answer soon.
const SCRUB_PAGES: u32 = 1024;

/// The guest's restarts.
#[derive(Debug, Clone, Default)]
struct Restarts {
    count: u64,
    last: Option<Restart>,
}

impl RunningVm {
    /// Notes that the guest starts again after it ended for `reason`.
    fn restarting(&self, reason: &ExitReason) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH);
        let mut restarts = self.restarts();
        restarts.count += 1;
        restarts.last = Some(Restart {
            at_ms: u64::try_from(at.unwrap_or_default().as_millis()).unwrap_or(u64::MAX),
            reason: word(reason).to_owned(),
            message: reason.to_string(),
        });
    }

    fn restarts(&self) -> MutexGuard<'_, Restarts> {
        // Plain values, whole after every statement.
        self.restarts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn uptime_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Operator for RunningVm {
    fn status(&self) -> VmStatus {
        let frames = self.network.iter().map(|network| network.tally());
        let registers = self.tallies.iter().map(|tally| &**tally);
        let mut errors = BTreeMap::new();
        for (what, count) in frames.chain(registers).flat_map(Tally::counts) {
            *errors.entry(what).or_insert(0) += count;
        }
        let restarts = self.restarts().clone();
        VmStatus {
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_ms: self.uptime_ms(),
            vcpus: self.vcpus,
            memory_bytes: self.memory.0,
            restarts: restarts.count,
            last_restart: restarts.last,
            recovery: self.recovery.status(),
            network: self.network.as_ref().map(|net| net.snapshot()),
            device_errors: errors
                .into_iter()
                .map(|(what, count)| Count {
                    what: what.to_owned(),
                    count,
                })
                .collect(),
        }
    }

    fn incidents(&self) -> Vec<IncidentSummary> {
        self.recovery.incidents()
    }

    fn incident(&self, id: u64) -> Option<IncidentDetail> {
        self.recovery.incident(id)
    }

    fn scrub(
        &self,
        app: Option<&str>,
        domain: Option<&str>,
        from: Option<Position>,
    ) -> Option<ScrubStep> {
        let scope = match app {
            None => Scope::default(),
            Some(app) => self.recovery.find(app, domain)?,
        };
        let position = from.unwrap_or(scope.start());
        let turn = self.recovery.scrub(scope, position, SCRUB_PAGES);
        Some(ScrubStep {
            found: turn.found,
            pages: self.recovery.sealed_pages(scope),
            next: turn.next,
        })
    }

    fn stop(&self) {
        self.stop.stop(ExitReason::Stopped("the control socket"));
    }
}

/// The report at the end of `vmsrs run --json`.
#[derive(Serialize)]
struct Report<'a> {
    name: &'a str,
    exit: u8,
    reason: &'static str,
    message: String,
    uptime_ms: u64,
    restarts: u64,
    gave_up: bool,
    crash: Option<Crash<'a>>,
    recovery: Status,
}

#[derive(Serialize)]
struct Crash<'a> {
    what: &'a str,
    vcpu: Option<u32>,
    cpl: u8,
    rip: u64,
    cr2: u64,
    cr3: u64,
    gpa: Option<u64>,
    code: &'a [u8],
}

impl<'a> From<&'a CrashReport> for Crash<'a> {
    fn from(report: &'a CrashReport) -> Self {
        Self {
            what: &report.what,
            vcpu: report.vcpu,
            cpl: report.cpl,
            rip: report.rip,
            cr2: report.cr2,
            cr3: report.cr3,
            gpa: report.gpa,
            code: &report.code,
        }
    }
}

/// An end of the guest, for programs.
fn word(reason: &ExitReason) -> &'static str {
    match reason {
        ExitReason::PowerOff => "power-off",
        ExitReason::Reset => "reset",
        ExitReason::Stopped(_) => "stopped",
        ExitReason::Crash(_) => "crash",
    }
}

fn report(vm: &RunningVm, end: &End, json: bool) -> Result<Exit, Failure> {
    let reason = &end.reason;
    let (exit, crash) = match reason {
        ExitReason::PowerOff | ExitReason::Stopped(_) => (Exit::Ok, None),
        ExitReason::Reset => (Exit::GuestReset, None),
        ExitReason::Crash(report) => {
            let exit = if end.unfit_kvm {
                Exit::Machine
            } else {
                Exit::GuestDied
            };
            (exit, Some(Crash::from(&**report)))
        }
    };
    let recovery = vm.recovery.status();
    let incidents: u64 = recovery.incidents.iter().map(|count| count.count).sum();
    let uptime_ms = vm.uptime_ms();
    let restarts = vm.restarts().count;
    eprintln!(
        "vmsrs: {reason} after {}, with {incidents} incident{}",
        duration(uptime_ms),
        if incidents == 1 { "" } else { "s" }
    );
    if end.unfit_kvm {
        eprintln!(
            "vmsrs: KVM has neither EPT nor NPT on this machine, and cannot run a stock guest: \
             see `vmsrs doctor`"
        );
    }
    if let Some(limit) = end.gave_up_after {
        eprintln!(
            "vmsrs: gave up, because the guest went down after {limit} restart{} within {} s: \
             its console says why; --restarts allows more",
            if limit == 1 { "" } else { "s" },
            restart::PERIOD.as_secs()
        );
    }
    if json {
        write_json(&Report {
            name: &vm.name,
            exit: exit as u8,
            reason: word(reason),
            message: reason.to_string(),
            uptime_ms,
            restarts,
            gave_up: end.gave_up_after.is_some(),
            crash,
            recovery,
        })?;
    }
    Ok(exit)
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let exit = match error {
            RunError::TooMuchMemory { .. } => Exit::Machine,
            RunError::Vcpus(_)
            | RunError::NoPool
            | RunError::PoolTooLarge { .. }
            | RunError::WindowTooSmall { .. }
            | RunError::Console { .. } => Exit::Usage,
        };
        Self::new(exit, error)
    }
}

impl From<InitramfsError> for Failure {
    fn from(error: InitramfsError) -> Self {
        Self::new(Exit::Usage, error)
    }
}

impl From<PackError> for Failure {
    fn from(error: PackError) -> Self {
        Self::new(Exit::Usage, error)
    }
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        let exit = match error {
            ServerError::Busy(_) => Exit::Busy,
            ServerError::NoSocket(_) | ServerError::Bind { .. } => Exit::Usage,
            ServerError::Thread(_) => Exit::Machine,
        };
        Self::new(exit, error)
    }
}

impl From<TapError> for Failure {
    fn from(error: TapError) -> Self {
        let exit = match error {
            TapError::Busy { .. } => Exit::Busy,
            TapError::NoTap { .. } => Exit::Usage,
            TapError::NoDriver(_) | TapError::Rights { .. } | TapError::SetUp { .. } => {
                Exit::Machine
            }
        };
        Self::new(exit, error)
    }
}

impl From<VmError> for Failure {
    fn from(error: VmError) -> Self {
        let exit = match &error {
            VmError::Loader(_) | VmError::Vcpus(_) | VmError::Memory(MemoryError::Size(_)) => {
                Exit::Usage
            }
            VmError::OpenKvm(_)
            | VmError::KvmVersion(_)
            | VmError::Kvm { .. }
            | VmError::Memory(_)
            | VmError::Cpu(_)
            | VmError::Event { .. }
            | VmError::Thread { .. } => Exit::Machine,
            _ => Exit::Failure,
        };
        Self::new(exit, error)
    }
}

impl From<LoaderError> for Failure {
    fn from(error: LoaderError) -> Self {
        Self::new(Exit::Usage, error)
    }
}

impl From<MemoryError> for Failure {
    fn from(error: MemoryError) -> Self {
        Self::from(VmError::from(error))
    }
}

impl From<WindowError> for Failure {
    fn from(error: WindowError) -> Self {
        let exit = match error {
            WindowError::Size(_) | WindowError::Limits(_) => Exit::Usage,
            WindowError::Create { .. } | WindowError::Map(_) => Exit::Machine,
        };
        Self::new(exit, error)
    }
}

impl From<RecoveryDeviceError> for Failure {
    fn from(error: RecoveryDeviceError) -> Self {
        let exit = match error {
            RecoveryDeviceError::Limits(_) => Exit::Usage,
            RecoveryDeviceError::WindowSize { .. } => Exit::Failure,
            RecoveryDeviceError::Host(_) => Exit::Machine,
        };
        Self::new(exit, error)
    }
}
