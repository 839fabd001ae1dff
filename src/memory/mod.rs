//! How much memory the process has used and the machine has, where the system tells.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use crate::machine;

/// The most memory this process has had resident so far, in bytes.
pub fn peak_resident() -> Option<u64> {
    kib_field(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM")
}

/// What the user allows this process, in bytes.
static LIMIT: OnceLock<u64> = OnceLock::new();

/// Has [`available`] leave no more than `bytes` for the whole process, as if the machine had no more. The first limit
/// of a process holds.
pub fn limit(bytes: u64) {
    let _ = LIMIT.set(bytes);
}

/// Whether the user has set a limit.
pub fn is_limited() -> bool {
    LIMIT.get().is_some()
}

/// What the user's limit leaves.
fn left_of_limit() -> Option<u64> {
    Some(LIMIT.get()?.saturating_sub(resident()))
}

/// What this process has resident, as far as the system tells.
fn resident() -> u64 {
    fs::read_to_string("/proc/self/status").ok().and_then(|status| kib_field(&status, "VmRSS")).unwrap_or(0)
}

/// What this process may have in all, see [`available`].
pub fn allowed() -> Option<u64> {
    Some(available()? + resident())
}

/// What this process can still take without making others swap, exceeding its control group's limit, the address
/// space it is allowed or the user's [`limit`], in bytes.
pub fn available() -> Option<u64> {
    let machine = machine::memory().map(|memory| memory.available);
    // The system crate reads the limit of the outermost group only, and of one version at a time.
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = groups.lines().filter_map(|line| left_in_group(line, Path::new("/sys/fs/cgroup")));
    groups.chain(machine).chain(left_of_address_space()).chain(left_of_limit()).min()
}

/// What `ulimit -v` leaves: an allocation beyond it ends the process.
fn left_of_address_space() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let limit = address_space_limit(&limits)?;
    let used = kib_field(&fs::read_to_string("/proc/self/status").ok()?, "VmSize")?;
    Some(limit.saturating_sub(used))
}

/// The soft limit in `/proc/self/limits`, if there is one.
fn address_space_limit(limits: &str) -> Option<u64> {
    let row = limits.lines().find_map(|line| line.strip_prefix("Max address space"))?;
    row.split_whitespace().next()?.parse().ok()
}

/// What the memory limits of a group, a line of `/proc/self/cgroup`, and of those around it leave.
fn left_in_group(line: &str, root: &Path) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    // The second version has no controllers here; the first has a tree for each.
    let (root, limit, used) = match controllers {
        "" => (root.to_owned(), "memory.max", "memory.current"),
        _ if controllers.split(',').any(|name| name == "memory") => {
            (root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes")
        }
        _ => return None,
    };
    let number =
        |folder: &Path, name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
    let left = |folder: &Path| {
        let (limit, used) = (number(folder, limit)?, number(folder, used)?);
        // What was read from files and can be read again counts as used.
        let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let cached = stat.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse().ok());
        Some(limit.saturating_sub(used.saturating_sub(cached.unwrap_or(0))))
    };
    let folder = root.join(path.trim_start_matches('/'));
    // In a container the path may be the host's, and the container's own group is the root.
    folder.ancestors().take_while(|folder| folder.starts_with(&root)).filter_map(left).min()
}

/// The bytes of a line such as `VmHWM:     1234 kB`.
fn kib_field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "VmHWMx:\t 1 kB\nVmHWM:\t    2048 kB\n";
        assert_eq!(kib_field(text, "VmHWM"), Some(2 << 20));
        assert_eq!(kib_field(text, "Vm"), None);
        assert_eq!(kib_field("VmHWM: many kB", "VmHWM"), None);
    }

    #[test]
    fn the_address_space_is_limited_or_not() {
        let table = |soft: &str| {
            format!(
                "Limit  Soft Limit  Hard Limit  Units\nMax cpu time  5  6  seconds\nMax address space  {soft}  unlimited  bytes\n"
            )
        };
        assert_eq!(address_space_limit(&table("2097152")), Some(2 << 20));
        assert_eq!(address_space_limit(&table("unlimited")), None);
        assert_eq!(address_space_limit(""), None);
    }

    #[test]
    fn a_group_leaves_what_its_tightest_limit_leaves() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("a/memory.max", "1000\n");
        write("a/memory.current", "800\n");
        write("a/memory.stat", "anon 1\ninactive_file 300\n");
        write("a/b/memory.max", "max\n");
        write("a/b/memory.current", "5\n");
        assert_eq!(left_in_group("0::/a/b", root.path()), Some(500));
        assert_eq!(left_in_group("0::/elsewhere", root.path()), None);
        write("memory/c/memory.limit_in_bytes", "70");
        write("memory/c/memory.usage_in_bytes", "90");
        assert_eq!(left_in_group("4:cpu,memory:/c", root.path()), Some(0));
        assert_eq!(left_in_group("4:cpu:/c", root.path()), None);
    }

    #[cfg(any(target_os = "linux", target_os = "macos", windows))]
    #[test]
    fn the_system_tells() {
        assert!(available().unwrap() > 0);
        let machine = machine::memory().unwrap();
        assert!(machine.available <= machine.total);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_tells_the_peak_and_the_limits() {
        assert!(peak_resident().unwrap() > 0);
        let limits = fs::read_to_string("/proc/self/limits").unwrap();
        assert!(limits.lines().any(|line| line.starts_with("Max address space")));
    }
}
