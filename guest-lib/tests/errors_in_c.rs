//! Errors of C and C++ programs as the C library, the compiler's checks, the CPU or the C++ runtime find them. Each
//! fails only its request; where the C library's heap would stay locked, the process ends with a message.

#[path = "common/compiled.rs"]
mod compiled;

use compiled::Program;
use std::os::unix::process::ExitStatusExt;
use std::sync::OnceLock;

/// Flags of a distribution's packages, without the warnings that the errors cause.
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

/// The same, linked statically with the C library, as the tutorial links servers.
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

fn thread_state() -> [&'static Program; 2] {
    static PROGRAMS: OnceLock<[Program; 2]> = OnceLock::new();
    let compile = |flags: &[&str]| Program::compile("cc", flags, "tests/c/thread_state.c");
    let [dynamic, fixed] =
        PROGRAMS.get_or_init(|| [compile(&["-D_FORTIFY_SOURCE=2"]), compile(&["-static"])]);
    [dynamic, fixed]
}

#[test]
fn stack_protector_abort_ends_only_its_request() {
    errors().succeed(&["stack-protector"]);
}

#[test]
fn fortify_abort_ends_only_its_request() {
    errors().succeed(&["fortify-memset"]);
    errors().succeed(&["fortify-sprintf"]);
}

#[test]
fn failed_assertion_ends_only_its_request() {
    errors().succeed(&["assert"]);
}

#[test]
fn abort_in_c_ends_only_its_request() {
    errors().succeed(&["abort"]);
}

/// Signals of a thread's own system calls. In requests they cost the request, elsewhere they have the effect that they
/// always have.
#[test]
fn signals_of_system_calls_end_only_their_requests() {
    for (call, signal) in [
        ("pipe", libc::SIGPIPE),
        ("file-size", libc::SIGXFSZ),
        ("filter", libc::SIGSYS),
    ] {
        errors().succeed(&[call]);
        let output = errors().command(&[call, "0"]).output().unwrap();
        assert_eq!(output.status.signal(), Some(signal), "{call}: {output:?}");
    }
}

#[test]
fn invalid_free_found_without_lock_ends_only_its_request() {
    errors().succeed(&["malloc-twice-cache"]);
    errors().succeed(&["malloc-no-block"]);
}

