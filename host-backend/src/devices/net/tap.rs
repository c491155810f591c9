//! Opening a tap interface.

use std::ffi::{c_int, c_ulong};
use std::fs::{File, OpenOptions};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::str::FromStr;

use thiserror::Error;

use super::HEADER;

const TUN_PATH: &str = "/dev/net/tun";

/// Which tap interface to use, and what to configure on the host's side of it.
///
/// Written as `NAME` or `NAME,ADDRESS/PREFIX`, for example `tap0,192.168.77.1/24`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapConfig {
    /// Name of the interface; it is made if it does not exist, and then goes away with the VM.
    pub name: String,
    /// The host's address; the interface is set up with it. Without one the interface is left as
    /// it is.
    pub address: Option<TapAddress>,
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
}

impl FromStr for TapConfig {
    type Err = TapConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
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
        Ok(Self {
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

/// Opens a tap interface, without blocking and with virtio-net headers of 12 bytes, and configures
/// the host's side if `config` says so. An interface that did not exist goes away when the file is
/// closed.
///
/// # Errors
///
/// Fails with a message that names the remedy. Nothing is left behind: an interface made by this
/// call is gone again.
pub fn open(config: &TapConfig) -> Result<File, TapError> {
    let name = &config.name;
    let tap = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(TUN_PATH)
        .map_err(|source| match source.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => TapError::Rights {
                name: name.clone(),
                source,
            },
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => TapError::NoDriver(source),
            _ => TapError::SetUp {
                what: "open the device",
                name: name.clone(),
                source,
            },
        })?;

    let mut request = interface(name);
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    // The flags fit: IFF_VNET_HDR is bit 14.
    request.ifr_ifru.ifru_flags = flags as i16;
    // SAFETY: TUNSETIFF reads and writes an `ifreq`.
    unsafe { ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }.map_err(|source| {
        let name = name.clone();
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

    let set_up = |what| {
        move |source| TapError::SetUp {
            what,
            name: name.clone(),
            source,
        }
    };
    let mut header = HEADER as c_int;
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    unsafe { ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw mut header) }
        .map_err(set_up("choose the header size"))?;
    // An interface that existed may have been left with offloads by its last user.
    // SAFETY: TUNSETOFFLOAD takes its argument by value; a null pointer is the value 0.
    unsafe {
        ioctl(
            tap.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            std::ptr::null_mut::<c_int>(),
        )
    }
    .map_err(set_up("turn off the offloads"))?;
    if let Some(address) = config.address {
        set_address(name, address).map_err(set_up("set the address"))?;
    }
    Ok(tap)
}

/// Whether an interface is a tap interface that was made for several queues.
fn has_many_queues(name: &str) -> bool {
    // Only tun and tap interfaces have this file.
    let flags = std::fs::read_to_string(format!("/sys/class/net/{name}/tun_flags"));
    let flags = flags
        .ok()
        .and_then(|text| c_int::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok());
    let wanted = libc::IFF_TAP | libc::IFF_MULTI_QUEUE;
    flags.is_some_and(|flags| flags & wanted == wanted)
}

/// Gives the interface its address and netmask, and turns it on.
fn set_address(name: &str, address: TapAddress) -> io::Result<()> {
    // SAFETY: the call has no memory effects.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just returned by the kernel and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
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
            Ok(TapConfig {
                name: "tap0".into(),
                address: None
            })
        );
        let config: TapConfig = "vm.1,10.1.2.3/30".parse().unwrap();
        let address = config.address.unwrap();
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
        let result = open(&TapConfig {
            name,
            address: None,
        });
        assert!(
            matches!(result, Err(TapError::ManyQueues { .. })),
            "{result:?}"
        );
    }

    /// The flags of an interface.
    fn flags(name: &str) -> c_int {
        let path = format!("/sys/class/net/{name}/flags");
        let text = std::fs::read_to_string(path).unwrap();
        c_int::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap()
    }

    #[test]
    fn setting_up_an_interface_keeps_its_other_flags() {
        let config = TapConfig {
            name: format!("vmsrs{}", std::process::id()),
            address: Some("192.0.2.1/30".parse().unwrap()),
        };
        let _tap = match open(&config) {
            // Only root may do this, in a network namespace with tap interfaces.
            Err(error @ (TapError::Rights { .. } | TapError::NoDriver(_))) => {
                eprintln!("skipped: {error}");
                return;
            }
            result => result.unwrap(),
        };
        let flags = flags(&config.name);
        for flag in [libc::IFF_UP, libc::IFF_MULTICAST, libc::IFF_BROADCAST] {
            assert_ne!(flags & flag, 0, "{flag:#x} of {flags:#x}");
        }
    }
}
