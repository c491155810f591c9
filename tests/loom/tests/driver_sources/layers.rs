//! The layers of the driver: `vmsrs.h` names the files in order, and none calls a later one.

use std::collections::HashMap;
use std::fs;

use crate::source;

/// The words of C in a text.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|character: char| !(character.is_alphanumeric() || character == '_'))
}

/// The files in the order of the header, each with what it declares.
fn layers(header: &str) -> Vec<(String, Vec<String>)> {
    let mut layers: Vec<(String, Vec<String>)> = Vec::new();
    for line in header.lines() {
        let file = line
            .strip_prefix("/* ")
            .and_then(|line| line.split([' ', ':']).next());
        if let Some(file) = file.filter(|file| file.ends_with(".c")) {
            layers.push((file.to_owned(), Vec::new()));
        } else if let Some((_, declared)) = layers.last_mut() {
            let name = line
                .split(['(', ';'])
                .next()
                .and_then(|front| words(front).last());
            if let Some(name) =
                name.filter(|name| name.starts_with("vmsrs_") && !line.starts_with(['\t', ' ']))
            {
                declared.push(name.to_owned());
            }
        }
    }
    layers
}

/// Uses of what a later file declares.
fn upward_calls(layers: &[(String, Vec<String>)], text: impl Fn(&str) -> String) -> Vec<String> {
    let place: HashMap<&str, usize> = layers
        .iter()
        .enumerate()
        .flat_map(|(place, (_, declared))| declared.iter().map(move |name| (&**name, place)))
        .collect();
    let mut upward = Vec::new();
    for (own, (file, _)) in layers.iter().enumerate() {
        let text = source::squeeze(&text(file));
        for name in words(&text) {
            if let Some(&other) = place.get(name).filter(|&&other| other > own) {
                upward.push(format!(
                    "{file} uses {name} of {}, a higher layer",
                    layers[other].0
                ));
            }
        }
    }
    upward
}

#[test]
fn no_file_uses_a_higher_layer() {
    let upward = upward_calls(&layers(&source::read("vmsrs.h")), source::read);
    assert!(upward.is_empty(), "{}", upward.join("\n"));
}

#[test]
fn the_header_names_every_file_in_the_order_of_kbuild() {
    let layers = layers(&source::read("vmsrs.h"));
    let order: Vec<String> = layers
        .iter()
        .map(|(file, _)| file.replace(".c", ".o"))
        .collect();
    let kbuild = source::read("Kbuild");
    let (_, objects) = kbuild
        .split_once("vmsrs-y := ")
        .expect("the list of objects");
    let objects: Vec<&str> = objects
        .split_whitespace()
        .filter(|word| *word != "\\")
        .collect();
    assert_eq!(order, objects);
    let files = fs::read_dir(source::folder())
        .expect("the driver's folder")
        .flatten();
    for file in files.map(|file| file.file_name().to_string_lossy().into_owned()) {
        let built = file.ends_with(".mod.c");
        assert!(
            !file.ends_with(".c") || built || layers.iter().any(|(name, _)| *name == file),
            "{file} is not in vmsrs.h"
        );
    }
}

#[test]
fn a_call_to_a_higher_layer_is_found() {
    let layers = layers(
        "/* low.c */\nint vmsrs_low(int a);\n\n/* high.c has the rest. */\nlong vmsrs_high(int a,\n\t\tint b);\n",
    );
    let text = |file: &str| match file {
        "low.c" => {
            "int vmsrs_low(int a)\n{\n\treturn vmsrs_high(a, a); /* vmsrs_high() */\n}\n".to_owned()
        }
        _ => "long vmsrs_high(int a, int b)\n{\n\treturn vmsrs_low(a);\n}\n".to_owned(),
    };
    let upward = upward_calls(&layers, text);
    assert_eq!(upward, ["low.c uses vmsrs_high of high.c, a higher layer"]);
}
