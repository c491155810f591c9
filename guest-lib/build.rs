//! Gives the shared library the name by which programs look for it when they start: that of its ABI.

use std::env;
use std::os::unix::fs::symlink;
use std::path::Path;

/// With the number of the ABI: rises when programs have to be linked again. The package `libvmsrs1` has it in its name, too.
const SONAME: &str = "libvmsrs.so.1";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,{SONAME}");
    link_beside_library(SONAME);
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
