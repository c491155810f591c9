//! From an address to a function, over all four levels.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use object::elf::PF_X;
use object::{Object, ObjectSection, ObjectSegment, ObjectSymbol, SegmentFlags, SymbolKind};

use super::facts::{Fact, Level};

/// Where a Debian kernel begins that nothing has moved, as a guest's does that is booted by PVH.
const KERNEL_TEXT: u64 = 0xffff_ffff_8100_0000;

/// Whose code an address is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) level: Option<Level>,
    /// Program, library or module; empty for the kernel itself.
    pub(crate) object: String,
    pub(crate) function: String,
}

/// Consecutive code of one object, with its functions by their addresses.
#[derive(Debug)]
struct Range {
    end: u64,
    level: Level,
    object: String,
    functions: BTreeMap<u64, String>,
}

/// All code that is known. Guest and host may have some at the same addresses.
#[derive(Debug, Default)]
pub(crate) struct Symbols {
    guest: BTreeMap<u64, Range>,
    host: BTreeMap<u64, Range>,
}

impl Symbols {
    /// Puts together what guest and host told. `files` has the local files of programs and modules, by the last part of
    /// the path they have there; what is not in it is looked for under the same path here.
    pub(crate) fn new(facts: &[Fact], files: &BTreeMap<String, PathBuf>) -> Result<Self> {
        let mut symbols = Self::default();
        symbols.add_kernels(facts);
        let mut sections: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
        for fact in facts {
            match fact {
                Fact::Mapping {
                    level,
                    start,
                    end,
                    offset,
                    path,
                } => {
                    let name = path.rsplit('/').next().unwrap_or(path).to_owned();
                    let file = files.get(&name).cloned().unwrap_or_else(|| path.into());
                    let functions = match path.starts_with('/') && file.is_file() {
                        true => of_mapping(&file, *start, *offset)?,
                        false => BTreeMap::new(),
                    };
                    symbols.add(*level, name, *start, *end, functions);
                }
                Fact::Section {
                    module,
                    section,
                    address,
                } => {
                    sections
                        .entry(module)
                        .or_default()
                        .insert(section, *address);
                }
                Fact::Function { .. } => {}
            }
        }
        for (module, sections) in sections {
            if let Some(file) = files.get(&format!("{module}.ko")) {
                symbols.add_module(module, file, &sections)?;
            }
        }
        Ok(symbols)
    }

    /// The host's kernel, and the guest's: the same one, but for where it begins.
    fn add_kernels(&mut self, facts: &[Fact]) {
        let mut modules: BTreeMap<&str, BTreeMap<u64, String>> = BTreeMap::new();
        for fact in facts {
            if let Fact::Function {
                address,
                name,
                module,
            } = fact
            {
                modules
                    .entry(module.as_deref().unwrap_or_default())
                    .or_default()
                    .insert(*address, name.clone());
            }
        }
        let kernel = modules.get("").cloned().unwrap_or_default();
        let find = |wanted: &str| {
            let found = kernel.iter().find(|(_, name)| *name == wanted);
            found.map(|(&address, _)| address)
        };
        if let Some(text) = find("_text").or_else(|| find("_stext")) {
            // Per-CPU variables are listed too, at low addresses.
            let functions: BTreeMap<u64, String> = kernel
                .range(text..)
                .map(|(&address, name)| (address, name.clone()))
                .collect();
            let end = functions
                .keys()
                .next_back()
                .map_or(text, |last| last + 0x1000);
            let guest = functions
                .iter()
                .map(|(address, name)| (address - text + KERNEL_TEXT, name.clone()))
                .collect();
            self.add(
                Level::GuestKernel,
                String::new(),
                KERNEL_TEXT,
                end - text + KERNEL_TEXT,
                guest,
            );
            self.add(Level::HostKernel, String::new(), text, end, functions);
        }
        for (module, functions) in modules.into_iter().filter(|(module, _)| !module.is_empty()) {
            let start = *functions.keys().next().unwrap_or(&0);
            let end = functions
                .keys()
                .next_back()
                .map_or(start, |last| last + 0x1000);
            self.add(Level::HostKernel, module.to_owned(), start, end, functions);
        }
    }

    fn add_module(
        &mut self,
        module: &str,
        file: &Path,
        sections: &BTreeMap<&str, u64>,
    ) -> Result<()> {
        let bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
        let elf = object::File::parse(&*bytes)?;
        for section in elf.sections() {
            let Some(&address) = section.name().ok().and_then(|name| sections.get(name)) else {
                continue;
            };
            let functions = elf
                .symbols()
                .filter(|symbol| {
                    symbol.kind() == SymbolKind::Text
                        && symbol.section_index() == Some(section.index())
                })
                .map(|symbol| (address + symbol.address(), name_of(symbol.name())))
                .collect();
            self.add(
                Level::GuestKernel,
                module.to_owned(),
                address,
                address + section.size(),
                functions,
            );
        }
        Ok(())
    }

