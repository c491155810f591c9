//! The tap interface: opening one, or taking over an open one.

use std::ffi::{c_int, c_ulong, c_void};
use std::fs::{File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::str::FromStr;

use thiserror::Error;

use super::offload::{self, TapOffloads};
use super::{HEADER, MTU_MIN};

const TUN_PATH: &str = "/dev/net/tun";

/// Which tap interface to use.
///
/// Written as `NAME` or `NAME,ADDRESS/PREFIX`, for example `tap0,192.168.77.1/24`, or as `fd=N`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TapConfig {
    /// One that is opened here.
    Named {
        /// Name of the interface; it is made if it does not exist, and then goes away with the VM.
        name: String,
        /// The host's address; the interface is set up with it. Without one the interface is left as
        /// it is.
        address: Option<TapAddress>,
    },
    /// An open descriptor that this program has inherited. Its interface is left as it is.
    Descriptor(RawFd),
}

/// An IPv4 address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapAddress {
    /// The address of the host.
    pub address: Ipv4Addr,
    /// Length of the prefix in bits, 1 to 30.
    pub prefix: u8,
}

impl TapAddress {
    fn netmask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX << (32 - u32::from(self.prefix)))
    }
}

/// Why a description of a tap interface is invalid.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TapConfigError {
    /// Not a valid interface name.
    #[error("`{0}` is not an interface name: give 1 to 15 bytes without `/`, `:` and white space")]
    Name(String),
    /// Not an address that the host's side can have.
    #[error(
        "`{0}` is not an IPv4 address with a prefix of 1 to 30: give ADDRESS/PREFIX, for example \
         192.168.77.1/24"
    )]
    Address(String),
    /// Not a descriptor that can be a tap interface.
    #[error(
        "`{0}` is not a descriptor of a tap interface: give fd=NUMBER, from 3 on, and no address"
    )]
    Descriptor(String),
}

impl FromStr for TapConfig {
    type Err = TapConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(number) = text.strip_prefix("fd=") {
            let number = number.parse().ok().filter(|&number| number > 2);
            return number
                .map(Self::Descriptor)
                .ok_or_else(|| TapConfigError::Descriptor(text.to_owned()));
        }
        let (name, address) = match text.split_once(',') {
            Some((name, address)) => (name, Some(address)),
            None => (text, None),
        };
        // The rules of Linux's dev_valid_name(), and no pattern such as `tap%d`.
        let valid = !name.is_empty()
            && name.len() < libc::IFNAMSIZ
            && !matches!(name, "." | "..")
            && !name.contains(|c: char| "/:%\0".contains(c) || c.is_ascii_whitespace());
        if !valid {
            return Err(TapConfigError::Name(name.to_owned()));
        }
        Ok(Self::Named {
            name: name.to_owned(),
            address: address.map(str::parse).transpose()?,
        })
    }
}

impl FromStr for TapAddress {
    type Err = TapConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            let address = address.parse().ok()?;
            let prefix = prefix
                .parse()
                .ok()
                .filter(|prefix| (1..=30).contains(prefix))?;
            Some(Self { address, prefix })
        };
        parse().ok_or_else(|| TapConfigError::Address(text.to_owned()))
    }
}

