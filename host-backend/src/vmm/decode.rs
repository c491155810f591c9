//! Decoding an instruction: which bytes of memory does it write?
//!
//! Registers alone do not tell the address of a refused store, and neither KVM nor the hardware
//! does. This module decodes the instruction at the instruction pointer and computes all the
//! ranges it writes, from the registers as they were before it.

use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, MemorySize, Mnemonic, OpAccess,
    Register, UsedMemory,
};
use kvm_bindings::{kvm_regs, kvm_sregs};

/// Longest x86 instruction in bytes.
pub const MAX_INSTRUCTION_LEN: usize = 15;

/// Upper bound for what an instruction of the XSAVE family writes, in bytes: all state components
/// known today, with those of AMX (Intel SDM, volume 1, section 13.4), come to less.
const MAX_XSAVE_LEN: u64 = 12 << 10;
/// Upper bound for any other instruction whose operand size depends on the CPU.
const MAX_OTHER_LEN: u64 = 64;
/// Of a repeated string instruction at most this many bytes are looked at. Its registers are up to
/// date at each fault, so that the refused byte is one of the next few.
const MAX_STRING_LEN: u64 = 2 << 20;

const RFLAGS_DIRECTION: u64 = 1 << 10;
const EFER_LMA: u64 = 1 << 10;

/// A range of virtual addresses that an instruction writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrittenRange {
    /// First virtual address.
    pub start: u64,
    /// Length in bytes, never 0.
    pub len: u64,
}

/// A decoded instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedWrite {
    /// The instruction's own bytes.
    pub code: Vec<u8>,
    /// What it writes, in the order in which its operands come. Conditional writes are among
    /// them; a write whose address cannot be computed is not.
    pub ranges: Vec<WrittenRange>,
}

/// The registers of a stopped vCPU that addresses are computed from.
pub struct RegisterFile<'a> {
    /// General registers.
    pub regs: &'a kvm_regs,
    /// Segment and control registers.
    pub sregs: &'a kvm_sregs,
}

impl RegisterFile<'_> {
    /// Number of bits of the code segment: 64, 32 or 16.
    fn bitness(&self) -> u32 {
        let cs = &self.sregs.cs;
        if self.sregs.efer & EFER_LMA != 0 && cs.l != 0 {
            64
        } else if cs.db != 0 {
            32
        } else {
            16
        }
    }

    /// Linear address of the instruction.
    pub fn linear_rip(&self) -> u64 {
        match self.bitness() {
            64 => self.regs.rip,
            _ => self.sregs.cs.base.wrapping_add(self.regs.rip) & u64::from(u32::MAX),
        }
    }

    /// Value of a register in an address: of a segment register its base. `None` for vector
    /// registers, which only scatter instructions use so.
    fn value(&self, register: Register) -> Option<u64> {
        let long = self.bitness() == 64;
        let segment = |base: u64| Some(if long { 0 } else { base });
        match register {
            Register::FS => return Some(self.sregs.fs.base),
            Register::GS => return Some(self.sregs.gs.base),
            Register::CS => return segment(self.sregs.cs.base),
            Register::DS => return segment(self.sregs.ds.base),
            Register::ES => return segment(self.sregs.es.base),
            Register::SS => return segment(self.sregs.ss.base),
            _ => {}
        }
        let regs = self.regs;
        let full = match register.full_register() {
            Register::RAX => regs.rax,
            Register::RBX => regs.rbx,
            Register::RCX => regs.rcx,
            Register::RDX => regs.rdx,
            Register::RSI => regs.rsi,
            Register::RDI => regs.rdi,
            Register::RSP => regs.rsp,
            Register::RBP => regs.rbp,
            Register::R8 => regs.r8,
            Register::R9 => regs.r9,
            Register::R10 => regs.r10,
            Register::R11 => regs.r11,
            Register::R12 => regs.r12,
            Register::R13 => regs.r13,
            Register::R14 => regs.r14,
            Register::R15 => regs.r15,
            Register::RIP => regs.rip,
            _ => return None,
        };
        Some(match register.size() {
            // No address uses AH, BH, CH or DH.
            1 => full & 0xff,
            2 => full & 0xffff,
            4 => full & 0xffff_ffff,
            _ => full,
        })
    }
}

