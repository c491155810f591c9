//! What a running request does with domains, defers and its arena.

use super::codes::{VMSRS_EINVAL, VMSRS_ENOREQUEST, VMSRS_OK, status};
use super::options::VMSRS_SEAL;
use crate::Domain;
use crate::Request;
use crate::failure::Kind;
use crate::{stack_bounds, thread};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

/// Undoes something outside of domains: closes a descriptor, removes a file.
///
/// It runs outside of the request, on the thread that ends it. It cannot write to domains
/// or run requests, and an error in it cuts short this function alone.
///
/// @param argument What the caller passed.
pub type DeferFn = Option<unsafe extern "C-unwind" fn(argument: *mut c_void)>;

/// Locks another domain of the app for the request.
///
/// From now on all threads of the request may write to it. Domains can be entered in any
/// order; requests that enter them in the same order never deadlock.
///
/// @param request The request.
/// @param domain A domain of the same app.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL A null pointer.
/// @retval VMSRS_ENOREQUEST
/// @retval VMSRS_EHELD Held already, or another thread of the request waits for it.
/// @retval VMSRS_ELIMIT The request holds 256 domains.
/// @retval VMSRS_EAPP The domain belongs to another app.
/// @retval VMSRS_ETIMEOUT The domain did not become free in time.
/// @retval VMSRS_EDEADLOCK The holder waits for this request, directly or through others.
/// @retval VMSRS_ELAYOUT The heap of the domain has another layout.
/// @retval VMSRS_EQUARANTINE Too many requests of the domain have failed.
/// @retval VMSRS_ESYSTEM See `errno`.
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

/// Commits what the request wrote to a domain, and unlocks it.
///
/// What is left before a failure stays committed. A domain that is not left is held to the
/// end of the request and committed together with the others. If the audit finds damage,
/// the request fails and this does not return.
///
/// @param request The request.
/// @param domain A domain that it has entered.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL A null pointer.
/// @retval VMSRS_ENOREQUEST
/// @retval VMSRS_ENOTHELD
/// @retval VMSRS_EMAIN The request was begun with this domain.
/// @retval VMSRS_ESYSTEM See `errno`. The domain is still held.
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

/// Commits everything that the request wrote so far. It goes on, keeps its domains, and
/// forgets its defers.
///
/// That includes what other threads of the request are in the middle of writing. If the
/// audit finds damage, the request fails and this does not return.
///
/// @param request The request.
/// @param flags `VMSRS_SEAL` or 0.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL `request` is null, or an unknown flag.
/// @retval VMSRS_ENOREQUEST
/// @retval VMSRS_EUNSEALED Committed, but not sealed in time.
/// @retval VMSRS_EDAMAGED Committed, but lost by the host before it was sealed.
/// @retval VMSRS_ESYSTEM See `errno`. Nothing was committed.
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

/// The stack of the request that the calling thread runs.
///
/// For code that looks at addresses of the stack: interpreters and parsers that limit their
/// depth by it, garbage collectors that scan it. What `pthread_getattr_np()` says is another
/// stack in a request.
///
/// @param low Set to the lowest byte. Below it is a guard of 4 GiB.
/// @param high Set to the first byte after the highest one.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL A null pointer.
/// @retval VMSRS_ENOREQUEST
///
/// # Safety
///
/// Both point to room for a pointer or are null.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_stack_bounds(
    low: *mut *mut c_void,
    high: *mut *mut c_void,
) -> c_int {
    if low.is_null() || high.is_null() {
        return VMSRS_EINVAL;
    }
    let Some(stack) = stack_bounds() else {
        return VMSRS_ENOREQUEST;
    };
    // SAFETY: room for them by contract.
    unsafe {
        *low = stack.start.cast_mut().cast();
        *high = stack.end.cast_mut().cast();
    }
    VMSRS_OK
}

/// Fails the request of the calling thread, with the kind `VMSRS_KIND_INVARIANT`.
///
/// Does not return: the call that runs the request returns `VMSRS_EFAILED`. Without a
/// request it aborts the process.
///
/// @param message Text for `vmsrs_last_failure()` and the host's incident, cut off after 127
///   bytes; or null.
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

