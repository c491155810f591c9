//! Apps.

use super::codes::{VMSRS_EINVAL, VMSRS_OK, code, status};
use crate::{App, Protection};
use std::ffi::{CStr, c_char, c_int};
use std::ptr;

/// No device: errors are suppressed, but nothing is restored.
pub const VMSRS_PROTECTION_NONE: i32 = 0;
/// The driver and the host keep versions of every page.
pub const VMSRS_PROTECTION_FULL: i32 = 1;

/// State of the driver, for statistics.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CInfo {
    /// Frames of 4 KiB in the vault, which holds sealed pages.
    pub vault_frames: u32,
    /// Frames in the pool, which holds drafts and commits that are not sealed yet.
    pub pool_frames: u32,
    /// Free frames in the driver's pool.
    pub pool_free: u32,
    /// Drafts of all requests.
    pub drafts: u32,
    /// Pages committed and not sealed yet.
    pub unsealed: u32,
    /// 1 if the host is broken; nothing can be written then.
    pub broken: u32,
    /// Frames of the pool that resident pages have, between requests too.
    pub resident: u32,
    /// Reports that the host has not taken yet. They hold the frames of the drafts that they name.
    pub reports: u32,
    /// Commits of at least one page.
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

/// Opens an app, and creates it if it is new.
///
/// The first call in a process installs handlers for SIGSEGV, SIGBUS, SIGFPE, SIGILL,
/// SIGTRAP and SIGABRT; and for SIGPIPE, SIGXFSZ and SIGSYS if they have the default
/// effect then, which ends the process. Handlers that are installed later replace the library's. Opening
/// a name again gives the same app. Without a device the app works without protection
/// (see `vmsrs_protection()`), and a line on stderr says so.
///
/// Call it from any thread, outside of requests.
///
/// @param name Name of 1 to 64 bytes.
/// @param app Set to the app on success. It is never closed.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL A null pointer, or `name` is empty or too long.
/// @retval VMSRS_EDEVICE The device exists but cannot be used; see `errno`.
/// @retval VMSRS_ESANITIZER The device exists, and the program has the thread or the memory sanitizer.
/// @retval VMSRS_ESYSTEM See `errno`; `EEXIST` if the addresses of the app are occupied.
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

/// Tells what happens to memory when a request fails.
///
/// @param app The app.
/// @retval VMSRS_PROTECTION_FULL What the request wrote is discarded.
/// @retval VMSRS_PROTECTION_NONE It stays.
/// @retval VMSRS_EINVAL `app` is null.
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

/// Reads the state of the driver. Without protection all fields are 0.
///
/// @param app The app.
/// @param info Filled in on success.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL A null pointer.
/// @retval VMSRS_ESYSTEM See `errno`.
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
                vault_frames: now.vault_frames,
                pool_frames: now.pool_frames,
                pool_free: now.pool_free,
                drafts: now.drafts,
                unsealed: now.unsealed,
                broken: now.broken,
                resident: now.resident,
                reports: now.reports,
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

/// Waits until the host has sealed everything that was committed so far.
///
/// @param app The app.
/// @retval VMSRS_OK
/// @retval VMSRS_EINVAL `app` is null.
/// @retval VMSRS_EUNSEALED The host did not answer in time.
/// @retval VMSRS_ESYSTEM See `errno`; `ENODEV` if the host is broken.
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