/// Why a tap interface cannot be used.
#[derive(Debug, Error)]
pub enum TapError {
    /// The kernel has no tap interfaces.
    #[error("there is no {TUN_PATH}: load the module with `modprobe tun`")]
    NoDriver(#[source] io::Error),
    /// The user may not use it.
    #[error(
        "no right to use the tap interface {name}: run as root or with CAP_NET_ADMIN, or let root \
         make it for you with `ip tuntap add dev {name} mode tap user $USER`"
    )]
    Rights {
        /// Name of the interface.
        name: String,
        /// The system's error.
        source: io::Error,
    },
    /// Another program uses it.
    #[error(
        "the tap interface {name} is in use by another program: end that program or give another \
         name"
    )]
    Busy {
        /// Name of the interface.
        name: String,
        /// The system's error.
        source: io::Error,
    },
    /// The interface exists and is not a tap interface.
    #[error("the interface {name} exists and is not a tap interface: give another name")]
    NoTap {
        /// Name of the interface.
        name: String,
        /// The system's error.
        source: io::Error,
    },
    /// The tap interface was made for several queues.
    #[error(
        "the tap interface {name} has several queues, and VMSRS uses one: make it again without \
         `multi_queue`, or give another name"
    )]
    ManyQueues {
        /// Name of the interface.
        name: String,
        /// The system's error.
        source: io::Error,
    },
    /// The descriptor that was given is something else, or nothing.
    #[error(
        "descriptor {0} is not an open tap interface: the program that starts vmsrs must open {TUN_PATH}, attach \
         the interface with TUNSETIFF, and leave the descriptor open for vmsrs"
    )]
    NoDescriptor(RawFd, #[source] io::Error),
    /// It was attached in another way than this program needs.
    #[error(
        "the tap interface {name} on descriptor {fd} was attached in another way: attach it with the \
         flags IFF_TAP, IFF_NO_PI and IFF_VNET_HDR"
    )]
    Flags {
        /// Name of the interface.
        name: String,
        /// The descriptor.
        fd: RawFd,
    },
    /// Anything else.
    #[error("cannot {what} of the tap interface {name}")]
    SetUp {
        /// What failed.
        what: &'static str,
        /// Name of the interface.
        name: String,
        /// The system's error.
        source: io::Error,
    },
}

/// An open tap interface. Each read returns one frame and each write sends one, after a virtio-net header of 12 bytes;
/// neither waits.
#[derive(Debug)]
pub struct Tap {
    pub(super) file: File,
    name: String,
    pub(super) mtu: Option<u16>,
    /// The offloads that it has, all of which are off.
    pub(super) offloads: TapOffloads,
}

impl Tap {
    /// Opens a tap interface, or takes over an open one, and configures the host's side if `config` says so.
    /// An interface that did not exist goes away when this is dropped.
    ///
    /// # Errors
    ///
    /// Fails with a message that names the remedy. Nothing is left behind: an interface made by this
    /// call is gone again.
    pub fn open(config: &TapConfig) -> Result<Self, TapError> {
        let (file, name) = match config {
            TapConfig::Named { name, .. } => (attach(name)?, name.clone()),
            &TapConfig::Descriptor(fd) => take_over(fd)?,
        };
        let set_up = |what| {
            let name = name.clone();
            move |source| TapError::SetUp { what, name, source }
        };
        let mut header = HEADER as c_int;
        // SAFETY: TUNSETVNETHDRSZ reads an int.
        unsafe { ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw mut header) }
            .map_err(set_up("choose the header size"))?;
        let with_ecn = offload::BASIC | offload::ECN;
        let possible = [with_ecn, offload::BASIC]
            .into_iter()
            .find(|&offloads| set_offloads(&file, offloads).is_ok());
        // Also those that its last user has left.
        set_offloads(&file, 0).map_err(set_up("turn off the offloads"))?;
        if let TapConfig::Named {
            address: Some(address),
            ..
        } = config
        {
            set_address(&name, *address).map_err(set_up("set the address"))?;
        }
        Ok(Self {
            mtu: mtu(&file, &name),
            offloads: possible.unwrap_or(0),
            file,
            name,
        })
    }

    /// Name of the interface.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Turns on these offloads, which the interface has, and all others off.
    pub(super) fn set_offloads(&self, offloads: TapOffloads) -> io::Result<()> {
        set_offloads(&self.file, offloads)
    }

    /// Something else in the place of a tap interface.
    #[cfg(test)]
    pub(super) fn stand_in(file: File, mtu: Option<u16>) -> Self {
        Self {
            file,
            name: "stand-in".into(),
            mtu,
            offloads: offload::BASIC | offload::ECN,
        }
    }
}

