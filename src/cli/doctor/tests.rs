use super::look::{Level, Report, report};
use super::show::{json, text};
use crate::host::fake::Fake;
use crate::pci::PciAddress;

const AT: &str = "0000:04:00.0";

fn at(address: &str) -> PciAddress {
    address.parse().unwrap()
}

/// A machine on which a drive would open: alone in its group, bound, modules and hugepages there.
fn ready() -> Fake {
    let fake = Fake::new();
    fake.nvme(AT, Some("vfio-pci"), Some(7));
    for module in ["vfio_pci", "vfio_iommu_type1"] {
        fake.file(&format!("sys/module/{module}/refcnt"), "0");
    }
    fake.file("dev/vfio/vfio", "");
    fake.file("dev/vfio/7", "");
    fake.hugepages(0, 2048, 64, 64);
    fake.file("proc/cmdline", "quiet iommu=pt\n");
    fake.file("proc/self/limits", "Max locked memory  unlimited  unlimited  bytes\n");
    fake
}

/// A machine with a drive in the kernel's hands.
fn with_disk(content: &[u8]) -> Fake {
    let fake = ready();
    fake.nvme("0000:05:00.0", Some("nvme"), Some(8));
    fake.disk("0000:05:00.0", "nvme0n1", "259:0", content);
    fake
}

fn all(fake: &Fake) -> Report {
    report(&fake.host(), &[]).unwrap()
}

fn obstacle(fake: &Fake) -> Option<String> {
    report(&fake.host(), &[at(AT)]).unwrap().drives.remove(0).obstacle
}

/// Finds the finding that has these words, and returns its level and its fix.
#[track_caller]
fn finding(report: &Report, words: &str) -> (Level, Option<String>) {
    let of_drives = report.drives.iter().flat_map(|drive| &drive.findings);
    let all: Vec<_> = report.machine.iter().chain(of_drives).collect();
    let found = all.iter().find(|finding| finding.what.contains(words));
    let found = found.unwrap_or_else(|| panic!("{words:?} is not among {all:#?}"));
    (found.level, found.fix.clone())
}

#[track_caller]
fn fixed_by(report: &Report, words: &str, level: Level, fix: &str) {
    let (found, with) = finding(report, words);
    assert_eq!(found, level, "{words}");
    assert!(with.as_deref().unwrap_or("nothing").contains(fix), "{words}: {with:?}");
}

#[test]
fn a_machine_that_is_ready_is_said_to_be() {
    let fake = ready();
    let before = fake.snapshot();
    let expected = "\
machine
  ok   iommu      on, 1 groups (kernel command line: iommu=pt)
  ok   module     vfio-pci is loaded
  ok   module     vfio_iommu_type1 is loaded
  ok   hugepages  node 0: 64 of 2 MiB, 64 free, 64 wanted
  ok   memlock    unlimited

0000:04:00.0 (1b36 0010, node 0)
  ok   driver     vfio-pci
  ok   group      alone in IOMMU group 7
  ok   vfio       /dev/vfio/7 belongs to user OWNER
  it would open: udirect identify pcie:0000:04:00.0
";
    let owner = rustix::process::geteuid().as_raw().to_string();
    assert_eq!(text(&all(&fake)), expected.replace("OWNER", &owner));
    assert_eq!(fake.snapshot(), before, "nothing is touched");
}

#[test]
fn a_machine_without_a_drive_says_what_works_all_the_same() {
    let fake = Fake::new();
    let report = all(&fake);
    fixed_by(&report, "this machine shows no NVMe controller", Level::Note, "bench mem:1GiB");
    fixed_by(&report, "off (", Level::Bad, "turn VT-d on in the firmware");
    fixed_by(
        &report,
        "vfio-pci is not loaded, and kernel ? lists no such module",
        Level::Bad,
        "modules",
    );
    assert!(report.drives.is_empty());
}

#[test]
fn modules_that_only_have_to_be_loaded_are_named() {
    let fake = ready();
    std::fs::remove_dir_all(fake.root().join("sys/module/vfio_iommu_type1")).unwrap();
    fake.file("proc/sys/kernel/osrelease", "6.1");
    fake.file("lib/modules/6.1/modules.dep", "kernel/drivers/vfio/vfio_iommu_type1.ko:\n");
    let report = all(&fake);
    fixed_by(&report, "vfio_iommu_type1 is not loaded", Level::Bad, "modprobe vfio_iommu_type1");
    let said = obstacle(&fake).unwrap();
    assert!(
        said.ends_with("needs a module that is not loaded: modprobe vfio_iommu_type1"),
        "{said}"
    );
}

