//! How mosquitto is built.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Recipe, compile, include, linked, make};

/// Our files that are compiled apart, without their ending.
const PARTS: [&str; 3] = ["vmsrs_connection", "vmsrs_request", "vmsrs_server"];
/// Our files, and where they go.
const FILES: [(&str, &str); 8] = [
    ("mosquitto/vmsrs_connection.c", "src/vmsrs_connection.c"),
    ("mosquitto/vmsrs_request.c", "src/vmsrs_request.c"),
    ("mosquitto/vmsrs_broker.h", "src/vmsrs_broker.h"),
    ("mosquitto/vmsrs_port.h", "src/vmsrs_port.h"),
    ("mosquitto/mux_epoll.c", "src/mux_epoll.c"),
    ("mosquitto/memory_mosq.c", "lib/memory_mosq.c"),
    ("common/vmsrs_server.c", "src/vmsrs_server.c"),
    ("common/vmsrs_server.h", "src/vmsrs_server.h"),
];
/// What is not built: other libraries, and connections to other brokers.
const OPTIONS: [&str; 5] = [
    "WITH_TLS=no",
    "WITH_BRIDGE=no",
    "WITH_CJSON=no",
    "WITH_DOCS=no",
    "WITH_STRIP=no",
];
/// What its makefile defines for the broker with these options.
const DEFINED: [&str; 9] = [
    "-DWITH_BROKER",
    "-DWITH_CONTROL",
    "-DWITH_EPOLL",
    "-DWITH_MEMORY_TRACKING",
    "-DWITH_PERSISTENCE",
    "-DWITH_SYS_TREE",
    "-DWITH_UNIX_SOCKETS",
    "-I..",
    "-I../lib",
];
const PROGRAM: &str = "mosquitto";

pub(super) fn recipe() -> Recipe {
    Recipe {
        configuration: format!("{OPTIONS:?}"),
        files: FILES
            .map(|(file, place)| (file.to_owned(), place.to_owned()))
            .into(),
        plain: |tree| {
            let options = OPTIONS.map(str::to_owned);
            make(&tree.join("src"), &[PROGRAM], &options)?;
            make(&tree.join("lib"), &["libmosquitto.so.1"], &options)?;
            let clients = ["mosquitto_pub", "mosquitto_sub"];
            make(&tree.join("client"), &clients, &options)
        },
        protected: port,
        attacked: port,
        program: "src/mosquitto",
    }
}

/// Makes the broker with the port in it.
fn port(tree: &Path) -> Result<()> {
    let folder = tree.join("src");
    // The makefile does not know that all of these depend on the headers that were edited.
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "o") {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    let mut flags = DEFINED.to_vec();
    flags.extend(["-I../include", "-I../deps"]);
    compile(&folder, &PARTS, &flags)?;
    let mut variables = OPTIONS.map(str::to_owned).to_vec();
    variables.push(format!("CPPFLAGS=-I../src -I{}", include().display()));
    variables.push(format!("LDFLAGS={}", linked(&PARTS)?));
    make(&folder, &[PROGRAM], &variables)
}
