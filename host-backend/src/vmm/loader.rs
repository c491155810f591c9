//! Loading a Linux kernel, its initramfs and its command line into guest memory.
//!
//! Two formats are known by their first bytes: a bzImage, started by the 64-bit Linux boot
//! protocol (kernel documentation, `arch/x86/boot.rst`, "64-bit boot protocol"), and a vmlinux in
//! ELF format with a PVH note, started by the x86/HVM direct boot ABI.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use thiserror::Error;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryError};

use super::memory::{GuestRam, HIGH_RAM_START, Layout, PAGE_SIZE};
use crate::size::Size;

/// Guest physical addresses of what the boot protocols need, all in conventional memory.
mod low {
    /// The zero page of the Linux boot protocol.
    pub(super) const ZERO_PAGE: u64 = 0x7000;
    /// The PVH start information and what it points to.
    pub(super) const START_INFO: u64 = 0x6000;
    pub(super) const MODULE_LIST: u64 = 0x6040;
    pub(super) const MEMORY_MAP: u64 = 0x6100;
    /// Page tables that map the first 4 GiB to themselves: one page each of levels 4 and 3, four
    /// of level 2.
    pub(super) const PML4: u64 = 0x9000;
    pub(super) const PDPT: u64 = 0xa000;
    pub(super) const PAGE_DIRECTORIES: u64 = 0xb000;
    /// The command line with its terminating NUL.
    pub(super) const COMMAND_LINE: u64 = 0x2_0000;
}

/// Longest command line in bytes, without the terminating NUL (`COMMAND_LINE_SIZE` of x86 less
/// one).
pub const MAX_COMMAND_LINE: usize = 2047;

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
/// Where the setup header's magic number lies in a bzImage, and what it is.
const BZIMAGE_MAGIC_OFFSET: u64 = 0x202;
const BZIMAGE_MAGIC: [u8; 4] = *b"HdrS";

/// First version of the boot protocol that says whether there is a 64-bit entry.
const MIN_BOOT_PROTOCOL: u16 = 0x020c;
/// `xloadflags`: the kernel has the 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;
/// Where the 64-bit entry point is, counted from the load address.
const ENTRY_64_OFFSET: u64 = 0x200;
/// `type_of_loader`: a boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;

const PVH_MAGIC: u32 = 0x336e_c578;
const PVH_VERSION_WITH_MEMORY_MAP: u32 = 1;

const ENTRY_PRESENT_WRITABLE: u64 = 0x3;
const ENTRY_LARGE_PAGE: u64 = 0x80;

/// A kernel's file, open. Every boot loads from this file, whatever lies at its path by then: a
/// guest that starts again gets the kernel that belongs to its initramfs.
#[derive(Debug)]
pub struct Kernel {
    path: PathBuf,
    file: File,
}

impl Kernel {
    /// Opens a bzImage or a vmlinux.
    ///
    /// # Errors
    ///
    /// Fails when there is no regular file that can be read. What it holds is looked at by [`load`].
    pub fn open(path: &Path) -> Result<Self, LoaderError> {
        let read_error = |source| LoaderError::Read {
            path: path.to_owned(),
            source,
        };
        let (file, metadata) = open_at_once(path).map_err(read_error)?;
        if metadata.is_dir() {
            return Err(read_error(io::ErrorKind::IsADirectory.into()));
        }
        if !metadata.is_file() {
            return Err(LoaderError::NotAKernel(path.to_owned()));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }
}

/// Opens a file for reading without waiting, and tells what it is: a FIFO would wait for a writer
/// and a device for its event, during which nothing could end the program.
pub(crate) fn open_at_once(path: &Path) -> io::Result<(File, Metadata)> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    let metadata = file.metadata()?;
    Ok((file, metadata))
}

/// What is to be loaded.
#[derive(Debug, Clone, Copy)]
pub struct BootSource<'a> {
    /// The kernel.
    pub kernel: &'a Kernel,
    /// The initramfs, if there is one: a cpio archive, packed or not.
    pub initramfs: Option<&'a [u8]>,
    /// The command line.
    pub cmdline: &'a str,
    /// Guest physical address of the ACPI root pointer.
    pub rsdp: u64,
}