/// Opens the device of tap interfaces and attaches it to the interface `name`.
fn attach(name: &str) -> Result<File, TapError> {
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(TUN_PATH)
        .map_err(|source| match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => TapError::Rights {
                name: name.to_owned(),
                source,
            },
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoDriver(source),
            _ => TapError::SetUp {
                what: "open the device",
                name: name.to_owned(),
                source,
            },
        })?;
    let mut request = interface(name);
    // The flags fit: IFF_VNET_HDR is bit 14.
    request.ifr_ifru.ifru_flags = FLAGS as i16;
    // SAFETY: TUNSETIFF reads and writes an `ifreq`.
    unsafe { ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }.map_err(|source| {
        let name = name.to_owned();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => TapError::Rights { name, source },
            Some(libc::EBUSY) => TapError::Busy { name, source },
            Some(libc::EINVAL) if has_many_queues(&name) => TapError::ManyQueues { name, source },
            Some(libc::EINVAL) => TapError::NoTap { name, source },
            _ => TapError::SetUp {
                what: "attach to the queue",
                name,
                source,
            },
        }
    })?;
    Ok(tap)
}

/// How a tap interface is attached.
const FLAGS: c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Takes over the open tap interface with this descriptor; also returns its name.
fn take_over(fd: RawFd) -> Result<(File, String), TapError> {
    let mut request = interface("");
    // SAFETY: TUNGETIFF writes an `ifreq`. On a descriptor that is something else it is not known; on a closed one the call
    // fails.
    unsafe { ioctl(fd, libc::TUNGETIFF, &raw mut request) }
        .map_err(|source| TapError::NoDescriptor(fd, source))?;
    let name = request
        .ifr_name
        .iter()
        .take_while(|&&byte| byte != 0)
        .map(|&byte| byte as u8)
        .collect();
    let name = String::from_utf8(name).unwrap_or_else(|error| {
        // The kernel allows any bytes.
        String::from_utf8_lossy(error.as_bytes()).into_owned()
    });
    // SAFETY: the call above has set the flags.
    let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    // The bit of IFF_NO_PI means here that there is no filter, too.
    let all = match in_this_namespace(fd, &name) {
        true => tun_flags(&name),
        false => None,
    };
    if flags & all.unwrap_or(FLAGS) & FLAGS != FLAGS {
        return Err(TapError::Flags { name, fd });
    }
    let failed = |source| TapError::SetUp {
        what: "prepare the descriptor",
        name: name.clone(),
        source,
    };
    // Programs that are started from here have no part in it.
    // SAFETY: the calls read and change flags of a descriptor.
    let done = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        flags >= 0
            && libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) >= 0
            && libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) >= 0
    };
    if !done {
        return Err(failed(io::Error::last_os_error()));
    }
    // SAFETY: it is a tap interface, and this process has not opened one itself: it was inherited, for this purpose, and
    // has no other owner. The configuration is used once.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok((file, name))
}

fn set_offloads(tap: &File, offloads: TapOffloads) -> io::Result<()> {
    // TUNSETOFFLOAD takes its argument by value.
    let argument = std::ptr::without_provenance_mut::<c_void>(offloads as usize);
    // SAFETY: nothing is read or written through the argument.
    unsafe { ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, argument) }
}

/// The MTU of a tap interface; `None` if it cannot be known, as in another network namespace.
fn mtu(tap: &File, name: &str) -> Option<u16> {
    if !in_this_namespace(tap.as_raw_fd(), name) {
        return None;
    }
    let socket = socket().ok()?;
    let mut request = interface(name);
    // SAFETY: SIOCGIFMTU writes an `ifreq` with an int.
    unsafe { ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU as _, &raw mut request) }.ok()?;
    // SAFETY: the call has set the MTU.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u16::try_from(mtu).ok().filter(|&mtu| mtu >= MTU_MIN)
}

