//! Running helper programs with errors that say what went wrong.

use std::process::{Command, Output, Stdio};

use crate::error::{Error, Result};

/// How many of the last output lines an error quotes.
const TAIL_LINES: usize = 30;

/// Runs `command` to its end and returns what it printed.
///
/// # Errors
///
/// [`Error::Spawn`] when it cannot be started, [`Error::Command`] with the end of its output when it fails.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| spawn_error(command, source))?;
    if output.status.success() {
        return Ok(output);
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Err(Error::Command {
        command: display(command),
        status: output.status,
        output: tail(&text, TAIL_LINES),
    })
}

/// Runs `command` to its end and returns its standard output as text.
///
/// # Errors
///
/// The same as [`output`].
pub(crate) fn stdout(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&output(command)?.stdout).into_owned())
}

/// Removes the variables of an outer make from the environment of `command`, which is a make.
pub(crate) fn without_outer_make(command: &mut Command) {
    for variable in ["MAKEFLAGS", "MFLAGS", "MAKELEVEL"] {
        command.env_remove(variable);
    }
}

/// The error for a program that could not be started.
pub(crate) fn spawn_error(command: &Command, source: std::io::Error) -> Error {
    Error::Spawn {
        program: command.get_program().to_string_lossy().into_owned(),
        source,
    }
}

/// The command line, for messages.
pub(crate) fn display(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

/// The last `lines` lines of `text`.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Quotes a word for a POSIX shell, if it needs quotes.
pub fn shell_quote(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
    // An option may have a value; other words with `=` could be taken for assignments.
    let is_plain = |byte| is_plain(byte) || (byte == b'=' && word.starts_with('-'));
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_word_survives_the_shell() {
        let word = "it's $HOME \"and\" `more`\n";
        let text = stdout(
            Command::new("sh")
                .arg("-c")
                .arg(format!("printf %s {}", shell_quote(word))),
        );
        assert_eq!(text.unwrap(), word);
        assert_eq!(shell_quote("--seed=9"), "--seed=9");
        assert_eq!(["", "A=b"].map(shell_quote), ["''", "'A=b'"]);
    }

    #[test]
    fn a_failing_command_says_how_it_ended_and_what_it_said() {
        let error =
            stdout(Command::new("sh").args(["-c", "echo no luck >&2; exit 7"])).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("exit status: 7") && text.contains("no luck"),
            "{text}"
        );
    }

    #[test]
    fn the_tail_keeps_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
    }
}
