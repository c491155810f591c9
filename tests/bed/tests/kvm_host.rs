//! The KVM host as jobs see it.

use std::time::{Duration, Instant};

use vmsrs_bed::{Bed, Error, Event, Job, Series};

#[test]
fn the_host_has_kvm_with_nested_paging_and_taps() {
    let job = Job::script(
        r#"set -e
test -c /dev/kvm
test -c /dev/net/tun
for file in /sys/module/kvm_amd/parameters/npt /sys/module/kvm_intel/parameters/ept; do
	test ! -e $file || cat $file >>"$VMSRS_RESULTS"
done
exit 3"#,
    );
    let mut seen = 0;
    let outcome = Bed::auto()
        .unwrap()
        .run(&job, |event| {
            seen += usize::from(matches!(event, Event::Result(_)))
        })
        .unwrap();
    assert_eq!(outcome.code, 3, "{outcome:?}");
    assert!(
        matches!(outcome.results[0].as_str(), "Y" | "1"),
        "{outcome:?}"
    );
    assert_eq!(outcome.results.len(), seen);
}

#[test]
fn a_program_runs_there_with_its_libraries_and_files() {
    let folder = tempfile::tempdir().unwrap();
    let note = folder.path().join("note");
    std::fs::write(&note, "kept\n").unwrap();
    let job = Job::script(r#"me --list >/dev/null && cat data/note >>"$VMSRS_RESULTS""#)
        .program(std::env::current_exe().unwrap(), "me")
        .file(&note, "data/note");
    let outcome = Bed::auto().unwrap().run(&job, |_| ()).unwrap();
    assert!(outcome.success(), "{outcome:?}");
    assert_eq!(outcome.results, ["kept"]);
}

#[test]
fn a_job_that_hangs_is_ended_and_its_console_is_told() {
    // The limit counts from the last `@start`. Changing the console's settings waits until the line has been sent.
    let job = Job::script(
        r#"echo waiting for nothing
stty -F /dev/console -echo || :
echo @start >>"$VMSRS_RESULTS"
sleep 36000"#,
    )
    .timeout(Duration::from_secs(20));
    let start = Instant::now();
    let error = Bed::auto().unwrap().run(&job, |_| ()).unwrap_err();
    let Error::Timeout { console, .. } = error else {
        panic!("{error}");
    };
    assert!(console.contains("waiting for nothing"), "{console}");
    assert!(start.elapsed() >= Duration::from_secs(20));
}

#[test]
fn a_nested_job_that_hangs_tells_where_its_cpus_are() {
    let job = Job::script("while :; do :; done")
        .deterministic()
        .timeout(Duration::from_secs(1));
    let error = Bed::auto().unwrap().run(&job, |_| ()).unwrap_err();
    let Error::Timeout { positions, .. } = &error else {
        panic!("{error}");
    };
    assert!(positions.contains("CPU 0:\n  RIP 0x"), "{error}");
    assert_eq!(positions.matches("RIP 0x").count(), 3, "{error}");
}

#[test]
fn the_deterministic_host_counts_instructions() {
    // The same work takes the same time in both runs, whatever else this machine does.
    let job = Job::script(
        r#"read before rest </proc/uptime
i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done
read after rest </proc/uptime
echo "$before $after" >>"$VMSRS_RESULTS""#,
    )
    .deterministic();
    let bed = Bed::auto().unwrap();
    let seconds = |_| {
        let outcome = bed.run(&job, |_| ()).unwrap();
        let (before, after) = outcome.results[0].split_once(' ').unwrap();
        after.parse::<f64>().unwrap() - before.parse::<f64>().unwrap()
    };
    let [first, second] = [0, 1].map(seconds);
    assert!(
        first > 0.0 && (first - second).abs() <= 0.02,
        "{first} {second}"
    );
}

#[test]
fn each_kernel_unpacks_to_an_elf_file() {
    let bed = Bed::auto().unwrap();
    for series in Series::ALL {
        let vmlinux = std::fs::read(bed.kernel(series).unwrap().vmlinux().unwrap()).unwrap();
        assert_eq!(&vmlinux[..4], b"\x7fELF");
    }
}

#[test]
fn a_guest_image_has_its_modules_with_all_they_depend_on() {
    let folder = tempfile::tempdir().unwrap();
    let bed = Bed::auto().unwrap();
    for series in Series::ALL {
        let path = folder.path().join("image");
        let image = bed
            .image()
            .unwrap()
            .modules(["virtio_mmio", "virtio-net"])
            .init("true");
        image.write(&bed.kernel(series).unwrap(), &path).unwrap();
        let archive = std::fs::read(&path).unwrap();
        let has = |name: &str| {
            archive
                .windows(name.len())
                .any(|window| window == name.as_bytes())
        };
        assert!(has("lib/modules/net_failover.ko") && has("bin/busybox") && has("TRAILER!!!"));
    }
}
