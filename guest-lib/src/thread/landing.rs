//! The landing: where a thread goes when its request is cut short, and what it reports there.

use super::registry::current;
use super::{Phase, Thread};
use crate::error::Error;
use crate::failure::{Kind, Message};
use crate::os::lock;
use crate::os::region::Region;
use crate::os::sanitizer;
use crate::os::signals;
use crate::os::switch::{self, Entry, LANDED};
use crate::thread::record;
use crate::thread::stack::{STACK_MAX, Stack};
use std::ffi::c_void;
use vmsrs_protocol::incident::{REG_RSP, REGISTERS};
use vmsrs_protocol::ioctl::IoctlFail;

/// Makes the running request of the calling thread fail, from its own code. Outside of a request
/// the process is aborted with the message.
pub(crate) fn fail_request(kind: Kind, address: u64, message: &[u8]) -> ! {
    // An error from here on would be one on the way out.
    switch::clear_flags();
    let thread = current()
        .filter(|thread| thread.can_divert() && thread.is_own() && !thread.has_left_function());
    let Some(thread) = thread else {
        end_process(kind, b" outside of a request: ", message);
    };
    if !signals::suppressing() {
        end_unsuppressed(kind, message);
    }
    thread.note_failure(kind, address, message);
    thread.set_phase(Phase::Outside);
    // SAFETY: can_divert() says that this runs under the thread's switch.
    unsafe { switch::leap(thread.saved.get().read()) }
}

/// Ends the process by a failure that is not suppressed.
pub(crate) fn end_unsuppressed(kind: Kind, message: &[u8]) -> ! {
    end_process(kind, b", not suppressed: ", message)
}

fn end_process(kind: Kind, place: &[u8], message: &[u8]) -> ! {
    for part in [b"vmsrs: ", kind.c_name().to_bytes(), place, message, b"\n"] {
        signals::write_stderr(part);
    }
    // SAFETY: ends the process.
    unsafe { libc::abort() }
}

impl Thread {
    /// Calls `entry(argument)` on the request stack; returns what it returned, or [`LANDED`] if it was cut short.
    ///
    /// # Safety
    ///
    /// As [`switch::switch`]; the request stack is not in use.
    #[expect(clippy::inline_always, reason = "on the way of each request")]
    #[inline(always)]
    pub(crate) unsafe fn on_request_stack(&self, entry: Entry, argument: *mut c_void) -> u32 {
        // SAFETY: the caller's.
        unsafe { self.on_stack_below(self.top.get(), entry, argument) }
    }

    /// The same on another stack.
    ///
    /// # Safety
    ///
    /// As [`switch::switch`]; the stack is not in use.
    #[inline]
    pub(crate) unsafe fn on_stack(
        &self,
        stack: &Region,
        entry: Entry,
        argument: *mut c_void,
    ) -> u32 {
        // SAFETY: the caller's.
        unsafe { self.on_stack_below(stack.top(), entry, argument) }
    }

    /// The same on the stack that ends at `top`, which is page-aligned.
    ///
    /// # Safety
    ///
    /// As [`switch::switch`]; the stack is not in use.
    #[expect(clippy::inline_always, reason = "on the way of each request")]
    #[inline(always)]
    unsafe fn on_stack_below(&self, top: *mut u8, entry: Entry, argument: *mut c_void) -> u32 {
        // SAFETY: the caller's.
        let code = unsafe { switch::switch(top, entry, argument, self.saved.get()) };
        if code != 0 {
            self.note_landing(code);
        }
        code
    }

    #[cold]
    fn note_landing(&self, code: u32) {
        if code == LANDED {
            lock::give_back();
            if let Some(stack) = self.stack_region() {
                sanitizer::forget_stack(stack.low(), stack.size());
            }
        }
    }

    /// The thread is on its way to the landing, from the handler of a signal. From here on it counts as there: a handler of the
    /// server that interrupts it may never return. Async-signal-safe.
    pub(super) fn land_from_signal(&self) {
        self.set_phase(Phase::Outside);
        lock::open();
    }

    /// The stack pointer of the landing. Async-signal-safe.
    pub(crate) fn saved(&self) -> u64 {
        // SAFETY: written by the switch of this thread before anything runs under it.
        unsafe { self.saved.get().read() }
    }

    /// The request stack.
    pub(crate) fn stack_region(&self) -> Option<&Region> {
        // SAFETY: only replaced by enlarge_stack(), on this thread and outside of requests.
        unsafe { (*self.stack.get()).region() }
    }

    /// Gives the thread, which has no request, a request stack of at least that many bytes. It keeps it.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`], [`Error::System`].
    pub(crate) fn enlarge_stack(&self, bytes: usize) -> Result<(), Error> {
        if bytes > STACK_MAX {
            return Err(Error::Argument("a request stack has at most 1 GiB"));
        }
        if self
            .stack_region()
            .is_some_and(|stack| stack.size() >= bytes)
        {
            return Ok(());
        }
        let larger = Stack::take_large(bytes)?;
        self.top.set(larger.top());
        // SAFETY: nothing runs on it, and nobody has a reference to it.
        drop(std::mem::replace(unsafe { &mut *self.stack.get() }, larger));
        Ok(())
    }

