//! Lays declarations out as a template says.
//!
//! Lines of a template that begin with `@` name declarations, all others are copied:
//!
//! * `@declare NAME...`: the declarations with their comments;
//! * `@enumerators NAME...`: constants as enumerators, inside of an `enum` of the template;
//! * `@bare NAME...`: declarations without comments, constants in a column.
//!
//! A name that ends with `*` stands for all that begin so and are not laid out yet, in the order of the
//! sources. Every declaration has to have its place.

use std::fmt::Write as _;

use crate::items::{Code, Item, Member};

/// Longest line.
const WIDTH: usize = 80;

/// Columns of a tab.
const TAB: usize = 8;

/// How comments are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// `/** ... */` before everything that has one.
    Doxygen,
    /// `/* ... */` before constants, kernel-doc before structures.
    Kernel,
}

/// A template filled in.
///
/// # Panics
///
/// When it names what does not exist, or leaves a declaration out.
pub(crate) fn fill(template: &str, items: &[Item], style: Style) -> String {
    let mut left: Vec<&Item> = items.iter().collect();
    let mut text = String::new();
    for line in template.lines() {
        let Some((directive, names)) = line.strip_prefix('@').and_then(|line| line.split_once(' '))
        else {
            let _ = writeln!(text, "{line}");
            continue;
        };
        let found = take(&mut left, names);
        match directive {
            "declare" => declare(&mut text, &found, style),
            "enumerators" => enumerators(&mut text, &found),
            "bare" => bare(&mut text, &found),
            _ => panic!("unknown directive {directive:?}"),
        }
    }
    let left: Vec<_> = left.iter().map(|item| &item.name).collect();
    assert!(left.is_empty(), "the template leaves out {left:?}");
    text
}

/// Takes the declarations with these names.
fn take<'a>(left: &mut Vec<&'a Item>, names: &str) -> Vec<&'a Item> {
    let mut found = Vec::new();
    for wanted in names.split_whitespace() {
        let before = found.len();
        left.retain(|&item| {
            let is_wanted = match wanted.strip_suffix('*') {
                Some(prefix) => item.name.starts_with(prefix),
                None => item.name == wanted,
            };
            if is_wanted {
                found.push(item);
            }
            !is_wanted
        });
        assert!(found.len() > before, "nothing is called {wanted:?}");
    }
    found
}

fn declare(text: &mut String, items: &[&Item], style: Style) {
    for (at, item) in items.iter().enumerate() {
        // Constants with a line each stand close.
        let is_short = |item: &Item| {
            matches!(item.code, Code::Constant(_)) && one_line("", "/*", &item.doc).is_some()
        };
        if at > 0 && !(is_short(item) && is_short(items[at - 1])) {
            text.push('\n');
        }
        match (&item.code, style) {
            (Code::Struct(head, members, tail), Style::Kernel) => {
                kernel_doc(text, item, members);
                structure(text, head, members, tail, None);
            }
            (Code::Struct(head, members, tail), Style::Doxygen) => {
                comment(text, "", "/**", &item.doc);
                structure(text, head, members, tail, Some("/**"));
            }
            (code, style) => {
                let open = if style == Style::Kernel { "/*" } else { "/**" };
                comment(text, "", open, &item.doc);
                match code {
                    Code::Constant(value) => {
                        let _ = writeln!(text, "#define {} {}", item.name, constant(value));
                    }
                    Code::Line(line) => prototype(text, line),
                    Code::Struct(..) => unreachable!("above"),
                }
            }
        }
    }
}

fn structure(text: &mut String, head: &str, members: &[Member], tail: &str, open: Option<&str>) {
    let _ = writeln!(text, "{head}");
    for member in members {
        if let Some(open) = open {
            comment(text, "\t", open, &member.doc);
        }
        let _ = writeln!(text, "\t{}", member.code);
    }
    let _ = writeln!(text, "{tail}");
}