/// Where and in which mode the boot CPU starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit mode with the page tables at `page_tables`; RSI holds `zero_page`.
    Linux64 {
        /// First instruction.
        rip: u64,
        /// Value of RSI.
        zero_page: u64,
        /// Value of CR3.
        page_tables: u64,
    },
    /// 32-bit protected mode without paging; EBX holds `start_info`.
    Pvh {
        /// First instruction.
        rip: u64,
        /// Value of EBX.
        start_info: u64,
    },
}

/// Why a guest could not be loaded.
#[derive(Debug, Error)]
pub enum LoaderError {
    /// The kernel file cannot be read.
    #[error("cannot read the kernel {path}: check the path and its permissions")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is neither bzImage nor ELF.
    #[error("{0} is not a Linux kernel for x86-64: give a bzImage (vmlinuz) or a vmlinux")]
    NotAKernel(PathBuf),
    /// The bzImage is too old or for 32 bits.
    #[error("{0} has no 64-bit entry point: give a kernel for x86-64, Linux 3.8 or newer")]
    No64BitEntry(PathBuf),
    /// The vmlinux has no PVH note.
    #[error("{0} has no PVH entry point: give its bzImage, or build it with CONFIG_PVH=y")]
    NoPvhEntry(PathBuf),
    /// The kernel does not fit, or its file ends early.
    #[error("{path} does not load: it is damaged, or the guest's memory is too small for it")]
    Load {
        /// The file.
        path: PathBuf,
        /// What the loader said.
        source: linux_loader::loader::Error,
    },
    /// Kernel and initramfs together do not fit.
    #[error(
        "kernel and initramfs ({}) do not fit into the guest's memory: give it at least {:#}",
        Size(*.initramfs),
        Size(*.needed)
    )]
    TooLarge {
        /// Size of the initramfs in bytes.
        initramfs: u64,
        /// Least memory in bytes below 3 GiB.
        needed: u64,
    },
    /// The command line is too long.
    #[error(
        "the kernel's command line has {len} bytes, with the parameters that every guest gets, and \
         may have {MAX_COMMAND_LINE}: make --cmdline shorter by {}",
        len.saturating_sub(MAX_COMMAND_LINE)
    )]
    LongCommandLine {
        /// Its length in bytes.
        len: usize,
    },
    /// The command line would end early.
    #[error("the kernel's command line has a NUL byte: remove it")]
    NulInCommandLine,
    /// Writing to guest memory failed.
    #[error("cannot write the boot parameters to guest memory")]
    Memory(#[from] GuestMemoryError),
}

/// Loads everything that `source` names and says how to start it.
///
/// # Errors
///
/// Fails when a file cannot be read, is not a bootable kernel, or does not fit.
pub fn load(
    ram: &GuestRam,
    layout: &Layout,
    source: &BootSource<'_>,
) -> Result<Entry, LoaderError> {
    let Kernel { path, file } = source.kernel;
    let read_error = |source| LoaderError::Read {
        path: path.to_owned(),
        source,
    };
    write_command_line(ram, source.cmdline)?;
    let mut magic = [0; 4];
    if read_at(file, &mut magic, 0).map_err(read_error)? && magic == ELF_MAGIC {
        let mut file = reader(file).map_err(read_error)?;
        return load_vmlinux(ram, layout, source, &mut file);
    }
    if read_at(file, &mut magic, BZIMAGE_MAGIC_OFFSET).map_err(read_error)?
        && magic == BZIMAGE_MAGIC
    {
        let mut file = reader(file).map_err(read_error)?;
        return load_bzimage(ram, layout, source, &mut file);
    }
    Err(LoaderError::NotAKernel(path.to_owned()))
}

/// A handle that reads `file` from its start.
fn reader(file: &File) -> io::Result<File> {
    let mut reader = file.try_clone()?;
    // Both handles share the position, which the last boot moved.
    reader.rewind()?;
    Ok(reader)
}

