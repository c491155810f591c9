//! The C interface; `include/vmsrs.h` is generated from this file.
//!
//! Handles (`vmsrs_app`, `vmsrs_domain`) are never closed: the same name or key gives the same
//! handle again, and it stays good until the process ends. A `vmsrs_request` is good only inside the
//! function that got it and only on its thread.

use crate::app::{App, Protection};
use crate::domain::{Domain, DomainOptions};
use crate::error::{Error, RunError};
use crate::failure::{Failure, Kind};
use crate::request::{Audit, Options, Request};
use crate::thread;
use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::time::Duration;
use vmsrs_protocol::KEY_MAX;

/// Done.
pub const VMSRS_OK: i32 = 0;
/// The request failed: its error was suppressed and everything it wrote was discarded.
/// `vmsrs_last_failure` has the details.
pub const VMSRS_EFAILED: i32 = -1;
/// An argument is out of its range.
pub const VMSRS_EINVAL: i32 = -2;
/// The device is there but cannot be used (rights, version, or the host is broken).
pub const VMSRS_EDEVICE: i32 = -3;
/// The domain's heap was written by a library with another layout.
pub const VMSRS_ELAYOUT: i32 = -4;
/// The call belongs into a request, and the calling thread has none.
pub const VMSRS_ENOREQUEST: i32 = -5;
/// The request does not hold the domain.
pub const VMSRS_ENOTHELD: i32 = -6;
/// The calling thread has a request already; requests do not nest.
pub const VMSRS_ENESTED: i32 = -7;
/// The request holds the domain already.
pub const VMSRS_EHELD: i32 = -8;
/// The request holds 32 domains or 256 defers already.
pub const VMSRS_ELIMIT: i32 = -9;
/// The domain belongs to another app than the request.
pub const VMSRS_EAPP: i32 = -10;
/// The domain's lock did not become free in time.
pub const VMSRS_ETIMEOUT: i32 = -11;
/// No memory: the window or the domain is full.
pub const VMSRS_ENOMEM: i32 = -12;
/// The domain given to `vmsrs_run` is held to the end of the request.
pub const VMSRS_EMAIN: i32 = -13;
/// Committed, but the host did not seal it in time; it will when it answers.
pub const VMSRS_EUNSEALED: i32 = -14;
/// The process was forked inside the request; the child has no part in it.
pub const VMSRS_EFORKED: i32 = -15;
/// The operating system or the driver refused; `errno` says why.
pub const VMSRS_ESYSTEM: i32 = -16;
/// The domain's holder waits for a domain that this request holds. The request still holds what it
/// held: leave some of it and try again, or give up.
pub const VMSRS_EDEADLOCK: i32 = -17;
/// The host lost content of the domain to broken memory, and the domain has no mirror.
pub const VMSRS_EDAMAGED: i32 = -18;
/// The request that a ticket or a task is for is over.
pub const VMSRS_EENDED: i32 = -19;

/// Flag of `vmsrs_domain_open_with`: the host keeps a second copy of each sealed page, and repairs
/// from it a page whose memory went wrong. The copies take as much room of the window as the pages.
pub const VMSRS_MIRROR: u32 = 1;

/// No device: nothing is restored after an error, but errors are suppressed all the same.
pub const VMSRS_PROTECTION_NONE: i32 = 0;
/// The driver and the host keep versions of every page.
pub const VMSRS_PROTECTION_FULL: i32 = 1;

/// Option: return when the host has sealed the commit.
pub const VMSRS_SEAL: u32 = 1;
/// Option: the audit before the commit looks at all of every domain that is committed, not only at the
/// pages that the request has written.
pub const VMSRS_AUDIT_WHOLE: u32 = 2;

