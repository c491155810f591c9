//! The files that each role may use, by landlock.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus,
};

use super::{Files, Role};

/// The newest rights that are known here. What an older kernel does not know is left out.
const NEWEST: ABI = ABI::V5;

/// What a panic's backtrace is made of, beside the program itself.
const LIBRARIES: [&str; 4] = ["/usr/lib", "/lib", "/lib64", "/proc/self"];

/// Debug information of the host's programs and libraries.
const DEBUG: &str = "/usr/lib/debug";

/// The version of landlock that the kernel has, 0 for none.
pub(crate) fn kernel_support() -> i32 {
    /// `LANDLOCK_CREATE_RULESET_VERSION` in `linux/landlock.h`.
    const VERSION: u32 = 1;
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag and no attributes, the call only returns a number.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, 0usize, VERSION) };
    i32::try_from(version.max(0)).unwrap_or(0)
}

/// Restricts the calling thread.
pub(super) fn restrict(role: Role, files: &Files) -> Result<(), RulesetError> {
    let rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .create()?;
    let rules = rules_of(role, files)
        .into_iter()
        .try_fold(rules, |rules, (path, access)| allow(rules, &path, access))?;
    let status = rules.restrict_self()?;
    if status.ruleset == RulesetStatus::NotEnforced && role == Role::Main {
        log::warn!("the kernel has no landlock: files are not restricted (see `vmsrs doctor`)");
    }
    Ok(())
}

/// Allows `access` to `path` and what is below it. A path that does not exist needs no rule.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    match PathFd::new(path) {
        Ok(file) => {
            // Rights of folders cannot be given for a file.
            let access = match path.is_dir() {
                true => access,
                false => access & AccessFs::from_file(NEWEST),
            };
            rules.add_rule(PathBeneath::new(file, access))
        }
        Err(_) => Ok(rules),
    }
}

/// What a role may do with which files.
fn rules_of(role: Role, files: &Files) -> Vec<(PathBuf, BitFlags<AccessFs>)> {
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut rules: Vec<_> = LIBRARIES.map(|path| (path.into(), reading)).into();
    if let Ok(program) = std::env::current_exe() {
        rules.push((program, AccessFs::ReadFile.into()));
    }
    match role {
        Role::Main => {
            // Every boot opens KVM.
            let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
            rules.push(("/dev/kvm".into(), device));
        }
        Role::Control => {
            let folder = files.socket.as_deref().and_then(Path::parent);
            // The folder of a path without one is the working directory.
            if let Some(folder) = folder {
                let folder = match folder.as_os_str().is_empty() {
                    true => Path::new("."),
                    false => folder,
                };
                rules.push((folder.into(), AccessFs::RemoveFile.into()));
                if let Some(parent) = folder.parent() {
                    rules.push((parent.into(), AccessFs::RemoveDir.into()));
                }
            }
        }
        Role::Symbolizer => {
            rules.push((DEBUG.into(), reading));
            rules.extend(files.symbols.iter().map(|path| (path.clone(), reading)));
        }
        Role::Vcpu
        | Role::Device
        | Role::Background
        | Role::Stream
        | Role::Notifier
        | Role::Keeper => {}
    }
    rules
}
