//! What cbindgen writes, taken apart: declarations with their comments.

use std::borrow::Cow;
use std::collections::HashMap;

/// A member of a structure.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) doc: Vec<String>,
    /// The declaration with its semicolon.
    pub(crate) code: String,
}

/// What a declaration declares.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// The value of a macro.
    Constant(String),
    /// Head, members and tail of a structure.
    Struct(String, Vec<Member>, String),
    /// A function or a type, on one line.
    Line(String),
}

/// A declaration.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) name: String,
    pub(crate) doc: Vec<String>,
    pub(crate) code: Code,
}

/// Names of Rust items that documentation links to, and what they are called in C.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Prefix of constants.
    pub(crate) prefix: String,
    /// C names of types.
    pub(crate) types: HashMap<String, String>,
}

/// Takes apart what cbindgen writes with comments in the style of C99 and a declaration a line.
///
/// # Panics
///
/// When a declaration has no name.
pub(crate) fn parse(text: &str, names: &Names) -> Vec<Item> {
    let mut items = Vec::new();
    let mut doc = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(comment) = line.strip_prefix("//") {
            doc.push(comment);
        } else if !line.is_empty() {
            let code = match line.strip_prefix("#define ") {
                Some(constant) => Code::Constant(
                    constant
                        .split_once(' ')
                        .map_or(String::new(), |(_, value)| value.to_owned()),
                ),
                None if line.ends_with('{') => {
                    let body = lines.by_ref().take_while(|line| !line.starts_with('}'));
                    let members = members(body, names);
                    let tail = match line.strip_prefix("typedef struct ") {
                        Some(name) => format!("}} {};", name.trim_end_matches(" {")),
                        None => "};".to_owned(),
                    };
                    Code::Struct(line.to_owned(), members, tail)
                }
                None => Code::Line(line.to_owned()),
            };
            let name = name(line).unwrap_or_else(|| panic!("no name in {line:?}"));
            let doc = documentation(&std::mem::take(&mut doc), names);
            items.push(Item { name, doc, code });
        }
    }
    items
}

fn members<'a>(lines: impl Iterator<Item = &'a str>, names: &Names) -> Vec<Member> {
    let mut members = Vec::new();
    let mut doc = Vec::new();
    for line in lines.map(str::trim) {
        match line.strip_prefix("//") {
            Some(comment) => doc.push(comment),
            None => members.push(Member {
                doc: documentation(&std::mem::take(&mut doc), names),
                code: line.to_owned(),
            }),
        }
    }
    members
}

/// The name that a line declares.
fn name(line: &str) -> Option<String> {
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let first = |text: &str| {
        text.split(|letter| !is_name(letter))
            .next()
            .map(str::to_owned)
    };
    let last = |text: &str| {
        text.rsplit(|letter| !is_name(letter))
            .next()
            .map(str::to_owned)
    };
    let name = if let Some(constant) = line.strip_prefix("#define ") {
        first(constant)
    } else if let Some((_, pointer)) = line.split_once("(*") {
        first(pointer)
    } else if let Some((function, _)) = line.split_once('(') {
        last(function)
    } else {
        last(line.trim_end_matches([';', '{', ' ']))
    };
    name.filter(|name| !name.is_empty())
}

/// A comment as C has it: without the section on safety, which speaks to callers in Rust, and with the
/// names that C has.
fn documentation(lines: &[&str], names: &Names) -> Vec<String> {
    let mut doc = Vec::new();
    let mut is_safety = false;
    for line in lines
        .iter()
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
    {
        if let Some(heading) = line.strip_prefix("# ") {
            is_safety = heading == "Safety";
        }
        if !is_safety {
            doc.push(plain(line, names).into_owned());
        }
    }
    while doc.last().is_some_and(String::is_empty) {
        doc.pop();
    }
    doc
}

/// A line without Markdown: links become names, code has no quotes.
fn plain<'a>(line: &'a str, names: &Names) -> Cow<'a, str> {
    if !line.contains('`') {
        return line.into();
    }
    let mut text = String::new();
    let mut rest = line;
    while let Some((before, code)) = rest.split_once('`') {
        let Some((code, after)) = code.split_once('`') else {
            break;
        };
        let link = before.strip_suffix('[').zip(after.strip_prefix(']'));
        rest = match link {
            Some((before, after)) => {
                let (name, is_type) = names.of(code);
                text.push_str(before);
                text.push_str(&name);
                // `struct event`s are not called events.
                let plural = after.strip_prefix('s').filter(|_| is_type);
                plural.unwrap_or(after)
            }
            None => {
                text.push_str(before);
                // All constants that begin so.
                if code.ends_with("_*") {
                    text.push_str(&names.prefix);
                }
                text.push_str(code);
                after
            }
        };
    }
    text.push_str(rest);
    text.into()
}

impl Names {
    /// The C name of what a link leads to, and whether it is a type.
    fn of(&self, path: &str) -> (String, bool) {
        let mut parts = path.rsplit("::");
        let last = parts.next().unwrap_or(path);
        let of_type = |name: &str| self.types.get(name).map(|name| format!("struct {name}"));
        if let Some(name) = of_type(last) {
            return (name, true);
        }
        match parts.next().and_then(of_type) {
            Some(owner) => (format!("{last} of {owner}"), false),
            None => (format!("{}{last}", self.prefix), false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doc(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|&line| line.to_owned()).collect()
    }

    #[test]
    fn declarations_are_found_with_their_comments() {
        let text = "// One.\n#define ONE 1\n\n// A pair.\ntypedef struct pair {\n  // Its first.\n  \
                    int a;\n  int b[2];\n} pair;\n\n// Adds.\n//\n// # Safety\n//\n// None.\n\
                    int add(const struct pair *p);\ntypedef int (*call)(int x);\n";
        let items = parse(text, &Names::default());
        let names: Vec<_> = items.iter().map(|item| item.name.as_str()).collect();
        assert_eq!(names, ["ONE", "pair", "add", "call"]);
        assert_eq!(items[0].code, Code::Constant("1".to_owned()));
        let Code::Struct(head, members, tail) = &items[1].code else {
            panic!("{items:?}");
        };
        assert_eq!(
            (head.as_str(), tail.as_str()),
            ("typedef struct pair {", "} pair;")
        );
        assert_eq!(
            (&members[0].doc, members[1].code.as_str()),
            (&doc(&["Its first."]), "int b[2];")
        );
        assert_eq!(items[2].doc, doc(&["Adds."]));
    }

    #[test]
    fn links_become_the_names_that_c_has() {
        let names = Names {
            prefix: "V_".to_owned(),
            types: HashMap::from([("Event".to_owned(), "v_event".to_owned())]),
        };
        let line = "`x`: [`Event`]s, [`crate::NONE`], [`Event::kind`], `ON_*`, `E*`, [1]";
        let expected = "x: struct v_event, V_NONE, kind of struct v_event, V_ON_*, E*, [1]";
        assert_eq!(plain(line, &names), expected);
    }
}
