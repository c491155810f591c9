//! Real stacks of real programs become backtraces with functions and lines.

use std::path::{Path, PathBuf};
use std::process::Command;

use vmsrs_host::control::{ProgramFacts, RequestFacts, Restored};
use vmsrs_host::symbols::{Found, Frame, SymbolFiles, Trace, trace};
use vmsrs_protocol::incident::{ModuleEntry, REG_RBP, REG_RIP, REG_RSP, REGISTERS};

/// A failed request with nothing but a stack.
fn request(
    registers: Vec<u64>,
    stack_address: u64,
    stack: Vec<u8>,
    modules: Vec<u8>,
) -> RequestFacts {
    RequestFacts {
        tag: 1,
        signal: 11,
        code: 1,
        pid: 1,
        tid: 1,
        thread: "test".into(),
        address_at: None,
        recovery_ns: 0,
        restored: Restored::Sealed,
        left_open: None,
        drafts_total: 0,
        drafts: Vec::new(),
        program: Some(ProgramFacts {
            stack_address,
            stack_low: stack_address - 0x1_0000,
            stack_high: stack_address + stack.len() as u64,
            stack,
            modules,
            message: String::new(),
        }),
        details_dropped: false,
        registers,
        backtrace: Vec::new(),
    }
}

fn module(bias: u64, start: u64, end: u64, path: &str) -> Vec<u8> {
    let entry = ModuleEntry {
        bias,
        start,
        end,
        path_bytes: path.len() as u32,
        ..ModuleEntry::default()
    };
    let mut bytes = bytemuck::bytes_of(&entry).to_vec();
    bytes.extend(path.as_bytes());
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// What tests/c/crash.c wrote.
struct Output<'a>(&'a [u8]);

impl Output<'_> {
    fn number(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes(8).try_into().unwrap())
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes.to_vec()
    }
}

/// Builds the C program optimised and without frame pointers, lets it fail, and unwinds what it kept.
fn crash(how: &str, folder: &Path) -> Trace {
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/c/crash.c");
    let program = folder.join("crash");
    let built = Command::new("cc")
        .args([
            "-O2",
            "-g",
            "-fomit-frame-pointer",
            "-Wall",
            "-Wextra",
            "-o",
        ])
        .arg(&program)
        .arg(source)
        .status()
        .expect("a C compiler is installed");
    assert!(built.success());
    let output = Command::new(&program).arg(how).output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    let mut output = Output(&output.stdout);
    let registers = (0..REGISTERS).map(|_| output.number()).collect();
    let address = output.number();
    let length = output.number() as usize;
    let stack = output.bytes(length);
    let mut modules = Vec::new();
    while !output.0.is_empty() {
        let (bias, start, end) = (output.number(), output.number(), output.number());
        let path = String::from_utf8(output.bytes(64)).unwrap();
        modules.extend(module(bias, start, end, path.trim_end_matches('\0')));
    }
    let files = SymbolFiles::new(&[folder.to_owned()]).unwrap();
    trace(&request(registers, address, stack, modules), &files)
}

fn functions(trace: &Trace) -> Vec<&str> {
    let name = |frame: &'_ Frame| frame.function.is_some();
    trace
        .frames
        .iter()
        .filter(|frame| name(frame))
        .map(|frame| frame.function.as_deref().unwrap())
        .collect()
}

/// The line of the C program that has this text.
fn line_of(text: &str) -> u32 {
    let source = include_str!("c/crash.c");
    let line = source.lines().position(|line| line.contains(text)).unwrap();
    line as u32 + 1
}

#[test]
fn null_store_is_found_with_inlined_function_and_line() {
    let folder = tempfile::tempdir().unwrap();
    let trace = crash("store", folder.path());
    let names = functions(&trace);
    assert_eq!(
        names[..4],
        ["store", "inner", "middle", "outer"],
        "{trace:#?}"
    );
    assert!(names.contains(&"main"), "{trace:#?}");
    let first = &trace.frames[0];
    assert!(first.inlined && !trace.frames[1].inlined);
    assert_eq!(first.line, Some(line_of("the line that fails")));
    assert!(first.file.as_ref().unwrap().ends_with("crash.c"));
    assert!(
        trace.frames[1..4]
            .iter()
            .all(|frame| frame.found != Found::Scan)
    );
    assert!(
        trace
            .notes
            .iter()
            .any(|note| note.contains("found by name"))
    );
}

#[test]
fn a_jump_to_nowhere_leads_back_to_its_caller() {
    let folder = tempfile::tempdir().unwrap();
    let trace = crash("jump", folder.path());
    assert_eq!(trace.frames[0].address, 0x30);
    assert_eq!(
        functions(&trace)[..3],
        ["inner", "middle", "outer"],
        "{trace:#?}"
    );
    assert_eq!(trace.frames[1].line, Some(line_of("wild();")), "{trace:#?}");
}

