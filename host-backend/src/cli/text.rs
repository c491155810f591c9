//! Output for people and for programs.

use std::io::{self, Write};

use comfy_table::{Table, presets};
use serde::Serialize;

/// Writes one line of JSON to standard output.
pub(super) fn write_json(value: &impl Serialize) -> io::Result<()> {
    write(&json_line(value)?)
}

/// A line of JSON, in which every character that a terminal would act on is escaped.
pub(super) fn json_line(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = json(value)?;
    line.push(b'\n');
    Ok(line)
}

/// JSON in which every character that a terminal would act on is escaped: it may be shown there, and
/// says the same.
fn json(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(
        &mut line, Escaping,
    ))?;
    Ok(line)
}

/// Compact JSON. The characters that JSON itself wants escaped never come to the formatter.
struct Escaping;

impl serde_json::ser::Formatter for Escaping {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + Write,
    {
        let mut rest = fragment;
        while let Some(at) = rest.find(is_command) {
            writer.write_all(&rest.as_bytes()[..at])?;
            let mut after = rest[at..].chars();
            // All of them have 16 bits; this would do for others too.
            for unit in after.next().into_iter().flat_map(|c| {
                let mut units = [0; 2];
                let length = c.encode_utf16(&mut units).len();
                units.into_iter().take(length)
            }) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = after.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

/// Whether a terminal or a text layout acts on a character rather than showing it: control
/// characters (C0, DEL and C1), marks and overrides of direction, separators of lines.
fn is_command(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Writes text to standard output.
pub(super) fn write_text(text: &str) -> io::Result<()> {
    write(text.as_bytes())
}

/// Writes to standard output; a reader that has gone away (`vmsrs incidents | head`) is not an error.
fn write(bytes: &[u8]) -> io::Result<()> {
    let mut output = io::stdout().lock();
    match output.write_all(bytes).and_then(|()| output.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Lines of a name and a value each, the values in one column. An empty name continues the line
/// above.
pub(super) fn facts(rows: &[(&str, String)]) -> String {
    let mut table = plain_table();
    table.add_rows(rows.iter().map(|(name, value)| [*name, value]));
    lines(&table)
}

/// A table with aligned columns.
pub(super) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let mut table = plain_table();
    table.set_header(head);
    table.add_rows(rows);
    lines(&table)
}

/// A table without borders.
fn plain_table() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

/// The lines of a table: columns two spaces apart, and no spaces at the end.
fn lines(table: &Table) -> String {
    let mut table = table.clone();
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt() + "\n"
}

/// Text from the guest, without characters that a terminal would act on.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if is_command(c) { '\u{fffd}' } else { c })
        .collect()
}

/// An optional text from the guest, or `-`.
pub(super) fn printable_or_dash(text: Option<&str>) -> String {
    text.map_or_else(|| "-".to_owned(), printable)
}

/// An optional address, or `-`.
pub(super) fn address(address: Option<u64>) -> String {
    address.map_or_else(|| "-".to_owned(), |address| format!("{address:#x}"))
}

/// A span of time, in its two largest units.
pub(super) fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds}.{:03} s", ms % 1000),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// A span of time in nanoseconds, in the unit that fits.
pub(super) fn nanoseconds(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} µs", ns as f64 / 1e3),
        _ => format!("{:.1} ms", ns as f64 / 1e6),
    }
}

/// A point in time, given in milliseconds since the Unix epoch, in UTC.
pub(super) fn time(ms: u64) -> String {
    const DAY: u64 = 86_400_000;
    let (days, rest) = (ms / DAY, ms % DAY);
    let (year, month, day) = date(days);
    let (seconds, millis) = (rest / 1000, rest % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{millis:03}")
}

/// Year, month and day of the day that many days after 1970-01-01, in the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    // 400 years have the same number of days wherever they start.
    let mut year = 1970 + days / 146_097 * 400;
    let mut rest = days % 146_097;
    loop {
        let length = 365 + u64::from(is_leap(year));
        if rest < length {
            break;
        }
        rest -= length;
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year, month, rest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc() {
        for (ms, text) in [
            (0, "1970-01-01 00:00:00.000"),
            (951_782_400_000, "2000-02-29 00:00:00.000"),
            (1_709_251_199_999, "2024-02-29 23:59:59.999"),
            (1_767_225_600_001, "2026-01-01 00:00:00.001"),
            (4_107_542_400_000, "2100-03-01 00:00:00.000"),
        ] {
            assert_eq!(time(ms), text);
        }
    }

    #[test]
    fn spans_have_the_unit_that_fits() {
        assert_eq!(duration(1_234), "1.234 s");
        assert_eq!(duration(61_000), "1 min 1 s");
        assert_eq!(duration(7_260_000), "2 h 1 min");
        assert_eq!(duration(90_000_000), "1 d 1 h");
        assert_eq!(nanoseconds(999), "999 ns");
        assert_eq!(nanoseconds(4_200), "4.2 µs");
        assert_eq!(nanoseconds(3_000_000), "3.0 ms");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            ["1".to_owned(), "äöü".to_owned()],
            ["22".to_owned(), "-".to_owned()],
        ];
        assert_eq!(table(["A", "NAME"], &rows), "A   NAME\n1   äöü\n22  -\n");
        let rows = [("a", "1".to_owned()), ("long", "2".to_owned())];
        assert_eq!(facts(&rows), "a     1\nlong  2\n");
    }

    #[test]
    fn text_of_the_guest_cannot_reach_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
        assert_eq!(
            printable("\u{9b}2J\u{7f}\u{202e}ä"),
            "\u{fffd}2J\u{fffd}\u{fffd}ä"
        );
    }

    #[test]
    fn json_is_safe_for_a_terminal() {
        let all: String = ('\0'..='\u{2fff}').chain(['\u{10ffff}', '😀']).collect();
        let bytes = json(&[&all, "\u{9b}2J", "plain ä"]).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        assert!(!text.contains(is_command), "{text:?}");
        assert!(text.ends_with(r#","\u009b2J","plain ä"]"#), "{text}");
        let back: Vec<String> = serde_json::from_str(&text).unwrap();
        assert_eq!(back[0], all);
    }
}
