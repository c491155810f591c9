//! Programs of Debian's that guests run.

use std::path::{Path, PathBuf};

/// Where Debian's packages keep shared libraries.
pub(crate) const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

/// A program, unpacked with the libraries that the machine lacks, or the machine's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    root: PathBuf,
    path: PathBuf,
}

impl Program {
    /// The program in `folder`, or the machine's own when there is none.
    pub(crate) fn unpacked(folder: &Path, name: &str) -> Self {
        let path = Path::new("usr/bin").join(name);
        let root = match folder.join(&path).is_file() {
            true => folder,
            false => Path::new("/"),
        };
        Self {
            root: root.to_owned(),
            path: root.join(path),
        }
    }

    /// The program's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Folders that are searched for its shared libraries before the system's.
    pub fn library_folders(&self) -> impl Iterator<Item = PathBuf> {
        LIBRARIES.iter().map(|folder| self.root.join(folder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unpacked_program_comes_before_the_machine_s() {
        let folder = tempfile::tempdir().unwrap();
        let program = Program::unpacked(folder.path(), "server");
        assert_eq!(program.path(), Path::new("/usr/bin/server"));
        std::fs::create_dir_all(folder.path().join("usr/bin")).unwrap();
        std::fs::write(folder.path().join("usr/bin/server"), "").unwrap();
        let program = Program::unpacked(folder.path(), "server");
        assert_eq!(program.path(), folder.path().join("usr/bin/server"));
    }
}
