//! What a failed request, a child or a plug-in does to the rest of its process: nothing. C programs without a device.

#[path = "common/compiled.rs"]
mod compiled;

use compiled::{Program, library};
use std::os::unix::process::ExitStatusExt;
use std::process::Output;
use std::sync::OnceLock;

#[test]
fn children_that_share_memory_have_no_part_in_the_request() {
    let children = Program::compile("cc", &[], "tests/c/children.c");
    for deed in ["crash", "abort", "raise", "fail", "exit", "run", "commit"] {
        children.succeed(&["vfork", deed]);
        children.succeed(&["clone", deed]);
    }
    // It has its parent's handlers, too.
    for deed in ["crash", "abort", "raise"] {
        children.succeed(&["handlers", deed]);
    }
    // A child of clone() has a stack of its own, by which the library knows it at once.
    for deed in ["alloc", "enter", "free"] {
        children.succeed(&["clone", deed]);
    }
    children.succeed(&["vfork", "damage"]);
    for deed in ["crash", "abort", "raise", "fail", "exit", "write", "end"] {
        children.succeed(&["outside", deed]);
    }
}

#[test]
fn requests_do_not_wait_for_the_dynamic_linker() {
    let plugin = Program::compile_shared(&["-DPLUGIN"], "tests/c/loader.c");
    let path = plugin.path();
    // Where functions are bound as they are called first, that ends what a look-up has begun.
    for binding in ["-Wl,-z,lazy", "-Wl,-z,now"] {
        let program = Program::compile("cc", &[binding], "tests/c/loader.c");
        for constructor in ["crash", "wait"] {
            program.succeed(&[constructor, path.to_str().unwrap()]);
        }
    }
}

/// The waits of a C program, linked with the shared C library and statically.
fn waits(what: &str) {
    static PROGRAMS: OnceLock<[Program; 2]> = OnceLock::new();
    let compile = |flags: &[&str]| Program::compile("cc", flags, "tests/c/waits.c");
    for program in PROGRAMS.get_or_init(|| [compile(&[]), compile(&["-static"])]) {
        program.succeed(&[what]);
    }
}

#[test]
fn condition_that_a_failed_request_waited_for_works_for_all_others() {
    waits("conditions");
}

#[test]
fn read_write_lock_that_a_failed_request_waited_for_works_for_all_others() {
    waits("read-write");
}

#[test]
fn mutex_and_semaphore_that_a_failed_request_waited_for_work_for_all_others() {
    waits("mutexes");
    waits("semaphores");
}

#[test]
fn initializer_of_pthread_once_that_is_cut_short_runs_again() {
    waits("once");
}

#[test]
fn deadline_in_a_function_with_a_lock_of_its_own_leaves_it_unlocked() {
    let program = Program::compile("cc", &["-Wno-deprecated-declarations"], "tests/c/locks.c");
    for what in ["names", "logs"] {
        program.succeed(&[what]);
    }
}

#[test]
fn request_cut_short_in_a_stream_takes_nothing_from_others() {
    for flags in [&[][..], &["-static"]] {
        let flags = [flags, &["-Wno-deprecated-declarations"]].concat();
        Program::compile("cc", &flags, "tests/c/locks.c").succeed(&["streams"]);
    }
}

#[test]
fn error_in_the_c_library_releases_what_its_functions_hold() {
    for flags in [&[][..], &["-static"]] {
        let flags = [flags, &["-Wno-deprecated-declarations"]].concat();
        Program::compile("cc", &flags, "tests/c/locks.c").succeed(&["wild"]);
    }
}

/// A C program, linked with the shared C library and statically.
fn both(source: &str, what: &[&str]) {
    for flags in [&[][..], &["-static"]] {
        let program = Program::compile("cc", flags, source);
        for what in what {
            program.succeed(&[what]);
        }
    }
}

#[test]
fn error_on_the_stack_of_a_signal_handler_leaves_nothing_to_others() {
    both("tests/c/stacks.c", &["handlers"]);
}

#[test]
fn error_on_the_stack_of_a_coroutine_leaves_nothing_to_others() {
    both("tests/c/stacks.c", &["coroutines"]);
}

#[test]
fn what_lies_beside_the_stack_of_a_coroutine_is_not_abandoned() {
    both("tests/c/stacks.c", &["heap"]);
}

#[test]
fn operation_that_a_failed_request_waited_for_writes_to_no_others_stack() {
    both("tests/c/operations.c", &["reads", "names"]);
}

/// Runs the C test of an allocator with that allocator, half of whose time goes into the C++ library.
fn run_allocator(arguments: &[&str]) -> Output {
    let program = Program::compile("cc", &[], "tests/c/allocator.c");
    let allocator = Program::compile_shared(
        &["-DPRELOADED", "-Wl,--no-as-needed", "-lstdc++"],
        "tests/c/allocator.c",
    );
    let mut command = program.command(arguments);
    command.env("LD_PRELOAD", allocator.path());
    command.output().unwrap()
}

#[test]
fn interrupts_wait_until_a_thread_has_left_any_allocator() {
    let output = run_allocator(&[]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
}

#[test]
fn a_request_that_is_stuck_in_an_allocator_ends_the_process() {
    let output = run_allocator(&["stuck"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{errors}");
    let said = "the C library's heap is damaged or stays locked";
    assert!(errors.contains(said), "{errors}");
}

#[test]
fn a_handler_that_fails_or_leaves_under_an_allocators_lock_ends_the_process() {
    for mode in ["handler", "fail", "left"] {
        let output = run_allocator(&[mode]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.signal(),
            Some(libc::SIGABRT),
            "{mode}: {errors}"
        );
        let said = "the C library's heap is damaged or stays locked";
        assert!(errors.contains(said), "{mode}: {errors}");
    }
}

#[test]
fn a_thread_that_never_used_a_plugin_ends_the_process_by_heap_damage() {
    let program = Program::compile_alone(&[], "tests/c/plugin.c");
    let library = library().with_file_name("libvmsrs.so");
    let library = library.to_str().unwrap();
    program.succeed(&[library, "use"]);
    let output = program.run(&[library, "damage"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{errors}");
    assert!(
        errors.contains("the process ends, committed domains are whole"),
        "{errors}"
    );
}

#[test]
fn wild_arguments_and_interrupts_in_any_call_cost_the_request_alone() {
    Program::compile("cc", &[], "tests/c/wild.c").succeed(&[]);
}

#[test]
fn programs_with_sanitizers_run_requests() {
    for sanitizer in ["address", "thread", "undefined", "leak"] {
        let flag = format!("-fsanitize={sanitizer}");
        Program::compile("cc", &[&flag], "tests/c/sanitized.c").succeed(&[]);
    }
}

/// Before it is asked anything: any file is refused.
#[test]
fn a_program_with_the_thread_sanitizer_refuses_a_device() {
    let program = Program::compile("cc", &["-fsanitize=thread"], "tests/c/sanitized.c");
    let mut command = program.command(&["refused"]);
    let output = command.env("VMSRS_DEVICE", "/dev/null").output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
}

#[test]
fn a_filter_that_knows_the_calls_of_the_library_lets_requests_run() {
    Program::compile("cc", &[], "tests/c/filtered.c").succeed(&[]);
}
