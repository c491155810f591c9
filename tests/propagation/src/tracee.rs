//! A traced process: its threads, memory and debug registers.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::mem::{offset_of, zeroed};
use std::os::unix::fs::FileExt;
use std::ptr;

use anyhow::{Context, Result};
use libc::{c_int, c_long, c_uint, c_void, pid_t};

/// Bits of DR7 for a slot: what to watch, on how many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// The instruction at the address.
    Execution,
    /// Writes to the aligned 8 bytes at the address.
    Writes,
    /// Reads and writes of the aligned 8 bytes at the address.
    Accesses,
}

impl Watch {
    fn bits(self) -> u64 {
        match self {
            Self::Execution => 0b0000,
            Self::Writes => 0b1001,
            Self::Accesses => 0b1011,
        }
    }
}

/// Slots in use, by number of debug register.
pub type Watches = [Option<(Watch, u64)>; 4];

/// What happened to the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A thread accessed a watched address and has stopped; bit n of `slots` is for debug register n.
    Touched {
        /// The thread.
        thread: pid_t,
        /// Slots that matched.
        slots: u64,
    },
    /// The process ended by this signal, or with 0 by itself.
    Ended(c_int),
}

/// A fatal signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Death {
    /// The signal.
    pub signal: c_int,
    /// The thread that got it.
    pub thread: pid_t,
    /// That thread's stack pointer.
    pub stack_pointer: u64,
}

/// A traced process; killed when dropped.
pub struct Tracee {
    process: pid_t,
    threads: BTreeSet<pid_t>,
    stopped: BTreeSet<pid_t>,
    watches: Watches,
    /// Events that came while another was handled.
    waiting: VecDeque<Event>,
    memory: File,
    dying: Option<Death>,
    ended: bool,
}

