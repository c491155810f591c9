//! Memory mappings that last until the process ends.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;

use anyhow::{Context, Result};

/// Where a mapping is to lie, and of what.
struct Request {
    address: u64,
    length: usize,
    offset: u64,
    protection: i32,
    flags: i32,
    file: RawFd,
}

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// The lock words of the only app of the process.
///
/// # Errors
///
/// When they are not mapped.
pub fn lock_words() -> Result<*mut u64> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let offset = format!(" {:08x} ", vmsrs_protocol::ioctl::LOCKS_OFFSET);
    let line = maps.lines().find(|line| line.contains(&offset));
    let address = line.and_then(|line| line.split('-').next());
    let address = address.with_context(|| format!("no lock words: {maps}"))?;
    Ok(usize::from_str_radix(address, 16)? as *mut u64)
}

/// Maps `length` bytes of new memory.
///
/// # Errors
///
/// Fails when the kernel refuses.
pub fn anonymous(length: usize) -> io::Result<NonNull<u8>> {
    map(&Request {
        address: 0,
        length,
        offset: 0,
        protection: READ_WRITE,
        flags: libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        file: -1,
    })
}

/// Maps the first `length` bytes of a file, shared.
///
/// # Errors
///
/// Fails when the kernel refuses.
pub fn file(file: &File, length: usize) -> io::Result<NonNull<u8>> {
    part_of_file(file, length, 0)
}

/// Maps `length` bytes of a file from `offset` on, shared.
///
/// # Errors
///
/// Fails when the kernel refuses.
pub fn part_of_file(file: &File, length: usize, offset: u64) -> io::Result<NonNull<u8>> {
    map(&Request {
        address: 0,
        length,
        offset,
        protection: READ_WRITE,
        flags: libc::MAP_SHARED,
        file: file.as_raw_fd(),
    })
}

/// Maps `length` bytes of a file from `offset` on, shared, to read only.
///
/// # Errors
///
/// Fails when the kernel refuses.
pub fn read_only_part_of_file(file: &File, length: usize, offset: u64) -> io::Result<NonNull<u8>> {
    map(&Request {
        address: 0,
        length,
        offset,
        protection: libc::PROT_READ,
        flags: libc::MAP_SHARED,
        file: file.as_raw_fd(),
    })
}

/// Maps `length` bytes of a file from `offset` on, shared, at `address`, where nothing may be mapped yet.
///
/// # Errors
///
/// Fails when something is mapped there, or the kernel refuses.
pub fn file_at(file: &File, address: u64, length: usize, offset: u64) -> io::Result<NonNull<u8>> {
    map(&Request {
        address,
        length,
        offset,
        protection: READ_WRITE,
        flags: libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE,
        file: file.as_raw_fd(),
    })
}

fn map(request: &Request) -> io::Result<NonNull<u8>> {
    // SAFETY: the kernel chooses the address, or MAP_FIXED_NOREPLACE keeps it from replacing another mapping.
    let pointer = unsafe {
        libc::mmap(
            std::ptr::without_provenance_mut(request.address as usize),
            request.length,
            request.protection,
            request.flags,
            request.file,
            request.offset as libc::off_t,
        )
    };
    if pointer == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(pointer.cast()).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}
