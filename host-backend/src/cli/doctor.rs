//! `vmsrs doctor`: can this machine run a stock guest, and if not, what is missing.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::PathBuf;

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_IOEVENTFD, KVM_CAP_IRQCHIP, KVM_CAP_IRQFD,
    KVM_CAP_MEMORY_FAULT_INFO, KVM_CAP_PIT2, KVM_CAP_USER_MEMORY,
};
use kvm_ioctls::Kvm;
use serde::Serialize;

use super::memory::HostMemory;
use super::text::{write_json, write_text};
use super::{Exit, Failure};
use crate::host_memory::{HUGE_PAGE, HUGE_PAGE_FOLDER};
use crate::sandbox;
use crate::size::Size;

/// Check whether this machine can run a stock guest, and report what is missing
///
/// Looks at KVM, second-level paging (EPT or NPT), protection keys, tap interfaces, memory and huge pages.
/// Changes nothing.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vmsrs doctor
  vmsrs doctor --memory 8G --window 4G
  vmsrs doctor --json | jq -r '.checks[] | select(.state == \"missing\") | .remedy'

Exit codes: 0 a stock guest can run, 3 it cannot.")]
pub(super) struct Arguments {
    /// The planned size of RAM
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    memory: Size,
    /// The planned size of the window
    #[arg(long, value_name = "SIZE", default_value = "256M")]
    window: Size,
    /// Write one line of JSON (docs/reference-cli.md describes it)
    #[arg(long)]
    pub(super) json: bool,
}

/// What to do when this machine cannot run a stock guest.
const TEST_BED: &str = "\
This machine cannot run a stock guest. The nested test-bed can, slowly: it emulates a CPU with
second-level paging in QEMU. In the project's folder, `make demo` and `make test` use it where it is
needed.";

/// What was found about one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum CheckState {
    /// It is there.
    Ok,
    /// It is not there, and something is lost without it.
    Absent,
    /// It is not there, and a stock guest cannot run without it.
    Missing,
}

impl CheckState {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Absent => "absent",
            Self::Missing => "MISSING",
        }
    }

    /// The state of something that a guest cannot do without.
    fn required(present: bool) -> Self {
        if present { Self::Ok } else { Self::Missing }
    }

    /// The state of something that only some guests need.
    fn optional(present: bool) -> Self {
        if present { Self::Ok } else { Self::Absent }
    }
}

#[derive(Debug, Serialize)]
struct Check {
    /// For programs; never changes.
    id: &'static str,
    name: &'static str,
    state: CheckState,
    /// What was found.
    found: String,
    /// How to get it; empty if it is there.
    remedy: String,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Whether a stock guest can run here.
    can_run: bool,
    checks: Vec<Check>,
}

impl Report {
    fn lacks_only_memory(&self) -> bool {
        let mut missing = self
            .checks
            .iter()
            .filter(|check| check.state == CheckState::Missing);
        missing.all(|check| check.id == MEMORY)
    }
}

/// The check of the planned sizes.
const MEMORY: &str = "memory";

pub(super) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let planned = Size(arguments.memory.0.saturating_add(arguments.window.0));
    let machine = Machine {
        root: PathBuf::from("/"),
    };
    let report = machine.examine(planned);
    if arguments.json {
        write_json(&report)?;
    } else {
        write_text(&describe(&report))?;
    }
    Ok(if report.can_run {
        Exit::Ok
    } else {
        Exit::Machine
    })
}

fn describe(report: &Report) -> String {
    let width = report.checks.iter().map(|check| check.name.len()).max();
    let width = width.unwrap_or(0);
    let mut text = String::new();
    for check in &report.checks {
        let Check {
            name,
            state,
            found,
            remedy,
            ..
        } = check;
        let word = state.word();
        text.push_str(&format!("{word:<7}  {name:width$}  {found}\n"));
        if !remedy.is_empty() {
            text.push_str(&format!("{:7}  {:width$}  -> {remedy}\n", "", ""));
        }
    }
    text.push('\n');
    if report.can_run {
        text.push_str("A stock guest can run on this machine.\n");
    } else if report.lacks_only_memory() {
        text.push_str("A stock guest can run on this machine, but not one of this size.\n");
    } else {
        text.push_str(TEST_BED);
        text.push('\n');
    }
    text
}

