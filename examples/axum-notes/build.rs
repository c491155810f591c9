//! Compiles the C library.

fn main() {
    println!("cargo::rerun-if-changed=src/morse.c");
    cc::Build::new().file("src/morse.c").compile("morse");
}
