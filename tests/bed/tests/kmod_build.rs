//! What the driver's build accepts and rejects, with small modules on every supported kernel.

use std::fs;
use std::path::PathBuf;

use vmsrs_bed::{Bed, Error, Kernel, Result, Series, kmod, tools};

const FRAME: &str = r#"// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>
BODY
static int __init sample_init(void)
{
	return 0;
}
module_init(sample_init);
MODULE_DESCRIPTION("Sample");
MODULE_LICENSE("GPL");
"#;

/// Builds a module that contains `body` for each kernel.
fn build(body: &str) -> Vec<Result<PathBuf>> {
    build_for(body, |_| true)
}

/// The same for some kernels.
fn build_for(body: &str, is_wanted: fn(&Kernel) -> bool) -> Vec<Result<PathBuf>> {
    let bed = Bed::auto().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("sample");
    fs::create_dir_all(&source).unwrap();
    fs::write(source.join("Kbuild"), "obj-m := sample.o\n").unwrap();
    fs::write(source.join("sample.c"), FRAME.replace("BODY", body)).unwrap();
    let kernels = Series::ALL.map(|series| bed.kernel(series).unwrap());
    let wanted = kernels.into_iter().filter(is_wanted);
    wanted
        .map(|kernel| {
            tools::ensure(&kernel.tools().unwrap(), &|_| ()).unwrap();
            let base = folder.path().join(kernel.release());
            kmod::build_folder(&kernel, folder.path(), &base, "sample")
        })
        .collect()
}

#[test]
fn a_clean_module_builds() {
    for result in build("") {
        assert_eq!(result.unwrap().file_name().unwrap(), "sample.ko");
    }
}

#[test]
fn a_compiler_warning_stops_the_build() {
    for result in build("static int unused;") {
        let error = result.unwrap_err();
        assert!(
            matches!(&error, Error::Command { output, .. } if output.contains("unused")),
            "{error}"
        );
    }
}

#[test]
fn what_only_the_checker_sees_stops_the_build() {
    // A user-space address used as a kernel address.
    let body =
        "int sample_read(int __user *at);\nint sample_read(int __user *at)\n{\n\treturn *at;\n}";
    for result in build_for(body, Kernel::is_checked) {
        let error = result.unwrap_err();
        assert!(
            matches!(&error, Error::Sparse { messages, .. } if messages.contains("noderef")),
            "{error}"
        );
    }
}
