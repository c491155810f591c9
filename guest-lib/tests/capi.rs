//! The C interface, used by programs that the C compiler of this machine builds.

#[path = "common/compiled.rs"]
mod compiled;

use compiled::{Program, SONAME, library};
use std::path::Path;
use std::process::Command;

#[test]
fn the_example_survives_its_bug() {
    let text = Program::compile("cc", &[], "examples/notes.c").succeed(&[]);
    assert_eq!(text, "failed: memory at 0x8\nok 1\nok 1\nok 2\n");
}

#[test]
fn housekeeping_of_the_porting_guide_comes_to_its_end() {
    let text = Program::compile("cc", &[], "../docs/porting/housekeeping.c").succeed(&[]);
    assert_eq!(text, "done, 7\n");
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let read = |file| std::fs::read_to_string(docs.join(file)).unwrap();
    let (page, program) = (read("porting.md"), read("porting/housekeeping.c"));
    let excerpt =
        program.find("/* Each element").unwrap()..program.find("static int fill").unwrap();
    assert!(
        page.contains(program[excerpt].trim_end()),
        "an excerpt that is not the program's"
    );
}

#[test]
fn every_call_answers_as_its_description_says() {
    Program::compile("cc", &[], "tests/c/calls.c").succeed(&[]);
}

#[test]
fn cpp_has_containers_in_domains_and_exceptions_out_of_requests() {
    for standard in ["-std=c++17", "-std=c++20"] {
        Program::compile("c++", &[standard], "tests/c/containers.cc").succeed(&[]);
    }
}

/// The commands of a page that install the library, with another prefix, without those that need the network or root.
fn install(page: &str, prefix: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(root.join(page)).unwrap();
    let commands = text
        .split("```")
        .find(|block| block.contains("$prefix/lib/libvmsrs.so.1\n"))
        .unwrap();
    // The first line is the block's language.
    let commands = commands.lines().skip(1).filter(|line| {
        let command = line.split(' ').next().unwrap_or_default();
        !["cargo", "ldconfig"].contains(&command)
    });
    let commands: Vec<_> = commands.collect();
    let folder = library().with_file_name("");
    let script = commands
        .join("\n")
        .replace("/usr/local", prefix.to_str().unwrap())
        .replace("target/release/", folder.to_str().unwrap());
    let output = Command::new("sh")
        .args(["-eu", "-c", &script])
        .current_dir(&root)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{page}: {errors}\n{script}");
}

#[test]
fn programs_find_the_library_that_is_installed_as_the_pages_say() {
    for page in ["guest-lib/README.md", "docs/tutorial.md"] {
        let prefix = tempfile::tempdir().unwrap();
        let prefix = prefix.path();
        install(page, prefix);
        let facts = std::fs::read_to_string(prefix.join("lib/pkgconfig/vmsrs.pc")).unwrap();
        let version = concat!("\nVersion: ", env!("CARGO_PKG_VERSION"), "\n");
        assert!(facts.contains(version) && !facts.contains('@'), "{facts}");
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let program = prefix.join("notes");
        let libraries = prefix.join("lib");
        let output = Command::new("cc")
            .arg("-I")
            .arg(prefix.join("include"))
            .arg(root.join("examples/notes.c"))
            .arg("-L")
            .arg(&libraries)
            .arg("-lvmsrs")
            .arg(format!("-Wl,-rpath,{}", libraries.display()))
            .arg("-o")
            .arg(&program)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        // Only linkers look for this name; programs have that of the ABI.
        std::fs::remove_file(libraries.join("libvmsrs.so")).unwrap();
        let output = Command::new(&program)
            .env("VMSRS_DEVICE", "none")
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{page}: {errors}");
    }
}

/// Programs that are linked with it where it is built are run with that folder in LD_LIBRARY_PATH.
#[test]
fn the_build_links_the_name_of_the_abi_to_the_library() {
    let folder = library().with_file_name("..");
    let link = std::fs::read_link(folder.join(SONAME)).unwrap();
    assert_eq!(link, Path::new("libvmsrs.so"));
}