#[test]
fn library_without_a_file_is_named_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let trace = crash("abort", folder.path());
    let names = functions(&trace);
    assert!(
        names
            .windows(3)
            .any(|names| names == ["inner", "middle", "outer"]),
        "{trace:#?}"
    );
    let module = trace.frames[0].module.as_deref().unwrap();
    assert!(module.contains("libc"), "{module}");
    assert!(
        trace
            .notes
            .iter()
            .any(|note| note.contains("libc") && note.contains("--symbols"))
    );
}

#[test]
fn without_any_file_there_are_modules_and_offsets() {
    let folder = tempfile::tempdir().unwrap();
    let mut registers = vec![0; REGISTERS];
    registers[REG_RIP] = 0x5000_1234;
    let mut facts = request(
        registers,
        0x1000_0000,
        vec![0; 64],
        module(0x5000_0000, 0x5000_0000, 0x5001_0000, "/opt/x"),
    );
    facts.backtrace = vec![0x5000_2000];
    let files = SymbolFiles::new(&[folder.path().to_owned()]).unwrap();
    let trace = trace(&facts, &files);
    assert_eq!(trace.frames[0].module.as_deref(), Some("/opt/x"));
    assert_eq!(trace.frames[0].module_offset, Some(0x1234));
    assert_eq!(trace.frames[1].found, Found::FramePointer);
    assert_eq!(trace.notes.len(), 1);
}

/// Stack pointer, frame pointer, instruction pointer and the top of the stack, here.
#[inline(never)]
fn capture() -> (Vec<u64>, u64, Vec<u8>) {
    let (rsp, rbp, rip): (u64, u64, u64);
    // SAFETY: reads registers.
    unsafe {
        std::arch::asm!(
            "mov {}, rsp", "mov {}, rbp", "lea {}, [rip]",
            out(reg) rsp, out(reg) rbp, out(reg) rip,
            options(nomem, nostack, preserves_flags)
        );
    }
    let mut registers = vec![0; REGISTERS];
    (registers[REG_RBP], registers[REG_RSP], registers[REG_RIP]) = (rbp, rsp, rip);
    let mut stack = vec![0; 2048];
    // SAFETY: a test's thread has more than that above this frame.
    unsafe { std::ptr::copy_nonoverlapping(rsp as *const u8, stack.as_mut_ptr(), stack.len()) };
    (registers, rsp, stack)
}

#[inline(never)]
fn generic_caller<T: std::fmt::Debug>(value: T) -> (Vec<u64>, u64, Vec<u8>) {
    let captured = capture();
    std::hint::black_box(value);
    captured
}

#[test]
fn rust_functions_have_their_names_demangled() {
    let (registers, address, stack) = generic_caller("x");
    let own = std::env::current_exe().unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let ranges: Vec<(u64, u64)> = maps
        .lines()
        .filter(|line| line.ends_with(own.to_str().unwrap()))
        .map(|line| {
            let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            (number(start), number(end))
        })
        .collect();
    let (start, end) = (ranges[0].0, ranges[ranges.len() - 1].1);
    let modules = module(start, start, end, own.to_str().unwrap());
    let files = SymbolFiles::new(&[own]).unwrap();
    let trace = trace(&request(registers, address, stack, modules), &files);
    let names = functions(&trace);
    assert!(names[0].starts_with("unwinding::capture"), "{trace:#?}");
    assert!(
        names[1].starts_with("unwinding::generic_caller"),
        "{trace:#?}"
    );
    assert!(
        names[2].starts_with("unwinding::rust_functions_have_their_names_demangled"),
        "{trace:#?}"
    );
    assert!(trace.frames[2].line.is_some());
}

#[test]
fn a_stack_full_of_anything_ends_in_time() {
    let own = std::env::current_exe().unwrap();
    let files = SymbolFiles::new(std::slice::from_ref(&own)).unwrap();
    let modules = module(0x1000, 0x1000, 0x1000_0000, own.to_str().unwrap());
    for step in [0u64, 1, 8, 4096, 0x1357_9bdf] {
        // Words that point into the module, and onto the stack itself.
        let words = (0..2048u64).map(|word| 0x1000 + (word * step + step) % 0xfff_0000);
        let stack: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        let mut registers = vec![0x2000; REGISTERS];
        registers[REG_RSP] = 0x2000_0000;
        let facts = request(registers, 0x2000_0000, stack, modules.clone());
        assert!(trace(&facts, &files).frames.len() < 10_000);
    }
}
