//! Where the guest's console goes: any writer, or the terminal of this process.

use std::io::{self, Write};

use crate::output::{Relay, own_file};

/// The two ends of the guest's serial console. Clones are the same console, so that it goes on
/// when the guest starts again. The guest never waits for its output.
#[derive(Clone, Debug)]
pub struct Console {
    output: Relay,
    pub(crate) input: bool,
}

impl Console {
    /// Standard output and, in raw mode if it is a terminal, standard input. Ctrl-A x ends the VM.
    ///
    /// # Errors
    ///
    /// Fails when the system has no thread or descriptor left.
    pub fn stdio() -> io::Result<Self> {
        let output = own_file(io::stdout())?;
        Ok(Self {
            input: true,
            ..Self::output_to(output)?
        })
    }

    /// Sends the console's output to `output`; there is no input.
    ///
    /// # Errors
    ///
    /// Fails when the system has no thread left.
    pub fn output_to(output: impl Write + Send + 'static) -> io::Result<Self> {
        Ok(Self {
            output: Relay::new("console", output)?,
            input: false,
        })
    }

    /// Adds what the guest writes.
    pub(crate) fn write(&self, bytes: &[u8]) {
        self.output.add(bytes);
    }

    /// Waits until the output is written; false if it cannot be, because nobody takes it.
    pub fn finish(&self) -> bool {
        self.output.finish()
    }

    /// Bytes of output that were lost so far.
    pub fn lost(&self) -> u64 {
        self.output.lost()
    }
}
