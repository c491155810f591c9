//! Calls of all public functions of the library, for `inject/wild.c`, from its header.

/// A `CALL` for each function with arguments that the header declares, with their types.
pub(crate) fn calls(header: &str) -> String {
    let code = without_comments(header);
    let mut calls = String::new();
    let mut rest = &*code;
    while let Some((name, after)) = next_function(rest) {
        let (parameters, after) = after.split_once(')').unwrap_or((after, ""));
        rest = after;
        let types: Vec<_> = parameters.split(',').filter_map(type_of).collect();
        if types.is_empty() {
            continue;
        }
        calls.push_str(&format!("CALL({name}, {}", types.len()));
        for (number, parameter) in types.iter().enumerate() {
            calls.push_str(&format!(", ARGUMENT({number}, {parameter})"));
        }
        calls.push_str(")\n");
    }
    calls
}

fn without_comments(text: &str) -> String {
    let mut parts = text.split("/*");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |code, part| {
        code + part.split_once("*/").map_or("", |(_, code)| code)
    })
}

/// The next name of a function, and what follows its parenthesis.
fn next_function(code: &str) -> Option<(&str, &str)> {
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    code.match_indices('(').find_map(|(at, _)| {
        let start = code[..at].rfind(|letter| !is_name(letter))? + 1;
        let name = &code[start..at];
        name.starts_with("vmsrs_")
            .then_some((name, &code[at + 1..]))
    })
}

/// The type of a parameter, which ends with its name; `None` for `void`.
fn type_of(parameter: &str) -> Option<String> {
    let words: Vec<_> = parameter.split_whitespace().collect();
    let text = words.join(" ");
    let end = text.rfind([' ', '*'])? + 1;
    Some(text[..end].trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::calls;

    #[test]
    fn each_function_with_arguments_has_a_call() {
        let header = "#define vmsrs_x (1)\n/* vmsrs_no(int a); */\n\
                      typedef int (*vmsrs_fn)(struct vmsrs_app *app, void *argument);\n\
                      VMSRS_MUST_USE int vmsrs_open(const char *name,\n\t\t struct vmsrs_app **app);\n\
                      void vmsrs_fail(const char *message) VMSRS_NORETURN;\n\
                      void vmsrs_none(void);\n\
                      int vmsrs_all(const struct vmsrs_domain *const *domains, size_t count);\n";
        assert_eq!(
            calls(header),
            "CALL(vmsrs_open, 2, ARGUMENT(0, const char *), ARGUMENT(1, struct vmsrs_app **))\n\
             CALL(vmsrs_fail, 1, ARGUMENT(0, const char *))\n\
             CALL(vmsrs_all, 2, ARGUMENT(0, const struct vmsrs_domain *const *), ARGUMENT(1, size_t))\n"
        );
    }

    #[test]
    fn the_header_has_functions() {
        let header = include_str!("../../../guest-lib/include/vmsrs.h");
        let calls = calls(header);
        // All but those without arguments.
        assert!(calls.lines().count() >= 34, "{calls}");
        for name in ["vmsrs_open", "vmsrs_task_step", "vmsrs_app_info"] {
            assert!(calls.contains(&format!("CALL({name}, ")), "{name}");
        }
    }
}
