//! The commands in a Markdown document: code blocks whose first line has a mark.
//!
//! ````text
//! ```sh walk=host          commands for that place
//! ```sh walk=host,again    commands that only look: repeated until they print what is expected
//! ```text walk             what the commands just before print: each line, in this order, `...` for anything; lines between
//!                          them are skipped
//! ````

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// Where commands run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Place {
    /// In the guest's system, before it has booted.
    Guest,
    /// In the host's system, before it has booted and while it reaches Debian's archive.
    HostPackages,
    /// On the host.
    Host,
}

impl Place {
    const ALL: [(&str, Self); 3] = [
        ("guest", Self::Guest),
        ("host-packages", Self::HostPackages),
        ("host", Self::Host),
    ];

    fn named(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find_map(|(other, place)| (other == name).then_some(place))
    }
}

/// Commands with what they print.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// The line of the document on which the block begins.
    line: usize,
    place: Place,
    again: bool,
    commands: String,
    expected: String,
}

/// What the first line of a code block says.
enum Kind {
    Commands { place: Place, again: bool },
    Output,
    Other,
}

fn kind(info: &str) -> Result<Kind> {
    let mut words = info.split_whitespace();
    let language = words.next().unwrap_or_default();
    let Some(mark) = words.find(|word| word.starts_with("walk")) else {
        return Ok(Kind::Other);
    };
    if (language, mark) == ("text", "walk") {
        return Ok(Kind::Output);
    }
    let place = mark.strip_prefix("walk=").unwrap_or_default();
    let (place, again) = match place.strip_suffix(",again") {
        Some(place) => (place, true),
        None => (place, false),
    };
    match Place::named(place) {
        Some(place) if language == "sh" => Ok(Kind::Commands { place, again }),
        _ => bail!(
            "`{info}` is not a mark: write `sh walk=PLACE` (guest, host-packages or host), `sh walk=PLACE,again` or `text walk`"
        ),
    }
}

/// The marked blocks of a document.
///
/// # Errors
///
/// When a mark is wrong, and when output does not follow commands.
pub(crate) fn parse(text: &str) -> Result<Vec<Block>> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut lines = text.lines().zip(1..);
    // Whether output may follow: other code must not come between commands and what they print.
    let mut is_commands = false;
    while let Some((line, number)) = lines.next() {
        let Some(info) = line.strip_prefix("```") else {
            continue;
        };
        let kind = kind(info).with_context(|| format!("line {number}"))?;
        let mut content = String::new();
        loop {
            match lines.next() {
                Some(("```", _)) => break,
                Some((line, _)) => content.extend([line, "\n"]),
                None => bail!("line {number}: the code block does not end"),
            }
        }
        match kind {
            Kind::Other => is_commands = false,
            Kind::Commands { place, again } => {
                is_commands = true;
                blocks.push(Block {
                    line: number,
                    place,
                    again,
                    commands: content,
                    expected: String::new(),
                });
            }
            Kind::Output => {
                ensure!(is_commands, "line {number}: output without commands");
                is_commands = false;
                let block = blocks.last_mut().context("commands before output")?;
                block.expected = content;
            }
        }
    }
    let endless = blocks
        .iter()
        .find(|block| block.again && block.expected.is_empty());
    if let Some(block) = endless {
        bail!("line {}: repeated until what is printed?", block.line);
    }
    Ok(blocks)
}

/// Writes the commands of a place: for each block `NUMBER.sh`, `NUMBER.expected` if it is expected to print something,
/// `NUMBER.again` if it is repeated, and `NUMBER.line`, which names it.
///
/// # Errors
///
/// When there are none, or a file cannot be written.
pub(crate) fn write(blocks: &[Block], place: Place, document: &str, folder: &Path) -> Result<()> {
    let of_place = blocks.iter().filter(|block| block.place == place);
    let mut count = 0;
    for block in of_place {
        count += 1;
        let put = |extension: &str, content: &str| {
            let path = folder.join(format!("{count:03}.{extension}"));
            fs::write(&path, content).with_context(|| format!("write {}", path.display()))
        };
        put("sh", &block.commands)?;
        put("line", &format!("{document}:{}\n", block.line))?;
        if !block.expected.is_empty() {
            put("expected", &block.expected)?;
        }
        if block.again {
            put("again", "")?;
        }
    }
    ensure!(count > 0, "{document} has no commands for {place:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
Text\n\
```sh walk=host\n\
one\n\
two\n\
```\n\
prints\n\
```text walk\n\
1\n\
...\n\
```\n\
```console\n\
# other\n\
```\n\
```sh walk=guest\n\
three\n\
```\n";

    #[test]
    fn marked_blocks_are_found_with_their_output() {
        let blocks = parse(TEXT).unwrap();
        assert_eq!(blocks.len(), 2);
        assert_eq!((blocks[0].line, blocks[0].place), (2, Place::Host));
        assert_eq!(blocks[0].commands, "one\ntwo\n");
        assert_eq!(blocks[0].expected, "1\n...\n");
        assert_eq!((blocks[1].line, blocks[1].place), (14, Place::Guest));
        assert_eq!(blocks[1].expected, "");
    }

    #[test]
    fn wrong_marks_are_refused_with_their_line() {
        for (text, what) in [
            ("```sh walk=moon\n```\n", "line 1"),
            ("```sh walk\n```\n", "line 1"),
            ("\n```text walk\n```\n", "line 2: output without commands"),
            ("```sh walk=host\n", "line 1: the code block does not end"),
            ("```sh walk=host,again\nx\n```\n", "line 1: repeated"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(what), "{text:?}: {error}");
        }
        let between = "```sh walk=host\nx\n```\n```sh\ny\n```\n```text walk\nz\n```\n";
        assert!(parse(between).is_err());
    }

    #[test]
    fn each_place_gets_its_own_commands() {
        let folder = tempfile::tempdir().unwrap();
        let blocks = parse(TEXT).unwrap();
        write(&blocks, Place::Guest, "d.md", folder.path()).unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).ok();
        assert_eq!(read("001.sh").as_deref(), Some("three\n"));
        assert_eq!(read("001.line").as_deref(), Some("d.md:14\n"));
        assert_eq!((read("001.expected"), read("002.sh")), (None, None));
        assert!(write(&blocks, Place::HostPackages, "d.md", folder.path()).is_err());
    }

    #[test]
    fn the_document_has_commands_for_all_places() {
        let path = vmsrs_bed::project::root().join(crate::DOCUMENT);
        let blocks = parse(&fs::read_to_string(path).unwrap()).unwrap();
        for (name, place) in Place::ALL {
            assert!(blocks.iter().any(|block| block.place == place), "{name}");
        }
    }
}
