//! Builds and fetches the servers that are measured.

use std::path::{Path, PathBuf};

use anyhow::Result;
use vmsrs_bed::{Bed, Image, cc, project};

/// The cache, plain and protected from one source, by its path from the project's root.
const CACHE: &str = "tests/servers/cache.c";

/// The servers' programs on this machine.
pub(crate) struct Servers {
    plain: PathBuf,
    protected: PathBuf,
    memcached: vmsrs_bed::Program,
}

impl Servers {
    /// Builds the cache into `folder` and fetches Debian's memcached.
    pub(crate) fn build(bed: &Bed, folder: &Path) -> Result<Self> {
        let plain = folder.join("cache-plain");
        cc::compile(&[CACHE], &plain, &[Path::new("-DPLAIN")])?;
        let protected = folder.join("cache");
        let include = project::root().join("guest-lib/include");
        let library = project::built("libvmsrs.a")?;
        let arguments = [
            Path::new("-I"),
            include.as_path(),
            library.as_path(),
            // The library's functions are called in requests: nothing is to be resolved there.
            Path::new("-Wl,-z,now"),
        ];
        cc::compile(&[CACHE], &protected, &arguments)?;
        Ok(Self {
            plain,
            protected,
            memcached: bed.program("memcached")?,
        })
    }

    /// The programs by their names in the guest.
    pub(crate) fn files(&self) -> [(&'static str, PathBuf); 3] {
        [
            ("cache-plain", self.plain.clone()),
            ("cache", self.protected.clone()),
            ("memcached", self.memcached.path().to_owned()),
        ]
    }

    /// Adds the programs to a guest's image.
    pub(crate) fn add_to(&self, mut image: Image) -> Image {
        for folder in self.memcached.library_folders() {
            image = image.library_folder(folder);
        }
        image
            // memcached looks up the user that it runs as.
            .text("/etc/passwd", 0o644, "root:x:0:0:root:/:/bin/sh\n")
            .binary(&self.plain, "/bin/cache-plain")
            .binary(&self.protected, "/bin/cache")
            .binary(self.memcached.path(), "/bin/memcached")
    }
}
