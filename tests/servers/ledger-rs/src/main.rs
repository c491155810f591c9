//! The ledger server in Rust, with planted bugs.

fn main() {}
