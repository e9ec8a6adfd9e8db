//! Which kernel modules are there: loaded, to be loaded, or not at all.
#![forbid(unsafe_code)]

use super::Host;

/// How a module is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// Loaded, or part of the kernel.
    Loaded,
    /// `modprobe` can load it.
    Available,
    /// Neither, as far as the list of modules says.
    Missing,
}

/// Returns how a module is there. Hyphens and underscores are the same to the kernel.
pub fn look(host: &Host, name: &str) -> Module {
    let name = name.replace('-', "_");
    let folder = format!("lib/modules/{}", release(host));
    let is_listed = |list: &str| {
        let list = host.text(format!("{folder}/{list}")).unwrap_or_default();
        list.lines().any(|line| module_of(line) == name)
    };
    if host.path(format!("sys/module/{name}")).exists() || is_listed("modules.builtin") {
        Module::Loaded
    } else if is_listed("modules.dep") {
        Module::Available
    } else {
        Module::Missing
    }
}

/// Returns the kernel's release.
pub fn release(host: &Host) -> String {
    host.text("proc/sys/kernel/osrelease").unwrap_or_else(|| "?".into())
}

/// Reads `kernel/drivers/vfio/pci/vfio-pci.ko.xz: …`.
fn module_of(line: &str) -> String {
    let path = line.split(':').next().unwrap_or(line);
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    #[test]
    fn a_module_is_loaded_built_in_available_or_missing() {
        let fake = Fake::new();
        fake.file("proc/sys/kernel/osrelease", "6.1.0-9-amd64\n");
        fake.file("sys/module/vfio/refcnt", "1");
        fake.file(
            "lib/modules/6.1.0-9-amd64/modules.builtin",
            "kernel/drivers/nvme/host/nvme.ko\n",
        );
        let dep = "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/vfio.ko.xz\n";
        fake.file("lib/modules/6.1.0-9-amd64/modules.dep", dep);
        let host = fake.host();
        let found = ["vfio", "nvme", "vfio-pci", "vfio_pci", "vfio_iommu_type1"];
        let found = found.map(|name| look(&host, name));
        use Module::{Available, Loaded, Missing};
        assert_eq!(found, [Loaded, Loaded, Available, Available, Missing]);
    }
}
