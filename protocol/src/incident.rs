//! Incident reports: what went wrong, where, and which drafts were dropped; and evidence for finding the
//! bug: the stack of the failure, the modules of the program, its message.

/// SIGSEGV or SIGBUS without a more precise kind, for example a null write.
pub const KIND_MEMORY: u32 = 1;
/// SIGFPE, for example an integer division by zero.
pub const KIND_ARITHMETIC: u32 = 2;
/// SIGILL or SIGTRAP.
pub const KIND_INSTRUCTION: u32 = 3;
/// SIGABRT: failed assertion, heap check of glibc, stack protector, C++ terminate, Rust abort.
pub const KIND_ABORT: u32 = 4;
/// The request ran into the guard page below its stack.
pub const KIND_STACK_OVERFLOW: u32 = 5;
/// A write to a page of a domain that the request does not hold, or to a guard page between domains,
/// refused by the driver.
pub const KIND_FOREIGN_WRITE: u32 = 6;
/// A write to the vault, stopped by the second-level page table.
pub const KIND_SEALED_WRITE: u32 = 7;
/// A block was freed twice.
pub const KIND_DOUBLE_FREE: u32 = 8;
/// A pointer that is not a block of the domain was freed.
pub const KIND_FOREIGN_FREE: u32 = 9;
/// Bytes after the end of a block were overwritten.
pub const KIND_RED_ZONE: u32 = 10;
/// A freed block was written to.
pub const KIND_USE_AFTER_FREE: u32 = 11;
/// The metadata of the heap is damaged.
pub const KIND_HEAP_CORRUPT: u32 = 12;
/// A Rust panic left the request.
pub const KIND_PANIC: u32 = 13;
/// The request missed its deadline (endless loop, deadlock, sleep).
pub const KIND_DEADLINE: u32 = 14;
/// A thread of the request ended inside it.
pub const KIND_THREAD_DEATH: u32 = 15;
/// The process ended with the request in flight.
pub const KIND_PROCESS_DEATH: u32 = 16;
/// The request wrote to more pages than half of the pool has frames, or no frame became free while it
/// waited to write. (A request that has written to many pages leaves the last eighth of the pool to
/// others.)
pub const KIND_NO_FRAMES: u32 = 17;
/// The server failed the request: an invariant did not hold.
pub const KIND_INVARIANT: u32 = 18;
/// A read or write of a page that another request was writing, stopped by a protection key.
pub const KIND_FOREIGN_DRAFT: u32 = 19;
/// The content of a sealed frame did not match its checksum.
pub const KIND_CHECKSUM: u32 = 20;
/// The hardware of the host reported the memory of a frame as broken.
pub const KIND_POISON: u32 = 21;
/// The request touched a page whose sealed content is lost ([`KIND_CHECKSUM`], [`KIND_POISON`]).
pub const KIND_DAMAGED: u32 = 22;
/// So many requests of a domain have failed that it is refused for a while.
pub const KIND_QUARANTINE: u32 = 23;
/// Largest of `KIND_*`.
pub const KIND_MAX: u32 = 23;

/// Index of RAX in a report's registers.
pub const REG_RAX: usize = 0;
/// Index of RBX in a report's registers.
pub const REG_RBX: usize = 1;
/// Index of RCX in a report's registers.
pub const REG_RCX: usize = 2;
/// Index of RDX in a report's registers.
pub const REG_RDX: usize = 3;
/// Index of RSI in a report's registers.
pub const REG_RSI: usize = 4;
/// Index of RDI in a report's registers.
pub const REG_RDI: usize = 5;
/// Index of RBP in a report's registers.
pub const REG_RBP: usize = 6;
/// Index of RSP in a report's registers.
pub const REG_RSP: usize = 7;
/// Index of R8 in a report's registers.
pub const REG_R8: usize = 8;
/// Index of R9 in a report's registers.
pub const REG_R9: usize = 9;
/// Index of R10 in a report's registers.
pub const REG_R10: usize = 10;
/// Index of R11 in a report's registers.
pub const REG_R11: usize = 11;
/// Index of R12 in a report's registers.
pub const REG_R12: usize = 12;
/// Index of R13 in a report's registers.
pub const REG_R13: usize = 13;
/// Index of R14 in a report's registers.
pub const REG_R14: usize = 14;
/// Index of R15 in a report's registers.
pub const REG_R15: usize = 15;
/// Index of RIP in a report's registers.
pub const REG_RIP: usize = 16;
/// Index of RFLAGS in a report's registers.
pub const REG_RFLAGS: usize = 17;
/// Number of registers in a report; `REG_*` are their indices.
pub const REGISTERS: usize = 18;

/// Names of the registers in a report, in lower case, by index.
pub const REGISTER_NAMES: [&str; REGISTERS] = {
    let mut names = [""; REGISTERS];
    names[REG_RAX] = "rax";
    names[REG_RBX] = "rbx";
    names[REG_RCX] = "rcx";
    names[REG_RDX] = "rdx";
    names[REG_RSI] = "rsi";
    names[REG_RDI] = "rdi";
    names[REG_RBP] = "rbp";
    names[REG_RSP] = "rsp";
    names[REG_R8] = "r8";
    names[REG_R9] = "r9";
    names[REG_R10] = "r10";
    names[REG_R11] = "r11";
    names[REG_R12] = "r12";
    names[REG_R13] = "r13";
    names[REG_R14] = "r14";
    names[REG_R15] = "r15";
    names[REG_RIP] = "rip";
    names[REG_RFLAGS] = "rflags";
    names
};