/// Whether KVM uses second-level page tables on this machine.
pub(super) fn has_second_level_paging() -> bool {
    let machine = Machine {
        root: PathBuf::from("/"),
    };
    machine.second_level_paging().state == CheckState::Ok
}

/// A machine whose files lie below `root`.
struct Machine {
    root: PathBuf,
}

impl Machine {
    /// `planned` is what a guest is to have in RAM and window.
    fn examine(&self, planned: Size) -> Report {
        let (device, system) = self.kvm();
        let checks = vec![
            device,
            interface(system.as_ref()),
            self.second_level_paging(),
            fault_information(system.as_ref()),
            self.protection_keys(),
            self.tap(),
            memory_files(),
            self.memory(planned),
            self.transparent_huge_pages(),
            self.huge_pages(planned),
            self.system_call_filters(),
            file_rules(),
        ];
        Report {
            can_run: checks
                .iter()
                .all(|check| check.state != CheckState::Missing),
            checks,
        }
    }

    /// Whether the kernel can stop system calls that a thread does not need.
    fn system_call_filters(&self) -> Check {
        let actions = self.root.join("proc/sys/kernel/seccomp/actions_avail");
        let actions = fs::read_to_string(actions).unwrap_or_default();
        let present = actions.split_whitespace().any(|action| action == "trap");
        let (found, remedy) = match present {
            true => ("supported", ""),
            false => (
                "not supported: system calls are not restricted",
                "use Linux with CONFIG_SECCOMP_FILTER",
            ),
        };
        Check {
            id: "seccomp",
            name: "sandbox: filters of system calls",
            state: CheckState::optional(present),
            found: found.to_owned(),
            remedy: remedy.to_owned(),
        }
    }

    /// Whether RAM and window are no more than the machine has and this process may use.
    fn memory(&self, planned: Size) -> Check {
        let memory = HostMemory::read(&self.root);
        let mut found = "not known".to_owned();
        let mut remedy = String::new();
        if let Some(memory) = memory {
            found = format!("{} with swap", memory.total);
            if let Some(limit) = &memory.limit {
                let size = Size(limit.bytes);
                found += &format!("; this process may use {size} ({})", limit.file.display());
            }
            if memory.limit_below(planned).is_some() {
                remedy = format!(
                    "for RAM and window of {planned}, raise the limit of the control group, or plan \
                     less with --memory and --window"
                );
            } else if planned > memory.total {
                remedy = format!("{planned} are planned: plan less with --memory and --window");
            }
        }
        Check {
            id: MEMORY,
            name: "memory",
            state: CheckState::required(remedy.is_empty()),
            found,
            remedy,
        }
    }

