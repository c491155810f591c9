//! What the program kept of a failed request. It is not trusted or interpreted here; the
//! command that shows the incident does that in its own process.

use vmsrs_protocol::incident::{Evidence, MODULES_MAX, STACK_MAX, TEXT_MAX};

use super::refusal::Refusal;

/// The program's own words about its failure.
#[derive(Debug)]
pub(crate) struct Program {
    /// Address of the first byte of `stack`.
    pub(crate) stack_address: u64,
    /// First byte of the whole stack, and the first past its end.
    pub(crate) stack_bounds: (u64, u64),
    /// The top of its stack.
    pub(crate) stack: Box<[u8]>,
    /// Its module table.
    pub(crate) modules: Box<[u8]>,
    /// Its message.
    pub(crate) text: Box<[u8]>,
}

impl Program {
    /// # Errors
    ///
    /// Refuses parts that are too long or not what `bytes` has.
    pub(crate) fn new(evidence: &Evidence, bytes: &[u8]) -> Result<Self, Refusal> {
        let limits = [
            (evidence.stack_bytes, STACK_MAX),
            (evidence.modules_bytes, MODULES_MAX),
            (evidence.text_bytes, TEXT_MAX),
        ];
        if limits.iter().any(|(length, limit)| length > limit) {
            return Err(Refusal::Malformed(
                "the driver sent evidence with a part that is too long",
            ));
        }
        let mut rest = bytes;
        let mut part = |length: u32| -> Option<Box<[u8]>> {
            let (part, remaining) = rest.split_at_checked(length as usize)?;
            rest = remaining;
            Some(part.into())
        };
        let parts = limits.map(|(length, _)| part(length));
        let ([Some(stack), Some(modules), Some(text)], []) = (parts, rest) else {
            return Err(Refusal::Malformed(
                "the driver sent evidence that does not match its lengths",
            ));
        };
        Ok(Self {
            stack_address: evidence.stack,
            stack_bounds: (evidence.stack_low, evidence.stack_high),
            stack,
            modules,
            text,
        })
    }

    /// Bytes of host memory in use.
    pub(crate) fn cost(&self) -> usize {
        size_of::<Self>() + self.stack.len() + self.modules.len() + self.text.len()
    }
}
