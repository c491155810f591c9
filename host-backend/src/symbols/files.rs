//! Where the files with symbols are.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use object::{Object, ObjectSection, ReadCache};
use thiserror::Error;

use super::modules::Module;

/// Where distributions put debug files, by build ID.
const DEBUG_FOLDER: &str = "/usr/lib/debug/.build-id";

/// Limits of the search in the given folders: files, and depth.
const FILES_MAX: usize = 20_000;
const DEPTH_MAX: usize = 8;

/// Largest file that is read.
const FILE_MAX: u64 = 8 << 30;

/// What a file contains.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    path: PathBuf,
    build_id: Vec<u8>,
    /// It has unwind tables with content; a file of debug information has empty ones.
    unwinds: bool,
    /// It has DWARF.
    debugs: bool,
}

/// Files with symbols.
#[derive(Debug, Default)]
pub struct SymbolFiles {
    /// From the folders given.
    given: Vec<Candidate>,
    /// The folders given, without symbolic links.
    folders: Vec<PathBuf>,
    /// Places in `given`, by build ID.
    by_id: HashMap<Vec<u8>, Vec<usize>>,
}

/// The files of one module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ModuleFiles {
    /// The file with code and unwind tables.
    pub(super) image: Option<PathBuf>,
    /// The file with the best symbols.
    pub(super) symbols: Option<PathBuf>,
    /// They were found by name, so they may be of another version.
    pub(super) by_name: bool,
}

/// A given folder or file cannot be looked at.
#[derive(Debug, Error)]
#[error("cannot read {}: check --symbols and VMSRS_SYMBOLS", .path.display())]
pub struct SymbolsError {
    path: PathBuf,
    source: io::Error,
}

impl SymbolFiles {
    /// Searches folders and single files. What cannot be read is skipped; a missing folder is an error.
    ///
    /// # Errors
    ///
    /// Fails when one of the paths cannot be looked at.
    pub fn new(places: &[PathBuf]) -> Result<Self, SymbolsError> {
        let mut files = Self::default();
        let mut left = FILES_MAX;
        for place in places {
            let error = |source| SymbolsError {
                path: place.clone(),
                source,
            };
            if fs::metadata(place).map_err(error)?.is_dir() {
                files.folders.push(fs::canonicalize(place).map_err(error)?);
            }
            files.add(place, DEPTH_MAX, &mut left);
        }
        for (number, candidate) in files.given.iter().enumerate() {
            if !candidate.build_id.is_empty() {
                let places = files.by_id.entry(candidate.build_id.clone()).or_default();
                places.push(number);
            }
        }
        Ok(files)
    }

    fn add(&mut self, path: &Path, depth: usize, left: &mut usize) {
        let Some(rest) = left.checked_sub(1) else {
            return;
        };
        *left = rest;
        let Ok(metadata) = fs::metadata(path) else {
            return;
        };
        if metadata.is_file() {
            self.given.extend(Candidate::look(path));
        } else if metadata.is_dir() && depth > 0 {
            let Ok(entries) = fs::read_dir(path) else {
                return;
            };
            let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            paths.sort();
            for path in paths {
                self.add(&path, depth - 1, left);
            }
        }
    }

    /// The files of modules, in their order. A module that is in the table many times is looked for
    /// once.
    pub(super) fn find_all(&self, modules: &[Module]) -> Vec<ModuleFiles> {
        let mut known: HashMap<(&[u8], &str), ModuleFiles> = HashMap::new();
        let mut all = Vec::new();
        for module in modules {
            let found = known
                .entry((&module.build_id, &module.path))
                .or_insert_with(|| self.find(module));
            all.push(found.clone());
        }
        all
    }

