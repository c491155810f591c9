//! Routines that copy, clear and check a page, and that SIGBUS ends with an error.
//!
//! They are written in assembler, so that it is known which instructions they have, and that each byte is
//! read once: the guest may be changing it. They use no stack, so that the handler can send an interrupted
//! one to its exit. All return a value and an `si_code`, which is 0 if there was no error.

use std::arch::{global_asm, is_x86_feature_detected};
use std::io;

use super::handler::{self, BUS_MCEERR_AR};

/// Bytes in a page.
pub(super) const PAGE: usize = 4096;

/// An access met memory that is broken, or that the system does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    /// Where.
    pub(crate) address: usize,
    /// `si_code` of the signal.
    code: i32,
}

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> Self {
        Self::from_raw_os_error(match broken.code {
            BUS_MCEERR_AR => libc::EHWPOISON,
            _ => libc::EFAULT,
        })
    }
}

/// What a routine returns in RAX and RDX.
#[repr(C)]
struct Outcome {
    /// The address that failed, or the routine's result.
    value: u64,
    code: u64,
}

impl Outcome {
    fn result(self) -> Result<u64, Broken> {
        match self.code {
            0 => Ok(self.value),
            code => Err(Broken {
                address: self.value as usize,
                code: code as i32,
            }),
        }
    }
}

/// Access to pages of mappings: there is a handler of SIGBUS.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pages {
    /// The CPU has AVX.
    pub(super) wide: bool,
    /// The CPU has the instructions for CRC-32C.
    pub(super) crc32c: bool,
    /// The CPU has AVX2, and AES on its registers.
    pub(super) vaes: bool,
}

impl Pages {
    /// Prepares the process for the accesses.
    ///
    /// # Errors
    ///
    /// Fails when the system refuses the handler.
    pub(crate) fn new() -> io::Result<Self> {
        handler::install()?;
        Ok(Self {
            wide: is_x86_feature_detected!("avx"),
            crc32c: is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("pclmulqdq"),
            vaes: is_x86_feature_detected!("avx2") && is_x86_feature_detected!("vaes"),
        })
    }

    /// Copies a page. Each byte is read once.
    ///
    /// # Errors
    ///
    /// Fails when one of the two is broken; what `to` holds is unspecified then.
    ///
    /// # Safety
    ///
    /// Both pages must be mapped, `to` writable, and no reference to a part of `to` may exist.
    pub(crate) unsafe fn copy(self, to: *mut u8, from: *const u8) -> Result<(), Broken> {
        // SAFETY: the caller's promise; the CPU has the instructions.
        let outcome = unsafe {
            match self.wide {
                true => vmsrs_page_copy_avx(to, from),
                false => vmsrs_page_copy_sse(to, from),
            }
        };
        outcome.result().map(drop)
    }

    /// Fills a page with zeros.
    ///
    /// # Errors
    ///
    /// Fails when it is broken; what it holds is unspecified then.
    ///
    /// # Safety
    ///
    /// As for `to` of [`Self::copy`].
    pub(crate) unsafe fn clear(self, to: *mut u8) -> Result<(), Broken> {
        // SAFETY: the caller's promise; the CPU has the instructions.
        let outcome = unsafe {
            match self.wide {
                true => vmsrs_page_clear_avx(to),
                false => vmsrs_page_clear_sse(to),
            }
        };
        outcome.result().map(drop)
    }

    /// Copies a page, each byte of which is read once, and returns the copy's checksum.
    ///
    /// # Errors
    ///
    /// As [`Self::copy`].
    ///
    /// # Safety
    ///
    /// As [`Self::copy`].
    #[inline]
    pub(crate) unsafe fn copy_and_sum(self, to: *mut u8, from: *const u8) -> Result<u64, Broken> {
        // SAFETY: the caller's promise; the CPU has the instructions.
        unsafe {
            match self.vaes {
                true => vmsrs_page_copy_and_sum(to, from).result(),
                false => self.copy(to, from).and_then(|()| self.checksum(to)),
            }
        }
    }

