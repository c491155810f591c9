//! What guest to boot, as arguments of `vmsrs run`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::guest::{CONSOLE, Guest, SOCKET};

/// The watchdogs of the guest's kernel count wall-clock time. They wait as long as the tests do, so that a busy machine does
/// not set them off.
const WATCHDOGS: &str = "watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=300 \
                         sysctl.kernel.hung_task_timeout_secs=600";

/// Where the guest's console goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Console {
    Log,
    Pipes,
}

/// What guest to boot. Unless told otherwise it has 512 MiB, two vCPUs, a window of 64 MiB with 2048 frames in its pool
/// and no network, and `vmsrs run` ends when it reboots.
#[derive(Debug, Clone)]
pub struct Config {
    kernel: PathBuf,
    initramfs: PathBuf,
    vcpus: u32,
    memory: String,
    window: String,
    pool: u32,
    tap: Option<String>,
    restarts: Option<u32>,
    console: Console,
    manager: Option<PathBuf>,
    more: Vec<(&'static str, String)>,
}

impl Config {
    /// A guest with this kernel (an ELF file or a bzImage) and this initramfs.
    pub fn new(kernel: impl Into<PathBuf>, initramfs: impl Into<PathBuf>) -> Self {
        Self {
            kernel: kernel.into(),
            initramfs: initramfs.into(),
            vcpus: 2,
            memory: "512M".to_owned(),
            window: "64M".to_owned(),
            pool: 2048,
            tap: None,
            restarts: None,
            console: Console::Log,
            manager: None,
            more: Vec::new(),
        }
    }

    /// The number of vCPUs.
    pub fn vcpus(mut self, vcpus: u32) -> Self {
        self.vcpus = vcpus;
        self
    }

    /// The size of its memory, in the form of `vmsrs run --memory`.
    pub fn memory(mut self, size: impl Into<String>) -> Self {
        self.memory = size.into();
        self
    }

    /// The size of the window, in the form of `vmsrs run --window`.
    pub fn window(mut self, size: impl Into<String>) -> Self {
        self.window = size.into();
        self
    }

    /// Frames in the driver's pool.
    pub fn pool(mut self, frames: u32) -> Self {
        self.pool = frames;
        self
    }

    /// A network card on a tap, in the form of `vmsrs run --tap`: `NAME,ADDRESS/PREFIX`.
    pub fn tap(mut self, tap: impl Into<String>) -> Self {
        self.tap = Some(tap.into());
        self
    }

    /// Boots the guest again when it goes down, up to this many times.
    pub fn restarts(mut self, restarts: u32) -> Self {
        self.restarts = Some(restarts);
        self
    }

    /// Connects the guest's console to pipes ([`Guest::take_console`]) instead of a log.
    pub fn console_on_pipes(mut self) -> Self {
        self.console = Console::Pipes;
        self
    }

    /// Gives `vmsrs run` a service manager that listens at this socket (`sd_notify(3)`).
    pub fn manager(mut self, socket: impl Into<PathBuf>) -> Self {
        self.manager = Some(socket.into());
        self
    }

    /// Any other option of `vmsrs run`, such as `--disk`.
    pub fn option(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.more.push((name, value.into()));
        self
    }

    /// Starts `vmsrs run`, which is looked for in `PATH`. The guest has only begun to boot: see [`Guest::wait`].
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn boot(&self) -> Result<Guest> {
        Guest::boot(self)
    }

    pub(super) fn manager_socket(&self) -> Option<&Path> {
        self.manager.as_deref()
    }

    pub(super) fn console_is_piped(&self) -> bool {
        self.console == Console::Pipes
    }

    /// The arguments of `vmsrs`; socket and logs are in `folder`.
    pub(super) fn arguments(&self, folder: &Path) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["run".into()];
        let mut add = |option: &str, value: OsString| arguments.extend([option.into(), value]);
        add("--kernel", self.kernel.clone().into());
        add("--initramfs", self.initramfs.clone().into());
        add("--memory", self.memory.clone().into());
        add("--cmdline", WATCHDOGS.into());
        add("--vcpus", self.vcpus.to_string().into());
        add("--window", self.window.clone().into());
        add("--pool", self.pool.to_string().into());
        add("--socket", folder.join(SOCKET).into());
        if let Some(tap) = &self.tap {
            add("--tap", tap.into());
        }
        for (name, value) in &self.more {
            add(name, value.into());
        }
        match self.restarts {
            Some(restarts) => {
                add("--on-reboot", "restart".into());
                add("--restarts", restarts.to_string().into());
            }
            None => add("--on-reboot", "exit".into()),
        }
        if self.console == Console::Log {
            add("--console", folder.join(CONSOLE).into());
        }
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(config: &Config) -> String {
        let arguments = config.arguments("/f".as_ref());
        let words: Vec<_> = arguments
            .iter()
            .map(|word| word.to_string_lossy())
            .collect();
        words.join(" ")
    }

    #[test]
    fn a_plain_guest_has_a_console_log_and_no_network() {
        let config = Config::new("k", "i");
        assert_eq!(
            line(&config),
            format!(
                "run --kernel k --initramfs i --memory 512M --cmdline {WATCHDOGS} --vcpus 2 --window 64M --pool 2048 \
                 --socket /f/vm.sock --on-reboot exit --console /f/console.log"
            )
        );
    }

    #[test]
    fn what_is_asked_for_is_on_the_command_line() {
        let config = Config::new("k", "i")
            .vcpus(4)
            .memory("1G")
            .window("7M")
            .pool(256)
            .tap("tap0,192.168.77.1/24")
            .restarts(3)
            .option("--disk", "a.img")
            .console_on_pipes();
        assert_eq!(
            line(&config),
            format!(
                "run --kernel k --initramfs i --memory 1G --cmdline {WATCHDOGS} --vcpus 4 --window 7M --pool 256 \
                 --socket /f/vm.sock --tap tap0,192.168.77.1/24 --disk a.img --on-reboot restart --restarts 3"
            )
        );
    }
}
