//! From the evidence of a failed request to what a developer reads: which functions were running, in
//! which lines of which files.
//!
//! This runs in the process that shows an incident, never in the monitor: the stack and the
//! module table are the guest's word, and unwinding them is work that a hostile guest must not make
//! the monitor do. What comes from the guest here: registers, stack bytes, module table. The files
//! with symbols are the developer's own, found by build ID, and trusted: a hostile guest
//! chooses which of them are read, and gets nothing but time and bounded memory for it.

mod files;
mod image;
mod modules;
mod place;
mod trace;
mod unwind;

pub use files::{SymbolFiles, SymbolsError};
pub use modules::Module;
pub use place::describe_owner;
pub use trace::{Frame, Trace, trace};
pub use unwind::Found;