/// SIGSEGV or SIGBUS with no better explanation (for example a null write).
pub const VMSRS_KIND_MEMORY: u32 = 1;
/// SIGFPE (for example an integer division by zero).
pub const VMSRS_KIND_ARITHMETIC: u32 = 2;
/// SIGILL or SIGTRAP.
pub const VMSRS_KIND_INSTRUCTION: u32 = 3;
/// SIGABRT: failed assertion, glibc's heap checks, stack protector, C++ terminate, Rust abort.
pub const VMSRS_KIND_ABORT: u32 = 4;
/// The request ran over the guard below its stack.
pub const VMSRS_KIND_STACK_OVERFLOW: u32 = 5;
/// A write to a page of a domain that the request does not hold.
pub const VMSRS_KIND_FOREIGN_WRITE: u32 = 6;
/// A write into a sealed frame, stopped by the host.
pub const VMSRS_KIND_SEALED_WRITE: u32 = 7;
/// A block that was freed already was freed again.
pub const VMSRS_KIND_DOUBLE_FREE: u32 = 8;
/// A pointer that is no block of the domain was freed.
pub const VMSRS_KIND_FOREIGN_FREE: u32 = 9;
/// Bytes behind a block were overwritten.
pub const VMSRS_KIND_RED_ZONE: u32 = 10;
/// A freed block was written to.
pub const VMSRS_KIND_USE_AFTER_FREE: u32 = 11;
/// The heap's own metadata is damaged.
pub const VMSRS_KIND_HEAP_CORRUPT: u32 = 12;
/// A Rust panic left the request.
pub const VMSRS_KIND_PANIC: u32 = 13;
/// The request missed its deadline.
pub const VMSRS_KIND_DEADLINE: u32 = 14;
/// The thread of a request ended inside it.
pub const VMSRS_KIND_THREAD_DEATH: u32 = 15;
/// The process ended with the request in flight.
pub const VMSRS_KIND_PROCESS_DEATH: u32 = 16;
/// The pool of frames ran dry while the request wrote.
pub const VMSRS_KIND_NO_FRAMES: u32 = 17;
/// The server called the request failed (`vmsrs_fail`).
pub const VMSRS_KIND_INVARIANT: u32 = 18;
/// A read or write of a page that another request was writing, stopped by a protection key.
pub const VMSRS_KIND_FOREIGN_DRAFT: u32 = 19;
/// The content of a sealed frame no longer had its checksum (the host's own incident).
pub const VMSRS_KIND_CHECKSUM: u32 = 20;
/// Memory of the host is broken (the host's own incident).
pub const VMSRS_KIND_POISON: u32 = 21;
/// The request touched a page whose content the host lost.
pub const VMSRS_KIND_DAMAGED: u32 = 22;

/// Work of one request. What it returns goes to `*result` of `vmsrs_run`; a negative value gives the
/// request up: everything it wrote is discarded.
pub type RequestFn =
    Option<unsafe extern "C-unwind" fn(request: *mut Request, argument: *mut c_void) -> c_int>;

/// Work that undoes something outside of domains.
pub type DeferFn = Option<unsafe extern "C-unwind" fn(argument: *mut c_void)>;

/// How a request is run. All zero is the default.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct COptions {
    /// `VMSRS_SEAL`, `VMSRS_AUDIT_WHOLE`, both, or 0.
    pub flags: u32,
    /// Milliseconds that the request may take, 0 for no limit.
    pub deadline_ms: u32,
    /// Milliseconds to wait for a domain's lock, 0 for the default (the deadline, or 10 s).
    pub lock_timeout_ms: u32,
    /// Set to 0.
    pub reserved: u32,
}

impl COptions {
    /// The same for the library; `None` when there is an unknown flag.
    pub(crate) fn read(self) -> Option<Options> {
        if self.flags & !(VMSRS_SEAL | VMSRS_AUDIT_WHOLE) != 0 {
            return None;
        }
        let milliseconds = |value: u32| (value != 0).then(|| Duration::from_millis(value.into()));
        Some(Options {
            seal: self.flags & VMSRS_SEAL != 0,
            deadline: milliseconds(self.deadline_ms),
            lock_timeout: milliseconds(self.lock_timeout_ms),
            audit: if self.flags & VMSRS_AUDIT_WHOLE != 0 {
                Audit::Whole
            } else {
                Audit::Written
            },
        })
    }
}

/// The last failed request of a thread.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CFailure {
    /// One of the `VMSRS_KIND_` constants.
    pub kind: u32,
    /// The signal, or 0.
    pub signal: i32,
    /// `si_code` of the signal, or 0.
    pub code: i32,
    /// Pages that were discarded.
    pub drafts: u32,
    /// Number of the incident, for `vmsrs incidents` on the host; 0 if there is none.
    pub incident: u64,
    /// Address of the access or of the block, or 0.
    pub address: u64,
    /// Instruction pointer at the error, or 0.
    pub instruction: u64,
    /// Nanoseconds from the detection to the end of the discard.
    pub recovery_ns: u64,
    /// Defers that failed themselves and were cut short.
    pub defers_failed: u32,
    /// 0.
    pub reserved: u32,
    /// What a panic or `vmsrs_fail` said, ended by a zero byte; may be empty.
    pub message: [c_char; 128],
}