/// Registers a function that is called if the request fails or is given up. The newest is
/// called first. A request that is committed forgets them.
///
/// @param request The request.
/// @param function Called with `argument`, which must live until then.
/// @param argument Passed to the function.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL A null pointer.
/// @retval VMSRS_ENOREQUEST
/// @retval VMSRS_ELIMIT 256 are registered.
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

/// Does what has to come after a request's commit: sends an answer, wakes another thread.
///
/// It runs outside of the request, on the thread that ends it, like any other code there: it
/// may run requests, and an error in it is the process's own. It has to return.
///
/// @param argument What the caller passed.
pub type OnCommitFn = Option<unsafe extern "C-unwind" fn(argument: *mut c_void)>;

/// Registers a function that is called once the request is committed: in the order of
/// registration, before the call that has run the request returns. A request that fails or
/// is given up forgets them, but for those before a vmsrs_commit(), which are called then.
///
/// @param request The request.
/// @param function Called with `argument`, which must live until then: not on the request's
///   stack; in its arena with `VMSRS_KEEP_ARENA`.
/// @param argument Passed to the function.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL A null pointer.
/// @retval VMSRS_ENOREQUEST
/// @retval VMSRS_ELIMIT 262144 are registered.
/// @retval VMSRS_ESYSTEM There is no memory for the list; see `errno`.
///
/// # Safety
///
/// `request` is the one that the calling function got; `function` may be called with `argument`.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_on_commit(
    request: *const Request,
    function: OnCommitFn,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: a handle or null by contract.
    match unsafe { (request.as_ref(), function) } {
        (Some(request), Some(function)) => status(request.on_commit_raw(function, argument)),
        _ => VMSRS_EINVAL,
    }
}

/// Has bytes outside of domains be what they are now if the request fails or is given up:
/// they are saved, and copied back then. vmsrs_commit() forgets the copy.
///
/// For small variables that requests change: a count, the state of a connection. They are
/// copied back before the domains of the request are free, unless other threads have worked
/// for it, or it has missed its deadline: then a little later. What other threads have
/// written to the same bytes since the call is lost too: so they are the request's alone, or
/// guarded by a domain or a mutex that it holds to its end.
///
/// @param request The request.
/// @param address The bytes, which can be written until the request has ended.
/// @param size How many.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL A null pointer, no bytes, or some lie in a domain.
/// @retval VMSRS_ENOREQUEST
/// @retval VMSRS_ELIMIT More than 64 KiB in a request, with 32 bytes for each call.
/// @retval VMSRS_ESYSTEM There is no memory for the copies, or a filter of system calls
///   refuses process_vm_writev(); see `errno`.
///
/// # Safety
///
/// `request` is the one that the calling function got; the bytes can be read and written.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_keep(
    request: *const Request,
    address: *mut c_void,
    size: usize,
) -> c_int {
    // SAFETY: a handle or null by contract.
    match unsafe { request.as_ref() } {
        // SAFETY: the caller's.
        Some(request) => status(unsafe { request.keep_bytes(address.cast(), size) }),
        None => VMSRS_EINVAL,
    }
}

/// Gives the request a descriptor: it is closed if the request fails or is given up.
///
/// If the request is committed, the descriptor stays open. Counts as a defer.
///
/// Before the request closes it itself, it has to be taken back (vmsrs_disown_fd()): another
/// thread may get its number for another file. Without that it is closed only if that file
/// looks the same, which another descriptor of the same file does, and any anonymous one
/// (eventfd, epoll, timerfd).
///
/// @param request The request.
/// @param fd The descriptor.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL `request` is null, or `fd` is not open.
/// @retval VMSRS_ENOREQUEST
/// @retval VMSRS_ELIMIT 256 are registered, with those of `vmsrs_defer()`.
///
/// # Safety
///
/// `request` is the one that the calling function got; the descriptor is the caller's.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_own_fd(request: *const Request, fd: c_int) -> c_int {
    // SAFETY: a handle or null by contract.
    match unsafe { request.as_ref() } {
        Some(request) => status(request.own_fd(fd)),
        None => VMSRS_EINVAL,
    }
}

