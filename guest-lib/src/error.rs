//! Why calls of the library fail.

use crate::failure::Failure;
use std::io;
use vmsrs_protocol::MAX_DOMAINS;

/// Why a call was refused. Nothing was changed by a call that gives one of these, unless its
/// description says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An app name or a domain key has no byte, or more than 64.
    #[error("{what} must have 1 to 64 bytes, this one has {length}")]
    Length {
        /// "the app's name" or "the domain's key".
        what: &'static str,
        /// Bytes it has.
        length: usize,
    },
    /// An argument is invalid (null pointer, alignment that is not a power of two or above 4096, unknown
    /// flag).
    #[error("invalid argument: {0}")]
    Argument(&'static str),
    /// The device exists but cannot be used.
    #[error(
        "cannot use {path}: {source}; check its permissions and that the driver has the same version"
    )]
    Device {
        /// Path of the device.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The app's address range is occupied by something else.
    #[error(
        "cannot map the app's pages at {address:#x}: {source}; is a program or library mapped there?"
    )]
    Map {
        /// Address where the pages must be.
        address: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is a device, and the program has a sanitizer whose own memory lies at the addresses of the apps.
    #[error(
        "programs with the {name} sanitizer cannot use a device: its shadow memory lies at the addresses of the apps; \
         run without one (VMSRS_DEVICE=none), or build with the address sanitizer"
    )]
    Sanitizer {
        /// "thread" or "memory".
        name: &'static str,
    },
    /// The domain was written by a build of the library with another layout of its heap.
    #[error(
        "the domain's heap has layout {found:#018x}, this library has {expected:#018x}; \
         use the library version that wrote it"
    )]
    Layout {
        /// Fingerprint in the domain.
        found: u64,
        /// Fingerprint of this library.
        expected: u64,
    },
    /// The content of sealed pages of the domain is lost, because the host's memory is broken. Of a request that waits
    /// for its seal: it is committed, and what it wrote was lost before it was sealed; with several domains this
    /// is the one that it took first.
    #[error(
        "the host lost content of domain {domain} to broken memory, and the domain has no mirror; \
         use another key, and see `vmsrs incidents` on the host"
    )]
    Damaged {
        /// The domain's number.
        domain: u32,
    },
    /// The domain was deleted ([`crate::Domain::delete`]), by this process or another one. Opening its key makes a new domain.
    #[error("the domain is deleted; open its key again for a new one")]
    Deleted,
    /// Bytes that are to be leased are not as they were committed: the request has changed them.
    #[error("the request has changed these bytes; lease them when that is committed")]
    Uncommitted,
    /// More of the domain's requests have failed than its budget allows ([`crate::Budget`]).
    #[error("the domain is refused for {milliseconds} ms: too many of its requests have failed")]
    Quarantined {
        /// How long from now on.
        milliseconds: u64,
    },
    /// The call belongs in a request, and the calling thread has none.
    #[error("the calling thread has no request; call this inside run()")]
    NotInRequest,
    /// The request of the calling thread does not hold the domain.
    #[error("the request does not hold this domain; enter() it first")]
    NotHeld,
    /// The call belongs outside requests (`run` inside `run`, for example).
    #[error("the calling thread has a request already; call this outside of it")]
    Nested,
    /// The request holds the domain already.
    #[error("the request holds this domain already")]
    AlreadyHeld,
    /// The domain given to `run` cannot be left before the request's end.
    #[error("the domain of run() is held to the end of the request")]
    MainDomain,
    /// A request can hold 256 domains and 256 defers, and 256 threads can have joined it; a process can
    /// have 4096 suspended requests of an app.
    #[error("the request has reached its limit of {0}")]
    Limit(&'static str),
    /// The domain belongs to another app than the request.
    #[error("the domain belongs to another app than the request")]
    OtherApp,
    /// The domain's lock did not become free in time.
    #[error("the domain's lock did not become free within {milliseconds} ms")]
    LockTimeout {
        /// The timeout.
        milliseconds: u32,
    },
    /// The request that a ticket or a task is for is over: it ended, or it has failed.
    #[error("the request is over; start a new one")]
    Ended,
    /// The domain's holder waits, directly or through other requests, for a domain that this request
    /// holds. The request still holds what it held: it may leave some of it and try again, or give
    /// up.
    #[error("waiting for the domain would never end: its holder waits for this request")]
    WouldDeadlock,
    /// No room for another domain or its mirror: the window is full, or the app has as many domains as an app can have.
    #[error(
        "no room for the domain: the window is full (vmsrs run --window), or the app has {MAX_DOMAINS} domains"
    )]
    NoRoom,
    /// No memory: the window is full, the domain has reached its greatest size, or the block is
    /// larger than a domain can hold in one piece.
    #[error("no memory in the domain for {size} bytes")]
    OutOfMemory {
        /// Bytes asked for.
        size: usize,
    },
    /// Committed, but the host has not sealed it in time. The data is visible to everybody and will
    /// be sealed when the host answers.
    #[error("committed, but the host did not seal it in time")]
    Unsealed,
    /// Memory cannot be guarded from requests.
    #[error(
        "no protection key is left to guard memory with: the CPU or kernel has none, VMSRS_PKU=off is set, \
         no app is open, or requests have them all; guard memory after opening the app and before threads start"
    )]
    NoKeys,
    /// The program's variables cannot be guarded as a whole.
    #[error("cannot guard the program's variables: {0}")]
    Variables(&'static str),
    /// The process was forked inside the request; the child has no request.
    #[error("the process was forked inside the request; the child has no part in it")]
    Forked,
    /// The operating system or the driver refused.
    #[error("{call}: {source}")]
    System {
        /// What was tried.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn system(call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { call, source }
    }
}

/// How a request ended when it did not end well.
#[derive(Debug, thiserror::Error)]
pub enum RunError<E> {
    /// The request failed: an error was suppressed, everything it wrote was discarded.
    #[error(transparent)]
    Failed(Box<Failure>),
    /// The closure returned an error; everything it wrote was discarded.
    #[error("the request was given up: {0}")]
    GivenUp(E),
    /// The request was not run, or (for [`Error::Unsealed`]) committed with a reservation.
    #[error(transparent)]
    Refused(#[from] Error),
}
