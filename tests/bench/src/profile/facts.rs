//! Where code lies at run time: what guest and KVM host tell about themselves, for the names in a profile.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// Who executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Level {
    /// A program in the guest.
    GuestUser,
    /// The guest's kernel.
    GuestKernel,
    /// The kernel of the KVM host.
    HostKernel,
    /// `vmsrs run`.
    HostUser,
}

impl Level {
    pub(crate) const ALL: [Self; 4] = [
        Self::GuestUser,
        Self::GuestKernel,
        Self::HostKernel,
        Self::HostUser,
    ];

    /// Whether it is a level of the guest.
    pub(crate) fn is_guest(self) -> bool {
        matches!(self, Self::GuestUser | Self::GuestKernel)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::GuestUser => "guest user",
            Self::GuestKernel => "guest kernel",
            Self::HostKernel => "host kernel",
            Self::HostUser => "vmsrs run",
        }
    }
}

/// One fact. They travel as lists in lines of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "kebab-case")]
pub(crate) enum Fact {
    /// A function of the KVM host's kernel or of one of its modules.
    Function {
        address: u64,
        name: String,
        module: Option<String>,
    },
    /// An executable mapping of a process: `start..end` shows the file from `offset` on.
    Mapping {
        level: Level,
        start: u64,
        end: u64,
        offset: u64,
        path: String,
    },
    /// The address of a section of a module in the guest's kernel.
    Section {
        module: String,
        section: String,
        address: u64,
    },
}

/// The functions that `/proc/kallsyms` lists; needs root.
pub(crate) fn functions(kallsyms: &str) -> impl Iterator<Item = Fact> {
    kallsyms.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let kind = words.next()?;
        if !matches!(kind, "t" | "T" | "w" | "W") {
            return None;
        }
        let name = words.next()?.to_owned();
        let module = words
            .next()
            .map(|module| module.trim_matches(['[', ']']).to_owned());
        Some(Fact::Function {
            address,
            name,
            module,
        })
    })
}

/// The executable mappings in a process's `maps`.
pub(crate) fn mappings(level: Level, maps: &str) -> impl Iterator<Item = Fact> {
    maps.lines().filter_map(move |line| {
        let mut words = line.split_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        if !words.next()?.contains('x') {
            return None;
        }
        let offset = words.next()?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        Some(Fact::Mapping {
            level,
            start: hex(start)?,
            end: hex(end)?,
            offset: hex(offset)?,
            path: words.nth(2).unwrap_or("[anonymous]").to_owned(),
        })
    })
}

/// What the guest tells: where this program lies, and the driver.
pub(crate) fn of_guest() -> Result<Vec<Fact>> {
    let maps = fs::read_to_string("/proc/self/maps").context("read this process's mappings")?;
    let mut facts: Vec<Fact> = mappings(Level::GuestUser, &maps).collect();
    for module in ["vmsrs", "virtio_mmio"] {
        let sections = Path::new("/sys/module").join(module).join("sections");
        for entry in
            fs::read_dir(&sections).with_context(|| format!("read {}", sections.display()))?
        {
            let entry = entry?;
            let section = entry.file_name().to_string_lossy().into_owned();
            // Of the dozens of sections of a module only those with code are of use.
            if !section.contains("text") {
                continue;
            }
            let text = fs::read_to_string(entry.path())?;
            let address = text.trim().trim_start_matches("0x");
            facts.push(Fact::Section {
                module: module.to_owned(),
                section,
                address: u64::from_str_radix(address, 16).context("a section's address")?,
            });
        }
    }
    Ok(facts)
}

/// Where another program in the guest lies.
pub(crate) fn of_program(process: u32) -> Result<Vec<Fact>> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
    Ok(mappings(Level::GuestUser, &maps).collect())
}

/// What the KVM host tells: where its kernel lies, and the process of `vmsrs run`.
pub(crate) fn of_host(process: u32) -> Result<Vec<Fact>> {
    let kallsyms = fs::read_to_string("/proc/kallsyms").context("read /proc/kallsyms")?;
    let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
    Ok(functions(&kallsyms)
        .chain(mappings(Level::HostUser, &maps))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_come_with_their_module_and_data_is_left_out() {
        let text = "ffffffff81000000 T _text\n\
                    ffffffff82000000 D jiffies\n\
                    ffffffffc0001000 t svm_vcpu_run\t[kvm_amd]\n";
        let all: Vec<Fact> = functions(text).collect();
        assert_eq!(
            all,
            [
                Fact::Function {
                    address: 0xffff_ffff_8100_0000,
                    name: "_text".into(),
                    module: None,
                },
                Fact::Function {
                    address: 0xffff_ffff_c000_1000,
                    name: "svm_vcpu_run".into(),
                    module: Some("kvm_amd".into()),
                },
            ]
        );
    }

    #[test]
    fn only_executable_mappings_count() {
        let text = "55d0-55e0 r--p 00000000 fe:00 12 /bin/x\n\
                    55e0-55f0 r-xp 00010000 fe:00 12 /bin/x\n\
                    7fff0-7fff1 r-xp 00000000 00:00 0 [vdso]\n";
        let all: Vec<Fact> = mappings(Level::GuestUser, text).collect();
        assert_eq!(all.len(), 2);
        assert_eq!(
            all[0],
            Fact::Mapping {
                level: Level::GuestUser,
                start: 0x55e0,
                end: 0x55f0,
                offset: 0x10000,
                path: "/bin/x".into(),
            }
        );
    }
}
