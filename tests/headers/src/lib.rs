//! Generates the C headers and checks that the checked-in ones are current.
//!
//! Two headers are made from Rust sources with cbindgen:
//!
//! * `guest-kmod/vmsrs_protocol.h` from the protocol crate, for the driver and for C programs that
//!   speak to it directly;
//! * `guest-lib/include/vmsrs.h` from the guest library's C interface.
//!
//! `cargo run -p vmsrs-headers` (or `make headers`) writes them, the test compares.

use std::path::{Path, PathBuf};

/// A header: where it lies, and what it must contain.
#[derive(Debug)]
pub struct Header {
    /// Path of the checked-in file.
    pub path: PathBuf,
    /// The text that cbindgen makes of today's sources.
    pub text: String,
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("this crate lies two folders below the project")
        .to_path_buf()
}

/// Generates one header from the crate in `source` with the `cbindgen.toml` that lies there.
///
/// # Panics
///
/// When the configuration or the sources cannot be read or parsed.
fn generate(source: &str, header: &str) -> Header {
    let root = project();
    let folder = root.join(source);
    let config = cbindgen::Config::from_file(folder.join("cbindgen.toml"))
        .unwrap_or_else(|error| panic!("{source}/cbindgen.toml: {error}"));
    let mut text = Vec::new();
    cbindgen::Builder::new()
        .with_config(config)
        .with_crate(&folder)
        .generate()
        .unwrap_or_else(|error| panic!("cannot generate {header}: {error}"))
        .write(&mut text);
    Header {
        path: root.join(header),
        text: String::from_utf8(text).expect("cbindgen writes UTF-8"),
    }
}

/// All headers, freshly generated.
///
/// # Panics
///
/// When a source or a configuration cannot be read or parsed.
pub fn headers() -> Vec<Header> {
    vec![
        generate("protocol", "guest-kmod/vmsrs_protocol.h"),
        generate("guest-lib", "guest-lib/include/vmsrs.h"),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn checked_in_headers_are_what_the_sources_say() {
        for header in super::headers() {
            let there = std::fs::read_to_string(&header.path).unwrap_or_default();
            assert!(
                there == header.text,
                "{} differs from its Rust source: run `make headers` and commit the result",
                header.path.display()
            );
        }
    }
}