/// Number of return addresses in a report, innermost first; unused ones are 0.
pub const BACKTRACE: usize = 16;

/// Report flag: `address` is that of an access or of a block, even if it is 0.
pub const REPORT_ADDRESS: u32 = 1;
/// Report flag: what the request has left open was counted.
pub const REPORT_LEFT: u32 = 2;
/// Report flag, with [`REPORT_LEFT`]: other threads or requests may have had a part in what was counted.
pub const REPORT_LEFT_ESTIMATE: u32 = 4;

/// Maximum size in bytes of a stack in [`Evidence`].
pub const STACK_MAX: u32 = 16 * 1024;
/// Maximum size in bytes of a module table in [`Evidence`].
pub const MODULES_MAX: u32 = 16 * 1024;
/// Maximum size in bytes of a message in [`Evidence`].
pub const TEXT_MAX: u32 = 128;
/// Maximum size of a build ID in bytes; 20 (SHA-1) is usual.
pub const BUILD_ID_MAX: usize = 32;

/// Report of a failed request.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct IncidentReport {
    /// Number of the incident, odd.
    pub incident: u64,
    /// Tag of the request.
    pub tag: u64,
    /// The app.
    pub app: u32,
    /// The first domain that the request held, or [`crate::NONE`].
    pub domain: u32,
    /// One of `KIND_*`.
    pub kind: u32,
    /// The signal, or 0.
    pub signal: i32,
    /// `si_code` of the signal, or 0.
    pub code: i32,
    /// Process ID (thread group) in the guest.
    pub pid: u32,
    /// Thread ID in the guest.
    pub tid: u32,
    /// Number of [`DroppedDraft`]s that follow.
    pub drafts: u32,
    /// Address of the failed access or of the block; valid with [`REPORT_ADDRESS`].
    pub address: u64,
    /// Domain of `address`, or [`crate::NONE`].
    pub address_domain: u32,
    /// Number of drafts that were dropped; more than `drafts` if the report had no room.
    pub drafts_total: u32,
    /// Nanoseconds from the detection in the guest to the end of the discard.
    pub recovery_ns: u64,
    /// [`REPORT_ADDRESS`], [`REPORT_LEFT`], [`REPORT_LEFT_ESTIMATE`].
    pub flags: u32,
    /// Descriptors that the request has left open; valid with [`REPORT_LEFT`].
    pub left_descriptors: u32,
    /// Bytes of memory outside of domains that the request has left allocated; valid with [`REPORT_LEFT`].
    pub left_bytes: u64,
    /// Name of the thread, padded with zeros.
    pub thread_name: [u8; 16],
    /// Registers at the error, indexed by `REG_*`; all zero if unknown.
    pub registers: [u64; REGISTERS],
    /// Return addresses, innermost first; unused ones are 0.
    pub backtrace: [u64; BACKTRACE],
}

/// A dropped draft.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct DroppedDraft {
    /// The domain.
    pub domain: u32,
    /// The page.
    pub page: u32,
    /// Pool frame of the draft. The host copies what it keeps as evidence; the frame is the driver's
    /// again with the reply.
    pub pool_frame: u32,
    /// The committed version, which stays: its vault frame; its pool frame with [`crate::IN_POOL`] if it
    /// is not sealed; [`crate::NONE`] if the page was never committed; or [`crate::DAMAGED_FRAME`].
    pub committed: u32,
}

/// Evidence of an incident.
///
/// The stack, the module table ([`ModuleEntry`]) and the message follow. The driver takes them from the
/// program as they are; their content is not validated.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Evidence {
    /// The incident.
    pub incident: u64,
    /// Address of the first byte of stack that is kept.
    pub stack: u64,
    /// Start of the whole stack; its guard lies below.
    pub stack_low: u64,
    /// End of the whole stack.
    pub stack_high: u64,
    /// Size of the stack that is kept, at most [`STACK_MAX`].
    pub stack_bytes: u32,
    /// Size of the module table, at most [`MODULES_MAX`].
    pub modules_bytes: u32,
    /// Size of the message (UTF-8), at most [`TEXT_MAX`].
    pub text_bytes: u32,
    /// Reserved.
    pub reserved: u32,
}

/// A module (the program or a library) in a module table.
///
/// The path follows, padded with zeros to a multiple of 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ModuleEntry {
    /// Load bias: what the loader added to the addresses in the file.
    pub bias: u64,
    /// Start address.
    pub start: u64,
    /// End address.
    pub end: u64,
    /// Size of the build ID; 0 without one.
    pub build_id_bytes: u32,
    /// Size of the path that follows.
    pub path_bytes: u32,
    /// The build ID (ELF note `NT_GNU_BUILD_ID`).
    pub build_id: [u8; BUILD_ID_MAX],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_has_a_name_and_an_index_of_its_own() {
        for (index, name) in REGISTER_NAMES.iter().enumerate() {
            assert!(!name.is_empty(), "register {index}");
            assert!(!REGISTER_NAMES[..index].contains(name), "{name}");
        }
    }
}
