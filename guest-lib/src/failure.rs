//! A failed request, as its server sees it.

use std::any::Any;
use std::ffi::CStr;
use std::fmt;
use std::time::Duration;
use vmsrs_protocol::incident::{self as wire, REG_RIP};
use vmsrs_protocol::ioctl::IoctlFail;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $wire:ident, $text:literal;)*) => {
        /// What kind of error made a request fail.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Kind {
            $($(#[$doc])* $name,)*
        }

        impl Kind {
            /// The number that the protocol and the C interface use.
            #[must_use]
            pub const fn number(self) -> u32 {
                match self {
                    $(Self::$name => wire::$wire,)*
                }
            }

            /// The kind with that number, if there is one.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $(wire::$wire => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// A short name.
            pub(crate) const fn c_name(self) -> &'static CStr {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

kinds! {
    /// SIGSEGV or SIGBUS with no better explanation.
    Memory = KIND_MEMORY, c"memory";
    /// SIGFPE.
    Arithmetic = KIND_ARITHMETIC, c"arithmetic";
    /// SIGILL or SIGTRAP.
    Instruction = KIND_INSTRUCTION, c"instruction";
    /// SIGABRT; or SIGPIPE, SIGXFSZ or SIGSYS, where the server has not said what they are to do.
    Abort = KIND_ABORT, c"abort";
    /// The request ran over the guard below its stack.
    StackOverflow = KIND_STACK_OVERFLOW, c"stack overflow";
    /// A write to a page of a domain that the request does not hold.
    ForeignWrite = KIND_FOREIGN_WRITE, c"foreign write";
    /// A write into a sealed frame, stopped by the host.
    SealedWrite = KIND_SEALED_WRITE, c"sealed write";
    /// A block freed twice.
    DoubleFree = KIND_DOUBLE_FREE, c"double free";
    /// A freed pointer that is not a block of the domain.
    ForeignFree = KIND_FOREIGN_FREE, c"foreign free";
    /// Bytes after a block were overwritten.
    RedZone = KIND_RED_ZONE, c"red zone";
    /// A freed block was written to.
    UseAfterFree = KIND_USE_AFTER_FREE, c"use after free";
    /// The heap's own metadata is damaged.
    HeapCorrupt = KIND_HEAP_CORRUPT, c"heap corrupt";
    /// A panic left the request.
    Panic = KIND_PANIC, c"panic";
    /// The deadline was missed.
    Deadline = KIND_DEADLINE, c"deadline";
    /// The thread ended inside its request, or left it by `longjmp`.
    ThreadDeath = KIND_THREAD_DEATH, c"thread death";
    /// The process ended with the request in flight.
    ProcessDeath = KIND_PROCESS_DEATH, c"process death";
    /// The pool of frames ran dry.
    NoFrames = KIND_NO_FRAMES, c"no frames";
    /// The server called the request failed.
    Invariant = KIND_INVARIANT, c"invariant";
    /// A read or write of a page that another request was writing, stopped by a protection key.
    ForeignDraft = KIND_FOREIGN_DRAFT, c"foreign draft";
    /// The content of a sealed frame no longer had its checksum. The host's own: no request has it.
    Checksum = KIND_CHECKSUM, c"checksum";
    /// Memory of the host is broken. The host's own: no request has it.
    Poison = KIND_POISON, c"poison";
    /// The request touched a page whose content the host lost.
    Damaged = KIND_DAMAGED, c"damaged";
    /// So many requests of the domain have failed that it is refused for a while. A report of its own: no request of the
    /// server has it.
    Quarantine = KIND_QUARANTINE, c"quarantine";
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.c_name().to_str().unwrap_or_default())
    }
}

/// One failed request: what it did, where, and what it cost.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Failure {
    /// What went wrong.
    pub kind: Kind,
    /// Number of the incident, for `vmsrs incidents` on the host. Without protection a number that
    /// counts within the process.
    pub incident: u64,
    /// Address of the access or of the block, or 0.
    pub address: u64,
    /// Instruction pointer at the error, or 0.
    pub instruction: u64,
    /// The signal, or 0.
    pub signal: i32,
    /// `si_code` of the signal, or 0.
    pub code: i32,
    /// Pages that were discarded.
    pub drafts: u32,
    /// From the detection to the end of the discard; the defers come after it.
    pub recovery: Duration,
    /// Defers that failed themselves and were cut short.
    pub defers_failed: u32,
    /// What a panic or [`crate::Request::fail`] said, up to 127 bytes; may be empty.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the request failed: {}", self.kind)?;
        if !self.message.is_empty() {
            write!(formatter, " ({})", self.message)?;
        }
        if self.address != 0 {
            write!(formatter, " at address {:#x}", self.address)?;
        }
        if self.instruction != 0 {
            write!(formatter, ", instruction {:#x}", self.instruction)?;
        }
        write!(formatter, "; incident {}", self.incident)
    }
}

