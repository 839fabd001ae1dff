//! How much memory the process has used and the machine has, where the system tells; nothing is allocated or limited here.

use std::fs;

/// The most memory this process has had resident so far, in bytes.
pub fn peak_resident() -> Option<u64> {
    kib_field(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM")
}

/// The machine's memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub total: u64,
    /// What a program can take without making others swap.
    pub available: u64,
}

/// The machine's memory, where the system tells.
pub fn machine() -> Option<Memory> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    Some(Memory { total: kib_field(&text, "MemTotal")?, available: kib_field(&text, "MemAvailable")? })
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

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_tells() {
        assert!(peak_resident().unwrap() > 0);
        let machine = machine().unwrap();
        assert!(machine.available <= machine.total);
    }
}
