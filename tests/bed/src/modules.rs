//! Kernel modules: their dependencies and load order.
//!
//! Unpacked Debian packages have no `modules.dep` (it is made when the package is installed), so dependencies are read
//! from the modules themselves: their `.modinfo` section holds `depends=a,b`.

use std::collections::BTreeSet;

/// What is wrong with a module.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is not an ELF object of a 64-bit little-endian machine, or is cut short.
    #[error("module {0} is not a complete ELF file")]
    NotElf(String),
    /// The file has no `.modinfo` section.
    #[error("module {0} has no .modinfo section")]
    NoModinfo(String),
    /// A module or one of its dependencies is neither a file nor built in.
    #[error("there is no module {0}")]
    Missing(String),
    /// Modules depend on each other in a cycle.
    #[error("module {0} depends on itself")]
    Cycle(String),
}

/// The name by which the kernel knows a module: file names may have `-` where it has `_`.
pub fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The modules that the module in `object` (unpacked, called `name` in errors) depends on, by canonical name.
///
/// # Errors
///
/// [`Error::NotElf`] and [`Error::NoModinfo`].
pub fn depends(name: &str, object: &[u8]) -> Result<Vec<String>, Error> {
    let section = section(object, b".modinfo").ok_or_else(|| Error::NotElf(name.to_owned()))?;
    let section = section.ok_or_else(|| Error::NoModinfo(name.to_owned()))?;
    let list = section
        .split(|&byte| byte == 0)
        .find_map(|entry| entry.strip_prefix(b"depends="))
        .unwrap_or_default();
    Ok(String::from_utf8_lossy(list)
        .split(',')
        .filter(|dependency| !dependency.is_empty())
        .map(canonical)
        .collect())
}

/// The modules to load for `wanted`, each after those it depends on and none twice.
///
/// `depends_of` gives the dependencies of a module, and `None` when it is built in.
///
/// # Errors
///
/// Those of `depends_of`, and a cycle of dependencies.
pub fn load_order<E: From<Error>>(
    wanted: &[String],
    mut depends_of: impl FnMut(&str) -> Result<Option<Vec<String>>, E>,
) -> Result<Vec<String>, E> {
    let mut order = Vec::new();
    let mut visited = BTreeSet::new();
    let mut path = Vec::new();
    for name in wanted {
        visit(
            &canonical(name),
            &mut depends_of,
            &mut visited,
            &mut path,
            &mut order,
        )?;
    }
    Ok(order)
}

fn visit<E: From<Error>>(
    name: &str,
    depends_of: &mut impl FnMut(&str) -> Result<Option<Vec<String>>, E>,
    visited: &mut BTreeSet<String>,
    path: &mut Vec<String>,
    order: &mut Vec<String>,
) -> Result<(), E> {
    if path.iter().any(|outer| outer == name) {
        return Err(Error::Cycle(name.to_owned()).into());
    }
    if !visited.insert(name.to_owned()) {
        return Ok(());
    }
    let Some(dependencies) = depends_of(name)? else {
        return Ok(());
    };
    path.push(name.to_owned());
    for dependency in &dependencies {
        visit(dependency, depends_of, visited, path, order)?;
    }
    path.pop();
    order.push(name.to_owned());
    Ok(())
}