    /// The first line of a file, without white space around it.
    fn line(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.root.join(path)).ok()?;
        Some(text.lines().next().unwrap_or_default().trim().to_owned())
    }

    fn exists(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }

    /// The flags of the first CPU.
    fn cpu_flags(&self) -> Vec<String> {
        let text = fs::read_to_string(self.root.join("proc/cpuinfo")).unwrap_or_default();
        let flags = text.lines().find_map(|line| line.strip_prefix("flags"));
        flags
            .and_then(|flags| flags.split_once(':'))
            .map(|(_, flags)| flags.split_whitespace().map(str::to_owned).collect())
            .unwrap_or_default()
    }

    fn has_flag(&self, flag: &str) -> bool {
        self.cpu_flags().iter().any(|known| known == flag)
    }

    /// The KVM device, opened if that is possible.
    fn kvm(&self) -> (Check, Option<Kvm>) {
        let path = self.root.join("dev/kvm");
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        let (found, remedy) = match &opened {
            Ok(_) => ("accessible".to_owned(), String::new()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => (
                "present, but not accessible to this user".to_owned(),
                "join its group (`sudo usermod -aG kvm $USER`, then log in again) or run as root"
                    .to_owned(),
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                ("not present".to_owned(), self.module_remedy())
            }
            Err(error) => (format!("cannot be opened: {error}"), self.module_remedy()),
        };
        let check = Check {
            id: "kvm",
            name: "/dev/kvm",
            state: CheckState::required(opened.is_ok()),
            found,
            remedy,
        };
        let system = opened.ok().and_then(|_| {
            let path = std::ffi::CString::new(path.into_os_string().into_encoded_bytes()).ok()?;
            Kvm::new_with_path(path).ok()
        });
        (check, system)
    }

    fn module_remedy(&self) -> String {
        if self.has_flag("vmx") {
            "load the module: `sudo modprobe kvm_intel`".to_owned()
        } else if self.has_flag("svm") {
            "load the module: `sudo modprobe kvm_amd`".to_owned()
        } else {
            "turn on virtualization (VT-x or AMD-V) in the firmware; in a virtual machine, turn on \
             nested virtualization on its host"
                .to_owned()
        }
    }

    fn second_level_paging(&self) -> Check {
        let parameter = |module: &str, name: &str| {
            let path = format!("sys/module/{module}/parameters/{name}");
            self.line(&path).map(|value| value == "Y" || value == "1")
        };
        let ept = parameter("kvm_intel", "ept");
        let npt = parameter("kvm_amd", "npt");
        let (present, found, remedy) = match (ept, npt) {
            (Some(true), _) => (true, "EPT".to_owned(), ""),
            (_, Some(true)) => (true, "NPT".to_owned(), ""),
            (Some(false), _) => (
                false,
                "EPT is turned off or not supported by the CPU".to_owned(),
                "reload the module with it: `sudo modprobe -r kvm_intel && sudo modprobe kvm_intel \
                 ept=1`",
            ),
            (_, Some(false)) => (
                false,
                "NPT is turned off or not supported by the CPU".to_owned(),
                "reload the module with it: `sudo modprobe -r kvm_amd && sudo modprobe kvm_amd npt=1`",
            ),
            (None, None) => (
                false,
                match self.software_kvm() {
                    Some(module) => {
                        format!("KVM works in software ({module}), without EPT or NPT")
                    }
                    None => "neither kvm_intel nor kvm_amd is loaded".to_owned(),
                },
                "use a machine with VT-x and EPT or AMD-V and NPT, or the nested test-bed",
            ),
        };
        Check {
            id: "second-level-paging",
            name: "EPT or NPT",
            state: CheckState::required(present),
            found,
            remedy: remedy.to_owned(),
        }
    }

    /// A KVM module that is neither Intel's nor AMD's: it interprets a guest's kernel, and no stock
    /// kernel gets far on it.
    fn software_kvm(&self) -> Option<String> {
        let modules = fs::read_dir(self.root.join("sys/module")).ok()?;
        let mut names: Vec<_> = modules
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with("kvm_"))
            .collect();
        names.sort();
        names.into_iter().next()
    }

    fn protection_keys(&self) -> Check {
        let (has, enabled) = (self.has_flag("pku"), self.has_flag("ospke"));
        let present = has && enabled;
        let (found, remedy) = match (has, enabled) {
            (_, true) => ("present; used for the drafts of requests", ""),
            (true, false) => (
                "supported by the CPU, but turned off by the kernel",
                "boot without `nopku`",
            ),
            (false, false) => (
                "not supported by the CPU",
                "without them a stray write can reach another request's draft; Intel has them since \
                 Skylake-SP, AMD since Zen 3",
            ),
        };
        Check {
            id: "protection-keys",
            name: "protection keys (PKU)",
            state: CheckState::optional(present),
            found: found.to_owned(),
            remedy: remedy.to_owned(),
        }
    }

    fn tap(&self) -> Check {
        let present = self.exists("dev/net/tun");
        Check {
            id: "tap",
            name: "/dev/net/tun",
            state: CheckState::optional(present),
            found: if present {
                "present"
            } else {
                "not present: guests have no network"
            }
            .to_owned(),
            remedy: if present {
                ""
            } else {
                "load the module: `sudo modprobe tun`"
            }
            .to_owned(),
        }
    }

    /// Whether files in memory get transparent huge pages when they ask for them.
    fn transparent_huge_pages(&self) -> Check {
        const FOLDER: &str = "sys/kernel/mm/transparent_hugepage";
        // The chosen word is in brackets.
        let chosen = |name: &str| -> Option<String> {
            let text = self.line(&format!("{FOLDER}/{name}"))?;
            let (_, rest) = text.split_once('[')?;
            Some(rest.split_once(']')?.0.to_owned())
        };
        let files = chosen("shmem_enabled");
        let present = files
            .as_deref()
            .is_some_and(|word| !matches!(word, "never" | "deny"));
        let found = match (&files, chosen("enabled")) {
            (None, _) => "not supported by this kernel".to_owned(),
            (Some(files), None) => format!("`{files}` for files in memory"),
            (Some(files), Some(others)) => {
                format!("`{files}` for files in memory, `{others}` for other memory")
            }
        };
        Check {
            id: "transparent-huge-pages",
            name: "transparent huge pages",
            state: CheckState::optional(present),
            found,
            remedy: if present {
                ""
            } else if files.is_some() {
                "optional, makes guests faster: `echo advise | sudo tee \
                 /sys/kernel/mm/transparent_hugepage/shmem_enabled`"
            } else {
                "optional, makes guests faster: use a kernel with CONFIG_TRANSPARENT_HUGEPAGE"
            }
            .to_owned(),
        }
    }

    /// Whether there are enough huge pages for `--hugepages`.
    fn huge_pages(&self, planned: Size) -> Check {
        let number = |name: &str| -> Option<u64> {
            self.line(&format!("{HUGE_PAGE_FOLDER}/{name}"))?
                .parse()
                .ok()
        };
        let needed = planned.0.div_ceil(HUGE_PAGE);
        let all = number("nr_hugepages");
        let free = number("free_hugepages")
            .unwrap_or(0)
            .saturating_sub(number("resv_hugepages").unwrap_or(0));
        let present = free >= needed;
        Check {
            id: "huge-pages",
            name: "huge pages of 2M",
            state: CheckState::optional(present),
            found: match all {
                None => "not supported by this kernel".to_owned(),
                Some(all) => {
                    format!("{all}, {free} of them free; --hugepages takes {needed} for {planned}")
                }
            },
            remedy: match (present, all) {
                (true, _) => String::new(),
                (false, None) => "only for --hugepages: use a kernel with CONFIG_HUGETLBFS".into(),
                // As many as are missing.
                (false, Some(all)) => format!(
                    "only for --hugepages: `sudo sysctl vm.nr_hugepages={}`",
                    all + needed - free
                ),
            },
        }
    }
}