#[test]
fn missing_hugepages_are_counted_by_node_and_fragmentation_is_told_from_lack() {
    let fake = ready();
    fake.hugepages(0, 2048, 16, 4);
    fake.hugepages(1, 1_048_576, 2, 1);
    fake.hugepages(1, 2048, 0, 0);
    let words = "node 0: 16 of 2 MiB, 4 free, 64 wanted";
    fixed_by(&all(&fake), words, Level::Note, "udirect setup hugepages 76 --node 0;");
    fixed_by(&all(&fake), "node 1: 0 of 2 MiB", Level::Note, "hugepages 64 --node 1");
    assert_eq!(finding(&all(&fake), "node 1: 2 of 1.00 GiB, 1 free").0, Level::Note);

    let blocks = "Node 0, zone Normal 51200 0 0 0 0 0 0 0 0 3 0\n";
    fake.file("proc/buddyinfo", blocks);
    let words = "64 wanted; memory is fragmented: 3 more can be had, although 206 MiB is free";
    fixed_by(&all(&fake), words, Level::Note, "hugepages=76 on the kernel command line");
    fake.file("proc/buddyinfo", "Node 0, zone Normal 512 0 0 0 0 0 0 0 0 3 0\n");
    fixed_by(&all(&fake), "only 8.00 MiB of memory is free", Level::Note, "setup hugepages 76");
}

#[test]
fn a_small_limit_of_locked_memory_is_named_to_those_whom_it_binds() {
    let fake = ready();
    fake.file("proc/self/limits", "Max locked memory  8388608  8388608  bytes\n");
    assert_eq!(finding(&all(&fake), "which root may exceed").0, Level::Fine);
    // The tests may run as root, and then the group's file is open to this user by its mode.
    let path = fake.root().join("dev/vfio/7");
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let host = fake.host_of(1007);
    let report = |host| report(host, &[]).unwrap();
    fixed_by(&report(&host), "8.00 MiB: a drive wants 64", Level::Note, "ulimit -l unlimited");
    assert_eq!(report(&host).drives[0].obstacle, None);
    fake.hugepages(0, 2048, 0, 0);
    fixed_by(&report(&host), "8.00 MiB: a drive wants 64", Level::Bad, "ulimit -l unlimited");
    let said = report(&host).drives[0].obstacle.clone().unwrap();
    let words = "0000:04:00.0 needs 12.0 MiB of locked memory and the limit is 8.00 MiB: ulimit";
    assert!(said.starts_with(words), "{said}");
    let report = report(&host);
    fixed_by(&report, "are seen by root only", Level::Unseen, "sudo udirect doctor");
}

#[test]
fn who_holds_a_disk_is_named_with_what_ends_it() {
    let fake = with_disk(&[0; 1 << 20]);
    fixed_by(&all(&fake), "nvme has it", Level::Note, "udirect setup bind 0000:05:00.0");
    assert_eq!(finding(&all(&fake), "nvme0n1: by nobody").0, Level::Fine);
    fake.file("proc/self/mountinfo", "36 27 259:0 / /mnt rw - ext4 /dev/nvme0n1 rw\n");
    fixed_by(&all(&fake), "nvme0n1 is mounted at /mnt", Level::Note, "umount /mnt");
}

#[test]
fn what_a_disk_holds_is_named() {
    let mut content = vec![0; 1 << 20];
    content[..4].copy_from_slice(b"XFSB");
    let fake = with_disk(&content);
    fixed_by(&all(&fake), "nvme0n1 holds xfs", Level::Note, "setup bind 0000:05:00.0 --force");
    content[..4].copy_from_slice(b"UDSB");
    let fake = with_disk(&content);
    assert_eq!(finding(&all(&fake), "nvme0n1 holds udirect store"), (Level::Note, None));
}