/// State of the driver, for statistics.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CInfo {
    /// Frames of 4 KiB in the window.
    pub window_frames: u32,
    /// Frames that the driver may hold at most.
    pub pool_frames: u32,
    /// Frames free in the driver's pool.
    pub pool_free: u32,
    /// Drafts of all requests.
    pub drafts: u32,
    /// Pages committed and not yet sealed.
    pub unsealed: u32,
    /// 1 if the host is broken; nothing can be written then.
    pub broken: u32,
    /// Commits with at least one page.
    pub commits: u64,
    /// Pages sealed.
    pub sealed_pages: u64,
    /// Drafts discarded.
    pub discarded: u64,
    /// Incidents reported by the driver.
    pub incidents: u64,
    /// Seal messages sent.
    pub seal_messages: u64,
}

/// Opens the app called `name` (1 to 64 bytes), makes it if it is new, and installs the library's
/// signal handlers. Code that runs in requests must bear being cut short at any instruction without
/// its cleanup being run (see "Abandoned frames" in the README).
///
/// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_EDEVICE`, or `VMSRS_ESYSTEM` (also when the app's
/// addresses are occupied).
///
/// # Safety
///
/// `name` is a C string, `app` points to room for a pointer.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_open(name: *const c_char, app: *mut *mut App) -> c_int {
    if name.is_null() || app.is_null() {
        return VMSRS_EINVAL;
    }
    // SAFETY: a C string by contract.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    // SAFETY: the caller of this function accepts the same contract.
    match unsafe { App::open_bytes(name) } {
        Ok(opened) => {
            // SAFETY: room for a pointer by contract.
            unsafe { *app = ptr::from_ref(opened).cast_mut() };
            VMSRS_OK
        }
        Err(error) => code(&error),
    }
}

/// `VMSRS_PROTECTION_FULL`, `VMSRS_PROTECTION_NONE`, or `VMSRS_EINVAL` for a null pointer.
///
/// # Safety
///
/// `app` comes from `vmsrs_open` or is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_protection(app: *const App) -> c_int {
    // SAFETY: a handle or null by contract.
    match unsafe { app.as_ref() } {
        None => VMSRS_EINVAL,
        Some(app) => match app.protection() {
            Protection::None => VMSRS_PROTECTION_NONE,
            Protection::Full => VMSRS_PROTECTION_FULL,
        },
    }
}

/// Reads the driver's state. Without protection all is 0.
///
/// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ESYSTEM`.
///
/// # Safety
///
/// `app` comes from `vmsrs_open`; `info` points to room for the answer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_app_info(app: *const App, info: *mut CInfo) -> c_int {
    // SAFETY: a handle or null by contract.
    let Some(app) = (unsafe { app.as_ref() }) else {
        return VMSRS_EINVAL;
    };
    if info.is_null() {
        return VMSRS_EINVAL;
    }
    match app.info() {
        Ok(now) => {
            let now = CInfo {
                window_frames: now.window_frames,
                pool_frames: now.pool_frames,
                pool_free: now.pool_free,
                drafts: now.drafts,
                unsealed: now.unsealed,
                broken: now.broken,
                commits: now.commits,
                sealed_pages: now.sealed_pages,
                discarded: now.discarded,
                incidents: now.incidents,
                seal_messages: now.seal_messages,
            };
            // SAFETY: room for the answer by contract.
            unsafe { info.write(now) };
            VMSRS_OK
        }
        Err(error) => code(&error),
    }
}

/// Waits until everything committed so far is sealed by the host.
///
/// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_EUNSEALED`, `VMSRS_ESYSTEM`.
///
/// # Safety
///
/// `app` comes from `vmsrs_open`.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_flush(app: *const App) -> c_int {
    // SAFETY: a handle or null by contract.
    match unsafe { app.as_ref() } {
        None => VMSRS_EINVAL,
        Some(app) => status(app.flush()),
    }
}

/// Opens the domain of `app` with the key of `length` bytes (1 to 64, any values), makes it if it is
/// new.
///
/// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ELAYOUT`, `VMSRS_ENOMEM` (the window is full),
/// `VMSRS_EDAMAGED`,
/// `VMSRS_ESYSTEM`.
///
/// # Safety
///
/// `app` comes from `vmsrs_open`, `key` points to `length` bytes, `domain` to room for a pointer.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_domain_open(
    app: *const App,
    key: *const c_void,
    length: usize,
    domain: *mut *mut Domain,
) -> c_int {
    // SAFETY: the same contract.
    unsafe { vmsrs_domain_open_with(app, key, length, 0, domain) }
}