    /// The checksum of a page, of whatever is read if others write to it meanwhile: in this process always by the same
    /// function. It finds a flipped bit and a mixture of two contents, except for one change in 2^64 (by AES), or in 2^32
    /// of those of more than three bits (CRC-32C).
    ///
    /// # Errors
    ///
    /// Fails when it is broken.
    ///
    /// # Safety
    ///
    /// The page must be mapped.
    pub(crate) unsafe fn checksum(self, from: *const u8) -> Result<u64, Broken> {
        // SAFETY: the caller's promise; the CPU has the instructions.
        unsafe {
            if self.vaes {
                return vmsrs_page_sum(from).result();
            }
            if self.crc32c {
                return vmsrs_page_crc32c(from).result();
            }
        }
        let mut copy = [0; PAGE];
        // SAFETY: the caller's promise, and the copy is this call's own.
        unsafe { self.copy(copy.as_mut_ptr(), from)? };
        Ok(crc32c::crc32c(&copy).into())
    }
}

/// Where to continue instead of an instruction of a routine, and with the error in RAX and RDX; `None` if the
/// instruction is not of a routine.
pub(super) fn exit_of(instruction: usize) -> Option<usize> {
    let at = |label: unsafe extern "C" fn()| label as usize;
    // The exits are left out: with a broken stack, an exit would be sent to itself again and again.
    if (at(vmsrs_page_routines)..at(vmsrs_page_exit)).contains(&instruction) {
        return Some(at(vmsrs_page_exit));
    }
    (at(vmsrs_page_avx_routines)..at(vmsrs_page_avx_exit))
        .contains(&instruction)
        .then(|| at(vmsrs_page_avx_exit))
}

/// Bytes in each of the three streams of [`vmsrs_page_crc32c`]. Two words of the page are left for its end.
const STREAM: usize = 1360;
const _: () = assert!(3 * STREAM + 16 == PAGE && STREAM.is_multiple_of(80));

/// What the sums of [`vmsrs_page_sum`] start with.
static STARTS: [u8; 256] = {
    let mut starts = [0; 256];
    let mut at = 0;
    while at < starts.len() {
        starts[at] = at as u8;
        at += 1;
    }
    starts
};

/// The factor that moves a remainder over `bytes` and the word that it is added to: x^(8 * bytes + 31) modulo
/// the polynomial of CRC-32C, its highest power in the lowest bit. (Of the 64 powers that the word adds, 32
/// are in the instruction for the word, and one is in the product of two such numbers.)
const fn factor(bytes: usize) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut power = 1 << 31;
    let mut left = 8 * bytes + 31;
    while left > 0 {
        power = (power >> 1) ^ (if power & 1 == 1 { POLYNOMIAL } else { 0 });
        left -= 1;
    }
    power
}

unsafe extern "C" {
    // Places in the code: never called.
    fn vmsrs_page_routines();
    fn vmsrs_page_exit();
    fn vmsrs_page_avx_routines();
    fn vmsrs_page_avx_exit();

    fn vmsrs_page_copy_sse(to: *mut u8, from: *const u8) -> Outcome;
    fn vmsrs_page_copy_avx(to: *mut u8, from: *const u8) -> Outcome;
    fn vmsrs_page_clear_sse(to: *mut u8) -> Outcome;
    fn vmsrs_page_clear_avx(to: *mut u8) -> Outcome;
    fn vmsrs_page_crc32c(from: *const u8) -> Outcome;
    fn vmsrs_page_sum(from: *const u8) -> Outcome;
    fn vmsrs_page_copy_and_sum(to: *mut u8, from: *const u8) -> Outcome;
}

