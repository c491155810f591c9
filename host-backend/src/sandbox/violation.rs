//! The end of a process whose thread has made a system call that its role does not need.

use std::ffi::CStr;
use std::io;
use std::ptr;

use libc::{c_int, c_void, siginfo_t};

/// `si_code` of SIGSYS for a call that a seccomp filter has stopped (Linux's `asm-generic/siginfo.h`).
const SYS_SECCOMP: c_int = 1;

/// How long the message waits for whoever reads standard error, in milliseconds.
const PATIENCE: c_int = 1000;

/// `siginfo_t` of SIGSYS, which the libc crate does not describe.
#[repr(C)]
struct SystemCall {
    signal: c_int,
    error: c_int,
    code: c_int,
    address: *mut c_void,
    number: c_int,
    architecture: u32,
}

/// Makes [`name`] of a list.
macro_rules! names {
    ($($call:ident $name:literal,)*) => {
        /// The name of a system call that an intruder would like to make, or that a library may come to make.
        fn name(number: c_int) -> &'static [u8] {
            match libc::c_long::from(number) {
                $(libc::$call => $name,)*
                _ => b"see `ausyscall`",
            }
        }
    };
}

names! {
    SYS_accept b"accept", SYS_accept4 b"accept4", SYS_access b"access", SYS_bind b"bind", SYS_bpf b"bpf",
    SYS_chmod b"chmod", SYS_chown b"chown", SYS_clone b"clone", SYS_clone3 b"clone3", SYS_connect b"connect",
    SYS_copy_file_range b"copy_file_range", SYS_dup b"dup", SYS_dup2 b"dup2", SYS_dup3 b"dup3",
    SYS_epoll_create1 b"epoll_create1", SYS_epoll_ctl b"epoll_ctl", SYS_epoll_pwait b"epoll_pwait",
    SYS_epoll_wait b"epoll_wait", SYS_eventfd2 b"eventfd2", SYS_execve b"execve", SYS_execveat b"execveat",
    SYS_fallocate b"fallocate", SYS_fchmod b"fchmod", SYS_fchown b"fchown", SYS_fcntl b"fcntl",
    SYS_fork b"fork", SYS_fstat b"fstat", SYS_ftruncate b"ftruncate", SYS_getcwd b"getcwd",
    SYS_getdents64 b"getdents64", SYS_getpeername b"getpeername", SYS_getrandom b"getrandom",
    SYS_getsockopt b"getsockopt", SYS_init_module b"init_module", SYS_finit_module b"finit_module",
    SYS_io_uring_setup b"io_uring_setup", SYS_ioctl b"ioctl", SYS_kill b"kill", SYS_link b"link",
    SYS_listen b"listen", SYS_lseek b"lseek", SYS_lstat b"lstat", SYS_madvise b"madvise",
    SYS_membarrier b"membarrier", SYS_memfd_create b"memfd_create", SYS_mkdir b"mkdir", SYS_mmap b"mmap",
    SYS_mount b"mount", SYS_mprotect b"mprotect", SYS_mremap b"mremap", SYS_msync b"msync",
    SYS_newfstatat b"newfstatat", SYS_open b"open", SYS_openat b"openat", SYS_openat2 b"openat2",
    SYS_pidfd_open b"pidfd_open", SYS_pidfd_send_signal b"pidfd_send_signal", SYS_pipe2 b"pipe2", SYS_poll b"poll", SYS_ppoll b"ppoll",
    SYS_prctl b"prctl", SYS_pread64 b"pread64", SYS_preadv b"preadv", SYS_prlimit64 b"prlimit64",
    SYS_process_vm_readv b"process_vm_readv", SYS_process_vm_writev b"process_vm_writev",
    SYS_ptrace b"ptrace", SYS_pwrite64 b"pwrite64", SYS_readlink b"readlink", SYS_readlinkat b"readlinkat",
    SYS_readv b"readv", SYS_recvfrom b"recvfrom", SYS_recvmsg b"recvmsg", SYS_rename b"rename",
    SYS_renameat b"renameat", SYS_renameat2 b"renameat2", SYS_rmdir b"rmdir",
    SYS_rt_sigaction b"rt_sigaction", SYS_rt_sigtimedwait b"rt_sigtimedwait",
    SYS_sched_getaffinity b"sched_getaffinity", SYS_sched_setaffinity b"sched_setaffinity",
    SYS_seccomp b"seccomp", SYS_sendmsg b"sendmsg", SYS_sendto b"sendto", SYS_setgid b"setgid",
    SYS_setns b"setns", SYS_setsockopt b"setsockopt", SYS_setuid b"setuid", SYS_shutdown b"shutdown",
    SYS_socket b"socket", SYS_socketpair b"socketpair", SYS_splice b"splice", SYS_stat b"stat",
    SYS_statx b"statx", SYS_symlink b"symlink", SYS_tkill b"tkill", SYS_tgkill b"tgkill",
    SYS_umask b"umask", SYS_uname b"uname", SYS_unlink b"unlink", SYS_unlinkat b"unlinkat",
    SYS_unshare b"unshare", SYS_userfaultfd b"userfaultfd", SYS_vfork b"vfork", SYS_wait4 b"wait4",
    SYS_writev b"writev",
}