/// Like `vmsrs_domain_open`, with flags: `VMSRS_MIRROR` or 0. A domain that is open already in this
/// process stays as it is, and one that has a mirror keeps it.
///
/// Returns what `vmsrs_domain_open` returns; `VMSRS_ENOMEM` also when the window has no room for the
/// mirror.
///
/// # Safety
///
/// As `vmsrs_domain_open`.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_domain_open_with(
    app: *const App,
    key: *const c_void,
    length: usize,
    flags: u32,
    domain: *mut *mut Domain,
) -> c_int {
    if flags & !VMSRS_MIRROR != 0 {
        return VMSRS_EINVAL;
    }
    let options = DomainOptions {
        mirror: flags & VMSRS_MIRROR != 0,
    };
    // SAFETY: a handle or null by contract.
    let Some(app) = (unsafe { app.as_ref() }) else {
        return VMSRS_EINVAL;
    };
    // The length first: a slice of an absurd length must not even be made.
    if key.is_null() || domain.is_null() || !(1..=KEY_MAX).contains(&length) {
        return VMSRS_EINVAL;
    }
    // SAFETY: `length` bytes by contract.
    let key = unsafe { std::slice::from_raw_parts(key.cast::<u8>(), length) };
    match app.domain_with(key, options) {
        Ok(opened) => {
            // SAFETY: room for a pointer by contract.
            unsafe { *domain = ptr::from_ref(opened).cast_mut() };
            VMSRS_OK
        }
        Err(error) => code(&error),
    }
}

/// Runs `function` as a request that holds `domain`.
///
/// The function runs on a stack of its own. When it ends with a value of 0 or more, everything it
/// wrote to domains is committed; with a negative value it is discarded and the defers run. When an
/// error strikes, it is discarded, the locks are free again, the defers have run, and this returns
/// `VMSRS_EFAILED`.
///
/// `VMSRS_OK`: `*result` is what the function returned (committed if not negative; `result` may be
/// null). `VMSRS_EFAILED`: see `vmsrs_last_failure`. `VMSRS_EUNSEALED`: committed, `*result` is
/// valid. `VMSRS_EINVAL`, `VMSRS_ENESTED`, `VMSRS_ETIMEOUT`, `VMSRS_ELAYOUT`, `VMSRS_ESYSTEM`: the
/// function was not run.
/// `VMSRS_EFORKED`: this is the child of a fork inside the function.
///
/// # Safety
///
/// `domain` comes from `vmsrs_domain_open`; the function bears being cut short.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_run(
    domain: *const Domain,
    function: RequestFn,
    argument: *mut c_void,
    result: *mut c_int,
) -> c_int {
    // SAFETY: the same contract; no options are the default ones.
    unsafe { vmsrs_run_with(domain, ptr::null(), function, argument, result) }
}

/// Like `vmsrs_run`, with options (null for the defaults).
///
/// # Safety
///
/// As `vmsrs_run`; `options` points to options or is null.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_run_with(
    domain: *const Domain,
    options: *const COptions,
    function: RequestFn,
    argument: *mut c_void,
    result: *mut c_int,
) -> c_int {
    // SAFETY: a handle or null by contract.
    let Some(domain) = (unsafe { domain.as_ref() }) else {
        return VMSRS_EINVAL;
    };
    let Some(function) = function else {
        return VMSRS_EINVAL;
    };
    // SAFETY: options or null by contract.
    let options = unsafe { options.as_ref() }.copied().unwrap_or_default();
    let Some(options) = options.read() else {
        return VMSRS_EINVAL;
    };
    let mut value = 0;
    let outcome = domain.run_with(&options, |request| {
        // SAFETY: the function is called with what its type says; the request is this thread's.
        value = unsafe { function(ptr::from_ref(request).cast_mut(), argument) };
        if value < 0 { Err(()) } else { Ok(()) }
    });
    let (status, valid) = match outcome {
        Ok(()) | Err(RunError::GivenUp(())) => (VMSRS_OK, true),
        Err(RunError::Failed(failure)) => {
            note_failure(failure);
            (VMSRS_EFAILED, false)
        }
        Err(RunError::Refused(Error::Unsealed)) => (VMSRS_EUNSEALED, true),
        Err(RunError::Refused(error)) => (code(&error), false),
    };
    if valid && !result.is_null() {
        // SAFETY: room for a value by contract.
        unsafe { *result = value };
    }
    status
}

