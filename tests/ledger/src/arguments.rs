//! Options as command-line arguments for another process of the same program.

use serde::Serialize;
use serde_json::Value;

/// The arguments that clap parses into `options`, a structure whose fields have the options' names: `--name=value`, also
/// for each of several values, or `--name` for a flag that is set.
///
/// # Panics
///
/// When a field is not a string, a number, a flag, or an `Option` or a list of them.
pub fn arguments(options: &impl Serialize) -> Vec<String> {
    let Ok(Value::Object(fields)) = serde_json::to_value(options) else {
        panic!("options are a structure");
    };
    let argument = |name: &str, value: Value| match value {
        Value::Null | Value::Bool(false) => None,
        Value::Bool(true) => Some(format!("--{name}")),
        Value::String(text) => Some(format!("--{name}={text}")),
        Value::Number(number) => Some(format!("--{name}={number}")),
        other => panic!("the option {name} is {other}"),
    };
    let of_field = |(name, value): (String, Value)| {
        let name = name.replace('_', "-");
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        let arguments = values.into_iter().map(|value| argument(&name, value));
        arguments.collect::<Vec<_>>()
    };
    fields.into_iter().flat_map(of_field).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Options {
        no_faults: bool,
        none: Vec<u64>,
        only: Vec<&'static str>,
        seed: u64,
        unset: Option<u64>,
        verbose: bool,
    }

    #[test]
    fn options_become_arguments() {
        let options = Options {
            no_faults: true,
            none: Vec::new(),
            only: vec!["a kind", "another"],
            seed: 9,
            unset: None,
            verbose: false,
        };
        assert_eq!(
            arguments(&options),
            ["--no-faults", "--only=a kind", "--only=another", "--seed=9"]
        );
    }
}
