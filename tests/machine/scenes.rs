//! The ordinary course of things: bring-up, the kernel's driver as witness, users, processes, refusals.

use std::fs;
use std::os::unix::fs::{FileExt, chown};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use udirect::dma::{Domain, DomainOptions};
use udirect::nvme;
use udirect::transport::Transport;
use udirect::transport::vfio::Vfio;

use crate::guest::{
    Ours, address, assert_home, bind, folder, kernel_node, pattern, read_all, refused, run, text,
    wait_for, write_all,
};

/// What is compared with the kernel's driver.
const BYTES: usize = 8 << 20;

/// Prints how long a controller takes from nothing to its first queue: the kernel's part, which resets the device, and
/// ours. Not a limit: time is emulated here.
pub(crate) fn a_controller_is_brought_up_again_and_again() {
    let _ours = Ours::take("lba512");
    let at = address("lba512").parse().expect("an address");
    let domain = Domain::new(DomainOptions::default());
    for _ in 0..5 {
        let began = Instant::now();
        let transport: Arc<dyn Transport> = Vfio::open(at).expect("the device");
        let opened = began.elapsed();
        let controller = nvme::connect(&transport, &domain, nvme::Options::default());
        let ready = began.elapsed() - opened;
        drop(controller.expect("a controller"));
        println!("opened by the kernel in {opened:.1?}, brought up in {ready:.1?}");
    }
    assert_eq!(domain.usage().1, 0, "DMA memory did not come home");
}

pub(crate) fn what_the_kernel_writes_we_read_and_the_reverse() {
    let kernels = pattern(BYTES, 1);
    let node = fs::OpenOptions::new().write(true).open(kernel_node("lba512")).expect("the node");
    node.write_all_at(&kernels, 0).expect("a write");
    node.sync_all().expect("a flush");
    drop(node);
    let ours = Ours::take("lba512");
    let opened = ours.open();
    assert!(read_all(&opened, BYTES) == kernels, "what the kernel has written is not what we read");
    let written = pattern(BYTES, 2);
    write_all(&opened, &written);
    assert_home(opened);
    drop(ours);
    let mut found = vec![0; BYTES];
    let node = fs::File::open(kernel_node("lba512")).expect("the node");
    node.read_exact_at(&mut found, 0).expect("a read");
    assert!(found == written, "what we have written is not what the kernel reads");
}

pub(crate) fn a_filesystem_that_we_have_copied_is_mounted() {
    let from = Ours::take("disk");
    let to = Ours::take("lba512");
    let (source, target) = (from.open(), to.open());
    let len = usize::try_from(source.device.geometry().capacity().0).expect("it is small");
    write_all(&target, &read_all(&source, len));
    drop((source, target));
    drop((from, to));
    let node = kernel_node("lba512");
    let output = run("mount", &["-t", "ext4", &node.to_string_lossy(), "/mnt"]);
    assert!(output.status.success(), "{}", text(&output));
    let hello = fs::read_to_string("/mnt/hello");
    assert!(run("umount", &["/mnt"]).status.success());
    assert_eq!(hello.expect("the file"), "hello from the host\n");
}

pub(crate) fn an_ordinary_user_who_owns_the_group_drives_the_device() {
    let ours = Ours::take("lba512");
    let device = format!("pcie:{}", address("lba512"));
    let as_user = |limit: &str| {
        let line = format!("ulimit -l {limit}; udirect list {device}");
        run("su", &["nobody", "-c", &line])
    };
    let output = as_user("unlimited");
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    let said = text(&output);
    assert!(said.contains("belongs to user 0 and this is user 65534"), "{said}");
    chown(ours.group(), Some(65534), None).expect("root may");
    let output = as_user("unlimited");
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("QEMU NVMe Ctrl"), "{}", text(&output));
    let output = as_user("64");
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("RLIMIT_MEMLOCK is 65536"), "{}", text(&output));
    chown(ours.group(), Some(0), None).expect("root may");
}

