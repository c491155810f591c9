//! Which Debian this machine runs.

use std::fs;
use std::path::Path;

use crate::error::{Error, IoContext, Result};

/// Says what the machine runs.
const OS_RELEASE: &str = "/etc/os-release";

/// A release of Debian that the test-bed runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Debian 12. QEMU 10 and Linux 6.12 come from its backports.
    Bookworm,
    /// Debian 13, whose own QEMU and kernel are those. Linux 6.1 comes from Debian 12.
    Trixie,
}

impl Release {
    const ALL: [Self; 2] = [Self::Bookworm, Self::Trixie];

    /// The machine's own.
    ///
    /// # Errors
    ///
    /// [`Error::NotDebian`] on every other system.
    pub fn of_machine() -> Result<Self> {
        let path = Path::new(OS_RELEASE);
        let text = fs::read_to_string(path).context("read", path)?;
        Self::named_in(&text)
    }

    /// The release that a file in the format of os-release(5) names.
    fn named_in(text: &str) -> Result<Self> {
        let field = |name: &str| {
            let value = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_default().trim_matches('"')
        };
        let codename = field("VERSION_CODENAME");
        let known = |release: &Self| field("ID") == "debian" && release.codename() == codename;
        Self::ALL
            .into_iter()
            .find(known)
            .ok_or_else(|| Error::NotDebian {
                system: field("PRETTY_NAME").to_owned(),
            })
    }

    /// The name of its suite in the archive.
    pub fn codename(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// The suites of the archive that packages come from. Kernels are files to unpack, so those of Debian 12 do on 13 too.
    pub(crate) fn suites(self) -> &'static [&'static str] {
        match self {
            Self::Bookworm => &["bookworm", "bookworm-backports"],
            Self::Trixie => &["bookworm", "trixie"],
        }
    }

    /// The packages of allocators that replace the C library's, with the name of each in guests and its shared library.
    pub(crate) fn allocators(self) -> [(&'static str, &'static str, &'static str); 3] {
        let jemalloc = ("jemalloc", "libjemalloc2", "libjemalloc.so.2");
        let [tcmalloc, mimalloc] = match self {
            Self::Bookworm => [
                ("libtcmalloc-minimal4", "libtcmalloc_minimal.so.4"),
                ("libmimalloc2.0", "libmimalloc.so.2"),
            ],
            Self::Trixie => [
                ("libtcmalloc-minimal4t64", "libtcmalloc_minimal.so.4"),
                ("libmimalloc3", "libmimalloc.so.3"),
            ],
        };
        [
            jemalloc,
            ("tcmalloc", tcmalloc.0, tcmalloc.1),
            ("mimalloc", mimalloc.0, mimalloc.1),
        ]
    }

    /// The suites of security updates.
    pub(crate) fn security_suites(self) -> &'static [&'static str] {
        match self {
            Self::Bookworm => &["bookworm-security"],
            Self::Trixie => &["bookworm-security", "trixie-security"],
        }
    }

    /// The suite of QEMU. Its libraries must fit this machine's, so that is never another release's.
    pub(crate) fn qemu_suite(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm-backports",
            Self::Trixie => "trixie",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn supported_releases_are_recognised() {
        let text =
            "PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nVERSION_CODENAME=trixie\nID=debian\n";
        assert_eq!(Release::named_in(text).unwrap(), Release::Trixie);
        let text = "ID=debian\nVERSION_CODENAME=\"bookworm\"\n";
        assert_eq!(Release::named_in(text).unwrap(), Release::Bookworm);
    }

    #[test]
    fn other_systems_are_told_what_to_do() {
        let text = "PRETTY_NAME=\"Fedora Linux 42\"\nID=fedora\n";
        let error = Release::named_in(text).unwrap_err().to_string();
        assert!(
            error.starts_with("this machine runs Fedora Linux 42;"),
            "{error}"
        );
        assert!(Release::named_in("ID=debian\nVERSION_CODENAME=forky\n").is_err());
        assert!(Release::named_in("ID=ubuntu\nVERSION_CODENAME=trixie\n").is_err());
    }
}