impl std::error::Error for Failure {}

/// Bytes of a failure's message.
pub(crate) const MESSAGE: usize = 127;

/// A message that stays as it is, and needs no heap.
#[derive(Clone, Debug)]
pub(crate) struct Message([u8; MESSAGE], usize);

impl Message {
    /// The first bytes of a text.
    pub(crate) fn new(text: &[u8]) -> Self {
        let mut copy = Self([0; MESSAGE], text.len().min(MESSAGE));
        copy.0[..copy.1].copy_from_slice(&text[..copy.1]);
        copy
    }

    fn as_slice(&self) -> &[u8] {
        &self.0[..self.1]
    }
}

/// A failure as it was reported, before the heap was tried: nothing of it is there.
#[derive(Clone, Debug)]
pub(crate) struct Reported {
    /// Its message is empty.
    failure: Failure,
    message: Message,
}

impl Reported {
    pub(crate) fn new(record: &IoctlFail, message: Message) -> Self {
        Self {
            failure: Failure {
                kind: Kind::from_number(record.kind).unwrap_or(Kind::Memory),
                incident: record.incident,
                address: record.address,
                instruction: record.registers[REG_RIP],
                signal: record.signal,
                code: record.code,
                drafts: record.drafts,
                recovery: Duration::from_nanos(record.recovery_ns),
                defers_failed: 0,
                message: String::new(),
            },
            message,
        }
    }

    /// The failure with its message, which is on the heap. `empty` makes a string with room for that many bytes.
    pub(crate) fn with_message(self, empty: impl FnOnce(usize) -> String) -> Failure {
        let bytes = self.message.as_slice();
        // Most are empty or text, which is found faster by itself.
        let message = if bytes.is_empty() {
            String::new()
        } else if let Ok(text) = std::str::from_utf8(bytes) {
            let mut message = empty(text.len());
            message.push_str(text);
            message
        } else {
            const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;
            let mut message = empty(REPLACEMENT.len_utf8() * bytes.len());
            for chunk in bytes.utf8_chunks() {
                message.push_str(chunk.valid());
                if !chunk.invalid().is_empty() {
                    message.push(REPLACEMENT);
                }
            }
            message
        };
        Failure {
            message,
            ..self.failure
        }
    }
}

/// What a failure for a lost thread says.
pub(crate) const LOST: &[u8] = b"a thread ended before it left the request";

/// What a panic said.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> &str {
    match (
        payload.downcast_ref::<&str>(),
        payload.downcast_ref::<String>(),
    ) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_protocol_kind_round_trips() {
        for number in 1..=wire::KIND_MAX {
            assert_eq!(Kind::from_number(number).map(Kind::number), Some(number));
        }
        assert_eq!(Kind::from_number(0), None);
        assert_eq!(Kind::from_number(wire::KIND_MAX + 1), None);
    }
}