/// Whether the interface of an open tap device is the one that has this name in the network namespace of this process, and not
/// in another: they have the same address.
fn in_this_namespace(tap: RawFd, name: &str) -> bool {
    let address = |fd| {
        let mut request = interface(name);
        // SAFETY: SIOCGIFHWADDR writes an `ifreq` with an address.
        unsafe { ioctl(fd, libc::SIOCGIFHWADDR as _, &raw mut request) }.ok()?;
        // SAFETY: the call has set the address.
        let address = unsafe { request.ifr_ifru.ifru_hwaddr };
        address.sa_data.first_chunk::<6>().copied()
    };
    let named = socket().ok().and_then(|socket| address(socket.as_raw_fd()));
    named.is_some() && named == address(tap)
}

/// How the interface `name` was attached, if it is a tun or tap interface.
fn tun_flags(name: &str) -> Option<c_int> {
    let flags = std::fs::read_to_string(format!("/sys/class/net/{name}/tun_flags"));
    c_int::from_str_radix(flags.ok()?.trim().strip_prefix("0x")?, 16).ok()
}

/// Whether an interface is a tap interface that was made for several queues.
fn has_many_queues(name: &str) -> bool {
    let wanted = libc::IFF_TAP | libc::IFF_MULTI_QUEUE;
    tun_flags(name).is_some_and(|flags| flags & wanted == wanted)
}

/// Gives the interface its address and netmask, and turns it on.
fn set_address(name: &str, address: TapAddress) -> io::Result<()> {
    let socket = socket()?;
    let fd = socket.as_raw_fd();

    let mut request = interface(name);
    request.ifr_ifru.ifru_addr = socket_address(address.address);
    // SAFETY: SIOCSIFADDR reads an `ifreq` with an address.
    unsafe { ioctl(fd, libc::SIOCSIFADDR as _, &raw mut request) }?;
    request.ifr_ifru.ifru_netmask = socket_address(address.netmask());
    // SAFETY: SIOCSIFNETMASK reads an `ifreq` with an address.
    unsafe { ioctl(fd, libc::SIOCSIFNETMASK as _, &raw mut request) }?;
    // SAFETY: SIOCGIFFLAGS fills an `ifreq` with flags.
    unsafe { ioctl(fd, libc::SIOCGIFFLAGS as _, &raw mut request) }?;
    // SAFETY: the call above has set the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq` with flags.
    unsafe { ioctl(fd, libc::SIOCSIFFLAGS as _, &raw mut request) }
}

/// A socket for requests about interfaces.
fn socket() -> io::Result<OwnedFd> {
    // SAFETY: the call has no memory effects.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just returned by the kernel and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// A request about the interface `name`, which is shorter than `IFNAMSIZ`.
fn interface(name: &str) -> libc::ifreq {
    // SAFETY: all zeros is a valid value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (target, &byte) in request.ifr_name.iter_mut().zip(name.as_bytes()) {
        *target = byte as _;
    }
    request
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let [a, b, c, d] = address.octets().map(|byte| byte as _);
    libc::sockaddr {
        sa_family: libc::AF_INET as _,
        // `sockaddr_in`: the port, the address, padding.
        sa_data: [0, 0, a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0],
    }
}

