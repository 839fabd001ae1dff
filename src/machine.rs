//! What the system crate tells of the machine, its memory and its cores: nothing on iOS, where it has no code.

/// The machine's memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    pub total: u64,
    /// What a program can take without making others swap.
    pub available: u64,
}

#[cfg(not(target_os = "ios"))]
mod told {
    use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

    use super::Memory;

    /// The machine's memory, where the system tells.
    pub fn memory() -> Option<Memory> {
        let memory = MemoryRefreshKind::nothing().with_ram();
        let system = System::new_with_specifics(RefreshKind::nothing().with_memory(memory));
        let (total, available) = (system.total_memory(), system.available_memory());
        (total > 0).then_some(Memory { total, available })
    }

    /// The name of each core, empty where the system tells none.
    pub fn cores() -> Vec<String> {
        let system = System::new_with_specifics(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()));
        system.cpus().iter().map(|core| core.brand().to_owned()).collect()
    }
}

#[cfg(target_os = "ios")]
mod told {
    use super::Memory;

    pub fn memory() -> Option<Memory> {
        None
    }

    pub fn cores() -> Vec<String> {
        Vec::new()
    }
}

pub use told::{cores, memory};