/// What the VMM needs of KVM's interface, all of it older than Linux 4.13.
const CAPABILITIES: [(u32, &str); 6] = [
    (KVM_CAP_USER_MEMORY, "user memory"),
    (KVM_CAP_IRQCHIP, "interrupt controller"),
    (KVM_CAP_PIT2, "timer"),
    (KVM_CAP_IRQFD, "irqfd"),
    (KVM_CAP_IOEVENTFD, "ioeventfd"),
    (KVM_CAP_IMMEDIATE_EXIT, "immediate exit"),
];

fn interface(system: Option<&Kvm>) -> Check {
    let (present, found) = match system {
        None => (false, "unknown without /dev/kvm".to_owned()),
        Some(system) => {
            let version = system.get_api_version();
            let missing: Vec<_> = CAPABILITIES
                .iter()
                .filter(|&&(capability, _)| extension(system, capability) == 0)
                .map(|&(_, name)| name)
                .collect();
            if version != KVM_API_VERSION as i32 {
                (false, format!("version {version}, not {KVM_API_VERSION}"))
            } else if missing.is_empty() {
                (true, format!("version {version}, complete"))
            } else {
                (false, format!("lacks {}", missing.join(", ")))
            }
        }
    };
    Check {
        id: "kvm-interface",
        name: "KVM's interface",
        state: CheckState::required(present),
        found,
        remedy: match (present, system) {
            (true, _) => String::new(),
            (false, None) => "get /dev/kvm first".to_owned(),
            (false, Some(_)) => "use Linux 6.1 or newer".to_owned(),
        },
    }
}

