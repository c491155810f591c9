//! What the instruction before a data watchpoint's trap did to the watched word.

use iced_x86::{Decoder, DecoderOptions, Instruction, InstructionInfoFactory, OpAccess};
use serde::Serialize;

/// How a word was accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Read, or read and written by one instruction: the old value mattered.
    Read,
    /// Overwritten, whatever its value was.
    Write,
}

/// Bytes before the instruction pointer that are examined.
pub const BEFORE: usize = 64;

/// Longest instruction.
const LONGEST: usize = 15;

/// What the instruction did. `code` has [`BEFORE`] bytes before `rip` and 15 from there on; `written` is whether the
/// write watchpoint matched.
///
/// A data watchpoint traps after the instruction, and x86 code cannot be decoded backwards. So it is decoded from many
/// offsets, most of which soon synchronise with the true instructions, and the majority decides which instruction ends
/// here. Repeated string instructions trap before their own end.
pub fn access(code: &[u8], rip: u64, written: bool) -> Access {
    if !written {
        return Access::Read;
    }
    let stopped = Decoder::with_ip(64, &code[BEFORE..], rip, DecoderOptions::NONE).decode();
    let candidates = (LONGEST..=BEFORE).filter_map(|back| ending_at(code, rip, back));
    let mut votes: Vec<(u64, Access, usize)> = Vec::new();
    let repeated = stopped.has_rep_prefix() || stopped.has_repne_prefix();
    for instruction in candidates.chain(repeated.then_some(stopped)) {
        let Some(access) = writes(&instruction) else {
            continue;
        };
        let known = votes.iter_mut().find(|(ip, ..)| *ip == instruction.ip());
        match known {
            Some((.., count)) => *count += 1,
            None => votes.push((instruction.ip(), access, 1)),
        }
    }
    votes
        .into_iter()
        .max_by_key(|&(.., count)| count)
        .map_or(Access::Write, |(_, access, _)| access)
}

/// The last instruction before `rip` when decoding starts `back` bytes before it.
fn ending_at(code: &[u8], rip: u64, back: usize) -> Option<Instruction> {
    let start = rip.checked_sub(back as u64)?;
    let bytes = &code[BEFORE - back..BEFORE];
    let decoder = Decoder::with_ip(64, bytes, start, DecoderOptions::NONE);
    let last = decoder.into_iter().last()?;
    (!last.is_invalid() && last.next_ip() == rip).then_some(last)
}

/// What an instruction does that writes to memory; `None` if it does not.
fn writes(instruction: &Instruction) -> Option<Access> {
    let mut factory = InstructionInfoFactory::new();
    let mut found = None;
    for memory in factory.info(instruction).used_memory() {
        match memory.access() {
            OpAccess::Write | OpAccess::CondWrite => found = found.or(Some(Access::Write)),
            OpAccess::ReadWrite | OpAccess::ReadCondWrite => found = Some(Access::Read),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The access of `last`, after ordinary instructions.
    fn stopped_after(last: &[u8], next: &[u8], written: bool) -> Access {
        // mov rax, [rdi+8]; add rax, rsi; lea rcx, [rax+rax*2]
        let ordinary = [
            0x48, 0x8b, 0x47, 0x08, 0x48, 0x01, 0xf0, 0x48, 0x8d, 0x0c, 0x40,
        ];
        let mut code: Vec<u8> = ordinary.iter().copied().cycle().take(110).collect();
        code.extend_from_slice(last);
        code.drain(..code.len() - BEFORE);
        code.extend_from_slice(next);
        code.resize(BEFORE + LONGEST, 0x90);
        access(&code, 0x1000, written)
    }

    #[test]
    fn store_is_a_write_and_addition_a_read() {
        // mov [rdi+8], rax
        assert_eq!(
            stopped_after(&[0x48, 0x89, 0x47, 0x08], &[], true),
            Access::Write
        );
        // add [rdi+8], rax
        assert_eq!(
            stopped_after(&[0x48, 0x01, 0x47, 0x08], &[], true),
            Access::Read
        );
        // lock cmpxchg [rdi], rcx
        let exchange = [0xf0, 0x48, 0x0f, 0xb1, 0x0f];
        assert_eq!(stopped_after(&exchange, &[], true), Access::Read);
    }

    #[test]
    fn a_load_is_a_read_and_a_string_store_a_write() {
        assert_eq!(
            stopped_after(&[0x48, 0x8b, 0x47, 0x08], &[], false),
            Access::Read
        );
        // rep stosq, stopped in the middle
        assert_eq!(stopped_after(&[], &[0xf3, 0x48, 0xab], true), Access::Write);
    }
}