/// Takes back a descriptor that vmsrs_own_fd() has given to the request: it stays as it is.
///
/// @param request The request.
/// @param fd The descriptor.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL `request` is null, or does not own `fd`.
/// @retval VMSRS_ENOREQUEST
///
/// # Safety
///
/// `request` is the one that the calling function got.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_disown_fd(request: *const Request, fd: c_int) -> c_int {
    // SAFETY: a handle or null by contract.
    match unsafe { request.as_ref() } {
        Some(request) => match request.disown_fd(fd) {
            Ok(true) => VMSRS_OK,
            Ok(false) => VMSRS_EINVAL,
            Err(error) => status(Err(error)),
        },
        None => VMSRS_EINVAL,
    }
}

/// Allocates scratch memory that lives until the request ends (for a thread that has
/// joined it: until it leaves; for a task: until the step ends), or until the thread's next
/// request begins (`VMSRS_KEEP_ARENA`).
///
/// The memory is neither zeroed nor versioned, is aligned to 16 bytes, and cannot be freed.
///
/// @param request The request.
/// @param size Bytes.
/// @return The memory; null if the bytes of this thread are used up (`VMSRS_ARENA_SIZE`, or `arena_bytes`), or
///   `request` is not the request of the calling thread. `errno` is not set.
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

/// Copies input into the arena so that its last byte is followed by a page that nobody can
/// touch: code that reads or writes behind it, by a length that is longer than the packet, fails the
/// request at the first byte.
///
/// The copy may be written to, and lives as long as what vmsrs_arena_alloc() gives. It begins
/// wherever its size says, so at any alignment: larger numbers in it are read by memcpy().
/// The first input of a request costs the copy alone; each further one a system call, too, and a
/// page of the arena.
///
/// @param request The request.
/// @param bytes The input.
/// @param size How many bytes.
/// @return The copy; null if the arena is used up, `bytes` is null, or `request` is not the
///   request of the calling thread. `errno` is not set.
///
/// # Safety
///
/// `request` is the one that the calling function got; `bytes` has that many.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_input(
    request: *const Request,
    bytes: *const c_void,
    size: usize,
) -> *mut c_void {
    // SAFETY: a handle or null by contract.
    let arena = unsafe { request.as_ref() }.and_then(|request| request.checked_arena().ok());
    let place = arena
        .filter(|_| !bytes.is_null())
        .and_then(|arena| arena.allocate_input(size));
    let Some(place) = place else {
        return ptr::null_mut();
    };
    // SAFETY: so many bytes by contract, and as many fresh ones.
    unsafe { ptr::copy_nonoverlapping(bytes.cast(), place.as_ptr(), size) };
    place.as_ptr().cast()
}

/// Locks several domains of the app for the request, in an order that is the same in all
/// requests. Domains that the request holds already are skipped.
///
/// Requests that enter all domains by one such call never deadlock, unless through the
/// domain that they were begun with.
///
/// @param request The request.
/// @param domains The domains, in any order.
/// @param count How many, at most 65536.
/// @retval VMSRS_EINVAL A null pointer, or too many.
/// @return Otherwise as `vmsrs_enter()`. On an error the domains that this call has
///   entered are left again.
///
/// # Safety
///
/// `request` is the one that the calling function got, `domains` points to `count` domains.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmsrs_enter_all(
    request: *const Request,
    domains: *const *const Domain,
    count: usize,
) -> c_int {
    // SAFETY: a handle or null by contract.
    let Some(request) = (unsafe { request.as_ref() }) else {
        return VMSRS_EINVAL;
    };
    // Before the slice: its length must be sane.
    if domains.is_null() || count > 1 << 16 {
        return VMSRS_EINVAL;
    }
    // SAFETY: so many pointers by contract.
    let domains = unsafe { std::slice::from_raw_parts(domains, count) };
    if domains.iter().any(|domain| domain.is_null()) {
        return VMSRS_EINVAL;
    }
    // SAFETY: handles, not null, which are never freed; a reference is laid out as a pointer.
    let domains =
        unsafe { std::slice::from_raw_parts(domains.as_ptr().cast::<&'static Domain>(), count) };
    status(request.enter_all(domains))
}