/// The last failure that `vmsrs_run`, `vmsrs_join` or `vmsrs_task_step` reported to the calling thread.
///
/// Returns `VMSRS_OK`; `VMSRS_EINVAL` for a null pointer; `VMSRS_ENOREQUEST` if no request of this
/// thread has failed.
///
/// # Safety
///
/// `failure` points to room for it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_last_failure(failure: *mut CFailure) -> c_int {
    if failure.is_null() {
        return VMSRS_EINVAL;
    }
    LAST.with(|last| match &*last.borrow() {
        None => VMSRS_ENOREQUEST,
        Some(last) => {
            // SAFETY: room for it by contract.
            unsafe { failure.write(CFailure::from(&**last)) };
            VMSRS_OK
        }
    })
}

/// Locks the shared domain for the request and opens an atomic section on it.
///
/// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENOREQUEST`, `VMSRS_EHELD`, `VMSRS_ELIMIT`,
/// `VMSRS_EAPP`, `VMSRS_ETIMEOUT`, `VMSRS_EDEADLOCK` (the holder waits for this request, directly or
/// through others), `VMSRS_ELAYOUT`, `VMSRS_ESYSTEM`. The order in which domains are entered is the
/// server's affair; with the same order in every request, none ever waits in a circle.
///
/// # Safety
///
/// `request` is the one that the calling function got, `domain` comes from `vmsrs_domain_open`.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_enter(request: *const Request, domain: *const Domain) -> c_int {
    // SAFETY: handles or null by contract.
    match unsafe { (request.as_ref(), domain.as_ref()) } {
        (Some(request), Some(domain)) => status(request.enter_unguarded(domain)),
        _ => VMSRS_EINVAL,
    }
}

/// Commits what the request wrote to the entered domain, and unlocks it. A domain that is never left
/// is held to the end of the request and commits together with it.
///
/// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENOREQUEST`, `VMSRS_ENOTHELD`, `VMSRS_EMAIN`,
/// `VMSRS_ESYSTEM`. Does not return when the audit finds damage: the request fails.
///
/// # Safety
///
/// As `vmsrs_enter`.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_leave(request: *const Request, domain: *const Domain) -> c_int {
    // SAFETY: handles or null by contract.
    match unsafe { (request.as_ref(), domain.as_ref()) } {
        (Some(request), Some(domain)) => status(request.leave_unguarded(domain)),
        _ => VMSRS_EINVAL,
    }
}

/// Commits everything that the request wrote so far; it goes on and keeps its domains. `flags` is
/// `VMSRS_SEAL` or 0. The defers registered so far are forgotten.
///
/// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENOREQUEST`, `VMSRS_EUNSEALED`, `VMSRS_ESYSTEM`. Does
/// not return when the audit finds damage: the request fails.
///
/// # Safety
///
/// As `vmsrs_enter`.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_commit(request: *const Request, flags: u32) -> c_int {
    // SAFETY: a handle or null by contract.
    match unsafe { request.as_ref() } {
        Some(request) if flags & !VMSRS_SEAL == 0 => {
            status(request.commit(flags & VMSRS_SEAL != 0))
        }
        _ => VMSRS_EINVAL,
    }
}

/// Calls the request failed (`VMSRS_KIND_INVARIANT`) with a message of up to 127 bytes (may be
/// null). Does not return inside a request; `vmsrs_run` returns `VMSRS_EFAILED`. Outside of a
/// request it aborts the process.
///
/// # Safety
///
/// `message` is a C string or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_fail(message: *const c_char) -> ! {
    let message = if message.is_null() {
        &[][..]
    } else {
        // SAFETY: a C string by contract.
        unsafe { CStr::from_ptr(message) }.to_bytes()
    };
    thread::fail_request(Kind::Invariant, 0, message)
}

/// Registers work that undoes something outside of domains (a file, a descriptor) if the request
/// fails or is given up. The newest runs first. It runs on the thread that ends it, outside of the request: domains cannot be
/// written, errors in it are suppressed.
///
/// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENOREQUEST`, `VMSRS_ELIMIT`.
///
/// # Safety
///
/// `request` is the one that the calling function got; `function` may be called with `argument`.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_defer(
    request: *const Request,
    function: DeferFn,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: a handle or null by contract.
    match unsafe { (request.as_ref(), function) } {
        (Some(request), Some(function)) => status(request.defer_raw(function, argument)),
        _ => VMSRS_EINVAL,
    }
}