    /// The files of a module: by build ID in the folders given, at the module's own path below them,
    /// and in the distribution's folder; by name in the folders given.
    fn find(&self, module: &Module) -> ModuleFiles {
        let mut candidates: Vec<Candidate> = Vec::new();
        if !module.build_id.is_empty() {
            let given = self.by_id.get(&module.build_id).into_iter().flatten();
            candidates.extend(given.map(|&place| self.given[place].clone()));
            let below = self.folders.iter();
            let below = below.filter_map(|folder| path_below(folder, &module.path));
            for path in below.chain(debug_path(&module.build_id)) {
                candidates.extend(
                    Candidate::look(&path)
                        .filter(|candidate| candidate.build_id == module.build_id),
                );
            }
        }
        let by_name = candidates.is_empty();
        if by_name {
            let name = OsStr::new(module.name());
            // A file whose build ID is another one is another version.
            candidates.extend(
                self.given
                    .iter()
                    .filter(|candidate| candidate.path.file_name() == Some(name))
                    .filter(|candidate| candidate.build_id.is_empty() || module.build_id.is_empty())
                    .cloned(),
            );
        }
        let best = |good: fn(&Candidate) -> bool| {
            let found = candidates.iter().find(|candidate| good(candidate));
            found.map(|candidate| candidate.path.clone())
        };
        let any = best(|_| true);
        ModuleFiles {
            image: best(|candidate| candidate.unwinds),
            symbols: best(|candidate| candidate.debugs).or(any),
            by_name: by_name && !candidates.is_empty(),
        }
    }
}

impl Candidate {
    /// Looks at a file; `None` if it is not an ELF file or too large. Nothing but a regular file is
    /// opened. The path may be guest-supplied ([`path_below`]): nothing of a file without the right
    /// build ID is shown.
    fn look(path: &Path) -> Option<Self> {
        // Opening a device can have side effects, so the type is checked first.
        if !fs::metadata(path).ok()?.is_file() {
            return None;
        }
        let mut file = File::options()
            .read(true)
            // A pipe in its place must not block us.
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
            .open(path)
            .ok()?;
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || metadata.len() > FILE_MAX {
            return None;
        }
        let mut magic = [0; 4];
        file.read_exact(&mut magic).ok()?;
        if magic != *b"\x7fELF" {
            return None;
        }
        let cache = ReadCache::new(file);
        let object = object::File::parse(&cache).ok()?;
        let has = |name: &str| {
            object
                .section_by_name(name)
                .is_some_and(|section| section.file_range().is_some_and(|(_, size)| size > 0))
        };
        Some(Self {
            path: path.to_owned(),
            build_id: object
                .build_id()
                .ok()
                .flatten()
                .unwrap_or_default()
                .to_vec(),
            unwinds: has(".eh_frame"),
            debugs: has(".debug_info"),
        })
    }
}

fn debug_path(build_id: &[u8]) -> Option<PathBuf> {
    let (first, rest) = build_id.split_first()?;
    let rest: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(PathBuf::from(format!(
        "{DEBUG_FOLDER}/{first:02x}/{rest}.debug"
    )))
}