/// # Safety
///
/// `argument` must be what `request` expects.
unsafe fn ioctl<T>(fd: c_int, request: c_ulong, argument: *mut T) -> io::Result<()> {
    // SAFETY: by contract.
    if unsafe { libc::ioctl(fd, request, argument) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_is_a_name_with_or_without_an_address() {
        assert_eq!(
            "tap0".parse(),
            Ok(TapConfig::Named {
                name: "tap0".into(),
                address: None
            })
        );
        let Ok(TapConfig::Named {
            address: Some(address),
            ..
        }) = "vm.1,10.1.2.3/30".parse()
        else {
            panic!("there is an address");
        };
        assert_eq!(address.address, Ipv4Addr::new(10, 1, 2, 3));
        assert_eq!(address.netmask(), Ipv4Addr::new(255, 255, 255, 252));
        let address: TapAddress = "10.0.0.1/1".parse().unwrap();
        assert_eq!(address.netmask(), Ipv4Addr::new(128, 0, 0, 0));
    }

    #[test]
    fn names_and_addresses_that_make_no_sense_are_refused() {
        for name in [
            "",
            "a/b",
            "tap 0",
            "tap%d",
            ".",
            "..",
            "sixteen-bytes-xx",
            "a:1",
        ] {
            assert_eq!(
                name.parse::<TapConfig>(),
                Err(TapConfigError::Name(name.into()))
            );
        }
        for address in [
            "",
            "10.0.0.1",
            "10.0.0.1/0",
            "10.0.0.1/31",
            "10.0.0/24",
            "::1/64",
        ] {
            assert_eq!(
                format!("tap0,{address}").parse::<TapConfig>(),
                Err(TapConfigError::Address(address.into()))
            );
        }
    }

    #[test]
    fn a_tap_can_be_a_descriptor() {
        assert_eq!("fd=3".parse(), Ok(TapConfig::Descriptor(3)));
        for text in [
            "fd=",
            "fd=2",
            "fd=-1",
            "fd=x",
            "fd=3,10.0.0.1/24",
            "fd=9999999999",
        ] {
            let error = text.parse::<TapConfig>().unwrap_err();
            assert_eq!(error, TapConfigError::Descriptor(text.into()));
        }
    }

    #[test]
    fn an_address_that_cannot_be_used_is_told_with_the_rule() {
        for address in ["10.0.0.1/31", "::1/64"] {
            let error = address.parse::<TapAddress>().unwrap_err().to_string();
            assert!(
                error.contains("IPv4 address with a prefix of 1 to 30"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_tap_with_several_queues_is_told_apart() {
        let name = format!("vmsrsq{}", std::process::id());
        let opened = OpenOptions::new().read(true).write(true).open(TUN_PATH);
        let Ok(other) = opened else {
            eprintln!("skipped: no {TUN_PATH}");
            return;
        };
        let mut request = interface(&name);
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_MULTI_QUEUE) as i16;
        // SAFETY: TUNSETIFF reads and writes an `ifreq`.
        if unsafe { ioctl(other.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }.is_err() {
            eprintln!("skipped: no right to make a tap interface");
            return;
        }
        let address = None;
        let result = Tap::open(&TapConfig::Named { name, address });
        assert!(
            matches!(result, Err(TapError::ManyQueues { .. })),
            "{result:?}"
        );
    }

    /// A tap interface that goes away with the test; `None` if there cannot be one.
    fn new_tap(name: &str, address: Option<&str>) -> Option<Tap> {
        let config = TapConfig::Named {
            name: format!("vmsrs{name}{}", std::process::id()),
            address: address.map(|address| address.parse().unwrap()),
        };
        match Tap::open(&config) {
            // Only root may do this, in a network namespace with tap interfaces.
            Err(error @ (TapError::Rights { .. } | TapError::NoDriver(_))) => {
                eprintln!("skipped: {error}");
                None
            }
            result => Some(result.unwrap()),
        }
    }

    /// Whether an interface computes checksums and segments TCP over IPv4: what the tap leaves to its reader.
    fn host_offloads(name: &str) -> [bool; 2] {
        /// `struct ethtool_value`, with its commands, of `linux/ethtool.h`.
        #[repr(C)]
        struct Value {
            command: u32,
            data: u32,
        }
        const GET_CHECKSUM: u32 = 0x16;
        const GET_TSO: u32 = 0x1e;
        const SIOCETHTOOL: c_ulong = 0x8946;
        let socket = socket().unwrap();
        [GET_CHECKSUM, GET_TSO].map(|command| {
            let mut value = Value { command, data: 0 };
            let mut request = interface(name);
            request.ifr_ifru.ifru_data = (&raw mut value).cast();
            // SAFETY: SIOCETHTOOL reads an `ifreq`, and reads and writes what it points to, which lives for the call.
            unsafe { ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) }.unwrap();
            value.data != 0
        })
    }

    #[test]
    fn offloads_are_off_until_they_are_asked_for() {
        let Some(tap) = new_tap("o", None) else {
            return;
        };
        assert_eq!(tap.mtu, Some(1500));
        assert_eq!(tap.offloads, offload::BASIC | offload::ECN);
        assert_eq!(host_offloads(tap.name()), [false, false]);
        tap.set_offloads(tap.offloads).unwrap();
        assert_eq!(host_offloads(tap.name()), [true, true]);
        tap.set_offloads(libc::TUN_F_CSUM).unwrap();
        assert_eq!(host_offloads(tap.name()), [true, false]);
        tap.set_offloads(0).unwrap();
        assert_eq!(host_offloads(tap.name()), [false, false]);
    }

    /// An open tap device that is attached with these flags.
    fn attached(name: &str, flags: c_int) -> Option<File> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(TUN_PATH)
            .ok()?;
        let mut request = interface(&format!("vmsrs{name}{}", std::process::id()));
        request.ifr_ifru.ifru_flags = flags as i16;
        // SAFETY: TUNSETIFF reads and writes an `ifreq`.
        unsafe { ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }.ok()?;
        Some(file)
    }

    #[test]
    fn an_open_tap_interface_is_taken_over() {
        let Some(file) = attached("t", FLAGS) else {
            eprintln!("skipped: no tap interface can be made");
            return;
        };
        let fd = std::os::fd::IntoRawFd::into_raw_fd(file);
        let tap = Tap::open(&TapConfig::Descriptor(fd)).unwrap();
        assert_eq!(tap.name(), format!("vmsrst{}", std::process::id()));
        assert_eq!(tap.mtu, Some(1500));
        // SAFETY: the calls read flags.
        let flags = unsafe {
            [
                libc::fcntl(fd, libc::F_GETFL),
                libc::fcntl(fd, libc::F_GETFD),
            ]
        };
        assert_ne!(flags[0] & libc::O_NONBLOCK, 0);
        assert_eq!(flags[1], libc::FD_CLOEXEC);
        // The interface is down: a read would wait.
        let error = io::Read::read(&mut &tap.file, &mut [0; 100]).unwrap_err();
        assert_ne!(error.kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn a_descriptor_of_something_else_is_refused_with_the_remedy() {
        let file = File::open("/dev/null").unwrap();
        for fd in [file.as_raw_fd(), 1_000_000] {
            let error = Tap::open(&TapConfig::Descriptor(fd)).unwrap_err();
            assert!(matches!(error, TapError::NoDescriptor(..)), "{error}");
            assert!(error.to_string().contains("TUNSETIFF"), "{error}");
        }
        assert!(file.metadata().is_ok(), "it stays open");
        for (name, flags) in [
            ("p", libc::IFF_TAP | libc::IFF_VNET_HDR),
            ("v", libc::IFF_TAP | libc::IFF_NO_PI),
            ("i", libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR),
        ] {
            let Some(file) = attached(name, flags) else {
                eprintln!("skipped: no tap interface can be made");
                return;
            };
            let error = Tap::open(&TapConfig::Descriptor(file.as_raw_fd())).unwrap_err();
            assert!(matches!(error, TapError::Flags { .. }), "{error}");
            assert!(error.to_string().contains("IFF_VNET_HDR"), "{error}");
        }
        // Attached to nothing.
        if let Ok(file) = OpenOptions::new().read(true).write(true).open(TUN_PATH) {
            let error = Tap::open(&TapConfig::Descriptor(file.as_raw_fd())).unwrap_err();
            assert!(matches!(error, TapError::NoDescriptor(..)), "{error}");
        }
    }

    /// The flags of an interface.
    fn flags(name: &str) -> c_int {
        let path = format!("/sys/class/net/{name}/flags");
        let text = std::fs::read_to_string(path).unwrap();
        c_int::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap()
    }

    #[test]
    fn setting_up_an_interface_keeps_its_other_flags() {
        let Some(tap) = new_tap("a", Some("192.0.2.1/30")) else {
            return;
        };
        let flags = flags(tap.name());
        for flag in [libc::IFF_UP, libc::IFF_MULTICAST, libc::IFF_BROADCAST] {
            assert_ne!(flags & flag, 0, "{flag:#x} of {flags:#x}");
        }
    }
}