/// Memory of the request's arena: not zeroed, 16-byte aligned, gone when the request ends, not
/// versioned. Null when the request has used up its 16 MiB, or `request` is null or not the running
/// request of the calling thread.
///
/// # Safety
///
/// `request` is the one that the calling function got.
///
/// cbindgen:prefix=VMSRS_ALLOC
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_arena_alloc(request: *const Request, size: usize) -> *mut c_void {
    // SAFETY: a handle or null by contract.
    unsafe { request.as_ref() }
        .and_then(|request| request.checked_arena().ok()?.allocate(size, 16))
        .map_or(ptr::null_mut(), |block| block.as_ptr().cast())
}

/// A block of at least `size` bytes in a domain that the calling thread's request holds: not zeroed,
/// 16-byte aligned, visible to others when the request commits.
///
/// Null with `errno` ENOMEM (window or domain full), EPERM (no request, or it does not hold the
/// domain), EINVAL.
///
/// # Safety
///
/// `domain` comes from `vmsrs_domain_open` or is null.
///
/// cbindgen:prefix=VMSRS_ALLOC
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_alloc(domain: *const Domain, size: usize) -> *mut c_void {
    // SAFETY: the same contract.
    unsafe { vmsrs_alloc_aligned(domain, size, 16) }
}

/// Like `vmsrs_alloc`, all zero.
///
/// # Safety
///
/// As `vmsrs_alloc`.
///
/// cbindgen:prefix=VMSRS_ALLOC
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_alloc_zeroed(domain: *const Domain, size: usize) -> *mut c_void {
    // SAFETY: the same contract.
    let block = unsafe { vmsrs_alloc(domain, size) };
    if !block.is_null() {
        // SAFETY: a fresh block of that size.
        unsafe { ptr::write_bytes(block.cast::<u8>(), 0, size) };
    }
    block
}

/// Like `vmsrs_alloc`, aligned to `alignment`: a power of two up to 4096.
///
/// # Safety
///
/// As `vmsrs_alloc`.
///
/// cbindgen:prefix=VMSRS_ALLOC
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_alloc_aligned(
    domain: *const Domain,
    size: usize,
    alignment: usize,
) -> *mut c_void {
    // SAFETY: a handle or null by contract.
    let Some(domain) = (unsafe { domain.as_ref() }) else {
        set_errno(libc::EINVAL);
        return ptr::null_mut();
    };
    match domain.allocate(size, alignment) {
        Ok(block) => block.as_ptr().cast(),
        Err(error) => {
            set_errno(errno_of(&error));
            ptr::null_mut()
        }
    }
}

/// Changes the size of a block as `realloc` does; a null `block` allocates. Alignment is 16 bytes.
/// Null with `errno` as `vmsrs_alloc`: the block is unchanged then. A pointer that is no live block
/// fails the request, as `vmsrs_free` does.
///
/// # Safety
///
/// `domain` as `vmsrs_alloc`.
///
/// cbindgen:prefix=VMSRS_REALLOC
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_realloc(
    domain: *const Domain,
    block: *mut c_void,
    size: usize,
) -> *mut c_void {
    // SAFETY: a handle or null by contract.
    let Some(domain) = (unsafe { domain.as_ref() }) else {
        set_errno(libc::EINVAL);
        return ptr::null_mut();
    };
    let outcome = match ptr::NonNull::new(block.cast::<u8>()) {
        None => domain.allocate(size, 16),
        // SAFETY: the caller gives the block up; what is no block is found out.
        Some(block) => unsafe { domain.reallocate(block, size) },
    };
    match outcome {
        Ok(block) => block.as_ptr().cast(),
        Err(error) => {
            set_errno(errno_of(&error));
            ptr::null_mut()
        }
    }
}

/// Gives a block back; null is allowed.
///
/// In a request that holds the domain a pointer that is no live block fails the request
/// (`VMSRS_KIND_DOUBLE_FREE`, `VMSRS_KIND_FOREIGN_FREE`) and this does not return. Otherwise it
/// returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENOREQUEST`, or `VMSRS_ENOTHELD`, and changes nothing.
///
/// # Safety
///
/// `domain` as `vmsrs_alloc`; nobody uses the block afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_free(domain: *const Domain, block: *mut c_void) -> c_int {
    // SAFETY: a handle or null by contract.
    let Some(domain) = (unsafe { domain.as_ref() }) else {
        return VMSRS_EINVAL;
    };
    match ptr::NonNull::new(block.cast::<u8>()) {
        None => VMSRS_OK,
        // SAFETY: the caller gives the block up; what is no block is found out.
        Some(block) => status(unsafe { domain.deallocate(block) }),
    }
}

