//! The configuration file of `vmsrs run`: TOML with a key for each option.
//!
//! Keys, types and values are those of the command line's own description, so that the file can neither lack
//! an option nor take another value than the command line does.

use std::any::TypeId;
use std::error::Error as _;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::builder::ValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Args, Command};
use thiserror::Error;
use toml::de::{DeTable, DeValue};

use super::Arguments;
use crate::cli::{Exit, Failure};
use crate::vmm::loader::open_at_once;

/// Largest file in bytes.
const FILE_MAX: u64 = 1 << 20;

/// Options of the command line that are no keys.
const NOT_KEYS: [&str; 2] = ["config", "help"];

/// Why a configuration file cannot be used.
#[derive(Debug, Error)]
pub(crate) enum ConfigFileError {
    /// It cannot be read.
    #[error(
        "cannot read the configuration file {}: check the path and its permissions",
        .path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It is something else.
    #[error(
        "{} is not a configuration file: give a regular file of at most 1 MiB, in TOML",
        .0.display()
    )]
    Kind(PathBuf),
    /// Something in it is wrong.
    #[error("{}:{line}:{column}: {what}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The line, from 1 on.
        line: usize,
        /// The character in it, from 1 on.
        column: usize,
        /// What is wrong there, and the remedy.
        what: String,
    },
}

impl From<ConfigFileError> for Failure {
    fn from(error: ConfigFileError) -> Self {
        Self::new(Exit::Usage, error)
    }
}

/// The checked content of a configuration file.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    /// Keys, and values in the form of the command line; several for an option that may be given several times.
    values: Vec<(String, Vec<String>)>,
}

impl ConfigFile {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    ///
    /// Fails with a message that names the place and the remedy.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigFileError> {
        let read_error = |source| ConfigFileError::Read {
            path: path.to_owned(),
            source,
        };
        // A pipe would make wait whoever opens it.
        if !fs::metadata(path).map_err(read_error)?.is_file() {
            return Err(ConfigFileError::Kind(path.to_owned()));
        }
        let (file, _) = open_at_once(path).map_err(read_error)?;
        let mut bytes = Vec::new();
        file.take(FILE_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(read_error)?;
        if bytes.len() as u64 > FILE_MAX {
            return Err(ConfigFileError::Kind(path.to_owned()));
        }
        Self::parse(&bytes).map_err(|(at, what)| {
            let before = String::from_utf8_lossy(&bytes[..at]);
            let line_start = before.rfind('\n').map_or(0, |end| end + 1);
            ConfigFileError::Content {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                column: before[line_start..].chars().count() + 1,
                what,
            }
        })
    }

    /// Checks the content; an error is the offset of what is wrong, and a text about it.
    fn parse(bytes: &[u8]) -> Result<Self, (usize, String)> {
        let text = str::from_utf8(bytes).map_err(|error| {
            let what = "not a text in UTF-8: save the file as one";
            (error.valid_up_to(), what.to_owned())
        })?;
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let message = error.message();
            let what =
                format!("{message}: write each option as a line of its own, KEY = VALUE, in TOML");
            (at.min(bytes.len()), what)
        })?;
        let run =
            without_requirements(Arguments::augment_args(Command::new("run"))).no_binary_name(true);
        let entries = table.get_ref().iter().map(|(key, value)| {
            let name = key.get_ref().as_ref();
            let arg = key_of(&run, name).ok_or_else(|| (key.span().start, unknown(&run, name)))?;
            let at_value = |what| (value.span().start, what);
            let texts = texts_of(arg, name, value.get_ref()).map_err(at_value)?;
            for text in &texts {
                check(&run, name, text).map_err(at_value)?;
            }
            Ok((name.to_owned(), texts))
        });
        Ok(Self {
            values: entries.collect::<Result<_, _>>()?,
        })
    }

    /// `run`, the description of the command, with the file's values as its defaults.
    pub(crate) fn set_defaults(self, run: Command) -> Command {
        self.values.into_iter().fold(run, |run, (name, values)| {
            let id = key_of(&run, &name).map(|arg| arg.get_id().to_string());
            match id {
                Some(id) => run.mut_arg(id, |arg| arg.required(false).default_values(values)),
                None => run,
            }
        })
    }
}

/// `run`, the description of the command, without options that have to be given.
pub(crate) fn without_requirements(run: Command) -> Command {
    run.mut_args(|arg| arg.required(false))
}

/// The option for which `name` is the key.
fn key_of<'a>(run: &'a Command, name: &str) -> Option<&'a Arg> {
    keys(run).find(|arg| arg.get_long() == Some(name))
}

