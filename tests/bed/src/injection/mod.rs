//! Keeps QEMU from delivering interrupts of nested guests twice; `plugin.c` tells why.

use std::fs::{self, File};
use std::io::Write;

use tempfile::{Builder, NamedTempFile};

use crate::cc;
use crate::error::{IoContext, Result};
use crate::project;

const SOURCE: &str = include_str!("plugin.c");

/// Builds the plugin, into a file that is gone when it is closed: QEMU loads it by [`project::open_file`].
///
/// # Errors
///
/// When there is no compiler, or it warns.
pub(crate) fn plugin() -> Result<File> {
    let folder = project::build();
    fs::create_dir_all(&folder).context("create", &folder)?;
    let temporary = |suffix| -> Result<NamedTempFile> {
        Builder::new()
            .prefix("injection")
            .suffix(suffix)
            .tempfile_in(&folder)
            .context("create a file in", &folder)
    };
    let mut source = temporary(".c")?;
    source
        .write_all(SOURCE.as_bytes())
        .context("write", source.path())?;
    let library = temporary(".so")?;
    cc::compile_plugin(source.path(), library.path())?;
    // The compiler may have replaced the file.
    File::open(library.path()).context("open", library.path())
}
