//! mosquitto's image: both builds, and its clients.

use std::path::Path;

use anyhow::Result;
use vmsrs_bed::{Image, project};

use crate::build::Builds;
use crate::plan::Mode;

/// Adds the builds, and the clients of the plain one.
pub(crate) fn add_builds(mut image: Image, builds: &Builds) -> Result<Image> {
    let library = project::built("libvmsrs.so")?;
    let plain = builds.folder(Mode::Plain);
    image = image
        .library_folder(library.parent().unwrap_or(Path::new("/")))
        .library_folder(plain.join("lib"));
    for mode in Mode::ALL {
        let program = builds.folder(mode).join("src/mosquitto");
        image = image.binary(program, format!("/{}/mosquitto", mode.name()));
    }
    for client in ["mosquitto_pub", "mosquitto_sub"] {
        image = image.binary(plain.join("client").join(client), format!("/bin/{client}"));
    }
    if let Some(attacked) = builds.attacked() {
        image = image.binary(attacked, "/bin/mosquitto-attacked");
    }
    Ok(image
        .text("/etc/passwd", 0o644, "root:x:0:0:root:/:/bin/sh\n")
        .text(
            "/etc/mosquitto.conf",
            0o644,
            "listener 1883 127.0.0.1\nallow_anonymous true\nuser root\nmax_queued_messages 0\nset_tcp_nodelay true\nlog_type error\n",
        ))
}
