//! Whether an IOMMU stands between devices and memory, and what would put one there.
#![forbid(unsafe_code)]

use super::Host;

/// Words of the kernel command line that turn an IOMMU off.
const OFF: [&str; 4] = ["intel_iommu=off", "amd_iommu=off", "iommu=off", "noiommu"];

/// The tables in which firmware describes its IOMMU: Intel's, AMD's.
const TABLES: [&str; 2] = ["DMAR", "IVRS"];

/// What is known of the machine's IOMMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iommu {
    /// Its groups: there are some exactly where it translates.
    pub groups: usize,
    /// The table by which the firmware describes it.
    pub table: Option<&'static str>,
    /// The word of the kernel command line that turns it off.
    pub off_by: Option<&'static str>,
    /// The words of the kernel command line that speak of it.
    pub words: Vec<String>,
    /// Whether the processor is AMD's.
    pub is_amd: bool,
    /// Whether the machine is virtual.
    pub is_virtual: bool,
    /// Whether VFIO works without one, by somebody's wish.
    pub is_waived: bool,
}

/// Looks for the IOMMU.
pub fn look(host: &Host) -> Iommu {
    let command = host.text("proc/cmdline").unwrap_or_default();
    let words = || command.split_whitespace();
    let processor = host.text("proc/cpuinfo").unwrap_or_default();
    let waived = host.text("sys/module/vfio/parameters/enable_unsafe_noiommu_mode");
    let is_there = |table: &&str| host.path(format!("sys/firmware/acpi/tables/{table}")).exists();
    Iommu {
        groups: host.names("sys/kernel/iommu_groups").len(),
        table: TABLES.into_iter().find(is_there),
        off_by: OFF.into_iter().find(|off| words().any(|word| word == *off)),
        words: words().filter(|word| word.contains("iommu")).map(str::to_owned).collect(),
        is_amd: processor.contains("AuthenticAMD") || processor.contains("HygonGenuine"),
        is_virtual: processor.split_whitespace().any(|word| word == "hypervisor"),
        is_waived: waived.is_some_and(|waived| waived == "Y"),
    }
}

impl Iommu {
    /// Says whether it translates.
    pub fn is_on(&self) -> bool {
        self.groups > 0
    }

    /// Returns what turns it on, if it is off.
    pub fn fix(&self) -> Option<String> {
        if self.is_on() {
            return None;
        }
        let (name, word) =
            if self.is_amd { ("AMD-Vi", "iommu=pt") } else { ("VT-d", "intel_iommu=on") };
        let command_line = "the kernel command line (GRUB_CMDLINE_LINUX in /etc/default/grub, update-grub, reboot)";
        Some(match (self.off_by, self.table) {
            (Some(off), _) => format!("take {off} off {command_line}"),
            (None, Some(_)) => format!("add {word} to {command_line}"),
            (None, None) if self.is_virtual => "this machine is virtual and is offered none: give it one (QEMU: -machine \
                 q35,kernel-irqchip=split -device intel-iommu,intremap=on), or drive the disk on the host"
                .into(),
            (None, None) => format!("turn {name} on in the firmware's setup, and add {word} to {command_line}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    fn fix_of(files: &[(&str, &str)]) -> Option<String> {
        let fake = Fake::new();
        files.iter().for_each(|(path, text)| fake.file(path, text));
        look(&fake.host()).fix()
    }

    const INTEL: (&str, &str) = ("proc/cpuinfo", "vendor_id : GenuineIntel\nflags : fpu vmx\n");
    const AMD: (&str, &str) = ("proc/cpuinfo", "vendor_id : AuthenticAMD\nflags : fpu svm\n");
    const GUEST: (&str, &str) = ("proc/cpuinfo", "vendor_id : GenuineIntel\nflags : hypervisor\n");
    const DMAR: (&str, &str) = ("sys/firmware/acpi/tables/DMAR", "");

    #[test]
    fn an_iommu_with_groups_needs_nothing() {
        assert_eq!(fix_of(&[INTEL, ("sys/kernel/iommu_groups/0/type", "DMA")]), None);
    }

    #[test]
    fn each_reason_has_its_own_fix() {
        let says = |files: &[(&str, &str)], part: &str| {
            let fix = fix_of(files).unwrap();
            assert!(fix.contains(part), "{fix}");
        };
        says(
            &[INTEL],
            "turn VT-d on in the firmware's setup, and add intel_iommu=on to the kernel",
        );
        says(&[AMD], "turn AMD-Vi on in the firmware's setup, and add iommu=pt to the kernel");
        says(&[INTEL, DMAR], "add intel_iommu=on to the kernel command line");
        says(&[GUEST], "this machine is virtual and is offered none");
        says(&[GUEST, DMAR], "add intel_iommu=on to");
        let off = ("proc/cmdline", "quiet intel_iommu=off console=ttyS0\n");
        says(&[INTEL, DMAR, off], "take intel_iommu=off off the kernel command line");
    }
}
