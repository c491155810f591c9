//! The driver's ABI without the library, for tests that look at the single steps of a request.

mod app;

pub use app::*;