/// Fills `buffer` from `offset`; false when the file ends before.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
    match file.read_exact_at(buffer, offset) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn write_command_line(ram: &GuestRam, cmdline: &str) -> Result<(), LoaderError> {
    if cmdline.len() > MAX_COMMAND_LINE {
        return Err(LoaderError::LongCommandLine { len: cmdline.len() });
    }
    if cmdline.contains('\0') {
        return Err(LoaderError::NulInCommandLine);
    }
    ram.write_slice(cmdline.as_bytes(), GuestAddress(low::COMMAND_LINE))?;
    ram.write_obj(0u8, GuestAddress(low::COMMAND_LINE + cmdline.len() as u64))?;
    Ok(())
}

/// Copies the initramfs to the highest place below `limit` and above the kernel's end, and
/// returns its address and length; both 0 when there is none.
fn place_initramfs(
    ram: &GuestRam,
    initramfs: Option<&[u8]>,
    kernel_end: u64,
    limit: u64,
) -> Result<(u64, u64), LoaderError> {
    let bytes = initramfs.unwrap_or_default();
    let len = bytes.len() as u64;
    let too_large = LoaderError::TooLarge {
        initramfs: len,
        needed: kernel_end.saturating_add(len).next_multiple_of(1 << 20),
    };
    let address = match limit.checked_sub(len) {
        Some(address) if address & !(PAGE_SIZE - 1) >= kernel_end => address & !(PAGE_SIZE - 1),
        _ => return Err(too_large),
    };
    if bytes.is_empty() {
        return Ok((0, 0));
    }
    ram.write_slice(bytes, GuestAddress(address))?;
    Ok((address, len))
}

fn load_vmlinux(
    ram: &GuestRam,
    layout: &Layout,
    source: &BootSource<'_>,
    file: &mut File,
) -> Result<Entry, LoaderError> {
    let path = &source.kernel.path;
    let kernel = Elf::load(ram, None, file, None).map_err(|source| LoaderError::Load {
        path: path.to_owned(),
        source,
    })?;
    let PvhBootCapability::PvhEntryPresent(entry) = kernel.pvh_boot_cap else {
        return Err(LoaderError::NoPvhEntry(path.to_owned()));
    };
    let (initramfs, initramfs_len) =
        place_initramfs(ram, source.initramfs, kernel.kernel_end, layout.low_end())?;

    let map = layout.memory_map();
    for (index, range) in map.iter().enumerate() {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.len,
            type_: range.kind as u32,
            reserved: 0,
        };
        let offset = (index * size_of_val(&entry)) as u64;
        ram.write_obj(entry, GuestAddress(low::MEMORY_MAP + offset))?;
    }
    let module = hvm_modlist_entry {
        paddr: initramfs,
        size: initramfs_len,
        ..Default::default()
    };
    ram.write_obj(module, GuestAddress(low::MODULE_LIST))?;
    let start_info = hvm_start_info {
        magic: PVH_MAGIC,
        version: PVH_VERSION_WITH_MEMORY_MAP,
        nr_modules: u32::from(initramfs_len != 0),
        modlist_paddr: low::MODULE_LIST,
        cmdline_paddr: low::COMMAND_LINE,
        rsdp_paddr: source.rsdp,
        memmap_paddr: low::MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    ram.write_obj(start_info, GuestAddress(low::START_INFO))?;
    Ok(Entry::Pvh {
        rip: entry.0,
        start_info: low::START_INFO,
    })
}

