//! Accesses to memory that may be broken, through mappings.
//!
//! A load or a store fails with SIGBUS if the hardware has reported the memory as broken, or if the system
//! has no memory for a page of a file. The accesses of [`Pages`] return an error instead: each is a short
//! routine ([`routines`]), and the handler of SIGBUS ([`handler`]) makes a routine that it has interrupted
//! return the address. This is what the exception table is to the copy routines of a kernel.
//!
//! SIGBUS anywhere else goes to [`handler::resolve_with`]'s function; if it does not know the access either,
//! SIGBUS means what it always does: the end of the process.

pub(crate) mod handler;
mod routines;
#[cfg(test)]
mod tests;

#[cfg(test)]
use routines::PAGE;
pub(crate) use routines::{Broken, Pages};
