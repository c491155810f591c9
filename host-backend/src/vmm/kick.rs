//! Getting a vCPU out of the guest from another thread.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Once;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::vitals::Pulse;

/// The signal that makes a vCPU leave the guest.
pub(super) fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Makes one vCPU's `KVM_RUN` return with EINTR, now or at its next call.
///
/// Two things are needed: `immediate_exit` in the vCPU's shared page stops an entry into the guest
/// that is still to come, and a signal ends one that has happened. The flag is set first, so there
/// is no moment between them in which the request is lost.
pub(crate) struct Kicker {
    run: RunPage,
    thread: libc::pthread_t,
}

impl Kicker {
    /// Makes a kicker for `vcpu`, which the calling thread runs.
    ///
    /// The calling thread must live as long as the kicker.
    pub(crate) fn for_this_thread(vcpu: &VcpuFd) -> io::Result<Self> {
        static HANDLER: Once = Once::new();
        // The signal has to have a handler so that it interrupts KVM_RUN and does not kill us.
        HANDLER.call_once(|| {
            register_signal_handler(kick_signal(), ignore_signal)
                .expect("the first real-time signal is valid");
        });
        Ok(Self {
            run: RunPage::map(vcpu)?,
            // SAFETY: the call has no preconditions.
            thread: unsafe { libc::pthread_self() },
        })
    }

    pub(crate) fn kick(&self) {
        self.run.immediate_exit().store(1, Ordering::SeqCst);
        // SAFETY: by contract the thread has not been joined. The signal has a handler that does
        // nothing.
        unsafe { libc::pthread_kill(self.thread, kick_signal()) };
    }
}

/// Makes a pulse of the calling thread, which runs the vCPU `index` and has a [`Kicker`]: to be asked, it leaves the guest
/// and enters it again.
pub(super) fn pulse(index: u32) -> Pulse {
    // SAFETY: the call has no preconditions.
    let thread = unsafe { libc::pthread_self() };
    Pulse::new(format!("vcpu{index}"), move || {
        // SAFETY: a pulse wakes its thread only while that has the pulse, and so runs. The signal has a
        // handler that does nothing.
        unsafe { libc::pthread_kill(thread, kick_signal()) };
    })
}

extern "C" fn ignore_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// A mapping of a vCPU's `kvm_run` page beside the one that `VcpuFd` owns: the page is shared
/// with the kernel, so another thread may set its flag while the vCPU runs.
struct RunPage {
    run: NonNull<kvm_run>,
}

// SAFETY: the only access through this mapping is an atomic one.
unsafe impl Send for RunPage {}

impl RunPage {
    fn map(vcpu: &VcpuFd) -> io::Result<Self> {
        // SAFETY: a new shared mapping of a descriptor we hold; it overlays nothing. KVM maps the
        // run structure at offset 0 of every vCPU descriptor.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<kvm_run>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let run = NonNull::new(address.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { run })
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: the mapping is valid as long as `self`, the field is one byte inside it, and
        // every other access to it is the kernel's or the vCPU thread's whole-byte access.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.run.as_ptr()).immediate_exit) }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map` with the same length and is not used after this.
        unsafe { libc::munmap(self.run.as_ptr().cast(), size_of::<kvm_run>()) };
    }
}
