//! Programs built from sources of this crate by the C, C++ or Rust compiler of this machine.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test program has its own copy and uses part of it"
)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The name by which programs look for the shared library when they start.
pub const SONAME: &str = "libvmsrs.so.1";

/// The static library of this build.
pub fn library() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let folder = program.parent().unwrap();
    let library = folder.join("libvmsrs.a");
    assert!(library.exists(), "{} is missing", library.display());
    library
}

/// A compiled program; its file is removed when this is dropped.
#[derive(Debug)]
pub struct Program {
    folder: tempfile::TempDir,
}

impl Program {
    /// Compiles a source of this crate with warnings as errors.
    pub fn compile(compiler: &str, flags: &[&str], source: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = tempfile::tempdir().unwrap();
        let output = Command::new(compiler)
            .args(["-Wall", "-Wextra", "-Werror", "-g", "-O1", "-I"])
            .arg(root.join("include"))
            .args(flags)
            .arg(root.join(source))
            .arg(library())
            .args(["-lpthread", "-ldl", "-lm", "-o"])
            .arg(folder.path().join("program"))
            .output()
            .unwrap_or_else(|error| panic!("{compiler}: {error}; install build-essential"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        Self { folder }
    }

    /// Compiles a Rust program of one file, linked with the shared library of this build.
    pub fn compile_rust(flags: &[&str], source: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = tempfile::tempdir().unwrap();
        let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let library = library().with_file_name("libvmsrs.so");
        let libraries = library.with_file_name("");
        std::os::unix::fs::symlink(&library, folder.path().join(SONAME)).unwrap();
        let output = Command::new(compiler)
            .args(["--edition=2024", "-ldylib=vmsrs", "-L"])
            .arg(&libraries)
            .arg(format!("-Clink-arg=-Wl,-rpath,{}", folder.path().display()))
            .args(flags)
            .arg(root.join(source))
            .arg("-o")
            .arg(folder.path().join("program"))
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        Self { folder }
    }

    /// Compiles a source of this crate into a shared library of its own.
    pub fn compile_shared(flags: &[&str], source: &str) -> Self {
        Self::compile_alone(&[&["-shared", "-fPIC"], flags].concat(), source)
    }

    /// Compiles a source of this crate without the library.
    pub fn compile_alone(flags: &[&str], source: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = tempfile::tempdir().unwrap();
        let output = Command::new("cc")
            .args(["-Wall", "-Wextra", "-Werror", "-g", "-O1"])
            .args(flags)
            .arg(root.join(source))
            .args(["-lpthread", "-ldl", "-o"])
            .arg(folder.path().join("program"))
            .output()
            .unwrap_or_else(|error| panic!("cc: {error}; install build-essential"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        Self { folder }
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("program")
    }

    /// The command that runs it without a device.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.path());
        command.args(arguments).env("VMSRS_DEVICE", "none");
        command
    }

    /// Runs it without a device.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs it, which must succeed; returns what it printed.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{arguments:?}: {}\n{text}{errors}",
            output.status
        );
        text
    }
}
