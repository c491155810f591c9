//! The shared libraries that a program needs, as `ldd` lists them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command;
use crate::error::{Error, Result};

/// A shared library, or the dynamic loader.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Library {
    /// Where it is on this machine.
    pub(crate) source: PathBuf,
    /// Where the program will look for it.
    pub(crate) destination: PathBuf,
}

/// The shared libraries of `program`, including the loader; none for a static program or a script.
///
/// `folders` are searched before the system's own.
pub(crate) fn libraries(program: &Path, folders: &[PathBuf]) -> Result<Vec<Library>> {
    let mut search = Vec::new();
    for folder in folders {
        search.push(folder.to_string_lossy().into_owned());
    }
    let mut ldd = Command::new("ldd");
    ldd.arg(program)
        .env("LC_ALL", "C")
        .env("LD_LIBRARY_PATH", search.join(":"));
    // `ldd` fails for static programs and scripts, which need nothing.
    let output = ldd
        .output()
        .map_err(|source| command::spawn_error(&ldd, source))?;
    if !output.status.success() {
        return Ok(Vec::new());
    }
    parse(&String::from_utf8_lossy(&output.stdout)).map_err(|library| Error::NoLibrary {
        path: program.display().to_string(),
        library,
    })
}

/// Reads the output of `ldd`; the error is the name of a library that was not found.
///
/// A line is `name => /path (0x…)`, `/path (0x…)` for the loader, or `linux-vdso.so.1 (0x…)`.
fn parse(output: &str) -> Result<Vec<Library>, String> {
    let mut libraries = Vec::new();
    for line in output.lines() {
        let line = line.trim();
        if let Some((name, path)) = line.split_once(" => ") {
            if path.starts_with("not found") {
                return Err(name.to_owned());
            }
            let path = path.rsplit_once(" (").map_or(path, |(path, _)| path);
            libraries.push(Library {
                source: path.into(),
                // The loader searches /lib for names without a folder.
                destination: if name.contains('/') {
                    name.into()
                } else {
                    Path::new("/lib").join(name)
                },
            });
        } else if line.starts_with('/')
            && let Some((path, _)) = line.rsplit_once(" (")
        {
            libraries.push(Library {
                source: path.into(),
                destination: path.into(),
            });
        }
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found_and_the_vdso_is_not() {
        let output = "\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibvmsrs.so => /build/target/libvmsrs.so (0x00007f01)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f02)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f03)\n";
        let library = |source: &str, destination: &str| Library {
            source: source.into(),
            destination: destination.into(),
        };
        assert_eq!(
            parse(output).unwrap(),
            [
                library("/build/target/libvmsrs.so", "/lib/libvmsrs.so"),
                library("/lib/x86_64-linux-gnu/libc.so.6", "/lib/libc.so.6"),
                library("/lib64/ld-linux-x86-64.so.2", "/lib64/ld-linux-x86-64.so.2"),
            ]
        );
    }

    #[test]
    fn a_library_that_is_not_found_is_named() {
        assert_eq!(
            parse("\tlibvmsrs.so => not found\n"),
            Err("libvmsrs.so".to_owned())
        );
    }

    #[test]
    fn a_static_program_needs_nothing() {
        assert_eq!(parse("\tstatically linked\n"), Ok(Vec::new()));
    }

    #[test]
    fn a_dynamic_program_of_this_machine_needs_its_loader() {
        let libraries = libraries(&std::env::current_exe().unwrap(), &[]).unwrap();
        assert!(
            libraries
                .iter()
                .any(|library| library.destination.starts_with("/lib64"))
        );
    }
}
