//! How memcached is built.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{Recipe, compile, include, linked, output};

/// Our files that are compiled apart, without their ending.
const PARTS: [&str; 6] = [
    "vmsrs_command",
    "vmsrs_item",
    "vmsrs_region",
    "vmsrs_request",
    "vmsrs_shard",
    "vmsrs_server",
];
/// Those that memcached's own sources include, and those that take the place of some.
const OTHERS: [&str; 6] = [
    "vmsrs_port.h",
    "vmsrs_mutex.h",
    "vmsrs_request.h",
    "vmsrs_crawl.h",
    "assoc.c",
    "slabs.c",
];
/// What is not built: other protocols' libraries, and storage on disks.
const CONFIGURE: [&str; 3] = ["--disable-docs", "--disable-extstore", "--disable-coverage"];
/// Programs of the server's own tests.
const DEBUG: &str = "memcached-debug";
const TIMED: &str = "timedrun";
const TESTS: &str = "testapp";
const PROGRAM: &str = "memcached";
const ALL: [&str; 4] = [PROGRAM, DEBUG, TIMED, TESTS];

pub(super) fn recipe() -> Recipe {
    let parts = PARTS.map(|part| format!("{part}.c"));
    let names = parts.into_iter().chain(OTHERS.map(str::to_owned));
    let names = names.chain(["vmsrs_server.h".to_owned()]);
    let folder = |name: &str| match name.starts_with("vmsrs_server") {
        true => "common",
        false => PROGRAM,
    };
    Recipe {
        configuration: format!("{CONFIGURE:?} {ALL:?}"),
        files: names
            .map(|name| (format!("{}/{name}", folder(&name)), name))
            .collect(),
        plain: |tree| make(tree, &ALL, &[]),
        protected: |tree| {
            port(tree, &[PROGRAM, DEBUG])?;
            make(tree, &[TIMED, TESTS], &[flag()])
        },
        attacked: |tree| port(tree, &[PROGRAM]),
        program: PROGRAM,
    }
}

fn flag() -> String {
    format!("CPPFLAGS=-I{}", include().display())
}

/// Configures and makes targets.
fn make(tree: &Path, targets: &[&str], variables: &[String]) -> Result<()> {
    if !tree.join("Makefile").exists() {
        output(
            Command::new("./configure")
                .arg("--quiet")
                .args(CONFIGURE)
                .current_dir(tree),
        )?;
    }
    super::make(tree, targets, variables)
}

/// Makes programs with the port in them.
fn port(tree: &Path, targets: &[&str]) -> Result<()> {
    make(tree, &["memcached_debug-util.o"], &[flag()])?;
    compile(tree, &PARTS, &["-DHAVE_CONFIG_H"])?;
    let libraries = format!("LIBS=-levent {}", linked(&PARTS)?);
    make(tree, targets, &[flag(), libraries])
}