/// By SPDK's lock, which is looked at first.
pub(crate) fn a_second_process_is_refused() {
    fs::create_dir_all("/var/tmp").expect("a folder for locks");
    let ours = Ours::take("lba512");
    let opened = ours.open();
    let lock = format!("/var/tmp/spdk_pci_lock_{}", address("lba512"));
    let holder = fs::read(&lock).expect("SPDK's lock on the device");
    assert_eq!(holder, std::process::id().to_ne_bytes());
    let said = refused(&["list", &format!("pcie:{}", address("lba512"))]);
    let name = fs::read_to_string("/proc/self/comm").expect("our name");
    let (process, name) = (std::process::id(), name.trim());
    let expected = format!("is in use by process {process} ({name}): end it first");
    assert!(said.ends_with(&expected), "{said}");
    assert_home(opened);
    assert!(!fs::exists(&lock).expect("a look"), "the lock is left behind");
    fs::remove_dir("/var/tmp").expect("it was made above");
}

pub(crate) fn after_a_killed_process_the_device_starts_clean() {
    let ours = Ours::take("lba512");
    let device = format!("pcie:{}", address("lba512"));
    for round in 0..3 {
        let arguments = [
            "bench",
            &device,
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=32",
            "--runtime=60",
            "--time_based",
        ];
        let mut child =
            Command::new("udirect").args(arguments).stdout(Stdio::null()).spawn().expect("udirect");
        // In the middle: the group is open, and commands are under way.
        let fds = format!("/proc/{}/fd", child.id());
        wait_for("the bench has the device", || {
            let links = fs::read_dir(&fds).into_iter().flatten().flatten();
            links
                .filter_map(|link| fs::read_link(link.path()).ok())
                .any(|path| path == ours.group())
        });
        sleep(Duration::from_millis(500 + 100 * round));
        child.kill().expect("it is ours");
        child.wait().expect("it has ended");
        let opened = ours.open();
        let data = pattern(1 << 20, round);
        write_all(&opened, &data);
        assert!(read_all(&opened, 1 << 20) == data, "round {round}");
        assert_home(opened);
    }
}

pub(crate) fn what_is_in_the_way_is_named_and_nothing_is_touched() {
    let said = refused(&["list", "pcie:7f:00.0"]);
    assert!(
        said.contains("there is no device at 0000:7f:00.0; NVMe controllers are at 0000:01:00.0"),
        "{said}"
    );
    let said = refused(&["list", "pcie:00:00.0"]);
    assert!(said.contains("0000:00:00.0 is no NVMe controller: its class is 0x060000"), "{said}");
    let at = address("lba512");
    let said = refused(&["list", &format!("pcie:{at}")]);
    assert!(
        said.ends_with(&format!("{at} is bound to the driver nvme: udirect setup bind {at}")),
        "{said}"
    );
    assert!(folder("lba512").join("nvme").exists(), "the kernel still has it");
    bind("-", "lba512");
    let said = refused(&["list", &format!("pcie:{at}")]);
    assert!(said.contains("is bound to no driver"), "{said}");
    bind("nvme", "lba512");

    let _gaps = Ours::take("gaps");
    let said = refused(&["list", &format!("pcie:{}/2", address("gaps"))]);
    assert!(said.contains("namespace 2: attached to the controller are 1, 3, 7"), "{said}");
    let listed = run("udirect", &["list", &format!("pcie:{}/7", address("gaps"))]);
    assert!(listed.status.success(), "{}", text(&listed));

    let shared = Ours::take("shared");
    let said = refused(&["list", &format!("pcie:{}", address("shared"))]);
    let other = address("shared2");
    assert!(
        said.contains(&format!("with {other}, which is bound to nvme: udirect setup bind {other}")),
        "{said}"
    );
    let _other = Ours::take("shared2");
    assert_home(shared.open());
}

pub(crate) fn without_hugepages_ordinary_pages_serve() {
    const HUGEPAGES: &str = "/proc/sys/vm/nr_hugepages";
    let before = fs::read_to_string(HUGEPAGES).expect("a number");
    fs::write(HUGEPAGES, "0").expect("root may");
    let ours = Ours::take("lba512");
    let opened = ours.open();
    let data = pattern(BYTES, 5);
    write_all(&opened, &data);
    let read = read_all(&opened, BYTES);
    let kind = opened.device.dma().page_kind();
    assert_home(opened);
    fs::write(HUGEPAGES, before.trim()).expect("root may");
    assert_eq!(kind, Some(udirect::dma::PageKind::Ordinary));
    assert!(read == data, "what was written is not what is read");
}
