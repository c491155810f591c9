//! The system calls of each role, as seccomp filters.
//!
//! Each call is in the list of the roles that need it. Arguments are looked at where they decide what a call can do:
//! memory never becomes executable, files are only read, `clone` only starts threads.

use std::collections::BTreeMap;

use libc::{c_long, c_ulong};
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

use super::Role;

/// `KVMIO` in `linux/kvm.h`: the type of all of KVM's commands.
const KVM_COMMANDS: c_ulong = 0xae;

/// Rules of the calls of a filter; a call without rules is allowed with any arguments.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Restricts the calling thread to the calls of `role`.
pub(super) fn restrict(role: Role, has_daemons: bool) -> Result<(), Error> {
    // First, since the other one stops it: `clone3` has its flags in memory, where a filter cannot look, and without it
    // the C library uses `clone`.
    apply_filter(&without_clone3()?)?;
    apply_filter(&program(role, has_daemons)?)
}

fn without_clone3() -> Result<BpfProgram, BackendError> {
    let rules = [(libc::SYS_clone3, Vec::new())].into();
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, absent, TargetArch::x86_64)?.try_into()
}

fn program(role: Role, has_daemons: bool) -> Result<BpfProgram, BackendError> {
    let rules = rules(role, has_daemons)?;
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Trap,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?;
    filter.try_into()
}

/// What a role may call, of a VM with or without devices that a daemon serves.
fn rules(role: Role, has_daemons: bool) -> Result<Rules, BackendError> {
    let mut rules = Rules::new();
    let mut allow = |calls: &[c_long]| rules.extend(calls.iter().map(|&call| (call, Vec::new())));
    allow(COMMON);
    match role {
        Role::Main => {
            allow(THREADS);
            allow(DEVICE);
            allow(MAIN);
        }
        Role::Vcpu => {
            allow(THREADS);
            allow(DEVICE);
        }
        Role::Device => {
            allow(THREADS);
            allow(DEVICE);
        }
        Role::Control => {
            // A check of sealed pages that finds a wrong one.
            allow(THREADS);
            allow(CONTROL);
        }
        Role::Background => allow(THREADS),
        Role::Stream => allow(STREAM),
        Role::Notifier => allow(&[libc::SYS_sendto]),
        Role::Symbolizer => allow(SYMBOLIZER),
        Role::Keeper => allow(&[libc::SYS_wait4]),
    }
    if has_daemons {
        match role {
            Role::Main => allow(&[DAEMON, END_OF_DAEMONS].concat()),
            Role::Vcpu | Role::Device => allow(DAEMON),
            _ => {}
        }
    }
    let memory = Check::without(2, libc::PROT_EXEC as u64);
    add(&mut rules, libc::SYS_mmap, &[&[memory]])?;
    add(&mut rules, libc::SYS_mprotect, &[&[memory]])?;
    let own = Check::is(0, u64::from(std::process::id()));
    add(&mut rules, libc::SYS_tgkill, &[&[own]])?;
    let option = |option: libc::c_int| [Check::is(0, option as u64)];
    let options = [
        libc::PR_SET_NAME,
        libc::PR_GET_NAME,
        libc::PR_SET_VMA,
        libc::PR_SET_NO_NEW_PRIVS,
    ]
    .map(option);
    add(
        &mut rules,
        libc::SYS_prctl,
        &options.each_ref().map(<[_; 1]>::as_slice),
    )?;
    let writes = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND;
    let reading = [Check::without(2, writes as u64)];
    // Every boot opens KVM, and landlock allows no other file to be written.
    let kvm = [Check::is(2, (libc::O_RDWR | libc::O_CLOEXEC) as u64)];
    match role {
        Role::Main => add(&mut rules, libc::SYS_openat, &[&reading, &kvm])?,
        _ => add(&mut rules, libc::SYS_openat, &[&reading])?,
    }
    if rules.contains_key(&libc::SYS_sendto) {
        // To whom the socket is connected, and to nobody else.
        add(&mut rules, libc::SYS_sendto, &[&[Check::null(4)]])?;
    }
    if rules.contains_key(&libc::SYS_clone) {
        add(&mut rules, libc::SYS_clone, &[&[Check::thread()]])?;
    }
    let terminal = [
        libc::TCGETS,
        libc::TCSETS,
        libc::TCSETSW,
        libc::TCSETSF,
        libc::FIONBIO,
    ];
    let terminal = terminal.map(|command| [Check::is(1, command)]);
    let mut commands: Vec<&[Check]> = terminal.iter().map(<[_; 1]>::as_slice).collect();
    let kvm = [Check::command_of(KVM_COMMANDS)];
    // A driver that starts or resets the network card changes what its tap interface may leave to it.
    let tap = [Check::is(1, libc::TUNSETOFFLOAD)];
    if matches!(role, Role::Main | Role::Vcpu) {
        commands.extend([kvm.as_slice(), &tap]);
    }
    add(&mut rules, libc::SYS_ioctl, &commands)?;
    Ok(rules)
}

/// A condition on an argument of a call.
#[derive(Clone, Copy)]
struct Check {
    argument: u8,
    mask: u64,
    value: u64,
}

impl Check {
    fn is(argument: u8, value: u64) -> Self {
        Self {
            argument,
            mask: u64::from(u32::MAX),
            value,
        }
    }

    /// None of these bits is set.
    fn without(argument: u8, bits: u64) -> Self {
        Self {
            argument,
            mask: bits,
            value: 0,
        }
    }

    /// It is a null pointer.
    fn null(argument: u8) -> Self {
        Self {
            argument,
            mask: u64::MAX,
            value: 0,
        }
    }

