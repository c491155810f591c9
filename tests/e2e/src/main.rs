//! End-to-end behaviours of VMSRS, each in a file of its own.

fn main() {}
