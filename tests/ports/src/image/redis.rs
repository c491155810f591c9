//! redis' image: both builds, and its clients.

use std::path::Path;

use anyhow::Result;
use vmsrs_bed::{Image, project};

use crate::build::Builds;
use crate::plan::Mode;

/// Adds the builds, and the clients of the plain one.
pub(crate) fn add_builds(mut image: Image, builds: &Builds) -> Result<Image> {
    let library = project::built("libvmsrs.so")?;
    image = image.library_folder(library.parent().unwrap_or(Path::new("/")));
    for mode in Mode::ALL {
        let program = builds.folder(mode).join("src/redis-server");
        image = image.binary(program, format!("/{}/redis-server", mode.name()));
    }
    for client in ["redis-cli", "redis-benchmark"] {
        let program = builds.folder(Mode::Plain).join("src").join(client);
        image = image.binary(program, format!("/bin/{client}"));
    }
    if let Some(attacked) = builds.attacked() {
        image = image.binary(attacked, "/bin/redis-server-attacked");
    }
    Ok(image.text(
        "/etc/redis.conf",
        0o644,
        "bind 127.0.0.1\nport 6379\nsave \"\"\nappendonly no\nlogfile \"\"\nloglevel warning\ndir /tmp\n\
         enable-debug-command yes\n",
    ))
}
