//! The table of modules that a program sent: parsed, never believed.

use vmsrs_protocol::incident::{BUILD_ID_MAX, ModuleEntry};

/// The program, or a library, as it was mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// What the loader added to the addresses in the file.
    pub bias: u64,
    /// Its first address.
    pub start: u64,
    /// First address past its end.
    pub end: u64,
    /// The build ID; empty without one.
    pub build_id: Vec<u8>,
    /// Its path in the guest.
    pub path: String,
}

/// Maximum number of modules of a table that are looked at: more than any server loads.
const MODULES: usize = 256;

impl Module {
    /// The first modules of a table, up to the first entry that is invalid.
    pub fn parse(mut table: &[u8]) -> Vec<Self> {
        let mut modules = Vec::new();
        while modules.len() < MODULES
            && let Some((module, rest)) = Self::parse_one(table)
        {
            modules.push(module);
            table = rest;
        }
        modules
    }

    fn parse_one(table: &[u8]) -> Option<(Self, &[u8])> {
        let (entry, rest) = table.split_at_checked(size_of::<ModuleEntry>())?;
        let entry: ModuleEntry = bytemuck::pod_read_unaligned(entry);
        let path_length = entry.path_bytes as usize;
        let path = rest.get(..path_length)?;
        let rest = rest.get(path_length.checked_next_multiple_of(8)?..)?;
        let id_length = entry.build_id_bytes as usize;
        if id_length > BUILD_ID_MAX || entry.start >= entry.end || entry.bias > entry.start {
            return None;
        }
        let module = Self {
            bias: entry.bias,
            start: entry.start,
            end: entry.end,
            build_id: entry.build_id[..id_length].to_vec(),
            path: String::from_utf8_lossy(path).into_owned(),
        };
        Some((module, rest))
    }

    /// The module that an address lies in.
    pub fn at(modules: &[Self], address: u64) -> Option<&Self> {
        modules
            .iter()
            .find(|module| (module.start..module.end).contains(&address))
    }

    /// The last part of its path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(path: &str) -> Vec<u8> {
        let entry = ModuleEntry {
            bias: 0x1000,
            start: 0x1000,
            end: 0x5000,
            build_id_bytes: 20,
            path_bytes: path.len() as u32,
            build_id: [7; BUILD_ID_MAX],
        };
        let mut bytes = bytemuck::bytes_of(&entry).to_vec();
        bytes.extend(path.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn a_table_gives_its_modules() {
        let table = [entry("/usr/bin/server"), entry("libc.so.6")].concat();
        let modules = Module::parse(&table);
        assert_eq!(modules.len(), 2);
        assert_eq!(modules[0].name(), "server");
        assert_eq!(modules[1].path, "libc.so.6");
        assert_eq!(modules[0].build_id, [7; 20]);
        assert_eq!(Module::at(&modules, 0x4fff), Some(&modules[0]));
        assert_eq!(Module::at(&modules, 0x5000), None);
    }

    #[test]
    fn a_table_has_no_more_modules_than_a_server_loads() {
        let table = entry("/bin/a").repeat(MODULES + 1);
        assert_eq!(Module::parse(&table).len(), MODULES);
    }

    #[test]
    fn a_table_ends_at_the_first_entry_that_makes_no_sense() {
        let good = entry("/bin/a");
        let bad = |change: fn(&mut ModuleEntry)| {
            let (head, path) = good.split_at(size_of::<ModuleEntry>());
            let mut entry: ModuleEntry = bytemuck::pod_read_unaligned(head);
            change(&mut entry);
            [bytemuck::bytes_of(&entry), path].concat()
        };
        for bad in [
            bad(|entry| entry.path_bytes = u32::MAX),
            bad(|entry| entry.build_id_bytes = 33),
            bad(|entry| entry.end = entry.start),
            bad(|entry| entry.bias = u64::MAX),
        ] {
            let table = [&good[..], &bad, &good].concat();
            assert_eq!(Module::parse(&table).len(), 1);
        }
        for length in 0..good.len() {
            let table = [&good[..], &good[..length]].concat();
            assert_eq!(Module::parse(&table).len(), 1, "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_table_is_too_wrong_to_be_parsed(table in proptest::collection::vec(any::<u8>(), 0..512)) {
            for module in Module::parse(&table) {
                prop_assert!(module.start < module.end);
            }
        }
    }
}
