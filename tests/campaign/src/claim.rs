//! A folder that one run uses at a time.

use std::fs::{File, TryLockError};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Claims the folder until the file is closed, which the end of the process does as well.
///
/// # Errors
///
/// When another run has it.
pub(crate) fn claim(folder: &Path) -> Result<File> {
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another campaign runs in {}; wait for its end, or use another clone",
            folder.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("lock {}", path.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_belongs_to_one_run_at_a_time() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tmp/claimed");
        std::fs::create_dir_all(&folder).unwrap();
        let first = claim(&folder).unwrap();
        let refused = claim(&folder).unwrap_err().to_string();
        assert!(
            refused.starts_with("another campaign runs in "),
            "{refused}"
        );
        drop(first);
        claim(&folder).unwrap();
    }
}