/// A section of a 64-bit little-endian ELF file: `None` when the file is damaged, `Some(None)` when it has no such
/// section. Offsets are those of `Elf64_Ehdr` and `Elf64_Shdr` in the System V ABI.
fn section<'a>(object: &'a [u8], wanted: &[u8]) -> Option<Option<&'a [u8]>> {
    let slice = |at: u64, len: u64| -> Option<&'a [u8]> {
        let start = usize::try_from(at).ok()?;
        object.get(start..start.checked_add(usize::try_from(len).ok()?)?)
    };
    let number = |at: u64, len: u64| -> Option<u64> {
        Some(
            slice(at, len)?
                .iter()
                .rev()
                .fold(0, |value, &byte| value << 8 | u64::from(byte)),
        )
    };
    if slice(0, 6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, entry_size) = (number(0x28, 8)?, number(0x3a, 2)?);
    let (count, names_index) = (number(0x3c, 2)?, number(0x3e, 2)?);
    let header = |index: u64| table.checked_add(index * entry_size);
    let contents = |header: u64| slice(number(header + 0x18, 8)?, number(header + 0x20, 8)?);

    let names = contents(header(names_index)?)?;
    for index in 0..count {
        let header = header(index)?;
        let name = names.get(usize::try_from(number(header, 4)?).ok()?..)?;
        if name.split(|&byte| byte == 0).next() == Some(wanted) {
            return contents(header).map(Some);
        }
    }
    Some(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// An object file with one section of that name and content.
    fn object(name: &str, content: &[u8]) -> Vec<u8> {
        let names = format!("\0.shstrtab\0{name}\0");
        let (names_at, content_at) = (0x40, 0x40 + names.len());
        let table_at = content_at + content.len();
        let mut object = vec![0; 0x40];
        object[..6].copy_from_slice(b"\x7fELF\x02\x01");
        object[0x28..0x30].copy_from_slice(&(table_at as u64).to_le_bytes());
        object[0x3a] = 64;
        object[0x3c] = 3;
        object[0x3e] = 1;
        object.extend_from_slice(names.as_bytes());
        object.extend_from_slice(content);
        for (name_at, at, len) in [
            (0u32, 0, 0),
            (1, names_at, names.len()),
            (11, content_at, content.len()),
        ] {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name_at.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(at as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(len as u64).to_le_bytes());
            object.extend_from_slice(&header);
        }
        object
    }

    #[test]
    fn dependencies_are_read_from_modinfo() {
        let object = object(
            ".modinfo",
            b"license=GPL\0depends=kvm,irq-bypass\0name=kvm_amd\0",
        );
        assert_eq!(depends("kvm_amd", &object).unwrap(), ["kvm", "irq_bypass"]);
    }

    #[test]
    fn an_empty_list_means_no_dependencies() {
        assert!(
            depends("tun", &object(".modinfo", b"depends=\0"))
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn a_file_that_is_no_module_is_refused() {
        let no_modinfo = depends("x", &object(".text", b""));
        assert_eq!(no_modinfo, Err(Error::NoModinfo("x".into())));
        assert_eq!(depends("x", b"text"), Err(Error::NotElf("x".into())));
        let whole = object(".modinfo", b"depends=\0");
        // The last 24 bytes of the last section header do not matter here.
        for len in 0..whole.len() - 24 {
            assert!(depends("x", &whole[..len]).is_err());
        }
    }

    fn order(wanted: &[&str], modules: &[(&str, &[&str])]) -> Result<Vec<String>, Error> {
        let modules: BTreeMap<_, _> = modules.iter().copied().collect();
        let wanted: Vec<_> = wanted.iter().map(|&name| name.to_owned()).collect();
        load_order(&wanted, |name| match modules.get(name) {
            Some(&["builtin"]) => Ok(None),
            Some(list) => Ok(Some(list.iter().map(|&name| name.to_owned()).collect())),
            None => Err(Error::Missing(name.to_owned())),
        })
    }

    #[test]
    fn dependencies_are_loaded_first_and_once() {
        let modules: &[(&str, &[&str])] = &[
            ("kvm_amd", &["kvm", "ccp"]),
            ("kvm", &["irqbypass"]),
            ("irqbypass", &[]),
            ("ccp", &["builtin"]),
            ("tun", &[]),
        ];
        let expected = ["irqbypass", "kvm", "kvm_amd", "tun"];
        assert_eq!(
            order(&["kvm-amd", "tun", "kvm"], modules).unwrap(),
            expected
        );
    }

    #[test]
    fn a_missing_module_and_a_cycle_are_named() {
        assert_eq!(order(&["a"], &[]), Err(Error::Missing("a".into())));
        let cycle: &[(&str, &[&str])] = &[("a", &["b"]), ("b", &["a"])];
        assert_eq!(order(&["a"], cycle), Err(Error::Cycle("a".into())));
    }
}