#[test]
fn a_disk_that_cannot_be_looked_at_is_said_to_be_unseen() {
    let fake = with_disk(&[0; 1 << 20]);
    std::fs::remove_file(fake.root().join("dev/nvme0n1")).unwrap();
    assert_eq!(finding(&all(&fake), "/dev/nvme0n1 cannot be opened").0, Level::Unseen);
}

#[test]
fn the_device_that_blocks_a_group_is_named() {
    let fake = ready();
    fake.function("0000:04:00.1", "0x020000", Some("e1000e"), Some(7));
    fake.function("0000:00:01.0", "0x060400", Some("pcieport"), Some(7));
    let words = "IOMMU group 7 is shared with 0000:04:00.1, which e1000e has";
    fixed_by(&all(&fake), words, Level::Bad, "udirect setup bind 0000:04:00.1 as well");
    assert!(!text(&all(&fake)).contains("0000:00:01.0"), "a bridge blocks nothing");
    assert!(obstacle(&fake).unwrap().contains("shares IOMMU group 7 with 0000:04:00.1"));
}

#[test]
fn each_obstacle_is_one_sentence() {
    let says = |fake: &Fake, words: &str| {
        let said = obstacle(fake).unwrap();
        assert!(said.contains(words) && !said.contains('\n'), "{said}");
    };
    assert_eq!(obstacle(&ready()), None);
    says(&Fake::new(), "there is no device at 0000:04:00.0");

    let fake = ready();
    fake.process(77, "fio", &["dev/vfio/7"]);
    says(&fake, "0000:04:00.0 is in use by process 77 (fio): end it first");
    fixed_by(&all(&fake), "/dev/vfio/7 is open in process 77 (fio)", Level::Bad, "end process 77");

    let fake = ready();
    fake.spdk_lock(AT, 78, "nvmf_tgt");
    says(&fake, "is locked by SPDK in process 78 (nvmf_tgt)");
    fixed_by(&all(&fake), "process 78 (nvmf_tgt) holds SPDK's lock", Level::Bad, "end process 78");

    for (gone, words) in [
        ("dev/vfio/vfio", "/dev/vfio/vfio is not there: modprobe vfio-pci vfio_iommu_type1"),
        ("dev/vfio/7", "/dev/vfio/7 of 0000:04:00.0 is not there"),
    ] {
        let fake = ready();
        std::fs::remove_file(fake.root().join(gone)).unwrap();
        says(&fake, words);
    }
}

#[test]
fn a_group_of_another_user_is_named_with_both() {
    let fake = ready();
    let owner = std::os::unix::fs::MetadataExt::uid(&fake.root().metadata().unwrap());
    let user = owner + 1;
    let report = report(&fake.host_of(user), &[at(AT)]).unwrap();
    let said = report.drives[0].obstacle.clone().unwrap();
    let words = format!("/dev/vfio/7 belongs to user {owner} and this is user {user}");
    assert!(said.contains(&words), "{said}");
    fixed_by(
        &report,
        "/dev/vfio/7 belongs to user",
        Level::Bad,
        &format!("--user {user}, as root"),
    );
}

#[test]
fn programs_read_the_same() {
    let fake = ready();
    let json = json(&report(&fake.host(), &[at(AT), at("06:00.0")]).unwrap());
    assert_eq!(json["iommu"]["on"], true);
    assert_eq!(json["memlock_bytes"], serde_json::Value::Null);
    assert_eq!(json["hugepages"][0]["page_bytes"], 2 << 20);
    assert_eq!(json["devices"][0]["would_open"], true);
    assert_eq!(json["devices"][0]["iommu_group"], 7);
    assert_eq!(json["devices"][0]["findings"][0]["level"], "ok");
    assert_eq!(json["devices"][1]["would_open"], false);
    assert_eq!(json["devices"][1]["driver"], serde_json::Value::Null);
}

#[test]
fn a_device_may_be_named_as_it_is_opened() {
    for text in ["0000:04:00.0", "04:00.0", "pcie:0000:04:00.0", "pcie:04:00.0/2?queues=1"] {
        assert_eq!(super::address_of(text).unwrap(), at(AT), "{text}");
    }
    let said = super::address_of("nvme0").unwrap_err().line();
    assert!(said.starts_with("\"nvme0\" is not a PCI address"), "{said}");
}
