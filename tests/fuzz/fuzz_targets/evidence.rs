//! Hostile evidence from a program: registers, a stack and a module table, unwound with the unwind
//! tables of a real file.
//!
//! The input is three registers (rsp, rbp, rip), the length of the module table (16 bits), the table,
//! and the stack. The first module in the table is always this program, so that frames can be unwound.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vmsrs_host::control::{ProgramFacts, RequestFacts, Restored};
use vmsrs_host::symbols::{Module, SymbolFiles, describe_owner, trace};
use vmsrs_protocol::incident::{ModuleEntry, REG_RBP, REG_RIP, REG_RSP, REGISTERS};

const BASE: u64 = 0x5555_0000_0000;

static OWN: LazyLock<(SymbolFiles, Vec<u8>)> = LazyLock::new(|| {
    let path = std::env::current_exe().expect("path of this program");
    let name = path.to_string_lossy().into_owned();
    let entry = ModuleEntry {
        bias: BASE,
        start: BASE,
        end: BASE + (1 << 28),
        path_bytes: name.len() as u32,
        ..ModuleEntry::default()
    };
    let mut table = Vec::new();
    for field in [entry.bias, entry.start, entry.end] {
        table.extend(field.to_le_bytes());
    }
    table.extend(entry.build_id_bytes.to_le_bytes());
    table.extend(entry.path_bytes.to_le_bytes());
    table.extend(entry.build_id);
    table.extend(name.as_bytes());
    table.resize(table.len().next_multiple_of(8), 0);
    assert_eq!(Module::parse(&table).len(), 1);
    (
        SymbolFiles::new(&[path]).expect("file of this program"),
        table,
    )
});

fuzz_target!(|input: &[u8]| {
    let (files, own) = &*OWN;
    let Some((head, rest)) = input.split_first_chunk::<26>() else {
        return;
    };
    let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("8 bytes"));
    let length = usize::from(u16::from_le_bytes([head[24], head[25]])).min(rest.len());
    let (table, stack) = rest.split_at(length);
    let mut registers = vec![0; REGISTERS];
    (registers[REG_RSP], registers[REG_RBP], registers[REG_RIP]) = (word(0), word(8), word(16));
    let facts = RequestFacts {
        tag: 1,
        signal: 11,
        code: 1,
        pid: 1,
        tid: 1,
        thread: String::new(),
        address_at: None,
        recovery_ns: 0,
        restored: Restored::Sealed,
        left_open: None,
        drafts_total: 0,
        drafts: Vec::new(),
        program: Some(ProgramFacts {
            stack_address: word(0),
            stack_low: word(0) & !0xffff,
            stack_high: word(0).wrapping_add(stack.len() as u64),
            stack: stack.to_vec(),
            modules: [own, table].concat(),
            message: String::new(),
        }),
        details_dropped: false,
        registers,
        backtrace: Vec::new(),
    };
    assert!(!trace(&facts, files).frames.is_empty());
    assert!(!describe_owner(word(8), &facts).is_empty());
});