// Arguments are in RDI and RSI. Loops count RAX up to 0 from the negative number of bytes.
global_asm!(
    ".pushsection .text.vmsrs_page, \"ax\", @progbits",
    ".macro routine name",
    "    .balign 64",
    "    .globl \\name",
    "    .hidden \\name",
    "    .type \\name, @function",
    "\\name:",
    ".endm",
    "routine vmsrs_page_routines",
    "",
    "routine vmsrs_page_copy_sse",
    "    add rsi, {page}",
    "    add rdi, {page}",
    "    mov rax, -{page}",
    "2:",
    "    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "        movdqu xmm\\n, [rsi + rax + 16 * \\n]",
    "    .endr",
    "    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "        movdqu [rdi + rax + 16 * \\n], xmm\\n",
    "    .endr",
    "    add rax, 256",
    "    jnz 2b",
    "    xor edx, edx",
    "    ret",
    "",
    "routine vmsrs_page_clear_sse",
    "    pxor xmm0, xmm0",
    "    add rdi, {page}",
    "    mov rax, -{page}",
    "2:",
    "    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "        movdqu [rdi + rax + 16 * \\n], xmm0",
    "    .endr",
    "    add rax, 256",
    "    jnz 2b",
    "    xor edx, edx",
    "    ret",
    "",
    // Three streams at a time, since the result of an instruction is there three cycles later. Then the first
    // two remainders are moved to the word after the third stream, and added there.
    "routine vmsrs_page_crc32c",
    "    mov r8d, -1",
    "    xor r9d, r9d",
    "    xor r10d, r10d",
    "    add rdi, {stream}",
    "    mov rax, -{stream}",
    "2:",
    "    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
    "        crc32 r8, qword ptr [rdi + rax + 8 * \\n]",
    "        crc32 r9, qword ptr [rdi + rax + {stream} + 8 * \\n]",
    "        crc32 r10, qword ptr [rdi + rax + 2 * {stream} + 8 * \\n]",
    "    .endr",
    "    add rax, 80",
    "    jnz 2b",
    "    movd xmm0, r8d",
    "    movd xmm1, r9d",
    "    mov ecx, {first}",
    "    movd xmm2, ecx",
    "    mov ecx, {second}",
    "    movd xmm3, ecx",
    "    pclmulqdq xmm0, xmm2, 0",
    "    pclmulqdq xmm1, xmm3, 0",
    "    pxor xmm0, xmm1",
    "    movq rcx, xmm0",
    "    xor rcx, qword ptr [rdi + 2 * {stream}]",
    "    crc32 r10, rcx",
    "    crc32 r10, qword ptr [rdi + 2 * {stream} + 8]",
    "    mov eax, r10d",
    "    not eax",
    "    xor edx, edx",
    "    ret",
    "",
    "routine vmsrs_page_exit",
    "    ret",
    "",
    "routine vmsrs_page_avx_routines",
    "",
    "routine vmsrs_page_copy_avx",
    "    add rsi, {page}",
    "    add rdi, {page}",
    "    mov rax, -{page}",
    "2:",
    "    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "        vmovdqu ymm\\n, [rsi + rax + 32 * \\n]",
    "    .endr",
    "    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "        vmovdqu [rdi + rax + 32 * \\n], ymm\\n",
    "    .endr",
    "    add rax, 512",
    "    jnz 2b",
    "    xor edx, edx",
    "    vzeroupper",
    "    ret",
    "",
    "routine vmsrs_page_clear_avx",
    "    vpxor xmm0, xmm0, xmm0",
    "    add rdi, {page}",
    "    mov rax, -{page}",
    "2:",
    "    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15",
    "        vmovdqu [rdi + rax + 32 * \\n], ymm0",
    "    .endr",
    "    add rax, 512",
    "    jnz 2b",
    "    xor edx, edx",
    "    vzeroupper",
    "    ret",
    "",
    // The checksum by AES has sixteen sums of 16 bytes, in YMM8 to YMM15, each for every sixteenth 16 bytes of the page. A
    // sum becomes a round of AES of it with the bytes as the key, which changes with every change of either of them. They
    // start with bytes that all differ: a round keeps equal bytes equal.
    ".macro start_sums",
    "    vmovdqu ymm8, [rip + {starts} + 0]",
    "    vmovdqu ymm9, [rip + {starts} + 32]",
    "    vmovdqu ymm10, [rip + {starts} + 64]",
    "    vmovdqu ymm11, [rip + {starts} + 96]",
    "    vmovdqu ymm12, [rip + {starts} + 128]",
    "    vmovdqu ymm13, [rip + {starts} + 160]",
    "    vmovdqu ymm14, [rip + {starts} + 192]",
    "    vmovdqu ymm15, [rip + {starts} + 224]",
    ".endm",
    // Makes one of them in the same way. After three rounds more each half of it depends on all.
    ".macro end_sums",
    "    .irp n, 9, 10, 11, 12, 13, 14, 15",
    "        vaesenc ymm8, ymm8, ymm\\n",
    "    .endr",
    "    vextracti128 xmm9, ymm8, 1",
    "    vaesenc xmm8, xmm8, xmm9",
    "    vpxor xmm9, xmm9, xmm9",
    "    .rept 3",
    "        vaesenc xmm8, xmm8, xmm9",
    "    .endr",
    "    vmovq rax, xmm8",
    "    xor edx, edx",
    "    vzeroupper",
    "    ret",
    ".endm",
    "",
    "routine vmsrs_page_sum",
    "    start_sums",
    "    add rdi, {page}",
    "    mov rax, -{page}",
    "2:",
    "    .irp half, 0, 256",
    "        vaesenc ymm8, ymm8, [rdi + rax + \\half + 0]",
    "        vaesenc ymm9, ymm9, [rdi + rax + \\half + 32]",
    "        vaesenc ymm10, ymm10, [rdi + rax + \\half + 64]",
    "        vaesenc ymm11, ymm11, [rdi + rax + \\half + 96]",
    "        vaesenc ymm12, ymm12, [rdi + rax + \\half + 128]",
    "        vaesenc ymm13, ymm13, [rdi + rax + \\half + 160]",
    "        vaesenc ymm14, ymm14, [rdi + rax + \\half + 192]",
    "        vaesenc ymm15, ymm15, [rdi + rax + \\half + 224]",
    "    .endr",
    "    add rax, 512",
    "    jnz 2b",
    "    end_sums",
    "",
    "routine vmsrs_page_copy_and_sum",
    "    start_sums",
    "    add rsi, {page}",
    "    add rdi, {page}",
    "    mov rax, -{page}",
    "2:",
    "    .irp half, 0, 256",
    "        .irp n, 0, 1, 2, 3, 4, 5, 6, 7",
    "            vmovdqu ymm\\n, [rsi + rax + \\half + 32 * \\n]",
    "        .endr",
    "        .irp n, 0, 1, 2, 3, 4, 5, 6, 7",
    "            vmovdqu [rdi + rax + \\half + 32 * \\n], ymm\\n",
    "        .endr",
    "        vaesenc ymm8, ymm8, ymm0",
    "        vaesenc ymm9, ymm9, ymm1",
    "        vaesenc ymm10, ymm10, ymm2",
    "        vaesenc ymm11, ymm11, ymm3",
    "        vaesenc ymm12, ymm12, ymm4",
    "        vaesenc ymm13, ymm13, ymm5",
    "        vaesenc ymm14, ymm14, ymm6",
    "        vaesenc ymm15, ymm15, ymm7",
    "    .endr",
    "    add rax, 512",
    "    jnz 2b",
    "    end_sums",
    "",
    "routine vmsrs_page_avx_exit",
    "    vzeroupper",
    "    ret",
    "",
    ".purgem routine",
    ".purgem start_sums",
    ".purgem end_sums",
    ".popsection",
    page = const PAGE,
    stream = const STREAM,
    first = const factor(2 * STREAM),
    second = const factor(STREAM),
    starts = sym STARTS,
);