fn keys(run: &Command) -> impl Iterator<Item = &Arg> {
    run.get_arguments()
        .filter(|arg| !arg.get_long().is_none_or(|name| NOT_KEYS.contains(&name)))
}

/// What is said of a key that is not an option.
fn unknown(run: &Command, name: &str) -> String {
    let line = [format!("--{name}=")];
    let error = run.clone().try_get_matches_from(line).err();
    let suggested = error
        .as_ref()
        .and_then(|error| error.get(ContextKind::SuggestedArg));
    let remedy = match suggested {
        Some(ContextValue::String(option)) => {
            format!("did you mean `{}`?", option.trim_start_matches('-'))
        }
        _ => {
            let names: Vec<_> = keys(run).filter_map(Arg::get_long).collect();
            format!("the keys are {}", names.join(", "))
        }
    };
    format!("`{name}` is not an option of `vmsrs run`: {remedy}")
}

/// The values in the form of the command line: those of a list for an option that may be given several times.
fn texts_of(arg: &Arg, name: &str, value: &DeValue<'_>) -> Result<Vec<String>, String> {
    if !matches!(arg.get_action(), ArgAction::Append) {
        return Ok(vec![text_of(arg, name, value)?]);
    }
    let listed = value.as_array().and_then(|list| {
        let texts = list
            .iter()
            .map(|entry| Some(entry.get_ref().as_str()?.to_owned()));
        texts.collect::<Option<Vec<_>>>()
    });
    listed.ok_or_else(|| {
        let example = arg.get_value_names().and_then(<[_]>::first);
        let example = example.map(ToString::to_string).unwrap_or_default();
        format!(
            "`{name}` is a list of texts in quotes, and this is not: write {name} = [\"{example}\"]"
        )
    })
}

/// The value in the form of the command line, if it has the option's type.
fn text_of(arg: &Arg, name: &str, value: &DeValue<'_>) -> Result<String, String> {
    let parser: &ValueParser = arg.get_value_parser();
    let is = |id: TypeId| parser.type_id() == id;
    let (wanted, quote) = if is(TypeId::of::<bool>()) {
        if let DeValue::Boolean(value) = value {
            return Ok(value.to_string());
        }
        ("true or false", "")
    } else if is(TypeId::of::<u32>()) {
        if let DeValue::Integer(value) = value {
            // A number too large for this is also too large for the option, which says so.
            let number = i64::from_str_radix(value.as_str(), value.radix());
            return Ok(number.map_or_else(|_| value.to_string(), |number| number.to_string()));
        }
        ("a whole number", "")
    } else {
        if let DeValue::String(value) = value {
            return Ok(value.clone().into_owned());
        }
        ("a text in quotes", "\"")
    };
    let default = arg.get_default_values().first();
    let example = default
        .map(|value| value.to_string_lossy().into_owned())
        .or_else(|| Some(arg.get_value_names()?.first()?.to_string()))
        .unwrap_or_default();
    Err(format!(
        "`{name}` is {wanted}, and this is of the type {}: write {name} = {quote}{example}{quote}",
        value.type_str()
    ))
}