    /// The flags of `clone` are those of a thread.
    fn thread() -> Self {
        let namespaces = libc::CLONE_NEWNS
            | libc::CLONE_NEWUSER
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWCGROUP;
        let thread = libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND;
        Self {
            argument: 0,
            mask: (namespaces | thread) as u64,
            value: thread as u64,
        }
    }

    /// The command of `ioctl` is of a type.
    fn command_of(kind: c_ulong) -> Self {
        Self {
            argument: 1,
            mask: 0xff00,
            value: kind << 8,
        }
    }

    fn condition(self) -> Result<SeccompCondition, BackendError> {
        // The kernel looks at 32 bits of arguments that are no pointers.
        let length = match self.mask {
            u64::MAX => SeccompCmpArgLen::Qword,
            _ => SeccompCmpArgLen::Dword,
        };
        let operator = SeccompCmpOp::MaskedEq(self.mask);
        SeccompCondition::new(self.argument, length, operator, self.value)
    }
}

/// Allows a call if one of the lists of conditions holds.
fn add(rules: &mut Rules, call: c_long, any_of: &[&[Check]]) -> Result<(), BackendError> {
    let rule = |all: &&[Check]| {
        let conditions: Result<Vec<_>, _> = all.iter().map(|check| check.condition()).collect();
        SeccompRule::new(conditions?)
    };
    let any_of: Result<_, _> = any_of.iter().map(rule).collect();
    rules.insert(call, any_of?);
    Ok(())
}

/// Memory, also of files in memory that replace a broken frame; waiting, time, the end, a panic and its backtrace; and
/// confinement itself.
const COMMON: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fallocate,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_futex,
    libc::SYS_getcwd,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_memfd_create,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_newfstatat,
    libc::SYS_poll,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_readlink,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_seccomp,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_writev,
];

/// To start threads.
const THREADS: &[c_long] = &[libc::SYS_clone, libc::SYS_clone3];

/// To start, serve and end a device. What serves queues moves the guest's packets.
const DEVICE: &[c_long] = &[
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_readv,
];

/// To talk to daemons over connections that are there.
const DAEMON: &[c_long] = &[libc::SYS_recvmsg, libc::SYS_sendmsg, libc::SYS_shutdown];

/// To end daemons: a descriptor of each is there, and others cannot be made.
const END_OF_DAEMONS: &[c_long] = &[libc::SYS_pidfd_send_signal];

/// To make the VM of the next boot, and to write the report at the end.
const MAIN: &[c_long] = &[
    libc::SYS_lstat,
    libc::SYS_ppoll,
    libc::SYS_rmdir,
    libc::SYS_stat,
    libc::SYS_unlink,
];

/// To serve connections, and to remove the socket at the end.
const CONTROL: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_lstat,
    libc::SYS_recvfrom,
    libc::SYS_rmdir,
    libc::SYS_sendto,
    libc::SYS_unlink,
];

/// To wait for a target that takes nothing, or for a signal.
const STREAM: &[c_long] = &[libc::SYS_ppoll, libc::SYS_rt_sigtimedwait, libc::SYS_sendto];

/// To read files.
const SYMBOLIZER: &[c_long] = &[
    libc::SYS_getdents64,
    libc::SYS_lstat,
    libc::SYS_openat2,
    libc::SYS_readlinkat,
    libc::SYS_stat,
];

#[cfg(test)]
mod tests {
    use super::*;

    const ROLES: [Role; 9] = [
        Role::Main,
        Role::Vcpu,
        Role::Device,
        Role::Control,
        Role::Background,
        Role::Stream,
        Role::Notifier,
        Role::Symbolizer,
        Role::Keeper,
    ];

    #[test]
    fn every_role_has_a_filter() {
        without_clone3().unwrap();
        for role in ROLES {
            assert!(!program(role, false).unwrap().is_empty(), "{role:?}");
            assert!(!program(role, true).unwrap().is_empty(), "{role:?}");
        }
    }

    #[test]
    fn no_role_starts_programs_or_changes_what_others_have() {
        for role in ROLES {
            let rules = rules(role, true).unwrap();
            for call in [
                libc::SYS_execve,
                libc::SYS_execveat,
                libc::SYS_fork,
                libc::SYS_vfork,
                libc::SYS_ptrace,
                libc::SYS_process_vm_writev,
                libc::SYS_socket,
                libc::SYS_connect,
                libc::SYS_kill,
                libc::SYS_pidfd_open,
                libc::SYS_pidfd_getfd,
                libc::SYS_rename,
                libc::SYS_mount,
                libc::SYS_unshare,
                libc::SYS_io_uring_setup,
            ] {
                assert!(!rules.contains_key(&call), "{role:?}: call {call}");
            }
        }
    }

    #[test]
    fn without_daemons_nobody_passes_descriptors_or_signals() {
        for role in ROLES {
            let rules = rules(role, false).unwrap();
            for call in [
                libc::SYS_sendmsg,
                libc::SYS_recvmsg,
                libc::SYS_pidfd_send_signal,
            ] {
                assert!(!rules.contains_key(&call), "{role:?}: call {call}");
            }
        }
    }

    #[test]
    fn roles_that_a_vcpu_starts_need_no_more_than_it_has() {
        for has_daemons in [false, true] {
            let [vcpu, main, device] = [Role::Vcpu, Role::Main, Role::Device]
                .map(|role| rules(role, has_daemons).unwrap());
            assert!(device.keys().all(|call| vcpu.contains_key(call)));
            assert!(vcpu.keys().all(|call| main.contains_key(call)));
        }
        let main = rules(Role::Main, false).unwrap();
        let stream = rules(Role::Stream, false).unwrap();
        // The console's reader, which the main thread starts.
        for call in [libc::SYS_poll, libc::SYS_read] {
            assert!(stream.contains_key(&call) && main.contains_key(&call));
        }
    }
}