    /// Notes the word of operations that go on, if there is one on the request stack. Async-signal-safe.
    pub(super) fn lends_stack(&self, operations: Option<u64>) -> bool {
        let stack = self.stack_region();
        let word = operations.filter(|word| {
            word.is_multiple_of(4) && stack.is_some_and(|stack| stack.holds(*word, 4))
        });
        self.found.lent.set(word.unwrap_or(0));
        word.is_some()
    }

    /// Takes another request stack, if the C library's threads use the one that the failed request had. Nothing else on it is needed
    /// any more. The thread keeps it if there is no memory.
    #[inline]
    pub(crate) fn leave_lent_stack(&self) {
        let word = self.found.lent.take();
        if word != 0 {
            self.lend_stack(word);
        }
    }

    #[cold]
    fn lend_stack(&self, word: u64) {
        let size = self.stack_region().map_or(0, Region::size);
        if let Ok(other) = Stack::take_large(size) {
            self.top.set(other.top());
            // SAFETY: nothing runs on it, and nobody has a reference to it.
            let lent = std::mem::replace(unsafe { &mut *self.stack.get() }, other);
            lent.lend(word);
        }
    }

    /// The words above a stack pointer, those that the next few frames have. Async-signal-safe.
    pub(crate) fn top_words(&self, rsp: u64) -> &[u64] {
        const WORDS: usize = 64;
        let place = rsp.next_multiple_of(8);
        let left = (self.top.get() as u64).saturating_sub(place) / 8;
        match self.stack_region() {
            Some(stack) if stack.holds_word(place) => {
                let count = WORDS.min(left as usize);
                // SAFETY: words of the request stack, which the thread alone uses, and not while its handler runs.
                unsafe { std::slice::from_raw_parts(place as *const u64, count) }
            }
            _ => &[],
        }
    }

    /// Whether an address lies in the guard below the request stack.
    pub(crate) fn is_stack_overflow(&self, address: u64) -> bool {
        let region = self.stack_region();
        region.is_some_and(|stack| stack.is_below(address))
    }

    // What went wrong.

    /// Notes an error that the library itself found.
    pub(crate) fn note_failure(&self, kind: Kind, address: u64, message: &[u8]) {
        self.note(kind, address, 0, 0, record::registers);
        if !message.is_empty() {
            self.record.set_message(message);
        }
    }

    /// Fills the record for the report. Async-signal-safe.
    pub(crate) fn note(
        &self,
        kind: Kind,
        address: u64,
        signal: i32,
        code: i32,
        registers: impl FnOnce(&mut [u64; REGISTERS]),
    ) {
        let in_check = self.marks.checking.replace(false) && kind != Kind::Deadline;
        let (kind, message) = if in_check {
            let message: &[u8] = match kind {
                Kind::Invariant => &[],
                _ => b"an error in the check of the invariant",
            };
            (Kind::Invariant, message)
        } else {
            (kind, &[][..])
        };
        let stack = self.stack_region();
        self.record.note(|report| {
            registers(&mut report.registers);
            record::fill(report, kind, address, (signal, code), stack);
        });
        self.record.set_message(message);
    }

    /// Adds what the error says, unless it says something. Async-signal-safe.
    pub(super) fn add_message(&self, message: &[u8]) {
        if self.message().is_empty() {
            self.record.set_message(message);
        }
    }

    /// Gives the record of the error that cut the request short, which is sent from where it is.
    pub(crate) fn with_record<T>(&self, code: impl FnOnce(&mut IoctlFail) -> T) -> T {
        self.record.with_report(code)
    }

    /// What the error said, for when something else may be said.
    pub(crate) fn message_copied(&self) -> Message {
        self.record.message_copied()
    }

    /// The stack pointer of the code that was cut short.
    pub(super) fn cut_at(&self) -> u64 {
        self.record.register(REG_RSP)
    }

    /// What the error said.
    pub(crate) fn message(&self) -> &[u8] {
        self.record.message()
    }
}

#[cfg(test)]
mod tests {
    use crate::error::Error;
    use crate::mock::MockBackend;
    use crate::os::lock::Lock;
    use crate::thread::tests::failure;
    use std::hint::black_box;
    use std::ptr;

    #[test]
    fn an_error_under_a_lock_gives_it_back() {
        static LOCK: Lock<u32> = Lock::new(0);
        let app = MockBackend::app("error under a lock", |_| ());
        let outcome = app.domain("one").unwrap().run(|_| {
            LOCK.with(|count| {
                *count += 1;
                // SAFETY: it is not; that is the test.
                unsafe { black_box(ptr::without_provenance_mut::<u32>(16)).write_volatile(1) };
            });
            Ok::<_, Error>(())
        });
        assert_eq!(failure(outcome).address, 16);
        let other = std::thread::spawn(|| LOCK.with(|count| *count));
        assert_eq!(other.join().unwrap(), 1);
        let mut blocked = 0_u64;
        // SAFETY: only reads the calling thread's mask, of that size.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_BLOCK,
                ptr::null::<u64>(),
                &raw mut blocked,
                size_of::<u64>(),
            )
        };
        assert_eq!(blocked, 0, "signals come again");
    }
}
