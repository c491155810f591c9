//! Functions and data of the server, by their addresses in its file.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A program's symbols, in order of addresses.
#[derive(Debug)]
pub struct Symbols {
    functions: Vec<Symbol>,
    data: Vec<Symbol>,
}

/// A function or a variable.
#[derive(Debug)]
pub struct Symbol {
    /// Its offset from the start of the file's mapping.
    pub address: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Its name.
    pub name: String,
}

impl Symbols {
    /// Reads them with `nm`, which comes with the compiler.
    ///
    /// # Errors
    ///
    /// When `nm` is missing, or the program has no symbols.
    pub fn of(program: &Path) -> Result<Self> {
        let output = Command::new("nm")
            .args(["--numeric-sort", "--defined-only", "--print-size"])
            .arg(program)
            .output()
            .context("running nm; install binutils")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let of_kinds = |kinds: &[&str]| -> Vec<Symbol> {
            let wanted = |line: &str| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let [address, size, kind, name] = words[..] else {
                    return None;
                };
                let number = |text| u64::from_str_radix(text, 16).ok();
                kinds.contains(&kind).then_some(Symbol {
                    address: number(address)?,
                    size: number(size)?,
                    name: name.to_owned(),
                })
            };
            text.lines().filter_map(wanted).collect()
        };
        let symbols = Self {
            functions: of_kinds(&["t", "T"]),
            data: of_kinds(&["b", "B", "d", "D"]),
        };
        let empty = symbols.functions.is_empty() || symbols.data.is_empty();
        ensure!(!empty, "{} has no symbols", program.display());
        Ok(symbols)
    }

    /// A function by its name.
    pub fn function(&self, name: &str) -> Option<&Symbol> {
        self.functions.iter().find(|symbol| symbol.name == name)
    }

    /// The writable variables.
    pub fn data(&self) -> &[Symbol] {
        &self.data
    }

    /// The name of the function at an address.
    pub fn name(&self, address: u64) -> Option<&str> {
        let after = self
            .functions
            .partition_point(|symbol| symbol.address <= address);
        let symbol = self.functions.get(after.checked_sub(1)?)?;
        (address - symbol.address <= symbol.size).then_some(&symbol.name)
    }
}