fn comment(text: &mut String, indent: &str, open: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    if let Some(line) = one_line(indent, open, lines) {
        let _ = writeln!(text, "{line}");
        return;
    }
    let _ = writeln!(text, "{indent}{open}");
    flow(text, indent, lines);
    let _ = writeln!(text, "{indent} */");
}

/// A comment that fits on a line.
fn one_line(indent: &str, open: &str, lines: &[String]) -> Option<String> {
    if lines.iter().any(String::is_empty) || lines.iter().skip(1).any(|line| begins(line).is_some())
    {
        return None;
    }
    let line = format!("{indent}{open} {} */", lines.join(" "));
    let columns = line.chars().count() + indent.len() * (TAB - 1);
    (columns <= WIDTH).then_some(line)
}

/// Whether a line begins an entry of a list; the indent of the lines that go on with it.
fn begins(line: &str) -> Option<&'static str> {
    match line.as_bytes() {
        [b'@', ..] => Some("    "),
        [b'-', b' ', ..] => Some("  "),
        _ => None,
    }
}

/// Paragraphs and lists, wrapped at the width.
fn flow(text: &mut String, indent: &str, lines: &[String]) {
    let width = WIDTH - indent.len() * TAB - 3;
    let (mut filled, mut hanging) = (String::new(), "");
    let mut put = |filled: &mut String| {
        let line = format!("{indent} * {filled}");
        let _ = writeln!(text, "{}", line.trim_end());
        filled.clear();
    };
    for line in lines {
        if line.is_empty() || begins(line).is_some() {
            if !filled.is_empty() {
                put(&mut filled);
            }
            hanging = begins(line).unwrap_or("");
            if line.is_empty() {
                put(&mut filled);
            }
        }
        for word in line.split_whitespace() {
            if filled.chars().count() + 1 + word.chars().count() > width {
                put(&mut filled);
                filled.push_str(hanging);
            } else if !filled.is_empty() {
                filled.push(' ');
            }
            filled.push_str(word);
        }
    }
    put(&mut filled);
}

/// Name and first line, then the members, then the rest of the description.
fn kernel_doc(text: &mut String, item: &Item, members: &[Member]) {
    let end = item.doc.iter().position(String::is_empty);
    let (brief, rest) = item.doc.split_at(end.unwrap_or(item.doc.len()));
    let _ = writeln!(text, "/**");
    wrap(text, &format!("struct {} -", item.name), &brief.join(" "));
    for member in members {
        let name = member.code.rsplit(' ').next().unwrap_or_default();
        let name = name.split(['[', ';']).next().unwrap_or_default();
        wrap(text, &format!("@{name}:"), &member.doc.join(" "));
    }
    if !rest.is_empty() {
        flow(text, "", rest);
    }
    let _ = writeln!(text, " */");
}

/// Words that follow a label in a comment, on as many lines as they need.
fn wrap(text: &mut String, label: &str, words: &str) {
    let mut line = format!(" * {label}");
    let mut columns = line.chars().count();
    for word in words.split_whitespace() {
        let length = word.chars().count();
        if columns + 1 + length > WIDTH {
            let _ = writeln!(text, "{line}");
            line = format!(" *\t{word}");
            columns = TAB + length;
        } else {
            line.push(' ');
            line.push_str(word);
            columns += 1 + length;
        }
    }
    let _ = writeln!(text, "{line}");
}

fn enumerators(text: &mut String, items: &[&Item]) {
    for item in items {
        let Code::Constant(value) = &item.code else {
            panic!("{} is not a constant", item.name);
        };
        comment(text, "\t", "/**", &item.doc);
        let _ = writeln!(text, "\t{} = {value},", item.name);
    }
}

fn bare(text: &mut String, items: &[&Item]) {
    let width = items.iter().map(|item| item.name.len()).max().unwrap_or(0);
    for item in items {
        match &item.code {
            Code::Constant(value) => {
                let _ = writeln!(text, "#define {:width$} {}", item.name, constant(value));
            }
            Code::Line(line) => prototype(text, line),
            Code::Struct(head, members, tail) => structure(text, head, members, tail, None),
        }
    }
}