/// The domain's root pointer, or null if it was never set. Its request should hold the domain, or
/// what the pointer leads to may change meanwhile.
///
/// # Safety
///
/// `domain` as `vmsrs_alloc`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_root(domain: *const Domain) -> *mut c_void {
    // SAFETY: a handle or null by contract.
    unsafe { domain.as_ref() }.map_or(ptr::null_mut(), |domain| domain.root_address().cast())
}

/// Sets the domain's root pointer.
///
/// Returns `VMSRS_OK`, `VMSRS_EINVAL`, `VMSRS_ENOREQUEST`, `VMSRS_ENOTHELD`.
///
/// # Safety
///
/// `domain` as `vmsrs_alloc`.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_set_root(domain: *const Domain, root: *mut c_void) -> c_int {
    // SAFETY: a handle or null by contract.
    match unsafe { domain.as_ref() } {
        None => VMSRS_EINVAL,
        Some(domain) => status(domain.set_root_address(root.cast())),
    }
}

/// One sentence about a return code. Never null.
#[unsafe(no_mangle)]
pub extern "C" fn vmsrs_strerror(code: c_int) -> *const c_char {
    let text = match code {
        VMSRS_OK => c"done",
        VMSRS_EFAILED => c"the request failed and everything it wrote was discarded",
        VMSRS_EINVAL => c"an argument is out of its range",
        VMSRS_EDEVICE => {
            c"the VMSRS device cannot be used; check its permissions and the driver's version"
        }
        VMSRS_ELAYOUT => c"the domain's heap was written by a library with another layout",
        VMSRS_ENOREQUEST => c"the calling thread has no request (or none of its requests failed)",
        VMSRS_ENOTHELD => c"the request does not hold this domain",
        VMSRS_ENESTED => c"the calling thread has a request already; requests do not nest",
        VMSRS_EHELD => c"the request holds this domain already",
        VMSRS_ELIMIT => c"the request holds too many domains or defers",
        VMSRS_EAPP => c"the domain belongs to another app than the request",
        VMSRS_ETIMEOUT => c"the domain's lock did not become free in time",
        VMSRS_ENOMEM => c"no memory: the window or the domain is full",
        VMSRS_EMAIN => c"the domain of vmsrs_run is held to the end of the request",
        VMSRS_EUNSEALED => c"committed, but the host did not seal it in time",
        VMSRS_EFORKED => c"the process was forked inside the request",
        VMSRS_EENDED => c"the request that the ticket or task is for is over",
        VMSRS_EDEADLOCK => c"waiting would never end: the domain's holder waits for this request",
        VMSRS_EDAMAGED => c"the host lost content of the domain to broken memory",
        VMSRS_ESYSTEM => c"the operating system or the driver refused; errno says why",
        _ => c"unknown code",
    };
    text.as_ptr()
}

/// Short name of a kind of failure ("null write" is "memory"), as the host's tools print it. Never
/// null.
#[unsafe(no_mangle)]
pub extern "C" fn vmsrs_kind_name(kind: u32) -> *const c_char {
    Kind::from_number(kind)
        .map_or(c"unknown", Kind::c_name)
        .as_ptr()
}

thread_local! {
    static LAST: RefCell<Option<Box<Failure>>> = const { RefCell::new(None) };
}

/// Keeps a failure for `vmsrs_last_failure`.
pub(crate) fn note_failure(failure: Box<Failure>) {
    LAST.with(|last| *last.borrow_mut() = Some(failure));
}

pub(crate) fn status(outcome: Result<(), Error>) -> c_int {
    match outcome {
        Ok(()) => VMSRS_OK,
        Err(error) => code(&error),
    }
}

