//! How redis is built.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Recipe, compile, linked, make};

/// Our files that are compiled apart, without their ending.
const PARTS: [&str; 5] = [
    "vmsrs_alloc",
    "vmsrs_reply",
    "vmsrs_request",
    "vmsrs_value",
    "vmsrs_server",
];
/// Their headers.
const HEADERS: [&str; 5] = [
    "vmsrs_alloc",
    "vmsrs_inside",
    "vmsrs_keyspace",
    "vmsrs_port",
    "vmsrs_server",
];
/// What is not built: other libraries. One allocator for both builds, without threads' caches that grow by themselves.
const OPTIONS: [&str; 4] = [
    "MALLOC=libc",
    "USE_SYSTEMD=no",
    "BUILD_TLS=no",
    "OPTIMIZATION=-O2",
];
const PROGRAM: &str = "redis-server";

pub(super) fn recipe() -> Recipe {
    let parts = PARTS.map(|part| format!("{part}.c"));
    let headers = HEADERS.map(|header| format!("{header}.h"));
    let file = |name: String| {
        let folder = match name.starts_with("vmsrs_server") {
            true => "common",
            false => "redis",
        };
        (format!("{folder}/{name}"), format!("src/{name}"))
    };
    Recipe {
        configuration: format!("{OPTIONS:?}"),
        files: parts.into_iter().chain(headers).map(file).collect(),
        plain: |tree| {
            let programs = [PROGRAM, "redis-cli", "redis-benchmark"];
            make(&tree.join("src"), &programs, &OPTIONS.map(str::to_owned))
        },
        protected: port,
        attacked: port,
        program: "src/redis-server",
    }
}

/// Makes the server with the port in it.
fn port(tree: &Path) -> Result<()> {
    let folder = tree.join("src");
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "o") {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    let flags = ["-std=gnu11", "-I../deps/lua/src", "-I../deps/hiredis"];
    compile(
        &folder,
        &PARTS,
        &[&flags[..], &["-I../deps/hdr_histogram"]].concat(),
    )?;
    let mut variables = OPTIONS.map(str::to_owned).to_vec();
    variables.push(format!("PORT_LIBS={}", linked(&PARTS)?));
    make(&folder, &[PROGRAM], &variables)
}
