//! Whose an address is, in words.

use super::modules::Module;
use crate::control::{AddressFacts, Place, RequestFacts};

/// Addresses that Linux lets no program map (`vm.mmap_min_addr`), for null pointers and members of
/// what they should have pointed to.
const NULL_END: u64 = 0x1_0000;

/// The lower half of the addresses of x86-64 with four levels of page tables, and the upper half.
const USER_END: u64 = 1 << 47;
const KERNEL_START: u64 = !0 << 47;

/// The guard that the library puts below a stack.
const GUARD: u64 = 1 << 20;

/// Whose `address` is, as far as a request's facts tell; a phrase.
pub fn describe_owner(address: u64, request: &RequestFacts) -> String {
    if let Some(at) = &request.address_at {
        return in_apps(at);
    }
    if address < NULL_END {
        return "a null pointer, or a member of what it should have pointed to".into();
    }
    if (USER_END..KERNEL_START).contains(&address) {
        return "no address at all: not canonical".into();
    }
    if address >= KERNEL_START {
        return "the kernel".into();
    }
    let Some(program) = &request.program else {
        return "memory of the process outside of domains".into();
    };
    let (low, high) = (program.stack_low, program.stack_high);
    if (low..high).contains(&address) {
        return "the request's own stack".into();
    }
    if (low.saturating_sub(GUARD)..low).contains(&address) {
        return "the guard below the request's stack".into();
    }
    match Module::at(&Module::parse(&program.modules), address) {
        Some(module) => format!("code or data of {}", module.path),
        None => "memory of the process outside of domains: heap, another stack, or nothing".into(),
    }
}

fn in_apps(at: &AddressFacts) -> String {
    let app = at.app.as_deref().unwrap_or("-");
    match (at.place, &at.domain) {
        (Place::Domain, Some(domain)) => format!("domain {domain} of app {app}"),
        (Place::Guard, Some(domain)) => {
            let behind = at.behind.unwrap_or(0);
            format!("the guard after domain {domain} of app {app}, {behind} bytes past its end")
        }
        _ => "an address of the apps' that no domain has".into(),
    }
}
