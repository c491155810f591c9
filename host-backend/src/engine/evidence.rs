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
    /// The top of its stack, its module table and its message.
    bytes: Box<[u8]>,
    /// Where the first two of them end.
    ends: [usize; 2],
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
        // Far below 2^32, as the limits are.
        let [stack, modules, text] = limits.map(|(length, _)| length as usize);
        if stack + modules + text != bytes.len() {
            return Err(Refusal::Malformed(
                "the driver sent evidence that does not match its lengths",
            ));
        }
        Ok(Self {
            stack_address: evidence.stack,
            stack_bounds: (evidence.stack_low, evidence.stack_high),
            bytes: bytes.into(),
            ends: [stack, stack + modules],
        })
    }

    /// The top of its stack.
    pub(crate) fn stack(&self) -> &[u8] {
        &self.bytes[..self.ends[0]]
    }

    /// Its module table.
    pub(crate) fn modules(&self) -> &[u8] {
        &self.bytes[self.ends[0]..self.ends[1]]
    }

    /// Its message.
    pub(crate) fn text(&self) -> &[u8] {
        &self.bytes[self.ends[1]..]
    }

    /// Bytes of host memory in use.
    pub(crate) fn cost(&self) -> usize {
        size_of::<Self>() + self.bytes.len()
    }
}
