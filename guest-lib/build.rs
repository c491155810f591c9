//! Gives the shared library the name by which programs look for it when they start: that of its ABI.

use std::env;
use std::os::unix::fs::symlink;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let major = env::var("CARGO_PKG_VERSION_MAJOR").expect("cargo sets the version");
    let name = format!("libvmsrs.so.{major}");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,{name}");
    link_beside_library(&name);
}

/// So that programs that are linked with the library where it is built find it there, too. They need not be able to: where
/// cargo has it elsewhere, there is no such link.
fn link_beside_library(name: &str) {
    let out = env::var("OUT_DIR").expect("cargo gives a folder");
    // PROFILE/build/PACKAGE/out
    if let Some(folder) = Path::new(&out).ancestors().nth(3) {
        // It is there already, or cannot be made.
        let _ = symlink("libvmsrs.so", folder.join(name));
    }
}