fn load_bzimage(
    ram: &GuestRam,
    layout: &Layout,
    source: &BootSource<'_>,
    file: &mut File,
) -> Result<Entry, LoaderError> {
    let path = &source.kernel.path;
    let start = GuestAddress(HIGH_RAM_START);
    let kernel =
        BzImage::load(ram, Some(start), file, None).map_err(|source| LoaderError::Load {
            path: path.to_owned(),
            source,
        })?;
    let header = kernel
        .setup_header
        .filter(|header| header.version >= MIN_BOOT_PROTOCOL)
        .filter(|header| header.xloadflags & XLF_KERNEL_64 != 0)
        .ok_or_else(|| LoaderError::No64BitEntry(path.to_owned()))?;

    // The kernel unpacks itself at its preferred address and needs `init_size` bytes there.
    let unpacked_end = { header.pref_address }.saturating_add(header.init_size.into());
    let limit = layout
        .low_end()
        .min(u64::from(header.initrd_addr_max).saturating_add(1));
    let (initramfs, initramfs_len) = place_initramfs(
        ram,
        source.initramfs,
        unpacked_end.max(kernel.kernel_end),
        limit,
    )?;
    write_zero_page(ram, layout, source, header, initramfs, initramfs_len)?;
    write_identity_map(ram)?;
    Ok(Entry::Linux64 {
        rip: start.0 + ENTRY_64_OFFSET,
        zero_page: low::ZERO_PAGE,
        page_tables: low::PML4,
    })
}