/// The value of a macro: large numbers in hexadecimal, what is more than a number in parentheses.
fn constant(value: &str) -> String {
    let digits = value.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    match digits.parse::<u64>() {
        // Sizes are powers of two, and read better so.
        Ok(number) if number > 0xfff && !number.is_power_of_two() || number > 0xffff => {
            let suffix = if number > i64::MAX as u64 { "ULL" } else { "" };
            format!("{number:#x}{suffix}")
        }
        Ok(_) => value.to_owned(),
        Err(_) if value.starts_with('(') => value.to_owned(),
        Err(_) => format!("({value})"),
    }
}

/// A prototype; what does not fit on a line goes on below the first argument, and attributes before it
/// have a line of their own.
fn prototype(text: &mut String, line: &str) {
    let (mut head, mut rest) = ("", line);
    if line.len() > WIDTH
        && let Some((attribute, prototype)) = line.split_once(' ')
        && attribute.starts_with("VMSRS_")
    {
        let _ = writeln!(text, "{attribute}");
        rest = prototype;
    }
    if rest.len() > WIDTH
        && let Some(open) = rest.find('(').filter(|_| !rest.contains("(*"))
    {
        (head, rest) = rest.split_at(open + 1);
    }
    let indent = "\t".repeat(head.len() / TAB) + &" ".repeat(head.len() % TAB);
    let mut column = head.len();
    text.push_str(head);
    for (at, argument) in rest.split_inclusive(", ").enumerate() {
        if at > 0 && column + argument.trim_end().len() > WIDTH && !head.is_empty() {
            text.truncate(text.trim_end().len());
            let _ = write!(text, "\n{indent}");
            column = head.len();
        }
        text.push_str(argument);
        column += argument.len();
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::items::{Names, parse};

    fn items() -> Vec<Item> {
        let text = "// One.\n#define V_ONE 1\n// Two,\n// or more:\n// - none\n#define V_TWO -2\n\
                    #define V_BIG 4294967295\n// A pair.\nstruct pair {\n  // Its first.\n  int a;\n};\n\
                    // Adds.\nVMSRS_MUST_USE int add_many(const struct pair *first, \
                    const struct pair *second, int *all_results);\n";
        parse(text, &Names::default())
    }

    #[test]
    fn constants_become_enumerators_or_macros() {
        let template = "enum {\n@enumerators V_O* V_TWO\n};\n@bare V_*\n@declare pair add_many";
        let text = fill(template, &items(), Style::Doxygen);
        let expected = "enum {\n\t/** One. */\n\tV_ONE = 1,\n\t/**\n\t * Two, or more:\n\t * - none\n\t */\n\
                        \tV_TWO = -2,\n};\n#define V_BIG 0xffffffff\n/** A pair. */\nstruct pair {\n\
                        \t/** Its first. */\n\tint a;\n};\n\n/** Adds. */\nVMSRS_MUST_USE\n\
                        int add_many(const struct pair *first, const struct pair *second,\n\
                        \t     int *all_results);\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn structures_have_kernel_doc_in_the_kernel_style() {
        let text = fill("@declare V_* pair add_many", &items(), Style::Kernel);
        assert!(
            text.starts_with("/* One. */\n#define V_ONE 1\n\n/*\n * Two, or more:\n"),
            "{text}"
        );
        assert!(text.contains("#define V_TWO (-2)\n"), "{text}");
        let expected =
            "/**\n * struct pair - A pair.\n * @a: Its first.\n */\nstruct pair {\n\tint a;\n};\n";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    #[should_panic(expected = "leaves out")]
    fn no_declaration_is_left_out() {
        fill("@declare V_*", &items(), Style::Kernel);
    }

    #[test]
    #[should_panic(expected = "nothing is called")]
    fn a_name_without_declaration_is_an_error() {
        fill("@declare V_THREE", &items(), Style::Kernel);
    }
}
