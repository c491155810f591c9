//! Disks, shared folders and other devices of daemons.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;

use super::{BUSY, MACHINE, Place, USAGE};

/// `vmsrs run` with a program in the place of the daemon's, which is a shell script.
fn run_with(place: &mut Place, script: &str, arguments: &[&str]) -> Output {
    let folder = place.path("programs");
    fs::create_dir_all(&folder).unwrap();
    for name in ["qemu-storage-daemon", "virtiofsd"] {
        let program = Path::new(&folder).join(name);
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // Where daemons are connected to, for a moment.
    let temporary = place.path("tmp");
    fs::create_dir_all(&temporary).unwrap();
    let kernel = place.kernel();
    place.before = super::list(Path::new(&place.path("")));
    let mut command = place.command(&kernel, arguments);
    command.env("PATH", &folder).env("TMPDIR", &temporary);
    let output = command.output().unwrap();
    assert!(super::list(Path::new(&temporary)).is_empty());
    output
}

#[test]
fn what_cannot_be_served_is_refused_with_its_name() {
    let mut place = Place::new();
    let file = place.file("file", b"");
    let folder = place.path("");
    let share = format!("data={file}");
    let other = format!("blk,socket={file}");
    for (option, value, words) in [
        (
            "--disk",
            "/no/such/image",
            &["/no/such/image", "--disk", "check the path"][..],
        ),
        ("--disk", &folder, &["a regular file or a block device"]),
        ("--disk", "/dev/null", &["a regular file or a block device"]),
        (
            "--share",
            "data=/no/such/folder",
            &["/no/such/folder", "--share"],
        ),
        ("--share", &share, &[&file, "not a folder"]),
        (
            "--vhost-user",
            "blk,socket=/no/such/socket",
            &["/no/such/socket", "start it first"],
        ),
        ("--vhost-user", &other, &[&file, "start it first"]),
    ] {
        let output = place.run(&[option, value]);
        place.assert_refused(&output, USAGE, words);
    }
}

#[test]
fn more_devices_than_there_is_room_for_are_refused() {
    let mut place = Place::new();
    let image = place.file("image", b"");
    let arguments = ["--disk", &image].repeat(7);
    let output = place.run(&arguments);
    place.assert_refused(&output, USAGE, &["7 disks", "room for 6"]);
}

#[test]
fn a_daemon_that_is_not_installed_is_named_with_its_package() {
    let mut place = Place::new();
    let image = place.file("image", b"");
    let kernel = place.kernel();
    place.before = super::list(Path::new(&place.path("")));
    let mut command = place.command(&kernel, &["--disk", &image]);
    let output = command.env("PATH", "/no/such/folder").output().unwrap();
    let words = [
        "--disk needs qemu-storage-daemon",
        "qemu-utils",
        "qemu-system-common",
    ];
    place.assert_refused(&output, MACHINE, &words);
}

#[test]
fn what_a_daemon_says_when_it_does_not_start_is_in_the_error() {
    let mut place = Place::new();
    let image = place.file("image", b"");
    let says = "echo first >&2; echo the image is broken >&2; exit 1";
    let output = run_with(&mut place, says, &["--disk", &image]);
    place.assert_refused(&output, USAGE, &["--disk ", &image, "the image is broken"]);
    let output = run_with(&mut place, "exit 0", &["--share", "data=/"]);
    place.assert_refused(
        &output,
        USAGE,
        &["--share data=/", "it closed the connection"],
    );
    let lock = fs::File::open(&image).unwrap();
    lock.lock().unwrap();
    let output = run_with(&mut place, says, &["--disk", &image]);
    place.assert_refused(&output, BUSY, &["--disk ", "is in use", "readonly"]);
    drop(lock);
    let locked = r#"echo 'Failed to get "write" lock' >&2; exit 1"#;
    let output = run_with(&mut place, locked, &["--disk", &image]);
    place.assert_refused(&output, BUSY, &["--disk ", "is in use", "readonly"]);
}

#[test]
fn a_socket_of_something_else_is_refused() {
    let mut place = Place::new();
    let path = place.path("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let accepts = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let output = place.run(&["--vhost-user", &format!("blk,socket={path}")]);
    accepts.join().unwrap();
    place.assert_refused(&output, USAGE, &[&path, "it closed the connection"]);
}