/// glibc aborts with its heap locked and inconsistent, so every other thread would hang.
#[test]
fn heap_damage_found_under_lock_ends_process() {
    for program in [errors(), errors_static()] {
        for error in ["malloc-twice-arena", "malloc-overrun", "defer-twice-arena"] {
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

#[test]
fn errors_that_are_not_suppressed_end_the_process() {
    for (error, says) in [
        ("null", ""),
        ("division", ""),
        ("fail", "vmsrs: invariant, not suppressed: on purpose"),
        ("red-zone", "vmsrs: red zone, not suppressed"),
    ] {
        let mut command = errors().command(&[error]);
        let output = command.env("VMSRS_SUPPRESSION", "off").output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.signal().is_some(), "{error}: {errors}");
        assert!(errors.contains(says), "{error}: {errors}");
    }
}

/// The likeliest mistake when a server is ported to domains. glibc detects it before it locks its heap, whatever the
/// size of the block.
#[test]
fn libc_free_of_domain_block_ends_only_its_request() {
    for program in [errors(), errors_static()] {
        program.succeed(&["domain-free", "300"]);
        program.succeed(&["domain-realloc", "300"]);
    }
}

#[test]
fn allocator_of_the_server_has_its_errors_found() {
    Program::compile("cc", &[], "tests/c/slabs.c").succeed(&[]);
}

#[test]
fn failure_without_memory_ends_only_its_request() {
    for flags in [&[][..], &["-static"]] {
        Program::compile("cc", flags, "tests/c/memory.c").succeed(&[]);
    }
}

/// The server's own stack has no versions to return to, so a stray write to it must end the process; the failure must
/// not be handled again and again.
#[test]
fn error_on_way_out_of_request_ends_process() {
    let output = errors().run(&["landing"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    let signal = output.status.signal();
    assert_eq!(signal, Some(libc::SIGSEGV), "{errors}");
    assert!(errors.contains("an error inside the library"), "{errors}");
}

#[test]
fn cpu_exceptions_end_only_their_requests() {
    for error in ["division", "undefined", "breakpoint"] {
        errors().succeed(&[error]);
    }
    for error in ["null", "no-address", "code"] {
        errors().succeed(&[error]);
    }
}

#[test]
fn handler_that_calls_that_of_the_library_is_returned_to() {
    errors().succeed(&["wrapped"]);
}

#[test]
fn read_of_truncated_file_ends_only_its_request() {
    errors().succeed(&["truncated"]);
}

#[test]
fn stack_overflow_in_c_ends_only_its_request() {
    errors().succeed(&["recursion"]);
}

#[test]
fn large_frame_without_probes_hits_the_guard() {
    errors().succeed(&["alloca"]);
}

#[test]
fn deadline_waits_until_thread_has_left_malloc() {
    errors().succeed(&["deadline-in-malloc", "200"]);
    errors_static().succeed(&["deadline-in-malloc", "200"]);
    errors().succeed(&["deadline-in-realloc", "200"]);
    errors_static().succeed(&["deadline-in-realloc", "200"]);
}

#[test]
fn deadline_interrupts_loop_in_c_library() {
    errors().succeed(&["deadline-in-c-library"]);
    errors_static().succeed(&["deadline-in-c-library"]);
}

#[test]
fn deadline_interrupts_system_call_and_lock_wait() {
    for sleep in ["deadline-in-read", "deadline-in-pause", "deadline-in-mutex"] {
        errors().succeed(&[sleep]);
        errors_static().succeed(&[sleep]);
    }
}

#[test]
fn escaping_cpp_exception_ends_only_its_request() {
    exceptions().succeed(&["throw"]);
    exceptions().succeed(&["throw-int"]);
}

#[test]
fn cpp_exception_in_noexcept_ends_only_its_request() {
    exceptions().succeed(&["noexcept"]);
}

/// The program has a panic runtime of its own, so it is linked with the shared library.
#[test]
fn aborting_panic_ends_only_its_request() {
    Program::compile_rust(&["-Cpanic=abort"], "tests/c/panic_abort.rs").succeed(&[]);
}

#[test]
fn std_terminate_ends_only_its_request() {
    exceptions().succeed(&["terminate"]);
    exceptions().succeed(&["pure-virtual"]);
}

#[test]
fn caught_cpp_exception_is_not_an_error() {
    exceptions().succeed(&["caught"]);
}

#[test]
fn cpp_exception_in_defer_ends_only_that_defer() {
    exceptions().succeed(&["defer"]);
}

#[test]
fn cleanup_list_of_the_thread_leads_to_no_failed_request() {
    for program in thread_state() {
        program.succeed(&["print"]);
        program.succeed(&["cleanup"]);
    }
}

#[test]
fn streams_of_failed_requests_are_unlocked() {
    for program in thread_state() {
        program.succeed(&["streams"]);
    }
}

#[test]
fn robust_mutexes_that_failed_requests_leave_locked_are_counted() {
    thread_state()[0].succeed(&["locks"]);
}

#[test]
fn system_past_its_deadline_leaves_no_signal_ignored_and_no_child() {
    for program in thread_state() {
        program.succeed(&["program"]);
    }
}

#[test]
fn cpp_exceptions_in_flight_end_with_their_request() {
    exceptions().succeed(&["handler"]);
    exceptions().succeed(&["unwinding"]);
    exceptions().succeed(&["both"]);
}

#[test]
fn cpp_exceptions_of_the_server_stay_when_a_request_fails() {
    exceptions().succeed(&["server"]);
}

#[test]
fn error_with_its_signal_blocked_ends_process() {
    for error in ["blocked", "thread-pointer"] {
        let output = thread_state()[0].run(&[error]);
        assert!(output.status.signal().is_some(), "{output:?}");
    }
}

#[test]
fn cancellation_of_a_thread_in_a_request_ends_the_request() {
    thread_state()[0].succeed(&["cancel"]);
}