/// Decodes the instruction that `code`, the bytes at the instruction pointer, starts with.
///
/// Returns `None` when the instruction is invalid or `code` ends within it.
pub fn decode_write(code: &[u8], registers: &RegisterFile<'_>) -> Option<DecodedWrite> {
    let mut decoder = Decoder::with_ip(
        registers.bitness(),
        code,
        registers.regs.rip,
        DecoderOptions::NONE,
    );
    let instruction = decoder.decode();
    if instruction.is_invalid() {
        return None;
    }
    let ranges = match string_store(&instruction) {
        Some(element) => string_ranges(&instruction, element, registers),
        None => operand_ranges(&instruction, registers),
    };
    Some(DecodedWrite {
        code: code[..instruction.len()].to_vec(),
        ranges,
    })
}

fn is_write(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

fn operand_ranges(instruction: &Instruction, registers: &RegisterFile<'_>) -> Vec<WrittenRange> {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(instruction);
    info.used_memory()
        .iter()
        .filter(|memory| is_write(memory.access()))
        .filter_map(|memory| {
            let start = memory.virtual_address(0, |register, _, _| registers.value(register))?;
            let len = written_len(instruction, memory);
            Some(WrittenRange { start, len })
        })
        .collect()
}

fn written_len(instruction: &Instruction, memory: &UsedMemory) -> u64 {
    match memory.memory_size() {
        MemorySize::Xsave | MemorySize::Xsave64 => MAX_XSAVE_LEN,
        size => match (size.size() as u64, instruction.mnemonic()) {
            (
                0,
                Mnemonic::Xsave
                | Mnemonic::Xsave64
                | Mnemonic::Xsavec
                | Mnemonic::Xsavec64
                | Mnemonic::Xsaveopt
                | Mnemonic::Xsaveopt64
                | Mnemonic::Xsaves
                | Mnemonic::Xsaves64,
            ) => MAX_XSAVE_LEN,
            (0, _) => MAX_OTHER_LEN,
            (len, _) => len,
        },
    }
}

/// Size in bytes of the elements that a string instruction stores at (R/E)DI; `None` for all other
/// instructions.
fn string_store(instruction: &Instruction) -> Option<u64> {
    if !instruction.is_string_instruction() {
        return None;
    }
    match instruction.mnemonic() {
        Mnemonic::Stosb | Mnemonic::Movsb | Mnemonic::Insb => Some(1),
        Mnemonic::Stosw | Mnemonic::Movsw | Mnemonic::Insw => Some(2),
        Mnemonic::Stosd | Mnemonic::Movsd | Mnemonic::Insd => Some(4),
        Mnemonic::Stosq | Mnemonic::Movsq => Some(8),
        _ => None,
    }
}

/// The ranges of a string instruction: upwards one range, downwards the next element and then the
/// rest below it, so that what is written first comes first.
fn string_ranges(
    instruction: &Instruction,
    element: u64,
    registers: &RegisterFile<'_>,
) -> Vec<WrittenRange> {
    // The width of the destination register follows the address size of the instruction.
    let memory_base =
        (0..instruction.op_count()).find_map(|operand| match instruction.op_kind(operand) {
            iced_x86::OpKind::MemoryESRDI => Some((Register::RDI, Register::RCX)),
            iced_x86::OpKind::MemoryESEDI => Some((Register::EDI, Register::ECX)),
            iced_x86::OpKind::MemoryESDI => Some((Register::DI, Register::CX)),
            _ => None,
        });
    let Some((base, counter)) = memory_base else {
        return Vec::new();
    };
    let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    let count = match registers.value(counter) {
        Some(count) if repeated => count.min(MAX_STRING_LEN / element),
        _ => 1,
    };
    let (Some(offset), Some(segment)) = (registers.value(base), registers.value(Register::ES))
    else {
        return Vec::new();
    };
    let start = segment.wrapping_add(offset);
    let range = |start, len| WrittenRange { start, len };
    if count == 0 {
        Vec::new()
    } else if registers.regs.rflags & RFLAGS_DIRECTION == 0 || count == 1 {
        vec![range(start, count * element)]
    } else {
        let rest = (count - 1) * element;
        vec![range(start, element), range(start.wrapping_sub(rest), rest)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_segment;

    fn long_mode() -> kvm_sregs {
        kvm_sregs {
            cs: kvm_segment {
                l: 1,
                // Must not count in long mode.
                base: 0xbad_0000,
                ..Default::default()
            },
            fs: kvm_segment {
                base: 0x7000_0000,
                ..Default::default()
            },
            gs: kvm_segment {
                base: 0xffff_8880_0000_0000,
                ..Default::default()
            },
            efer: EFER_LMA,
            ..Default::default()
        }
    }

    fn registers() -> kvm_regs {
        kvm_regs {
            rax: 0x1000,
            rbx: 0x2000,
            rcx: 0x10,
            rdx: 0x3000,
            rsi: 0x4000,
            rdi: 0x5000,
            rsp: 0x6000,
            rbp: 0x6100,
            rip: 0x40_0000,
            r8: 0x8000,
            r15: 0xf000,
            ..Default::default()
        }
    }

    fn ranges_with(code: &[u8], regs: &kvm_regs, sregs: &kvm_sregs) -> Vec<(u64, u64)> {
        let file = RegisterFile { regs, sregs };
        let decoded = decode_write(code, &file).expect("valid instruction");
        assert_eq!(decoded.code, code);
        decoded
            .ranges
            .iter()
            .map(|range| (range.start, range.len))
            .collect()
    }

    fn ranges(code: &[u8]) -> Vec<(u64, u64)> {
        ranges_with(code, &registers(), &long_mode())
    }

    #[test]
    fn a_plain_store_is_found_by_base_index_and_displacement() {
        // mov byte [rax], 1
        assert_eq!(ranges(&[0xc6, 0x00, 0x01]), [(0x1000, 1)]);
        // mov [rbx+rcx*8-8], rax
        assert_eq!(ranges(&[0x48, 0x89, 0x44, 0xcb, 0xf8]), [(0x2078, 8)]);
        // mov dword [r15+r8*1+0x100], edx
        assert_eq!(
            ranges(&[0x43, 0x89, 0x94, 0x07, 0x00, 0x01, 0x00, 0x00]),
            [(0x17100, 4)],
        );
    }

    #[test]
    fn rip_relative_store_counts_from_its_end() {
        // mov dword [rip+0x10], 5 (10 bytes long)
        let code = [0xc7, 0x05, 0x10, 0, 0, 0, 5, 0, 0, 0];
        assert_eq!(ranges(&code), [(0x40_001a, 4)]);
    }

    #[test]
    fn segment_bases_count_for_fs_and_gs_alone() {
        // mov fs:[rax], ecx
        assert_eq!(ranges(&[0x64, 0x89, 0x08]), [(0x7000_1000, 4)]);
        // inc qword gs:[0x28]
        assert_eq!(
            ranges(&[0x65, 0x48, 0xff, 0x04, 0x25, 0x28, 0, 0, 0]),
            [(0xffff_8880_0000_0028, 8)],
        );
    }

    #[test]
    fn an_address_of_32_bits_is_cut_off() {
        let mut regs = registers();
        regs.rax = 0xffff_ffff_0000_1000;
        // mov [eax], ecx (address size prefix)
        assert_eq!(
            ranges_with(&[0x67, 0x89, 0x08], &regs, &long_mode()),
            [(0x1000, 4)],
        );
    }

    #[test]
    fn read_modify_write_instructions_write_their_operand() {
        // add [rbx], eax
        assert_eq!(ranges(&[0x01, 0x03]), [(0x2000, 4)]);
        // xchg [rbx], rax
        assert_eq!(ranges(&[0x48, 0x87, 0x03]), [(0x2000, 8)]);
        // lock cmpxchg [rbx], rcx
        assert_eq!(ranges(&[0xf0, 0x48, 0x0f, 0xb1, 0x0b]), [(0x2000, 8)]);
        // lock cmpxchg16b [rsi]
        assert_eq!(ranges(&[0xf0, 0x48, 0x0f, 0xc7, 0x0e]), [(0x4000, 16)]);
        // lock bts dword [rbx], 3
        assert_eq!(ranges(&[0xf0, 0x0f, 0xba, 0x2b, 0x03]), [(0x2000, 4)]);
    }

    #[test]
    fn instructions_that_only_read_write_nothing() {
        // mov rax, [rbx]; cmp [rbx], eax; nop; ret; pop rax
        for code in [
            &[0x48, 0x8b, 0x03][..],
            &[0x39, 0x03],
            &[0x90],
            &[0xc3],
            &[0x58],
        ] {
            assert_eq!(ranges(code), [], "{code:x?}");
        }
    }

    #[test]
    fn the_stack_is_written_below_its_pointer() {
        // push rax
        assert_eq!(ranges(&[0x50]), [(0x5ff8, 8)]);
        // call +0
        assert_eq!(ranges(&[0xe8, 0, 0, 0, 0]), [(0x5ff8, 8)]);
        // call [rbx] reads its operand and writes the stack
        assert_eq!(ranges(&[0xff, 0x13]), [(0x5ff8, 8)]);
        // pop qword [rbx] writes its operand
        assert_eq!(ranges(&[0x8f, 0x03]), [(0x2000, 8)]);
    }

    #[test]
    fn vector_stores_have_their_full_width() {
        // movups [rdi], xmm0
        assert_eq!(ranges(&[0x0f, 0x11, 0x07]), [(0x5000, 16)]);
        // vmovdqu [rdi+32], ymm1
        assert_eq!(ranges(&[0xc5, 0xfe, 0x7f, 0x4f, 0x20]), [(0x5020, 32)]);
        // vmovdqu64 [rdi], zmm0
        assert_eq!(
            ranges(&[0x62, 0xf1, 0xfe, 0x48, 0x7f, 0x07]),
            [(0x5000, 64)],
        );
        // movnti [rdi], rax
        assert_eq!(ranges(&[0x48, 0x0f, 0xc3, 0x07]), [(0x5000, 8)]);
    }

    #[test]
    fn a_string_store_covers_what_is_left_of_it() {
        // stosb
        assert_eq!(ranges(&[0xaa]), [(0x5000, 1)]);
        // rep movsb
        assert_eq!(ranges(&[0xf3, 0xa4]), [(0x5000, 0x10)]);
        // rep stosq
        assert_eq!(ranges(&[0xf3, 0x48, 0xab]), [(0x5000, 0x80)]);
        let mut regs = registers();
        regs.rcx = 0;
        assert_eq!(ranges_with(&[0xf3, 0xa4], &regs, &long_mode()), []);
        regs.rcx = u64::MAX;
        assert_eq!(
            ranges_with(&[0xf3, 0x48, 0xab], &regs, &long_mode()),
            [(0x5000, MAX_STRING_LEN)],
        );
    }

    #[test]
    fn a_string_store_downwards_begins_with_its_highest_element() {
        let mut regs = registers();
        regs.rflags = RFLAGS_DIRECTION;
        // std; rep movsq
        assert_eq!(
            ranges_with(&[0xf3, 0x48, 0xa5], &regs, &long_mode()),
            [(0x5000, 8), (0x5000 - 0x78, 0x78)],
        );
        // movsb
        assert_eq!(ranges_with(&[0xa4], &regs, &long_mode()), [(0x5000, 1)],);
    }

    #[test]
    fn state_saving_instructions_have_a_bound() {
        // fxsave64 [rdi]
        assert_eq!(ranges(&[0x48, 0x0f, 0xae, 0x07]), [(0x5000, 512)]);
        // xsave64 [rdi]
        assert_eq!(ranges(&[0x48, 0x0f, 0xae, 0x27]), [(0x5000, MAX_XSAVE_LEN)]);
        // xsaves64 [rdi]
        assert_eq!(ranges(&[0x48, 0x0f, 0xc7, 0x2f]), [(0x5000, MAX_XSAVE_LEN)]);
    }

    #[test]
    fn a_protected_mode_segment_adds_its_base() {
        let mut sregs = long_mode();
        sregs.efer = 0;
        sregs.cs.l = 0;
        sregs.cs.db = 1;
        sregs.ds.base = 0x10_0000;
        // mov [eax], ecx
        assert_eq!(
            ranges_with(&[0x89, 0x08], &registers(), &sregs),
            [(0x10_1000, 4)],
        );
    }

    proptest::proptest! {
        /// The guest chooses the code and every register.
        #[test]
        fn any_code_with_any_registers_gives_bounded_ranges(
            code: [u8; MAX_INSTRUCTION_LEN],
            values: [u64; 8],
            long: bool,
        ) {
            let [rax, rcx, rsi, rdi, rsp, rip, rflags, fs] = values;
            let regs = kvm_regs { rax, rcx, rsi, rdi, rsp, rip, rflags, ..Default::default() };
            let mut sregs = long_mode();
            sregs.fs.base = fs;
            sregs.cs.l = u8::from(long);
            let file = RegisterFile { regs: &regs, sregs: &sregs };
            if let Some(write) = decode_write(&code, &file) {
                assert!(!write.code.is_empty() && write.code.len() <= MAX_INSTRUCTION_LEN);
                for range in write.ranges {
                    assert!((1..=MAX_STRING_LEN).contains(&range.len));
                }
            }
        }
    }

    #[test]
    fn code_that_is_invalid_or_cut_short_is_not_decoded() {
        let (regs, sregs) = (registers(), long_mode());
        let file = RegisterFile {
            regs: &regs,
            sregs: &sregs,
        };
        for code in [&[][..], &[0x48], &[0x48, 0x89], &[0x06]] {
            assert_eq!(decode_write(code, &file), None, "{code:x?}");
        }
    }
}
