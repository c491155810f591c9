//! A reader of the driver's C files that knows as much of C as these files need.

use std::fs;
use std::path::{Path, PathBuf};

/// A function definition.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    /// Its name.
    pub(crate) name: String,
    /// From its return type to its closing brace, as [`squeeze`] leaves it.
    pub(crate) text: String,
}

/// The folder of the driver.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest-kmod")
}

/// The text of one of the driver's files.
pub(crate) fn read(file: &str) -> String {
    let path = folder().join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// Length of the comment or literal at the start of `text`, or `None` if there is none.
fn opaque(text: &str) -> Option<usize> {
    let end = |from: usize, mark: &str| text[from..].find(mark).map_or(text.len(), |at| from + at);
    match text.as_bytes() {
        [b'/', b'*', ..] => Some((end(2, "*/") + 2).min(text.len())),
        [b'/', b'/', ..] => Some(end(2, "\n")),
        [quote @ (b'"' | b'\''), rest @ ..] => {
            let mut escaped = false;
            let length = rest.iter().position(|byte| {
                let ends = byte == quote && !escaped;
                escaped = *byte == b'\\' && !escaped;
                ends
            });
            Some(length.map_or(text.len(), |length| length + 2))
        }
        _ => None,
    }
}

/// Whether two characters would be one word without a space between them.
fn needs_space(left: char, right: char) -> bool {
    let word = |character: char| character.is_alphanumeric() || character == '_';
    word(left) && word(right)
}

/// Without comments, and without white space except where it parts two words. Literals stay as they are.
pub(crate) fn squeeze(text: &str) -> String {
    let mut squeezed = String::new();
    let mut spaced = false;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let literal = opaque(rest);
        let length = literal.unwrap_or(first.len_utf8());
        if first.is_whitespace() || (literal.is_some() && first == '/') {
            spaced = true;
        } else {
            if spaced && squeezed.ends_with(|last| needs_space(last, first)) {
                squeezed.push(' ');
            }
            spaced = false;
            squeezed.push_str(&rest[..length]);
        }
        rest = &rest[length..];
    }
    squeezed
}

/// The function definitions of a C file, in order.
pub(crate) fn functions(text: &str) -> Vec<Function> {
    // Directives end at their line, everything else at a semicolon or brace.
    let text: String = text
        .replace("\\\n", " ")
        .lines()
        .map(|line| if line.starts_with('#') { ";" } else { line })
        .flat_map(|line| [line, "\n"])
        .collect();
    let text = squeeze(&text);
    let (mut found, mut start, mut body, mut depth) = (Vec::new(), 0, 0, 0);
    let mut at = 0;
    while at < text.len() {
        if let Some(length) = opaque(&text[at..]) {
            at += length;
            continue;
        }
        match text.as_bytes()[at] {
            b'{' => {
                if depth == 0 {
                    body = at;
                }
                depth += 1;
            }
            b'}' => {
                depth -= 1;
                if let (0, Some(name)) = (depth, defined(&text[start..body])) {
                    let text = text[start..=at].to_owned();
                    found.push(Function { name, text });
                    start = at + 1;
                }
            }
            b';' if depth == 0 => start = at + 1,
            _ => {}
        }
        at += 1;
    }
    found
}

/// The function that is defined by a body after `head`, if it is a function's.
fn defined(head: &str) -> Option<String> {
    let (front, _) = head.split_once('(')?;
    if !head.ends_with(')') || front.contains('=') {
        return None;
    }
    let word = |character: char| !(character.is_alphanumeric() || character == '_');
    front.rsplit(word).next().map(str::to_owned)
}

/// The definition of a function in one of the driver's files.
pub(crate) fn function(file: &str, name: &str) -> Option<Function> {
    functions(&read(file))
        .into_iter()
        .find(|function| function.name == name)
}

#[test]
fn comments_and_white_space_are_squeezed() {
    let text = "static  u32\n/* why */ f(int a,\n\tchar *b) // end\n{ return \"/* a  b */\"[a] ; }";
    assert_eq!(
        squeeze(text),
        "static u32 f(int a,char*b){return\"/* a  b */\"[a];}"
    );
    assert_eq!(squeeze("'\\'' + '/*'"), "'\\''+'/*'");
}

#[test]
fn functions_are_found_and_nothing_else() {
    let text = "#define pr_fmt(x) { x\n#include <a.h>\nstatic int table[] = { f(1) };\nint f(void);\n\
                struct s {\n\tint (*call)(int a);\n};\nDEFINE(x);\n\
                static const struct ops o = {\n\t.call = f,\n};\n\
                int f(void)\n{\n\tif (a) {\n\t\tb(\"}\");\n\t}\n}\n\nstruct s *g(int (*take)(int))\n{\n}\n";
    let found = functions(text);
    let names: Vec<&str> = found.iter().map(|function| &*function.name).collect();
    assert_eq!(names, ["f", "g"]);
    assert_eq!(found[0].text, "int f(void){if(a){b(\"}\");}}");
    assert_eq!(found[1].text, "struct s*g(int(*take)(int)){}");
}

#[test]
fn a_changed_function_has_another_text() {
    let text = |body: &str| {
        functions(&format!("int f(int a)\n{{\n{body}\n}}"))
            .remove(0)
            .text
    };
    assert_eq!(text("return a;"), text("\t/* new */\n\treturn a ;"));
    assert_ne!(text("return a;"), text("return a + 1;"));
}