/// The file at a module's path in the guest, below a folder of the operator's (without symbolic links)
/// that has the guest's files, or a part of them. The path is guest-supplied: if it leads out of the
/// folder, by `..` or by a symbolic link, it is treated as missing.
fn path_below(folder: &Path, path: &str) -> Option<PathBuf> {
    let relative = Path::new(path).strip_prefix("/").ok()?;
    let mut parts = relative.components();
    if relative.as_os_str().is_empty() || !parts.all(|part| matches!(part, Component::Normal(_))) {
        return None;
    }
    let path = fs::canonicalize(folder.join(relative)).ok()?;
    path.starts_with(folder).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_module() -> Module {
        let path = std::env::current_exe().unwrap();
        Module {
            bias: 0,
            start: 0,
            end: 1,
            build_id: Candidate::look(&path).unwrap().build_id,
            path: "/nowhere/server".into(),
        }
    }

    #[test]
    fn symbol_file_is_found_by_build_id() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b");
        fs::create_dir_all(&deep).unwrap();
        let own = std::env::current_exe().unwrap();
        let file = deep.join("renamed");
        fs::copy(own, &file).unwrap();
        fs::write(folder.path().join("text"), "no ELF file").unwrap();
        let files = SymbolFiles::new(&[folder.path().to_owned()]).unwrap();
        let module = own_module();
        assert!(!module.build_id.is_empty(), "the linker gives a build ID");
        let found = files.find(&module);
        assert_eq!(found.image.as_deref(), Some(&*file));
        assert_eq!(found.symbols.as_deref(), Some(&*file));
        assert!(!found.by_name);
        let other = Module {
            build_id: vec![1; 20],
            path: "/usr/bin/renamed".into(),
            ..module
        };
        assert_eq!(files.find(&other), ModuleFiles::default());
    }

    #[test]
    fn module_without_build_id_is_found_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("server");
        fs::copy(std::env::current_exe().unwrap(), &file).unwrap();
        let files = SymbolFiles::new(std::slice::from_ref(&file)).unwrap();
        let module = Module {
            build_id: Vec::new(),
            ..own_module()
        };
        let found = files.find(&module);
        assert_eq!((found.image, found.by_name), (Some(file), true));
    }

    #[test]
    fn guest_paths_stay_below_the_given_folders() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("server"), "x").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::write(root.join("usr/bin/server"), "x").unwrap();
        let link = std::os::unix::fs::symlink::<&Path, PathBuf>;
        link(Path::new("usr/bin"), root.join("bin")).unwrap();
        link(outside.path(), root.join("out")).unwrap();
        for path in ["/usr/bin/server", "/bin/server"] {
            let found = path_below(&root, path);
            assert_eq!(found, Some(root.join("usr/bin/server")), "{path}");
        }
        for path in [
            "",
            "/",
            "usr/bin/server",
            "/usr/../usr/bin/server",
            "/../server",
            "//etc/passwd",
            "/out/server",
            "/proc/self/mem",
            "/usr/bin/none",
        ] {
            assert_eq!(path_below(&root, path), None, "{path}");
        }
    }

    #[test]
    fn module_paths_are_never_opened_on_the_host() {
        let own = std::env::current_exe().unwrap();
        let module = Module {
            path: own.to_str().unwrap().to_owned(),
            ..own_module()
        };
        let empty = tempfile::tempdir().unwrap();
        let files = SymbolFiles::new(&[empty.path().to_owned()]).unwrap();
        assert_eq!(files.find(&module), ModuleFiles::default());
        // Deeper than folders are looked through.
        let module = Module {
            path: "/1/2/3/4/5/6/7/8/9/server".into(),
            ..module
        };
        let file = empty.path().join(&module.path[1..]);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::copy(own, &file).unwrap();
        let files = SymbolFiles::new(&[empty.path().to_owned()]).unwrap();
        let found = files.find_all(&[module.clone(), module]);
        assert_eq!(found.len(), 2);
        for found in found {
            assert_eq!(found.image, Some(fs::canonicalize(&file).unwrap()));
        }
    }

    #[test]
    fn nothing_but_a_regular_file_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let name = std::ffi::CString::new(pipe.to_str().unwrap()).unwrap();
        // SAFETY: the name is a string that ends with a zero byte.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        for path in [pipe.as_path(), Path::new("/dev/zero"), Path::new("/")] {
            assert_eq!(Candidate::look(path), None, "{}", path.display());
        }
        let large = folder.path().join("large");
        fs::copy(std::env::current_exe().unwrap(), &large).unwrap();
        assert!(Candidate::look(&large).is_some());
        let file = File::options().write(true).open(&large).unwrap();
        file.set_len(FILE_MAX + 1).unwrap();
        assert_eq!(Candidate::look(&large), None);
    }

    #[test]
    fn a_place_that_is_not_there_is_an_error() {
        assert!(SymbolFiles::new(&["/nowhere/at/all".into()]).is_err());
    }
}
