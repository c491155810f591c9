//! The lines to and from the injector (`inject/inject.h`): one before a request, one before its answer.

use std::fmt;

/// First byte of the lines to and from the injector.
pub const MARK: u8 = 1;

/// Where in a request an error strikes; the names are the injector's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Point {
    /// The request starts.
    Start,
    /// The request's work is done, but not committed.
    End,
    /// A root pointer is fetched.
    Root,
    /// A block of a domain is allocated.
    Alloc,
    /// A block of a domain is freed.
    Free,
    /// A shared domain is about to be entered.
    Enter,
    /// A shared domain has been entered.
    Entered,
    /// A shared domain is about to be left.
    Leave,
    /// The server's code copies or measures memory.
    Copy,
    /// The library's code copies or sets memory, in the allocator among others.
    Library,
    /// The library is about to call the driver's commit.
    Commit,
    /// The driver's commit has returned.
    Committed,
    /// A deferred function of a failed request.
    Defer,
    /// The library is about to call the driver's recovery.
    Recovery,
    /// The driver's recovery has returned.
    Recovered,
    /// In another thread that works for the request.
    Member,
    /// In the request's own thread, while others compute and sleep for it.
    Beside,
    /// The end of a request that another thread has started.
    Handed,
    /// A number of nanoseconds after the start.
    Moment,
}

impl Point {
    /// The name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::End => "end",
            Self::Root => "root",
            Self::Alloc => "alloc",
            Self::Free => "free",
            Self::Enter => "enter",
            Self::Entered => "entered",
            Self::Leave => "leave",
            Self::Copy => "copy",
            Self::Library => "library",
            Self::Commit => "commit",
            Self::Committed => "committed",
            Self::Defer => "defer",
            Self::Recovery => "recovery",
            Self::Recovered => "recovered",
            Self::Member => "member",
            Self::Beside => "beside",
            Self::Handed => "handed",
            Self::Moment => "moment",
        }
    }
}

/// Errors that change the effect of the server's code.
pub const MUTATIONS: [&str; 9] = [
    "shorten",
    "early-free",
    "flip",
    "dirty",
    "skip",
    "twice",
    "longer",
    "shorter",
    "elsewhere",
];

/// The line that arms the next request. [`fmt::Display`] gives it without its newline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arm {
    /// Where the error strikes.
    pub point: Point,
    /// The passage at which it strikes, from 1; nanoseconds for [`Point::Moment`].
    pub count: u64,
    /// The injector's name of the error; `none` only sets the options.
    pub error: &'static str,
    /// A parameter of the error.
    pub parameter: u64,
    /// The request's deadline in milliseconds, 0 for none.
    pub deadline_ms: u32,
    /// Whether the answer waits until the commit is sealed.
    pub seal: bool,
}

impl Arm {
    /// No error, but an answer that waits until the commit is sealed.
    pub const SEAL: Self = Self {
        point: Point::Start,
        count: 0,
        error: "none",
        parameter: 0,
        deadline_ms: 0,
        seal: true,
    };

    /// Whether it changes the effect of the server's code, so that a request may commit wrong data of its own user.
    #[must_use]
    pub fn is_mutation(&self) -> bool {
        MUTATIONS.contains(&self.error)
    }

    /// Whether the injector reports on it before the answer.
    #[must_use]
    pub fn is_reported(&self) -> bool {
        self.error != "none"
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            count,
            error,
            parameter,
            deadline_ms,
            ..
        } = self;
        write!(
            f,
            "{}{} {count} {error} {parameter} {deadline_ms} {}",
            char::from(MARK),
            self.point.name(),
            u8::from(self.seal)
        )
    }
}

/// The injector's report before the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strike {
    /// Whether the error was made.
    pub fired: bool,
    /// Passages of its point.
    pub passages: u64,
    /// A write was refused with an error code.
    pub stopped: bool,
    /// What the thread still had of it afterwards, if anything.
    pub left: Option<String>,
}

impl Strike {
    /// Parses a line of the injector; `None` for other lines.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(line).ok()?;
        let mut words = text.strip_prefix(char::from(MARK))?.split(' ');
        let strike = Self {
            fired: words.next()? == "1",
            passages: words.next()?.parse().ok()?,
            stopped: words.next()? == "1",
            left: Some(words.next()?.to_owned()).filter(|left| left != "-"),
        };
        words.next().is_none().then_some(strike)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INJECTOR: &str = include_str!("../inject/line.c");

    #[test]
    fn the_line_is_as_the_injector_reads_it() {
        let arm = Arm {
            point: Point::Alloc,
            count: 2,
            error: "flip",
            parameter: 35,
            deadline_ms: 300,
            seal: true,
        };
        assert_eq!(arm.to_string(), "\u{1}alloc 2 flip 35 300 1");
    }

    #[test]
    fn strike_line_is_parsed_strictly() {
        let strike = Strike::parse(b"\x011 3 0 -").unwrap();
        assert_eq!(
            (strike.fired, strike.passages, strike.stopped, strike.left),
            (true, 3, false, None)
        );
        let strike = Strike::parse(b"\x011 3 0 signal-mask").unwrap();
        assert_eq!(strike.left.as_deref(), Some("signal-mask"));
        for line in [&b"OK note=1"[..], b"\x01", b"\x011 x 0 -", b"\x011 1 0"] {
            assert_eq!(Strike::parse(line), None);
        }
    }

    #[test]
    fn the_injector_knows_every_point() {
        for point in [
            Point::Start,
            Point::Moment,
            Point::Committed,
            Point::Recovered,
        ] {
            assert!(INJECTOR.contains(&format!("\"{}\"", point.name())));
        }
    }
}
