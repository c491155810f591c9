//! The demonstration: load, faults, model and the table.

fn main() {}
