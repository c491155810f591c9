//! memcached's image: both builds, Perl for the server's own tests, and tools for load.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use vmsrs_bed::{Bed, Image, project};

use crate::build::Builds;
use crate::plan::Mode;

/// Folders of Perl's modules that the tests do not use: half of its size.
const UNUSED: [&str; 12] = [
    "CORE", "CPAN", "Encode", "ExtUtils", "Module", "Pod", "TAP", "Unicode", "pod", "unicore",
    "Net", "Memoize",
];

/// The tools of libmemcached that are used.
const TOOLS: [&str; 2] = ["memccapable", "memcslap"];

/// Adds the builds, with their tests.
pub(crate) fn add_builds(mut image: Image, builds: &Builds) -> Result<Image> {
    let library = project::built("libvmsrs.so")?;
    image = image.library_folder(library.parent().unwrap_or(Path::new("/")));
    for mode in Mode::ALL {
        let folder = builds.folder(mode);
        let name = mode.name();
        for program in ["memcached", "memcached-debug", "timedrun", "testapp"] {
            image = image.binary(folder.join(program), format!("/{name}/{program}"));
        }
        for part in ["t", "scripts"] {
            for file in files(&folder.join(part))? {
                let place = file
                    .strip_prefix(folder)
                    .unwrap_or(&file)
                    .display()
                    .to_string();
                image = image.file(file, format!("/{name}/{place}"));
            }
        }
        // A test looks for settings that are not documented.
        image = image
            .file(folder.join("memcached.c"), format!("/{name}/memcached.c"))
            .file(
                folder.join("doc/protocol.txt"),
                format!("/{name}/doc/protocol.txt"),
            );
    }
    if let Some(attacked) = builds.attacked() {
        image = image.binary(attacked, "/bin/memcached-attacked");
    }
    Ok(image.text("/etc/passwd", 0o644, "root:x:0:0:root:/:/bin/sh\n"))
}

/// Adds this machine's Perl with its modules.
pub(crate) fn add_perl(mut image: Image) -> Result<Image> {
    let output = Command::new("perl")
        .args(["-e", "print \"$^X\\n\"; print \"$_\\n\" for @INC"])
        .output()
        .context("perl")?;
    let text = String::from_utf8(output.stdout)?;
    let mut lines = text.lines();
    let perl = lines.next().context("perl's path")?;
    image = image
        .binary(perl, "/bin/perl")
        .binary(perl, "/usr/bin/perl");
    for folder in lines.map(Path::new) {
        // Others have modules of other packages.
        if !folder.starts_with("/usr/lib/x86_64-linux-gnu")
            && !folder.starts_with("/usr/share/perl/")
        {
            continue;
        }
        if folder.is_dir() && folder != Path::new("/usr/share/perl5") {
            for file in files(folder)? {
                let place = file.display().to_string();
                image = match place.ends_with(".so") {
                    true => image.binary(file, place),
                    false => image.file(file, place),
                };
            }
        }
    }
    Ok(image)
}

/// Adds the tools of libmemcached.
pub(crate) fn add_tools(mut image: Image, bed: &Bed) -> Result<Image> {
    const PACKAGE: &str = "libmemcached-tools";
    bed.program(PACKAGE)?;
    // The machine may have the package; then nothing was fetched.
    let fetched = project::cache().join(PACKAGE);
    for folder in ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"] {
        image = image.library_folder(fetched.join(folder));
    }
    for tool in TOOLS {
        let path = [fetched.as_path(), Path::new("/")]
            .map(|root| root.join("usr/bin").join(tool))
            .into_iter()
            .find(|path| path.is_file());
        let path = path.with_context(|| format!("{PACKAGE} has no {tool}"))?;
        image = image.binary(path, format!("/bin/{tool}"));
    }
    Ok(image)
}

/// All files below a folder, except in folders that are not used.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                if !UNUSED.contains(&&*name) {
                    open.push(path);
                }
            } else if path.is_file() && !name.ends_with(".pod") && !name.ends_with(".o") {
                found.push(path);
            }
        }
    }
    Ok(found)
}
