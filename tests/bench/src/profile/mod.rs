//! The profile: instructions by function, over guest, guest's kernel, the KVM host's kernel and `vmsrs run`.
//!
//! QEMU's software CPU executes all four levels, so a plugin of it (`plugin.c`) sees every instruction. The guest marks
//! what is counted (`mark.rs`), guest and host tell where their code lies (`facts.rs`), and the names come from the
//! files that they run (`symbols.rs`).

pub(crate) mod facts;
mod report;
mod symbols;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use vmsrs_bed::{cc, project};

use self::facts::Fact;
use self::report::Phase;
use self::symbols::Symbols;
use crate::sample::Measured;

const PLUGIN: &str = include_str!("plugin.c");

/// A profile that is being made.
pub(crate) struct Profiler {
    folder: PathBuf,
    facts: Vec<Fact>,
}

impl Profiler {
    /// Builds the plugin.
    pub(crate) fn new() -> Result<Self> {
        let folder = project::root().join("target/profile");
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let source = folder.join("plugin.c");
        fs::write(&source, PLUGIN)?;
        cc::compile_plugin(&source, &folder.join("plugin.so")).context("build the plugin")?;
        Ok(Self {
            folder,
            facts: Vec::new(),
        })
    }

    /// What QEMU's `-plugin` takes.
    pub(crate) fn argument(&self) -> String {
        format!(
            "{},out={}",
            self.folder.join("plugin.so").display(),
            self.counts().display()
        )
    }

    fn counts(&self) -> PathBuf {
        self.folder.join("counts.txt")
    }

    /// Takes a line of the results that carries facts; false for other lines.
    pub(crate) fn take(&mut self, line: &str) -> bool {
        match serde_json::from_str::<Vec<Fact>>(line) {
            Ok(facts) => {
                self.facts.extend(facts);
                true
            }
            Err(_) => false,
        }
    }

    /// Writes tables and flame graphs of all phases and returns the table's path. `all` are the measurements in their
    /// order; `files` are the files of programs and modules by their names in guest and host.
    pub(crate) fn finish(
        self,
        all: &[Measured],
        files: &BTreeMap<String, PathBuf>,
    ) -> Result<PathBuf> {
        let symbols = Symbols::new(&self.facts, files)?;
        let counts = self.counts();
        let text =
            fs::read_to_string(&counts).with_context(|| format!("read {}", counts.display()))?;
        let phases = phases(&text, all, &symbols)?;
        report::write(&self.folder, &phases)
    }
}

/// Reads what the plugin has written: phase, side, address, instructions.
fn phases(text: &str, all: &[Measured], symbols: &Symbols) -> Result<Vec<Phase>> {
    let mut phases: Vec<Phase> = all
        .iter()
        .map(|one| Phase::new(one.name(), one.sample.protected, one.sample.rounds))
        .collect();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let mut next = || {
            words
                .next()
                .with_context(|| format!("malformed line: {line}"))
        };
        let number: usize = next()?.parse()?;
        let in_guest = next()? == "guest";
        let address = u64::from_str_radix(next()?, 16)?;
        let instructions: u64 = next()?.parse()?;
        ensure!(
            (1..=phases.len()).contains(&number),
            "phase {number} of {}: are the plugin's marks and the measurements the same ones?",
            phases.len()
        );
        phases[number - 1].add(symbols.place(in_guest, address), instructions);
    }
    Ok(phases)
}