    fn add(
        &mut self,
        level: Level,
        object: String,
        start: u64,
        end: u64,
        functions: BTreeMap<u64, String>,
    ) {
        let range = Range {
            end,
            level,
            object,
            functions,
        };
        self.side(level.is_guest()).insert(start, range);
    }

    fn side(&mut self, in_guest: bool) -> &mut BTreeMap<u64, Range> {
        match in_guest {
            true => &mut self.guest,
            false => &mut self.host,
        }
    }

    /// Whose code lies at an address of guest or host.
    pub(crate) fn place(&self, in_guest: bool, address: u64) -> Place {
        let ranges = match in_guest {
            true => &self.guest,
            false => &self.host,
        };
        let before = ranges.range(..=address).next_back();
        let Some((_, range)) = before.filter(|(_, range)| address < range.end) else {
            return Place {
                level: None,
                object: String::new(),
                function: format!("{:#x}", address & !0xfff),
            };
        };
        let function = range.functions.range(..=address).next_back();
        Place {
            level: Some(range.level),
            object: range.object.clone(),
            function: function.map_or_else(|| "?".to_owned(), |(_, name)| name.clone()),
        }
    }
}

/// The functions of an ELF file where a mapping that begins at `start` shows it from `offset` on.
fn of_mapping(file: &Path, start: u64, offset: u64) -> Result<BTreeMap<u64, String>> {
    let bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
    let Ok(elf) = object::File::parse(&*bytes) else {
        return Ok(BTreeMap::new());
    };
    // The first page of a segment may show the end of the one before it.
    let segment = elf.segments().find(|segment| {
        let (begin, length) = segment.file_range();
        let executable =
            matches!(segment.flags(), SegmentFlags::Elf { p_flags, .. } if p_flags.0 & PF_X.0 != 0);
        executable && (begin & !0xfff..begin + length).contains(&offset)
    });
    let Some(segment) = segment else {
        return Ok(BTreeMap::new());
    };
    let bias = start.wrapping_sub(segment.address() + offset - segment.file_range().0);
    Ok(elf
        .symbols()
        .chain(elf.dynamic_symbols())
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.is_definition())
        .map(|symbol| (symbol.address().wrapping_add(bias), name_of(symbol.name())))
        .collect())
}

fn name_of(name: object::Result<&str>) -> String {
    match name {
        // Without the hash.
        Ok(name) => format!("{:#}", rustc_demangle::demangle(name)),
        Err(_) => "?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(address: u64, name: &str, module: Option<&str>) -> Fact {
        Fact::Function {
            address,
            name: name.to_owned(),
            module: module.map(str::to_owned),
        }
    }

    #[test]
    fn the_guest_s_kernel_is_the_host_s_elsewhere() {
        // The two overlap.
        let text = KERNEL_TEXT + 0x20_0000;
        let facts = [
            function(0x1000, "per_cpu", None),
            function(text, "_text", None),
            function(text + 0x100, "schedule", None),
            function(0xffff_ffff_c000_0000, "svm_vcpu_run", Some("kvm_amd")),
        ];
        let symbols = Symbols::new(&facts, &BTreeMap::new()).unwrap();
        let place = symbols.place(false, text + 0x104);
        assert_eq!(place.level, Some(Level::HostKernel));
        assert_eq!(place.function, "schedule");
        let place = symbols.place(true, KERNEL_TEXT + 0x104);
        assert_eq!(place.level, Some(Level::GuestKernel));
        assert_eq!(place.function, "schedule");
        assert_eq!(
            symbols.place(false, 0xffff_ffff_c000_0008).object,
            "kvm_amd"
        );
        assert_eq!(symbols.place(false, 0x1008).level, None);
        assert_eq!(symbols.place(true, 0xffff_ffff_c000_0008).level, None);
    }

    #[test]
    fn this_program_s_functions_are_found_where_they_are_mapped() {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let facts: Vec<Fact> = super::super::facts::mappings(Level::GuestUser, &maps).collect();
        let symbols = Symbols::new(&facts, &BTreeMap::new()).unwrap();
        let place = symbols.place(true, of_mapping as *const () as u64);
        assert!(place.function.ends_with("symbols::of_mapping"), "{place:?}");
    }
}