fn ptrace(request: c_uint, thread: pid_t, address: u64, data: u64) -> io::Result<c_long> {
    // SAFETY: requests of this module that take numbers or memory of the caller's that is alive.
    let result =
        unsafe { libc::ptrace(request, thread, address as *mut c_void, data as *mut c_void) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

fn debug_register(number: usize) -> u64 {
    (offset_of!(libc::user, u_debugreg) + 8 * number) as u64
}

impl Tracee {
    /// Traces a process with one thread, and the threads that it will make.
    ///
    /// # Errors
    ///
    /// When the system does not allow that.
    pub fn seize(process: pid_t) -> Result<Self> {
        let options = libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
        ptrace(libc::PTRACE_SEIZE, process, 0, options as u64)
            .context("the server cannot be traced; allow ptrace for this user")?;
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{process}/mem"))
            .context("opening the server's memory")?;
        Ok(Self {
            process,
            threads: BTreeSet::from([process]),
            stopped: BTreeSet::new(),
            watches: [None; 4],
            waiting: VecDeque::new(),
            memory,
            dying: None,
            ended: false,
        })
    }

    /// The process.
    pub fn process(&self) -> pid_t {
        self.process
    }

    /// Its threads, in order of their numbers.
    pub fn threads(&self) -> impl Iterator<Item = pid_t> {
        self.threads.iter().copied()
    }

    /// Its death, as far as known.
    pub fn death(&self) -> Option<Death> {
        self.dying
    }

    /// The next event, if there is one. Everything else that stops a thread is handled here.
    ///
    /// # Errors
    ///
    /// When tracing fails.
    pub fn poll(&mut self) -> Result<Option<Event>> {
        if let Some(event) = self.waiting.pop_front() {
            return Ok(Some(event));
        }
        loop {
            if self.ended {
                let signal = self.dying.map_or(0, |death| death.signal);
                return Ok(Some(Event::Ended(signal)));
            }
            let Some((thread, status)) = self.wait(libc::WNOHANG)? else {
                return Ok(None);
            };
            if let Some(event) = self.handle(thread, status)? {
                return Ok(Some(event));
            }
        }
    }

    fn wait(&mut self, flags: c_int) -> Result<Option<(pid_t, c_int)>> {
        let mut status = 0;
        // Children of other threads of this program are theirs to wait for.
        let flags = libc::__WALL | libc::__WNOTHREAD | flags;
        // SAFETY: writes the status.
        let thread = unsafe { libc::waitpid(-1, &raw mut status, flags) };
        match thread {
            0 => Ok(None),
            -1 => {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::ECHILD) => {
                        self.ended = true;
                        Ok(None)
                    }
                    Some(libc::EINTR) => Ok(None),
                    _ => Err(error).context("waiting for the server"),
                }
            }
            thread => Ok(Some((thread, status))),
        }
    }

    fn handle(&mut self, thread: pid_t, status: c_int) -> Result<Option<Event>> {
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            self.threads.remove(&thread);
            self.stopped.remove(&thread);
            if libc::WIFSIGNALED(status) && self.dying.is_none() {
                self.dying = Some(Death {
                    signal: libc::WTERMSIG(status),
                    thread,
                    stack_pointer: 0,
                });
            }
            self.ended |= thread == self.process || self.threads.is_empty();
            return Ok(None);
        }
        if self.threads.insert(thread) {
            self.set(thread)?;
        }
        let signal = libc::WSTOPSIG(status);
        if status >> 16 != 0 {
            // A new thread, one that has made one, or one that was interrupted.
            self.go_on(thread, 0)?;
            return Ok(None);
        }
        if signal == libc::SIGTRAP {
            // DR6 of the thread is kept in memory by the kernel; user space clears it.
            let slots = ptrace(libc::PTRACE_PEEKUSER, thread, debug_register(6), 0)? as u64 & 0xf;
            ptrace(libc::PTRACE_POKEUSER, thread, debug_register(6), 0)?;
            if slots != 0 {
                self.stopped.insert(thread);
                return Ok(Some(Event::Touched { thread, slots }));
            }
        }
        if matches!(
            signal,
            libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGABRT
        ) {
            self.dying = Some(Death {
                signal,
                thread,
                stack_pointer: self.registers(thread)?.rsp,
            });
        }
        self.go_on(thread, signal)?;
        Ok(None)
    }

    fn go_on(&mut self, thread: pid_t, signal: c_int) -> Result<()> {
        self.stopped.remove(&thread);
        match ptrace(libc::PTRACE_CONT, thread, 0, signal as u64) {
            // It has been killed; waitpid reports that.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => result.map(drop).context("letting a thread go on"),
        }
    }

    /// Resumes a stopped thread.
    ///
    /// # Errors
    ///
    /// When tracing fails.
    pub fn resume(&mut self, thread: pid_t) -> Result<()> {
        self.go_on(thread, 0)
    }

    /// Runs `work` while all threads are stopped.
    ///
    /// # Errors
    ///
    /// Those of `work`; also when tracing fails.
    pub fn while_stopped<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<Option<T>> {
        let mut before = self.stopped.clone();
        for thread in self.threads.clone() {
            if self.stopped.contains(&thread) {
                continue;
            }
            ptrace(libc::PTRACE_INTERRUPT, thread, 0, 0).context("stopping a thread")?;
            while self.threads.contains(&thread) && !self.stopped.contains(&thread) {
                let Some((stopped, status)) = self.wait(0)? else {
                    return Ok(None);
                };
                let interrupted =
                    libc::WIFSTOPPED(status) && status >> 16 == libc::PTRACE_EVENT_STOP;
                if interrupted && self.threads.contains(&stopped) {
                    self.stopped.insert(stopped);
                } else if let Some(event) = self.handle(stopped, status)? {
                    // Another thread has just accessed a watched address: it is handled later.
                    self.waiting.push_back(event);
                }
                if self.ended {
                    return Ok(None);
                }
            }
        }
        let result = work(self)?;
        before.extend(self.waiting.iter().filter_map(|event| match event {
            Event::Touched { thread, .. } => Some(*thread),
            Event::Ended(_) => None,
        }));
        for thread in self.stopped.clone() {
            if !before.contains(&thread) {
                self.go_on(thread, 0)?;
            }
        }
        Ok(Some(result))
    }

    /// Sets the debug registers of all threads, which are stopped.
    ///
    /// # Errors
    ///
    /// When tracing fails.
    pub fn watch(&mut self, watches: Watches) -> Result<()> {
        self.watches = watches;
        for thread in self.threads.clone() {
            self.set(thread)?;
        }
        Ok(())
    }

    fn set(&self, thread: pid_t) -> Result<()> {
        let poke = |register, value| {
            ptrace(
                libc::PTRACE_POKEUSER,
                thread,
                debug_register(register),
                value,
            )
            .context("setting a debug register: does this machine have hardware watchpoints?")
        };
        poke(7, 0)?;
        let mut control = 0;
        for (slot, watch) in self.watches.iter().enumerate() {
            if let Some((watch, address)) = watch {
                poke(slot, *address)?;
                control |= 1 << (2 * slot) | watch.bits() << (16 + 4 * slot);
            }
        }
        poke(7, control)?;
        Ok(())
    }

    /// Registers of a stopped thread.
    ///
    /// # Errors
    ///
    /// When tracing fails.
    pub fn registers(&self, thread: pid_t) -> Result<libc::user_regs_struct> {
        // SAFETY: plain numbers.
        let mut registers: libc::user_regs_struct = unsafe { zeroed() };
        let place = ptr::from_mut(&mut registers) as u64;
        ptrace(libc::PTRACE_GETREGS, thread, 0, place).context("reading registers")?;
        Ok(registers)
    }

    /// Fills `bytes` from the process's memory.
    ///
    /// # Errors
    ///
    /// When nothing is mapped there.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.memory.read_exact_at(bytes, address)
    }

    /// A word of the process's memory.
    ///
    /// # Errors
    ///
    /// When nothing is mapped there.
    pub fn word(&self, address: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Changes a word of the process's memory.
    ///
    /// # Errors
    ///
    /// When nothing is mapped there.
    pub fn set_word(&self, address: u64, value: u64) -> io::Result<()> {
        self.memory.write_all_at(&value.to_le_bytes(), address)
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        // SAFETY: a process that this one started and has not waited for to its end.
        unsafe { libc::kill(self.process, libc::SIGKILL) };
        while !self.ended {
            match self.wait(0) {
                Ok(Some((thread, status))) => {
                    // Whatever is still traced is being killed.
                    let _ = self.handle(thread, status);
                }
                Ok(None) => {}
                Err(_) => return,
            }
        }
    }
}
