//! The server's answers.

/// An answer to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Done, or rejected for an ordinary reason: the whole line.
    Answer(Vec<u8>),
    /// The request failed and was undone.
    Failed(Failure),
}

/// What the client learns about its failed request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Short name of the kind of error.
    pub kind: String,
    /// Number of the incident on the host, or 0.
    pub incident: u64,
    /// Nanoseconds in the guest from the detection to the end of the restoration.
    pub recovery_ns: u64,
}

/// The line is not an answer of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed reply: {0:?}")]
pub struct Malformed(pub String);

impl Failure {
    /// What noticed the error, by the name of its kind.
    #[must_use]
    pub fn detector(&self) -> &str {
        let kind = &*self.kind;
        match kind.replace(['-', '_'], " ").as_str() {
            "memory" => "SIGSEGV",
            "arithmetic" => "SIGFPE",
            "instruction" => "SIGILL",
            "abort" => "SIGABRT",
            "stack overflow" => "stack guard",
            "foreign write" => "driver: foreign write",
            "foreign draft" => "protection key",
            "sealed write" => "second-level page table",
            "double free" => "double free check",
            "foreign free" => "free of no block",
            "red zone" => "red zone audit",
            "use after free" => "freed block audit",
            "heap corrupt" => "heap audit",
            "panic" => "Rust panic",
            "deadline" => "deadline",
            "no frames" => "frame pool limit",
            "invariant" => "server's own check",
            _ => kind,
        }
    }
}

impl Reply {
    /// The failure, if the request failed.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed(failure) => Some(failure),
            Self::Answer(_) => None,
        }
    }

    /// Parses a line without its newline.
    ///
    /// # Errors
    ///
    /// When it starts with neither `OK`, `NO` nor a well-formed `ERR`.
    pub fn parse(line: &[u8]) -> Result<Self, Malformed> {
        let malformed = || Malformed(String::from_utf8_lossy(line).chars().take(120).collect());
        if line.starts_with(b"OK ") || line.starts_with(b"NO ") {
            return Ok(Self::Answer(line.to_vec()));
        }
        let text = std::str::from_utf8(line).map_err(|_| malformed())?;
        let text = text.strip_prefix("ERR ").ok_or_else(malformed)?;
        // The name of a kind may have several words.
        let (kind, text) = text.split_once(" incident=").ok_or_else(malformed)?;
        let (incident, recovery) = text.split_once(" recovery_ns=").ok_or_else(malformed)?;
        Ok(Self::Failed(Failure {
            kind: kind.to_owned(),
            incident: incident.parse().map_err(|_| malformed())?,
            recovery_ns: recovery.parse().map_err(|_| malformed())?,
        }))
    }
}

/// The server's answer to `STATS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// Process ID of the server in its machine.
    pub pid: u32,
    /// Boot ID of the server's machine, which changes with every reboot.
    pub boot: String,
    /// `full`, `none` (library without a device) or `plain` (no library).
    pub protection: String,
}

impl Stats {
    /// Parses a line without its newline.
    ///
    /// # Errors
    ///
    /// When a field is missing.
    pub fn parse(line: &[u8]) -> Result<Self, Malformed> {
        let text = String::from_utf8_lossy(line);
        let malformed = || Malformed(text.chars().take(120).collect());
        let field = |name: &str| {
            text.split(' ')
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
                .ok_or_else(malformed)
        };
        Ok(Self {
            pid: field("pid")?.parse().map_err(|_| malformed())?,
            boot: field("boot")?.to_owned(),
            protection: field("protection")?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_failure_has_its_kind_incident_and_time() {
        let reply = Reply::parse(b"ERR foreign write incident=7 recovery_ns=1234").unwrap();
        assert_eq!(
            reply,
            Reply::Failed(Failure {
                kind: "foreign write".to_owned(),
                incident: 7,
                recovery_ns: 1234
            })
        );
    }

    #[test]
    fn detector_does_not_depend_on_the_separator() {
        let detector = |kind: &str| {
            let kind = kind.to_owned();
            let failure = Failure {
                kind,
                incident: 1,
                recovery_ns: 1,
            };
            failure.detector().to_owned()
        };
        assert_eq!(detector("red-zone"), detector("red zone"));
        assert_eq!(detector("something new"), "something new");
    }

    #[test]
    fn statistics_are_found_by_name() {
        let stats =
            Stats::parse(b"OK pid=7 boot=ab-c protection=full requests=1 failed=0").unwrap();
        assert_eq!(
            (stats.pid, &*stats.boot, &*stats.protection),
            (7, "ab-c", "full")
        );
        assert!(Stats::parse(b"OK boot=x protection=full").is_err());
    }

    #[test]
    fn incomplete_answers_are_malformed() {
        for line in [
            &b""[..],
            b"OK",
            b"ERR memory",
            b"ERR memory incident=1",
            b"ERR memory incident=x recovery_ns=1",
        ] {
            assert!(Reply::parse(line).is_err(), "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn parser_accepts_any_bytes(line: Vec<u8>) {
            let _ = Reply::parse(&line);
            let _ = Stats::parse(&line);
        }
    }
}
