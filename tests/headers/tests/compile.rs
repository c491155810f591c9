//! The headers alone compile without a warning, as C and as C++, and lay structures out as the
//! library does.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Compiles a source that includes headers of the project.
fn compile(compiler: &str, standard: &str, source: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let language = if standard.contains("++") { "c++" } else { "c" };
    let mut child = Command::new(compiler)
        .arg(format!("-std={standard}"))
        .args(["-Wall", "-Wextra", "-Wshadow", "-Wundef", "-Werror"])
        .args(["-pedantic", "-fsyntax-only", "-x", language, "-I"])
        .arg(root.join("guest-lib/include"))
        .arg("-I")
        .arg(root.join("guest-kmod"))
        .arg("-")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{compiler}: {error}"));
    let mut input = child.stdin.take().unwrap();
    input.write_all(source.as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{compiler} -std={standard}:\n{messages}"
    );
    assert!(
        messages.is_empty(),
        "{compiler} -std={standard}:\n{messages}"
    );
}

fn compile_as_c_and_cpp(source: &str) {
    for standard in ["c99", "c11"] {
        compile("gcc", standard, source);
    }
    for standard in ["c++11", "c++17"] {
        compile("g++", standard, source);
    }
}

#[test]
fn library_header_compiles_alone() {
    compile_as_c_and_cpp("#include \"vmsrs.h\"\n#include \"vmsrs.h\"\n");
}

#[test]
fn cpp_header_of_the_library_compiles_alone() {
    for standard in ["c++17", "c++20"] {
        compile(
            "g++",
            standard,
            "#include \"vmsrs.hpp\"\n#include \"vmsrs.hpp\"\n",
        );
    }
}

#[test]
fn protocol_header_compiles_alone() {
    compile_as_c_and_cpp("#include \"vmsrs_protocol.h\"\n#include \"vmsrs_protocol.h\"\n");
}

#[test]
fn both_headers_compile_together() {
    // Both have the kinds of failures, as an enumeration and as macros.
    compile_as_c_and_cpp("#include \"vmsrs.h\"\n#include \"vmsrs_protocol.h\"\n");
    compile_as_c_and_cpp("#include \"vmsrs_protocol.h\"\n#include \"vmsrs.h\"\n");
}

/// Names and values that programs were compiled with.
const ABI: &str = r#"
#include "vmsrs.h"

#define HOLDS(name, condition) typedef char name[(condition) ? 1 : -1]

HOLDS(codes, VMSRS_OK == 0 && VMSRS_EFAILED == -1 && VMSRS_EVARIABLES == -21 && VMSRS_ESANITIZER == -23);
HOLDS(version, VMSRS_VERSION_MAJOR >= 0 && VMSRS_VERSION_MINOR >= 0 && VMSRS_VERSION_PATCH >= 0);
HOLDS(version_text, sizeof(VMSRS_VERSION) >= sizeof("0.0.0"));
HOLDS(kinds, VMSRS_KIND_MEMORY == 1 && VMSRS_KIND_DAMAGED == 22);
HOLDS(flags, VMSRS_MIRROR == 1 && VMSRS_SEAL == 1 && VMSRS_AUDIT_WHOLE == 2 && VMSRS_KEEP_ARENA == 4);
HOLDS(steps, VMSRS_STEP_DONE == 0 && VMSRS_STEP_SUSPEND == 1);
HOLDS(info_size, sizeof(vmsrs_info) == 72);
HOLDS(options_size, sizeof(vmsrs_options) == 24 && offsetof(vmsrs_options, arena_bytes) == 16);
HOLDS(failure_size, sizeof(vmsrs_failure) == 184);
HOLDS(message, offsetof(vmsrs_failure, message) == 56);
HOLDS(ticket_size, sizeof(vmsrs_ticket_t) == 32);
HOLDS(piece_size, sizeof(vmsrs_piece) == 24);
"#;

#[test]
fn values_and_layouts_of_the_library_header_stay() {
    compile_as_c_and_cpp(ABI);
}

#[test]
fn flags_and_codes_are_used_without_casts() {
    let source = r#"
#include "vmsrs.h"

int use(const vmsrs_domain *domain, vmsrs_request_fn function);
int use(const vmsrs_domain *domain, vmsrs_request_fn function)
{
	vmsrs_options options = { VMSRS_SEAL | VMSRS_AUDIT_WHOLE, 0, 0, 1 << 20, 0 };
	vmsrs_failure failure;
	int code = vmsrs_run_with(domain, &options, function, 0, 0);

	switch (code) {
	case VMSRS_OK:
		return 0;
	case VMSRS_EFAILED:
		if (vmsrs_last_failure(&failure) != VMSRS_OK)
			vmsrs_fail("no failure");
		return failure.kind == VMSRS_KIND_MEMORY;
	default:
		return code;
	}
}
"#;
    compile_as_c_and_cpp(source);
}

/// The example in the comment of the library's header: a function, and statements.
#[test]
fn example_of_the_library_header_compiles() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let header = std::fs::read_to_string(root.join("guest-lib/include/vmsrs.h")).unwrap();
    let comment = header.split("*/").nth(1).unwrap();
    let lines = comment.lines().skip_while(|line| !line.starts_with(" *\t"));
    let lines: Vec<_> = lines
        .take_while(|line| line.trim_end() == " *" || line.starts_with(" *\t"))
        .map(|line| &line[2..])
        .collect();
    let end = lines.iter().position(|line| *line == "\t}").unwrap();
    let (function, statements) = lines.split_at(end + 1);
    assert!(!statements.is_empty());
    let source = format!(
        "#include <stdio.h>\n#include \"vmsrs.h\"\n{}\nint main(void)\n{{\n{}\nreturn code;\n}}\n",
        function.join("\n").replace(
            "(vmsrs_request *request",
            "(vmsrs_request *request __attribute__((unused))"
        ),
        statements.join("\n"),
    );
    compile("gcc", "gnu11", &source);
}
