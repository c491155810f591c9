//! Errors of programs in C and C++ in their real form: found by the C library, the compiler's checks,
//! the CPU, or the C++ runtime. Each fails only its request, and the process goes on; or the process ends,
//! where the C library's own heap stays locked.

#[path = "common/compiled.rs"]
mod compiled;

use compiled::Program;
use std::os::unix::process::ExitStatusExt;
use std::sync::OnceLock;

/// The flags of a distribution's packages, without the warnings that would find the errors.
const HARDENED: &[&str] = &[
    "-O2",
    "-U_FORTIFY_SOURCE",
    "-D_FORTIFY_SOURCE=2",
    "-fstack-protector-all",
    "-Wno-dangling-pointer",
    "-Wno-free-nonheap-object",
];

fn errors() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| Program::compile("cc", HARDENED, "tests/c/errors.c"))
}

/// The same, linked statically, as the tutorial links servers.
fn errors_static() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let flags = [HARDENED, &["-static"]].concat();
        Program::compile("cc", &flags, "tests/c/errors.c")
    })
}

fn exceptions() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| Program::compile("c++", &["-Wno-terminate"], "tests/c/exception.cc"))
}

#[test]
fn stack_protector_abort_fails_only_its_request() {
    errors().succeed(&["stack-protector"]);
}

#[test]
fn fortify_abort_fails_only_its_request() {
    errors().succeed(&["fortify-memset"]);
    errors().succeed(&["fortify-sprintf"]);
}

#[test]
fn a_failed_assertion_ends_its_request_alone() {
    errors().succeed(&["assert"]);
}

#[test]
fn an_abort_in_c_ends_its_request_alone() {
    errors().succeed(&["abort"]);
}

#[test]
fn invalid_free_before_glibc_locks_fails_only_its_request() {
    errors().succeed(&["malloc-twice-cache"]);
    errors().succeed(&["malloc-no-block"]);
}

/// glibc says so with its heap locked, and half changed: every other thread would wait forever.
#[test]
fn glibc_abort_with_its_heap_locked_ends_the_process() {
    for program in [errors(), errors_static()] {
        for error in ["malloc-twice-arena", "malloc-overrun"] {
            let output = program.run(&[error]);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{errors}");
            assert!(
                errors.contains("the C library's heap is damaged or stays locked"),
                "{errors}"
            );
        }
    }
}

/// The likeliest mistake when a server is ported to domains. Whatever the block's size, glibc finds it before it
/// locks its heap.
#[test]
fn domain_block_passed_to_libc_free_fails_only_its_request() {
    for program in [errors(), errors_static()] {
        program.succeed(&["domain-free", "300"]);
        program.succeed(&["domain-realloc", "300"]);
    }
}

/// There are no versions of the server's own stack: a stray write there must end the process, not loop in
/// the landing.
#[test]
fn error_on_the_way_to_the_landing_ends_the_process() {
    let output = errors().run(&["landing"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    let signal = output.status.signal();
    assert_eq!(signal, Some(libc::SIGABRT), "{errors}");
    assert!(errors.contains("an error on the way out"), "{errors}");
}

#[test]
fn errors_that_the_cpu_finds_end_their_requests_alone() {
    for error in ["division", "undefined", "breakpoint"] {
        errors().succeed(&[error]);
    }
    for error in ["null", "no-address", "code"] {
        errors().succeed(&[error]);
    }
}

#[test]
fn read_of_truncated_mapping_fails_only_its_request() {
    errors().succeed(&["truncated"]);
}

#[test]
fn a_stack_overflow_in_c_ends_its_request_alone() {
    errors().succeed(&["recursion"]);
}

#[test]
fn large_frame_without_probes_hits_the_guard() {
    errors().succeed(&["alloca"]);
}

#[test]
fn overdue_request_leaves_malloc_before_it_is_cut_short() {
    errors().succeed(&["deadline-in-malloc", "200"]);
    errors_static().succeed(&["deadline-in-malloc", "200"]);
    errors().succeed(&["deadline-in-realloc", "200"]);
    errors_static().succeed(&["deadline-in-realloc", "200"]);
}

#[test]
fn overdue_request_is_cut_short_in_a_libc_loop() {
    errors().succeed(&["deadline-in-c-library"]);
    errors_static().succeed(&["deadline-in-c-library"]);
}

#[test]
fn overdue_request_is_woken_from_sleep() {
    for sleep in ["deadline-in-read", "deadline-in-pause", "deadline-in-mutex"] {
        errors().succeed(&[sleep]);
        errors_static().succeed(&[sleep]);
    }
}

#[test]
fn a_cpp_exception_that_leaves_its_request_ends_it_alone() {
    exceptions().succeed(&["throw"]);
    exceptions().succeed(&["throw-int"]);
}

#[test]
fn cpp_exception_through_noexcept_fails_only_its_request() {
    exceptions().succeed(&["noexcept"]);
}

/// The program is linked with the shared library, since it has a panic runtime of its own.
#[test]
fn panic_abort_fails_only_its_request() {
    Program::compile_rust(&["-Cpanic=abort"], "tests/c/panic_abort.rs").succeed(&[]);
}

#[test]
fn std_terminate_ends_its_request_alone() {
    exceptions().succeed(&["terminate"]);
    exceptions().succeed(&["pure-virtual"]);
}

#[test]
fn a_cpp_exception_caught_in_its_request_is_no_error() {
    exceptions().succeed(&["caught"]);
}

#[test]
fn a_cpp_exception_in_a_defer_ends_that_defer_alone() {
    exceptions().succeed(&["defer"]);
}