/// Reports violations from now on, for all of the process.
pub(super) fn report() -> io::Result<()> {
    // SAFETY: all zeros is a valid value of this structure.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(_, *mut siginfo_t, *mut c_void) = on_sigsys;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the structure is valid, and the handler does nothing but what signal handlers may.
    match unsafe { libc::sigaction(libc::SIGSYS, &action, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn on_sigsys(_: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel passes a valid structure, which has these fields for SIGSYS.
    let call = unsafe { &*info.cast::<SystemCall>() };
    if call.code == SYS_SECCOMP {
        say(call.number);
    }
    // SAFETY: async-signal-safe, and the default needs no function. The signal is blocked until the handler returns,
    // and ends the process then.
    unsafe {
        libc::signal(libc::SIGSYS, libc::SIG_DFL);
        libc::raise(libc::SIGSYS);
    }
}

/// Writes the message to standard error.
fn say(number: c_int) {
    let mut thread = [0u8; 16];
    // SAFETY: the buffer has the 16 bytes that the call writes, with a NUL as the last.
    unsafe { libc::prctl(libc::PR_GET_NAME, thread.as_mut_ptr()) };
    let thread = CStr::from_bytes_until_nul(&thread).map_or(&b"?"[..], CStr::to_bytes);
    let mut line = Line::default();
    line.add(b"vmsrs: the sandbox has stopped system call ");
    line.add_number(number);
    line.add(b" (");
    line.add(name(number));
    line.add(b") of thread ");
    line.add(thread);
    line.add(b", and ends the process: report it as a defect, or an attack; --sandbox off runs without it\n");
    let mut ready = libc::pollfd {
        fd: libc::STDERR_FILENO,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: the array of one and the bytes are valid.
    unsafe {
        if libc::poll(&raw mut ready, 1, PATIENCE) > 0 {
            libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.length);
        }
    }
}

/// A text that needs no memory but its own.
struct Line {
    bytes: [u8; 256],
    length: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            bytes: [0; 256],
            length: 0,
        }
    }
}

impl Line {
    /// Adds what there is room for.
    fn add(&mut self, text: &[u8]) {
        for (place, byte) in self.bytes.iter_mut().skip(self.length).zip(text) {
            *place = *byte;
            self.length += 1;
        }
    }

    fn add_number(&mut self, number: c_int) {
        let mut digits = [0; 10];
        let mut rest = number.unsigned_abs();
        let mut first = digits.len();
        loop {
            first -= 1;
            // Below 10.
            digits[first] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.add(&digits[first..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_takes_numbers_and_no_more_than_its_room() {
        let mut line = Line::default();
        for number in [0, 59, 435, c_int::MAX] {
            line.add_number(number);
            line.add(b" ");
        }
        assert_eq!(&line.bytes[..line.length], b"0 59 435 2147483647 ");
        line.add(&[b'x'; 300]);
        assert_eq!(line.length, 256);
    }
}