/// Checks a value as the command line does.
fn check(run: &Command, name: &str, text: &str) -> Result<(), String> {
    let line = [format!("--{name}={text}")];
    let Err(error) = run.clone().try_get_matches_from(line) else {
        return Ok(());
    };
    let possible = match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(possible)) => possible.join(" or "),
        _ => String::new(),
    };
    let what = match (error.kind(), error.source()) {
        (_, Some(source)) => source.to_string(),
        (ErrorKind::InvalidValue, None) if !possible.is_empty() => {
            format!("`{text}` is not possible: give {possible}")
        }
        _ => format!("`{text}` is not possible: see `vmsrs run --help`"),
    };
    Err(format!("`{name}`: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> String {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../packaging/vmsrs.toml.example"
        );
        fs::read_to_string(path).unwrap()
    }

    /// The example with every option that is a comment in it.
    fn whole_example() -> String {
        let lines = example();
        let lines = lines.lines().map(|line| match line.strip_prefix('#') {
            Some(option) if !option.starts_with([' ', '#']) && !option.is_empty() => option,
            _ => line,
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn run() -> Command {
        Arguments::augment_args(Command::new("run"))
    }

    #[test]
    fn the_example_is_valid_and_has_every_option() {
        ConfigFile::parse(example().as_bytes()).unwrap();
        let file = ConfigFile::parse(whole_example().as_bytes()).unwrap();
        let mut listed: Vec<_> = file.values.iter().map(|(key, _)| key.as_str()).collect();
        let run = run();
        let mut all: Vec<_> = keys(&run).filter_map(Arg::get_long).collect();
        listed.sort_unstable();
        all.sort_unstable();
        assert_eq!(listed, all);
    }

    #[test]
    fn options_that_are_comments_in_the_example_have_their_defaults() {
        let active = ConfigFile::parse(example().as_bytes()).unwrap();
        let whole = ConfigFile::parse(whole_example().as_bytes()).unwrap();
        let run = run();
        for (name, values) in whole.values {
            let is_active = active.values.iter().any(|(active, _)| *active == name);
            let defaults = key_of(&run, &name).unwrap().get_default_values();
            if !is_active && let [default] = defaults {
                assert_eq!([default.to_str().unwrap()], *values, "{name}");
            }
        }
    }

    #[test]
    fn the_command_line_overrides_the_file() {
        let text =
            b"kernel = \"k\"\nvcpus = 4\nmemory = \"1G\"\nhugepages = true\non-reboot = \"exit\"\n\
            disk = [\"a\", \"b,readonly\"]\nshare = [\"t=/a\"]";
        let file = ConfigFile::parse(text).unwrap();
        let run = file.set_defaults(run());
        let line = [
            "run",
            "--vcpus",
            "2",
            "--hugepages=false",
            "--share",
            "u=/b",
        ];
        let matches = run.try_get_matches_from(line).unwrap();
        assert_eq!(matches.get_one("kernel"), Some(&PathBuf::from("k")));
        assert_eq!(matches.get_one("vcpus"), Some(&2u32));
        assert_eq!(matches.get_one("memory"), Some(&crate::size::Size(1 << 30)));
        assert_eq!(matches.get_one("hugepages"), Some(&false));
        let disks = matches.get_many::<crate::machine::DiskOption>("disk");
        let disks: Vec<_> = disks.unwrap().map(|disk| disk.is_readonly).collect();
        assert_eq!(disks, [false, true]);
        let shares = matches.get_many::<crate::machine::ShareOption>("share");
        let shares: Vec<_> = shares.unwrap().map(|share| &*share.tag).collect();
        assert_eq!(shares, ["u"]);
        let action = matches.get_one::<crate::machine::OnReboot>("on_reboot");
        assert_eq!(action, Some(&crate::machine::OnReboot::Exit));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place_and_the_remedy() {
        for (text, at, words) in [
            ("memry = \"1G\"", 0, &["memry", "did you mean `memory`"][..]),
            (
                "colour = 1",
                0,
                &["colour", "the keys are kernel, initramfs"],
            ),
            ("config = \"f\"", 0, &["config"]),
            ("help = true", 0, &["help"]),
            ("[run]\nvcpus = 1", 1, &["run", "the keys are"]),
            (
                "memory = 512",
                9,
                &["a text", "integer", "memory = \"512M\""],
            ),
            ("memory = \"512\"", 9, &["memory", "for example 512M"]),
            (
                "vcpus = \"2\"",
                8,
                &["a whole number", "string", "vcpus = 1"],
            ),
            ("vcpus = 2.5", 8, &["a whole number", "float"]),
            ("vcpus = -1", 8, &["-1 is not in 0.."]),
            ("pool = 99999999999999999999", 7, &["pool"]),
            ("hugepages = 1", 12, &["true or false", "hugepages = false"]),
            ("on-reboot = \"never\"", 12, &["never", "restart or exit"]),
            ("tap = \"a/b\"", 6, &["not an interface name"]),
            ("disk = \"a.img\"", 7, &["a list", "disk = [\"FILE"]),
            ("disk = [1]", 7, &["a list"]),
            ("disk = [\"a\", \"b,rw\"]", 7, &["disk", "`rw`"]),
            ("kernel = \"\"", 9, &["kernel"]),
            ("kernel = ", 9, &["KEY = VALUE"]),
            ("kernel = vmlinuz", 9, &["KEY = VALUE"]),
            ("vcpus = 1\nvcpus = 2", 10, &["duplicate", "KEY = VALUE"]),
        ] {
            let (found, what) = ConfigFile::parse(text.as_bytes()).unwrap_err();
            assert_eq!(found, at, "{text}: {what}");
            for word in words {
                assert!(what.contains(word), "{text}: {word:?} is not in: {what}");
            }
            assert_eq!(what.lines().count(), 1, "{what}");
        }
        let (at, what) = ConfigFile::parse(b"vcpus = 1 # \xff").unwrap_err();
        assert_eq!((at, what.contains("UTF-8")), (12, true));
    }
}
