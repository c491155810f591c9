//! Guests that run the ledger, on both sides: a program builds the guest's [`image`], runs itself as a job on the KVM
//! host, and follows its messages ([`watch`]); there it boots the guest and works with its server ([`session`]).

pub mod image;
mod log;
mod message;
pub mod session;
pub mod watch;

use std::net::{Ipv4Addr, SocketAddr};

pub use message::Finding;

/// The tap that the host makes for the guest.
const TAP: &str = "tap0,192.168.77.1/24";
/// The guest on the tap.
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 2);
/// The ledger's port in the guest.
const PORT: u16 = 7878;

/// The address of a port in the guest.
#[must_use]
pub fn address(port: u16) -> SocketAddr {
    SocketAddr::from((GUEST, port))
}

/// The address of the ledger in the guest.
#[must_use]
pub fn ledger() -> SocketAddr {
    address(PORT)
}
