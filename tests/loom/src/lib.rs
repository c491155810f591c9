//! Lock-free parts of the library and the driver, run in every interleaving.
//!
//! - The library's parts are the product's own source files, built with loom's atomics in place of
//!   std's ([`sync`]).
//! - The driver's parts are in C. [`driver`] has them line by line in Rust, each module beside the
//!   file that it copies and with its names; whoever changes one changes both.
//!
//! loom runs a test once for every order in which the threads can reach their shared accesses, and
//! for every value that a load may see in the C11 memory model. A lost wake-up ends a test as a
//! deadlock: time slices and timeouts of the driver are not modelled unless a test is about them.

pub mod driver;
pub mod fan_out;
#[path = "../../../guest-lib/src/shared/held.rs"]
mod held;
pub mod key_table;
#[path = "../../../guest-lib/src/shared/keys.rs"]
mod keys;
mod library;
mod life;
mod protected;
#[path = "../../../guest-lib/src/state/slots.rs"]
mod slots;
mod sync;
#[path = "../../../guest-lib/src/shared/word.rs"]
mod word;

pub use library::{Control, Library};
pub use life::{Died, Life};
pub use protected::Protected;

use loom::model::Builder;

/// Runs a model in every interleaving with at most `preemptions` switches away from a thread that
/// could have gone on. Most bugs need one or two, and the number of runs grows with its power.
pub fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    builder.check(model);
}
