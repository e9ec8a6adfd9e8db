//! `doctor` and `setup`, on drives that are in the kernel's hands.

use std::fs;

use crate::guest::{address, folder, kernel_node, refused, run, text};

/// Runs udirect, which has to succeed; returns what it says.
fn done(arguments: &[&str]) -> String {
    let output = run("udirect", arguments);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    text(&output)
}

fn driver(device: &str) -> Option<String> {
    let link = fs::read_link(folder(device).join("driver")).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

pub(crate) fn a_drive_goes_from_the_kernel_to_a_benchmark_and_back() {
    let at = address("lba512");
    let output = run("udirect", &["doctor", &at]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains(&format!("udirect setup bind {at}")), "{}", text(&output));
    // What the scenes before this one have left is no filesystem, but it may look like something.
    let bind = ["setup", "bind", "--force", &at];
    done(&["setup", "bind", "--force", "--dry-run", &at]);
    assert_eq!(driver("lba512").as_deref(), Some("nvme"), "a dry run changes nothing");
    assert!(done(&bind).contains("nvme -> vfio-pci"));
    assert_eq!(driver("lba512").as_deref(), Some("vfio-pci"));
    done(&bind);
    done(&["doctor", &at]);
    let device = format!("pcie:{at}");
    let result = done(&[
        "bench",
        &device,
        "--rw=randread",
        "--bs=4k",
        "--iodepth=8",
        "--runtime=1",
        "--time_based",
    ]);
    assert!(result.contains("QEMU NVMe Ctrl lba512"), "{result}");
    assert!(done(&["setup", "unbind", &at]).contains("vfio-pci -> nvme"));
    assert_eq!(driver("lba512").as_deref(), Some("nvme"));
    kernel_node("lba512");
}

pub(crate) fn a_disk_in_use_is_never_taken() {
    let at = address("disk");
    let node = kernel_node("disk");
    let node = node.to_string_lossy();
    assert!(run("mount", &["-t", "ext4", &node, "/mnt"]).status.success());
    for force in [&[][..], &["--force"]] {
        let arguments = [&["setup", "bind"], force, &[&at]].concat();
        let said = refused(&arguments);
        assert!(said.contains("is mounted at /mnt (umount /mnt first)"), "{said}");
    }
    assert_eq!(driver("disk").as_deref(), Some("nvme"));
    let said = text(&run("udirect", &["doctor", &at]));
    assert!(said.contains("mounted at /mnt") && said.contains("holds ext4"), "{said}");
    assert!(run("umount", &["/mnt"]).status.success());
    let said = refused(&["setup", "bind", &at]);
    assert!(said.contains("holds ext4; --force takes it all the same"), "{said}");
    done(&["setup", "bind", "--force", &at]);
    done(&["list", &format!("pcie:{at}")]);
    done(&["setup", "unbind", &at]);
    let node = kernel_node("disk");
    assert!(run("mount", &["-t", "ext4", &node.to_string_lossy(), "/mnt"]).status.success());
    let hello = fs::read_to_string("/mnt/hello");
    assert!(run("umount", &["/mnt"]).status.success());
    assert_eq!(hello.expect("the file"), "hello from the host\n");
}

pub(crate) fn a_shared_group_is_named_by_doctor() {
    let (at, other) = (address("shared"), address("shared2"));
    done(&["setup", "bind", &at]);
    let output = run("udirect", &["doctor", &at]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains(&other), "{}", text(&output));
    done(&["setup", "bind", &other]);
    done(&["doctor", &at]);
    done(&["setup", "unbind", &at, &other]);
}

pub(crate) fn without_an_iommu_the_fix_is_named_and_memory_still_serves() {
    let at = address("lba512");
    let said = refused(&["list", &format!("pcie:{at}")]);
    assert!(
        said.contains(&format!("no IOMMU translates for {at}")) && said.contains("intel_iommu=on"),
        "{said}"
    );
    let output = run("udirect", &["doctor", &at]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("iommu"), "{}", text(&output));
    assert_eq!(driver("lba512").as_deref(), Some("nvme"));
    done(&["bench", "mem:64MiB", "--rw=randread", "--bs=4k", "--runtime=1", "--time_based"]);
}