pub(crate) fn code(error: &Error) -> c_int {
    match error {
        Error::Length { .. } | Error::Argument(_) => VMSRS_EINVAL,
        Error::Device { source, .. } => {
            set_errno(source.raw_os_error().unwrap_or(libc::EIO));
            VMSRS_EDEVICE
        }
        Error::Layout { .. } => VMSRS_ELAYOUT,
        Error::Damaged { .. } => VMSRS_EDAMAGED,
        Error::NotInRequest => VMSRS_ENOREQUEST,
        Error::NotHeld => VMSRS_ENOTHELD,
        Error::Nested => VMSRS_ENESTED,
        Error::AlreadyHeld => VMSRS_EHELD,
        Error::MainDomain => VMSRS_EMAIN,
        Error::Limit(_) => VMSRS_ELIMIT,
        Error::OtherApp => VMSRS_EAPP,
        Error::LockTimeout { .. } => VMSRS_ETIMEOUT,
        Error::WouldDeadlock => VMSRS_EDEADLOCK,
        Error::Ended => VMSRS_EENDED,
        Error::OutOfMemory { .. } => VMSRS_ENOMEM,
        Error::Unsealed => VMSRS_EUNSEALED,
        Error::Forked => VMSRS_EFORKED,
        Error::Map { source, .. } | Error::System { source, .. } => {
            set_errno(source.raw_os_error().unwrap_or(libc::EIO));
            VMSRS_ESYSTEM
        }
    }
}

fn errno_of(error: &Error) -> c_int {
    match error {
        Error::OutOfMemory { .. } => libc::ENOMEM,
        Error::NotInRequest | Error::NotHeld => libc::EPERM,
        Error::System { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
        _ => libc::EINVAL,
    }
}

fn set_errno(value: c_int) {
    // SAFETY: the C library gives each thread its own errno.
    unsafe { *libc::__errno_location() = value };
}

impl From<&Failure> for CFailure {
    fn from(failure: &Failure) -> Self {
        let mut message = [0; 128];
        for (to, from) in message.iter_mut().take(127).zip(failure.message.bytes()) {
            *to = c_char::from_ne_bytes([from]);
        }
        Self {
            kind: failure.kind.number(),
            signal: failure.signal,
            code: failure.code,
            drafts: failure.drafts,
            incident: failure.incident,
            address: failure.address,
            instruction: failure.instruction,
            recovery_ns: u64::try_from(failure.recovery.as_nanos()).unwrap_or(u64::MAX),
            defers_failed: failure.defers_failed,
            reserved: 0,
            message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmsrs_protocol::incident;

    #[test]
    fn the_kinds_of_the_c_interface_are_all_those_of_the_protocol() {
        let kinds = [
            (VMSRS_KIND_MEMORY, incident::KIND_MEMORY),
            (VMSRS_KIND_ARITHMETIC, incident::KIND_ARITHMETIC),
            (VMSRS_KIND_INSTRUCTION, incident::KIND_INSTRUCTION),
            (VMSRS_KIND_ABORT, incident::KIND_ABORT),
            (VMSRS_KIND_STACK_OVERFLOW, incident::KIND_STACK_OVERFLOW),
            (VMSRS_KIND_FOREIGN_WRITE, incident::KIND_FOREIGN_WRITE),
            (VMSRS_KIND_SEALED_WRITE, incident::KIND_SEALED_WRITE),
            (VMSRS_KIND_DOUBLE_FREE, incident::KIND_DOUBLE_FREE),
            (VMSRS_KIND_FOREIGN_FREE, incident::KIND_FOREIGN_FREE),
            (VMSRS_KIND_RED_ZONE, incident::KIND_RED_ZONE),
            (VMSRS_KIND_USE_AFTER_FREE, incident::KIND_USE_AFTER_FREE),
            (VMSRS_KIND_HEAP_CORRUPT, incident::KIND_HEAP_CORRUPT),
            (VMSRS_KIND_PANIC, incident::KIND_PANIC),
            (VMSRS_KIND_DEADLINE, incident::KIND_DEADLINE),
            (VMSRS_KIND_THREAD_DEATH, incident::KIND_THREAD_DEATH),
            (VMSRS_KIND_PROCESS_DEATH, incident::KIND_PROCESS_DEATH),
            (VMSRS_KIND_NO_FRAMES, incident::KIND_NO_FRAMES),
            (VMSRS_KIND_INVARIANT, incident::KIND_INVARIANT),
            (VMSRS_KIND_FOREIGN_DRAFT, incident::KIND_FOREIGN_DRAFT),
            (VMSRS_KIND_CHECKSUM, incident::KIND_CHECKSUM),
            (VMSRS_KIND_POISON, incident::KIND_POISON),
            (VMSRS_KIND_DAMAGED, incident::KIND_DAMAGED),
        ];
        for (number, (ours, protocol)) in (1..).zip(kinds) {
            assert_eq!((ours, protocol), (number, number));
        }
        assert_eq!(kinds.len(), incident::KIND_MAX as usize);
    }
}
