//! Vault and pool of a virtual machine, as the process of `vmsrs run` has them, for tests that damage their memory.

#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use crate::accelerator::Accelerator;

/// Size of a frame in bytes.
const FRAME: usize = 4096;

/// Opens the vault of the process `vmm` for reading and writing, which bypasses all protection.
///
/// # Errors
///
/// When the process or its vault does not exist or may not be opened.
pub fn open(vmm: u32) -> io::Result<File> {
    open_region(vmm, "vault")
}

/// The same for the pool.
///
/// # Errors
///
/// As [`open`].
pub fn open_pool(vmm: u32) -> io::Result<File> {
    open_region(vmm, "pool")
}

fn open_region(vmm: u32, name: &str) -> io::Result<File> {
    let memfd = format!("/memfd:vmsrs-{name}");
    for file in fs::read_dir(format!("/proc/{vmm}/fd"))? {
        let path = file?.path();
        let is_it = |target: PathBuf| target.to_string_lossy().starts_with(&memfd);
        if fs::read_link(&path).is_ok_and(is_it) {
            return OpenOptions::new().read(true).write(true).open(path);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("process {vmm} has no {name}"),
    ))
}

/// Whether memory may be poisoned here. Poisoned memory is lost until the machine reboots, so this is only allowed on the
/// nested KVM host, which lives for one job.
pub fn may_poison() -> bool {
    std::env::var_os("VMSRS_ACCELERATOR").is_some_and(|name| name == Accelerator::Nested.name())
}

/// Has the host's kernel treat the memory of the frame at `offset` as broken, as on a hardware error. That kills the
/// process that asks for it, so a child does.
///
/// # Errors
///
/// When this is not the nested KVM host ([`may_poison`]), the frame cannot be mapped, or the kernel refuses (it needs
/// `CONFIG_MEMORY_FAILURE` and root).
pub fn poison(vault: &File, offset: u64) -> io::Result<()> {
    if !may_poison() {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "memory is poisoned in the nested test-bed only",
        ));
    }
    let offset = i64::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: the child makes system calls and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        poison_and_end(vault.as_raw_fd(), offset);
    }
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut status = 0;
    // SAFETY: waits for the child; status is valid.
    while unsafe { libc::waitpid(child, &raw mut status, 0) } != child {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGBUS {
        return Ok(());
    }
    match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
        (true, 0) => Ok(()),
        (true, errno) => Err(io::Error::from_raw_os_error(errno)),
        _ => Err(io::Error::other(format!(
            "the process that poisons a frame ended with {status:#x}"
        ))),
    }
}

/// Poisons a page of a file and ends the process: with 0, or with `errno`.
fn poison_and_end(vault: RawFd, offset: i64) -> ! {
    // SAFETY: a new mapping; only the read that faults it in accesses it.
    unsafe {
        let address = libc::mmap(
            std::ptr::null_mut(),
            FRAME,
            libc::PROT_READ,
            libc::MAP_SHARED,
            vault,
            offset,
        );
        if address == libc::MAP_FAILED {
            libc::_exit(*libc::__errno_location());
        }
        std::ptr::read_volatile(address.cast::<u8>());
        let failed = libc::madvise(address, FRAME, libc::MADV_HWPOISON) != 0;
        libc::_exit(if failed { *libc::__errno_location() } else { 0 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_nested_host_poisons_memory() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(FRAME as u64).unwrap();
        assert!(
            !may_poison(),
            "VMSRS_ACCELERATOR is for jobs of the test-bed"
        );
        let error = poison(&file, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn a_process_without_a_vault_is_an_error() {
        let error = open(std::process::id()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
