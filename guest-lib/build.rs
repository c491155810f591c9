//! Gives the shared library the name by which programs look for it when they start: that of its ABI.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let major = std::env::var("CARGO_PKG_VERSION_MAJOR").expect("cargo sets the version");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libvmsrs.so.{major}");
}
