//! Where things lie: the project, its build folder, the cache.

use std::path::{Path, PathBuf};

/// The project's folder.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the crate lies two folders below the project's root")
}

/// The folder for everything that is made and can be made again: `build/`, which git ignores.
pub fn build() -> PathBuf {
    root().join("build")
}

/// The folder that fetched packages are kept in: `VMSRS_CACHE` when set, `build/cache` otherwise.
pub fn cache() -> PathBuf {
    match std::env::var_os("VMSRS_CACHE") {
        Some(folder) if !folder.is_empty() => folder.into(),
        _ => build().join("cache"),
    }
}
