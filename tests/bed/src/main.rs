//! The test-bed of VMSRS: packages, images, nested or direct KVM.

fn main() {}
