//! Generates the C headers and checks that the checked-in ones are current.
//!
//! Two headers are made from Rust sources:
//!
//! * `guest-kmod/vmsrs_protocol.h` from the protocol crate, for the driver and for C programs that
//!   speak to it directly;
//! * `guest-lib/include/vmsrs.h` from the guest library's C interface.
//!
//! cbindgen writes the declarations with their comments. A template, `vmsrs.h.in` beside the crate's
//! `cbindgen.toml`, has everything else and says where each declaration goes.
//!
//! The version is this crate's, which the whole workspace shares.
//!
//! `cargo run -p vmsrs-headers` (or `make headers`) writes them, the test compares.

mod items;
mod layout;

use std::fs;
use std::path::{Path, PathBuf};

use items::Names;
use layout::Style;

/// A header: its path, and what it must contain.
#[derive(Debug)]
pub struct Header {
    /// Path of the checked-in file.
    pub path: PathBuf,
    /// What today's sources make of it.
    pub text: String,
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("this crate is two folders below the project")
        .to_path_buf()
}

/// Generates `header` from the crate in `source`, which has a `cbindgen.toml` and a template.
fn generate(source: &str, header: &str, style: Style) -> Header {
    let root = project();
    let folder = root.join(source);
    let path = root.join(header);
    let name = path.file_name().expect("a header has a name").display();
    let config = cbindgen::Config::from_file(folder.join("cbindgen.toml"))
        .unwrap_or_else(|error| panic!("{source}/cbindgen.toml: {error}"));
    let template = fs::read_to_string(folder.join(format!("{name}.in")))
        .unwrap_or_else(|error| panic!("{source}/{name}.in: {error}"));
    let template = [
        ("@version@", env!("CARGO_PKG_VERSION")),
        ("@major@", env!("CARGO_PKG_VERSION_MAJOR")),
        ("@minor@", env!("CARGO_PKG_VERSION_MINOR")),
        ("@patch@", env!("CARGO_PKG_VERSION_PATCH")),
    ]
    .iter()
    .fold(template, |text, (name, value)| text.replace(name, value));
    let names = Names {
        prefix: config.export.prefix.clone().unwrap_or_default(),
        types: config.export.rename.clone(),
    };
    let mut text = Vec::new();
    cbindgen::Builder::new()
        .with_config(config)
        .with_crate(&folder)
        .generate()
        .unwrap_or_else(|error| panic!("cannot generate {header}: {error}"))
        .write(&mut text);
    let text = String::from_utf8(text).expect("cbindgen writes UTF-8");
    let text = layout::fill(&template, &items::parse(&text, &names), style);
    Header { path, text }
}

/// All headers, freshly generated.
///
/// # Panics
///
/// When a source, a configuration or a template cannot be read or parsed, or does not fit the others.
pub fn headers() -> Vec<Header> {
    vec![
        generate("protocol", "guest-kmod/vmsrs_protocol.h", Style::Kernel),
        generate("guest-lib", "guest-lib/include/vmsrs.h", Style::Doxygen),
    ]
}

#[cfg(test)]
mod tests {
    use std::fs;

    #[test]
    fn checked_in_headers_are_current() {
        for header in super::headers() {
            let found = fs::read_to_string(&header.path).unwrap_or_default();
            assert!(
                found == header.text,
                "{} differs from its sources: run `make headers` and commit the result",
                header.path.display()
            );
        }
    }
}