/// The value of a capability; 0 if KVM does not have it.
fn extension(system: &Kvm, capability: u32) -> i32 {
    system.check_extension_raw(capability.into())
}

fn fault_information(system: Option<&Kvm>) -> Check {
    let present = system.is_some_and(|it| extension(it, KVM_CAP_MEMORY_FAULT_INFO) > 0);
    Check {
        id: "memory-fault-info",
        name: "KVM_CAP_MEMORY_FAULT_INFO",
        state: CheckState::optional(present),
        found: match (system, present) {
            (None, _) => "unknown without /dev/kvm",
            (_, true) => "present",
            (_, false) => "not present: addresses of refused writes are found by decoding",
        }
        .to_owned(),
        remedy: if present {
            ""
        } else {
            "optional; available since Linux 6.8"
        }
        .to_owned(),
    }
}

fn file_rules() -> Check {
    let version = sandbox::landlock_version();
    let (found, remedy) = match version {
        0 => (
            "not supported: files are not restricted".to_owned(),
            "use Linux 5.13 or newer with CONFIG_SECURITY_LANDLOCK, and `landlock` in its parameter lsm=",
        ),
        version => (format!("version {version}"), ""),
    };
    Check {
        id: "landlock",
        name: "sandbox: rules for files (landlock)",
        state: CheckState::optional(version != 0),
        found,
        remedy: remedy.to_owned(),
    }
}

