//! The memory limit of the control groups that this process is in, of either version: a process that takes more
//! is killed.

use std::fs;
use std::path::{Path, PathBuf};

/// Version 1 writes the largest number of pages for "no limit".
const NO_LIMIT: u64 = 1 << 62;

/// The tightest limit of a control group and those above it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryLimit {
    /// Memory and swap that the group may use.
    pub(crate) bytes: u64,
    /// The file that says so.
    pub(crate) file: PathBuf,
}

/// Where control groups are mounted, and which one a process is in.
struct Group {
    is_v2: bool,
    /// The folder of the process's group.
    folder: PathBuf,
    /// The folder of the highest one that can be seen.
    top: PathBuf,
}

/// The limit of this process, on a machine with so much swap whose files are below `root`. `None` if there is none,
/// or it cannot be read.
pub(crate) fn memory_limit(root: &Path, swap: u64) -> Option<MemoryLimit> {
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_default();
    groups(&read("proc/self/cgroup"), &read("proc/self/mountinfo"))
        .iter()
        .flat_map(|group| limits(root, group, swap))
        .min_by_key(|limit| limit.bytes)
}

/// The groups with the memory controller that a process is in, by its `cgroup` and its `mountinfo`.
fn groups(memberships: &str, mounts: &str) -> Vec<Group> {
    let group = |is_v2: bool, path: &str| {
        let mount = mounts.lines().find_map(|line| mount(line, is_v2))?;
        // A container may see the folder of its group as the root of the mount, and its path from the machine's.
        let inner = Path::new(path)
            .strip_prefix(mount.root)
            .unwrap_or(Path::new(""));
        let top = PathBuf::from(mount.folder.trim_start_matches('/'));
        Some(Group {
            is_v2,
            folder: top.join(inner),
            top,
        })
    };
    memberships
        .lines()
        .filter_map(|line| {
            // Number, controllers, path; version 2 has no controllers there.
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let is_v2 = controllers.is_empty();
            let counts = is_v2 || controllers.split(',').any(|name| name == "memory");
            counts.then(|| group(is_v2, path))?
        })
        .collect()
}

struct Mount<'a> {
    /// The part of the hierarchy that is mounted.
    root: &'a str,
    folder: &'a str,
}

/// What a line of `mountinfo` says, if it is of the memory controller's mount.
fn mount(line: &str, is_v2: bool) -> Option<Mount<'_>> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let (root, folder) = (before.next()?, before.next()?);
    let mut after = after.split(' ');
    let (kind, options) = (after.next()?, after.nth(1)?);
    let is_it = match is_v2 {
        true => kind == "cgroup2",
        false => kind == "cgroup" && options.split(',').any(|option| option == "memory"),
    };
    is_it.then_some(Mount { root, folder })
}

/// The limits of a group and of those above it.
fn limits(root: &Path, group: &Group, swap: u64) -> Vec<MemoryLimit> {
    let value = |file: &Path| -> Option<u64> {
        let text = fs::read_to_string(root.join(file)).ok()?;
        // Version 2 says "max" for no limit.
        let value = text.trim().parse().ok()?;
        (value < NO_LIMIT).then_some(value)
    };
    let folders = group
        .folder
        .ancestors()
        .take_while(|folder| folder.starts_with(&group.top));
    let of_folder = |folder: &Path| {
        let limit = |name: &str, more: u64| {
            let file = folder.join(name);
            let bytes = value(&file)?.saturating_add(more);
            let file = Path::new("/").join(file);
            Some(MemoryLimit { bytes, file })
        };
        match group.is_v2 {
            true => {
                let own = value(&folder.join("memory.swap.max"));
                vec![limit("memory.max", own.unwrap_or(swap).min(swap))]
            }
            false => vec![
                limit("memory.limit_in_bytes", swap),
                // Memory and swap together.
                limit("memory.memsw.limit_in_bytes", 0),
            ],
        }
    };
    folders.flat_map(of_folder).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A machine's files, below a folder of their own.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    fn limit(files: &[(&str, &str)], swap: u64) -> Option<(u64, String)> {
        let root = machine(files);
        let limit = memory_limit(root.path(), swap)?;
        Some((limit.bytes, limit.file.display().to_string()))
    }

    const V2: &str = "24 30 0:22 / /proc rw - proc proc rw\n\
        31 30 0:27 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_tightest_of_nested_groups_counts() {
        let mut files = vec![
            ("proc/self/cgroup", "0::/user.slice/vm.service\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/user.slice/vm.service/memory.max", "max\n"),
            ("sys/fs/cgroup/user.slice/memory.max", "536870912\n"),
        ];
        let parent = "/sys/fs/cgroup/user.slice/memory.max".to_owned();
        assert_eq!(limit(&files, 0), Some((512 * MIB, parent.clone())));
        assert_eq!(limit(&files, MIB), Some((513 * MIB, parent.clone())));
        files.push(("sys/fs/cgroup/user.slice/memory.swap.max", "0\n"));
        assert_eq!(limit(&files, MIB), Some((512 * MIB, parent)));
        files[2].1 = "1048576\n";
        let own = "/sys/fs/cgroup/user.slice/vm.service/memory.max".to_owned();
        assert_eq!(limit(&files, 0), Some((MIB, own)));
    }

    #[test]
    fn without_a_limit_there_is_none() {
        let files = [
            ("proc/self/cgroup", "0::/\n"),
            ("proc/self/mountinfo", V2),
            ("sys/fs/cgroup/memory.max", "max\n"),
        ];
        assert_eq!(limit(&files, 0), None);
        assert_eq!(limit(&[], 0), None);
        let garbled = [
            ("proc/self/cgroup", "0:\nx\n0::/a\n"),
            ("proc/self/mountinfo", "1 2 3 -\n - cgroup2\n"),
        ];
        assert_eq!(limit(&garbled, 0), None);
    }

    const V1: &str = "35 30 0:31 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
        36 30 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";

    #[test]
    fn version_1_limits_memory_and_swap_together() {
        let mut files = vec![
            (
                "proc/self/cgroup",
                "4:cpu:/docker/abc\n3:memory:/docker/abc/vm\n0::/\n",
            ),
            ("proc/self/mountinfo", V1),
            (
                "sys/fs/cgroup/memory/vm/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "8388608\n"),
        ];
        let file = |name: &str| format!("/sys/fs/cgroup/memory/memory.{name}");
        let memory = Some((8 * MIB + MIB, file("limit_in_bytes")));
        assert_eq!(limit(&files, MIB), memory);
        files.push((
            "sys/fs/cgroup/memory/memory.memsw.limit_in_bytes",
            "8400000\n",
        ));
        assert_eq!(
            limit(&files, MIB),
            Some((8_400_000, file("memsw.limit_in_bytes")))
        );
    }

    #[test]
    fn a_path_outside_of_the_mount_is_taken_for_its_root() {
        let files = [
            ("proc/self/cgroup", "3:memory:/elsewhere\n"),
            ("proc/self/mountinfo", V1),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "4194304\n"),
        ];
        assert_eq!(limit(&files, 0).map(|(bytes, _)| bytes), Some(4 * MIB));
    }
}
