//! Where the files with symbols are.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use object::{Object, ObjectSection, ReadCache};

use super::modules::Module;

/// Where distributions put what they stripped off, by build ID.
const DEBUG_FOLDER: &str = "/usr/lib/debug/.build-id";

/// Most files that are looked at in the folders given, and how deep.
const FILES_MAX: usize = 20_000;
const DEPTH_MAX: usize = 8;

/// What a file has to offer.
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
    /// Places in `given`, by build ID.
    by_id: HashMap<Vec<u8>, Vec<usize>>,
}

/// The files of one module.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ModuleFiles {
    /// The file with code and unwind tables.
    pub(super) image: Option<PathBuf>,
    /// The file with the best symbols.
    pub(super) symbols: Option<PathBuf>,
    /// They were found by their name: nothing says that they are the right version.
    pub(super) by_name: bool,
}

impl SymbolFiles {
    /// Looks through folders (and single files), all that is in them. What cannot be read is left
    /// out; a folder that is not there is an error.
    ///
    /// # Errors
    ///
    /// Fails when one of the paths cannot be looked at.
    pub fn new(places: &[PathBuf]) -> std::io::Result<Self> {
        let mut files = Self::default();
        let mut left = FILES_MAX;
        for place in places {
            fs::metadata(place)?;
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

    /// The files of a module: by build ID in the folders given, in the distribution's folder and at
    /// the module's own path; by name in the folders given.
    pub(super) fn find(&self, module: &Module) -> ModuleFiles {
        let mut candidates: Vec<Candidate> = Vec::new();
        if !module.build_id.is_empty() {
            let given = self.by_id.get(&module.build_id).into_iter().flatten();
            candidates.extend(given.map(|&place| self.given[place].clone()));
            let others = [debug_path(&module.build_id), ordinary_path(&module.path)];
            for path in others.into_iter().flatten() {
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
    /// Looks at a file; `None` if it is no ELF file. The path may be the guest's word: nothing but a
    /// regular file is opened, and nothing of one without the right build ID is shown.
    fn look(path: &Path) -> Option<Self> {
        let mut file = File::options()
            .read(true)
            // A pipe in its place must not make us wait.
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .ok()?;
        if !file.metadata().ok()?.is_file() {
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

/// The module's path in the guest, if it is one to look at on the host.
fn ordinary_path(path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    let plain = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let special = ["/proc", "/sys", "/dev"];
    let special = special.iter().any(|folder| path.starts_with(folder));
    (path.is_absolute() && plain && !special).then(|| path.to_owned())
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
    fn a_file_in_a_given_folder_is_found_by_its_build_id_whatever_its_name() {
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
    fn a_module_without_a_build_id_is_found_by_its_name_and_that_is_said() {
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
    fn paths_of_the_guest_lead_to_no_special_files() {
        for path in [
            "",
            "relative",
            "/proc/self/mem",
            "/dev/zero",
            "/usr/../etc/x",
            "/sys/x",
        ] {
            assert_eq!(ordinary_path(path), None, "{path}");
        }
        assert!(ordinary_path("/usr/bin/server").is_some());
        assert_eq!(Candidate::look(Path::new("/dev/zero")), None);
        assert_eq!(Candidate::look(Path::new("/")), None);
    }

    #[test]
    fn a_place_that_is_not_there_is_an_error() {
        assert!(SymbolFiles::new(&["/nowhere/at/all".into()]).is_err());
    }
}