fn write_zero_page(
    ram: &GuestRam,
    layout: &Layout,
    source: &BootSource<'_>,
    header: setup_header,
    initramfs: u64,
    initramfs_len: u64,
) -> Result<(), LoaderError> {
    let mut params = boot_params {
        hdr: header,
        acpi_rsdp_addr: source.rsdp,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = low::COMMAND_LINE as u32;
    params.hdr.cmdline_size = source.cmdline.len() as u32;
    // Both lie below 4 GiB: the limit is at most the end of the low RAM.
    params.hdr.ramdisk_image = initramfs as u32;
    params.hdr.ramdisk_size = initramfs_len as u32;
    let map = layout.memory_map();
    params.e820_entries = map.len() as u8;
    for (entry, range) in params.e820_table.iter_mut().zip(&map) {
        *entry = boot_e820_entry {
            addr: range.start,
            size: range.len,
            r#type: range.kind as u32,
        };
    }
    ram.write_slice(params.as_slice(), GuestAddress(low::ZERO_PAGE))?;
    Ok(())
}

/// Maps the first 4 GiB to themselves with pages of 2 MiB.
fn write_identity_map(ram: &GuestRam) -> Result<(), LoaderError> {
    let pdpt = low::PDPT | ENTRY_PRESENT_WRITABLE;
    ram.write_obj(pdpt, GuestAddress(low::PML4))?;
    for gigabyte in 0..4u64 {
        let directory = low::PAGE_DIRECTORIES + gigabyte * PAGE_SIZE;
        ram.write_obj(
            directory | ENTRY_PRESENT_WRITABLE,
            GuestAddress(low::PDPT + gigabyte * 8),
        )?;
        for index in 0..512u64 {
            let page = (gigabyte << 30) | (index << 21);
            ram.write_obj(
                page | ENTRY_PRESENT_WRITABLE | ENTRY_LARGE_PAGE,
                GuestAddress(directory + index * 8),
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host_memory::HostPages;
    use crate::vmm::memory::MIN_RAM;
    use std::io::Write;
    use tempfile::NamedTempFile;

    fn file_with(bytes: &[u8]) -> NamedTempFile {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn load_path(
        kernel: &Path,
        initramfs: Option<&[u8]>,
        cmdline: &str,
    ) -> Result<Entry, LoaderError> {
        let layout = Layout::new(MIN_RAM).unwrap();
        let source = BootSource {
            kernel: &Kernel::open(kernel)?,
            initramfs,
            cmdline,
            rsdp: 0xe0000,
        };
        load(
            &layout.allocate(HostPages::Standard).unwrap(),
            &layout,
            &source,
        )
    }

    /// The smallest image with a right setup header.
    fn bzimage(xloadflags: u16) -> Vec<u8> {
        let mut image = vec![0u8; 1024 + 512];
        let header = setup_header {
            setup_sects: 1,
            header: u32::from_le_bytes(BZIMAGE_MAGIC),
            version: 0x020f,
            loadflags: 1,
            xloadflags,
            initrd_addr_max: 0x7fff_ffff,
            pref_address: 0x100_0000,
            init_size: 0x100_0000,
            ..Default::default()
        };
        image[0x1f1..][..size_of::<setup_header>()].copy_from_slice(header.as_slice());
        image
    }

    #[test]
    fn a_missing_kernel_is_named() {
        let error = load_path(Path::new("/no/such/kernel"), None, "").unwrap_err();
        assert!(matches!(error, LoaderError::Read { .. }));
        assert!(error.to_string().contains("/no/such/kernel"));
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused() {
        for bytes in [&b""[..], b"abc", &[0; 4096]] {
            let file = file_with(bytes);
            let error = load_path(file.path(), None, "").unwrap_err();
            assert!(matches!(error, LoaderError::NotAKernel(_)), "{error}");
        }
    }

    #[test]
    fn an_elf_file_that_is_cut_short_is_refused() {
        let file = file_with(b"\x7fELF\x02\x01\x01");
        let error = load_path(file.path(), None, "").unwrap_err();
        assert!(matches!(error, LoaderError::Load { .. }), "{error}");
    }

    #[test]
    fn a_bzimage_starts_at_its_64_bit_entry_with_a_zero_page() {
        let layout = Layout::new(MIN_RAM).unwrap();
        let ram = layout.allocate(HostPages::Standard).unwrap();
        let file = file_with(&bzimage(XLF_KERNEL_64));
        let source = BootSource {
            kernel: &Kernel::open(file.path()).unwrap(),
            initramfs: Some(b"archive"),
            cmdline: "quiet",
            rsdp: 0xe0000,
        };
        let entry = load(&ram, &layout, &source).unwrap();
        assert_eq!(
            entry,
            Entry::Linux64 {
                rip: 0x10_0200,
                zero_page: low::ZERO_PAGE,
                page_tables: low::PML4
            },
        );
        let mut params = boot_params::default();
        ram.read_slice(params.as_mut_slice(), GuestAddress(low::ZERO_PAGE))
            .unwrap();
        assert_eq!({ params.acpi_rsdp_addr }, 0xe0000);
        assert_eq!({ params.hdr.ramdisk_size }, 7);
        assert_eq!(params.e820_entries, 3);
        let mut archive = [0; 7];
        let address = GuestAddress(params.hdr.ramdisk_image.into());
        ram.read_slice(&mut archive, address).unwrap();
        assert_eq!(&archive, b"archive");
        let mut cmdline = [0xffu8; 6];
        ram.read_slice(&mut cmdline, GuestAddress(low::COMMAND_LINE))
            .unwrap();
        assert_eq!(&cmdline, b"quiet\0");
    }

    #[test]
    fn a_bzimage_without_a_64_bit_entry_is_refused() {
        let file = file_with(&bzimage(0));
        let error = load_path(file.path(), None, "").unwrap_err();
        assert!(matches!(error, LoaderError::No64BitEntry(_)), "{error}");
    }

    #[test]
    fn oversized_initramfs_names_the_memory_it_needs() {
        let file = file_with(&bzimage(XLF_KERNEL_64));
        let initramfs = vec![0; (MIN_RAM - (32 << 20) + 1) as usize];
        let error = load_path(file.path(), Some(&initramfs), "").unwrap_err();
        assert!(
            matches!(error, LoaderError::TooLarge { needed, .. } if needed > MIN_RAM),
            "{error}"
        );
        assert!(load_path(file.path(), Some(&initramfs[1..]), "").is_ok());
    }

    #[test]
    fn a_command_line_that_is_too_long_or_ends_early_is_refused() {
        let file = file_with(&bzimage(XLF_KERNEL_64));
        let longest = "x".repeat(MAX_COMMAND_LINE);
        assert!(load_path(file.path(), None, &longest).is_ok());
        assert!(matches!(
            load_path(file.path(), None, &format!("{longest}x")),
            Err(LoaderError::LongCommandLine { len: 2048 })
        ));
        assert!(matches!(
            load_path(file.path(), None, "a\0b"),
            Err(LoaderError::NulInCommandLine)
        ));
    }
}