fn memory_files() -> Check {
    // SAFETY: the name is a string that ends with a zero byte.
    let fd = unsafe { libc::memfd_create(c"vmsrs-doctor".as_ptr(), libc::MFD_CLOEXEC) };
    let (found, remedy) = if fd >= 0 {
        // SAFETY: the descriptor was just returned by the kernel and has no other owner.
        unsafe { libc::close(fd) };
        ("supported".to_owned(), "")
    } else {
        let error = io::Error::last_os_error();
        (
            format!("not supported: {error}"),
            "allow memfd_create in this sandbox, and use Linux with CONFIG_MEMFD_CREATE",
        )
    };
    Check {
        id: "memfd",
        name: "files in memory (memfd)",
        state: CheckState::required(fd >= 0),
        found,
        remedy: remedy.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine made of the given files, without a KVM that can be opened.
    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Machine) {
        let place = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = place.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let root = place.path().to_owned();
        (place, Machine { root })
    }

    #[test]
    fn missing_parts_are_listed_with_remedies() {
        let (_place, machine) = machine(&[]);
        let report = machine.examine(Size(768 << 20));
        assert!(!report.can_run);
        for check in &report.checks {
            assert_eq!(
                check.state == CheckState::Ok,
                check.remedy.is_empty(),
                "{check:?}"
            );
        }
        assert!(describe(&report).contains("nested test-bed"));
    }

    #[test]
    fn the_module_to_load_is_that_of_the_cpu() {
        for (flags, module) in [("fpu vmx", "kvm_intel"), ("fpu svm", "kvm_amd")] {
            let flags = format!("processor\t: 0\nflags\t\t: {flags}\n");
            let (_place, machine) = machine(&[("proc/cpuinfo", &flags)]);
            assert!(machine.kvm().0.remedy.contains(module));
        }
    }

    #[test]
    fn second_level_paging_is_what_the_modules_say() {
        for (path, value, state) in [
            ("sys/module/kvm_intel/parameters/ept", "Y\n", CheckState::Ok),
            (
                "sys/module/kvm_intel/parameters/ept",
                "N\n",
                CheckState::Missing,
            ),
            ("sys/module/kvm_amd/parameters/npt", "1\n", CheckState::Ok),
            (
                "sys/module/kvm_amd/parameters/npt",
                "0\n",
                CheckState::Missing,
            ),
        ] {
            let (_place, machine) = machine(&[(path, value)]);
            assert_eq!(machine.second_level_paging().state, state, "{path} {value}");
        }
    }

    #[test]
    fn a_kvm_in_software_is_named() {
        let (_place, machine) = machine(&[("sys/module/kvm_pvm/refcnt", "0\n")]);
        let check = machine.second_level_paging();
        assert_eq!(check.state, CheckState::Missing);
        assert!(check.found.contains("kvm_pvm"), "{}", check.found);
    }

    #[test]
    fn protection_keys_must_be_turned_on_too() {
        for (flags, state) in [
            ("pku ospke", CheckState::Ok),
            ("pku", CheckState::Absent),
            ("fpu", CheckState::Absent),
        ] {
            let (_place, machine) = machine(&[("proc/cpuinfo", &format!("flags : {flags}\n"))]);
            assert_eq!(machine.protection_keys().state, state);
        }
    }

    #[test]
    fn the_limit_of_the_control_group_counts() {
        let files = [
            ("proc/meminfo", "MemTotal: 1048576 kB\nSwapTotal: 1024 kB\n"),
            ("proc/self/cgroup", "0::/vm\n"),
            (
                "proc/self/mountinfo",
                "1 2 0:3 / /cg rw - cgroup2 cgroup2 rw\n",
            ),
            ("cg/vm/memory.max", "536870912\n"),
        ];
        let check = |files: &[(&str, &str)], megabytes: u64| {
            let (_place, machine) = machine(files);
            let check = machine.memory(Size(megabytes << 20));
            (check.state, check.found, check.remedy)
        };
        let (state, found, remedy) = check(&files, 768);
        assert_eq!(state, CheckState::Missing);
        assert!(found.contains("513M (/cg/vm/memory.max)"), "{found}");
        assert!(remedy.contains("768M"), "{remedy}");
        assert_eq!(check(&files, 513).0, CheckState::Ok);
        assert_eq!(check(&files[..1], 768).0, CheckState::Ok);
        assert_eq!(check(&files[..1], 1026).0, CheckState::Missing);
    }

    #[test]
    fn transparent_huge_pages_of_files_count() {
        const FOLDER: &str = "sys/kernel/mm/transparent_hugepage";
        for (word, state) in [
            (
                "always within_size [advise] never deny force",
                CheckState::Ok,
            ),
            (
                "[always] within_size advise never deny force",
                CheckState::Ok,
            ),
            (
                "always within_size advise [never] deny force",
                CheckState::Absent,
            ),
            (
                "always within_size advise never [deny] force",
                CheckState::Absent,
            ),
        ] {
            let files = [
                (&*format!("{FOLDER}/shmem_enabled"), word),
                (&*format!("{FOLDER}/enabled"), "[always] madvise never"),
            ];
            let (_place, machine) = machine(&files);
            let check = machine.transparent_huge_pages();
            assert_eq!(check.state, state, "{word}");
            assert!(
                check.found.contains("`always` for other"),
                "{}",
                check.found
            );
        }
    }

    #[test]
    fn huge_pages_must_be_free_and_enough() {
        for (free, reserved, state) in [
            ("384\n", "0\n", CheckState::Ok),
            ("385\n", "1\n", CheckState::Ok),
            ("384\n", "1\n", CheckState::Absent),
        ] {
            let path = |name: &str| format!("{HUGE_PAGE_FOLDER}/{name}");
            let files = [
                (&*path("nr_hugepages"), "400\n"),
                (&*path("free_hugepages"), free),
                (&*path("resv_hugepages"), reserved),
            ];
            let (_place, machine) = machine(&files);
            let check = machine.huge_pages(Size(768 << 20));
            assert_eq!(check.state, state, "{free}");
            if state == CheckState::Absent {
                assert!(check.remedy.contains("=401`"), "{}", check.remedy);
            }
        }
    }
}
