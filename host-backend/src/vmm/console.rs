//! Where the guest's console goes: any writer, or the terminal of this process.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// The two ends of the guest's serial console. Clones are the same console, so that it goes on
/// when the guest starts again.
#[derive(Clone)]
pub struct Console {
    output: Arc<Mutex<dyn Write + Send>>,
    pub(crate) input: bool,
}

impl Console {
    /// Standard output and, in raw mode if it is a terminal, standard input. Ctrl-A x ends the VM.
    pub fn stdio() -> Self {
        Self {
            output: Arc::new(Mutex::new(io::stdout())),
            input: true,
        }
    }

    /// Sends the console's output to `output`; there is no input.
    pub fn output_to(output: impl Write + Send + 'static) -> Self {
        Self {
            output: Arc::new(Mutex::new(output)),
            input: false,
        }
    }

    /// Writes all of `bytes`, at once.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        output.write_all(bytes).and_then(|()| output.flush())
    }
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console")
            .field("input", &self.input)
            .finish_non_exhaustive()
    }
}
