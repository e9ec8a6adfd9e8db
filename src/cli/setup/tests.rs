use std::cell::{Cell, RefCell};
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::act::{Act, Kernel};
use super::choice::Environment;
use super::*;
use crate::host::fake::Fake;
use crate::pci::Function;

const AT: &str = "0000:04:00.0";
const OTHER: &str = "0000:05:00.0";

/// A machine with a kernel behind its files: what is written to them has the effects that it has in sysfs.
struct Bed {
    fake: Fake,
    /// The drive that no driver but the kernel's takes.
    broken: Cell<Option<&'static str>>,
    /// How many hugepages can be had, and how many after compaction.
    pages: Cell<(u64, u64)>,
    given: RefCell<Vec<(String, u32)>>,
}

impl Bed {
    /// Two drives with the kernel's driver, each with a disk; no module is loaded.
    fn new() -> Self {
        let fake = Fake::new();
        for (number, address) in [AT, OTHER].into_iter().enumerate() {
            fake.nvme(address, Some("nvme"), Some(7 + number as u32));
            let (name, device) = (format!("nvme{number}n1"), format!("259:{number}"));
            fake.disk(address, &name, &device, &[0; 1 << 20]);
        }
        fake.hugepages(0, 2048, 0, 0);
        fake.hugepages(1, 2048, 8, 8);
        fake.file("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "8\n");
        fake.file("proc/sys/vm/compact_memory", "");
        fake.file("etc/passwd", "ann:x:1007:100::/home/ann:/bin/sh\n");
        let pages = Cell::new((u64::MAX, u64::MAX));
        Self { fake, broken: Cell::new(None), pages, given: RefCell::default() }
    }

    fn below(&self, path: &Path) -> String {
        path.strip_prefix(self.fake.root()).unwrap().to_string_lossy().into_owned()
    }

    fn function(&self, address: &str) -> Function {
        self.fake.host().sysfs.function(address.parse().unwrap()).unwrap().unwrap()
    }

    fn driver(&self, address: &str) -> Option<String> {
        self.function(address).driver
    }

    fn probe(&self, address: &str) {
        let function = self.function(address);
        let wanted = function.driver_override.clone().unwrap_or_else(|| "nvme".into());
        let is_there = self.fake.root().join(format!("sys/bus/pci/drivers/{wanted}")).exists();
        if function.driver.is_some()
            || !is_there
            || (self.broken.get() == Some(address) && wanted != "nvme")
        {
            return;
        }
        let folder = format!("sys/bus/pci/devices/{address}");
        self.fake.link(&format!("{folder}/driver"), &format!("sys/bus/pci/drivers/{wanted}"));
        if let (Some(group), "vfio-pci") = (function.group, wanted.as_str()) {
            self.fake.file(&format!("dev/vfio/{group}"), "");
        }
    }

    fn reserve(&self, path: &Path, wish: u64) {
        let (now, _) = self.pages.get();
        fs::write(path, format!("{}\n", wish.min(now))).unwrap();
    }

    /// Does something with this environment, and returns what was said and how it ended.
    fn run(&self, dry: bool, environment: &[(&str, &str)], verb: &SetupVerb) -> Ended {
        self.run_as(0, dry, environment, verb)
    }

    fn run_as(&self, user: u32, dry: bool, variables: &[(&str, &str)], verb: &SetupVerb) -> Ended {
        let host = self.fake.host_of(user);
        let get = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let mut act = Act::new(&host, self, dry).patient(Duration::from_millis(20));
        let done = Environment::read(get).and_then(|found| change(&mut act, &found, verb));
        let failure = done.err().map(|failure| (failure.exit as u8, failure.line()));
        Ended { said: act.said().to_vec(), notes: act.notes().to_vec(), failure }
    }

    /// Does something that must be refused with nothing touched; returns the sentence.
    #[track_caller]
    fn refusal(&self, environment: &[(&str, &str)], verb: &SetupVerb) -> String {
        let before = self.fake.snapshot();
        let ended = self.run(false, environment, verb);
        assert_eq!(self.fake.snapshot(), before, "nothing is touched");
        assert_eq!(ended.said, [""; 0]);
        let (exit, line) = ended.failure.expect("it is refused");
        assert_eq!(exit, 2, "{line}");
        assert!(!line.contains('\n'), "{line}");
        line
    }
}

struct Ended {
    said: Vec<String>,
    notes: Vec<String>,
    failure: Option<(u8, String)>,
}

impl Ended {
    #[track_caller]
    fn said(self) -> Vec<String> {
        assert_eq!(self.failure, None);
        self.said
    }
}

impl Kernel for Bed {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        fs::metadata(path)?;
        let below = self.below(path);
        let folder = path.parent().unwrap();
        if below.ends_with("/driver_override") {
            let name = if text.trim().is_empty() { "(null)" } else { text.trim() };
            fs::write(path, format!("{name}\n"))
        } else if below.ends_with("/driver/unbind") {
            assert!(below.contains(text), "{text} is written to its own driver");
            fs::remove_file(folder)
        } else if below.ends_with("/drivers_probe") {
            self.probe(text);
            Ok(())
        } else if below.ends_with("/nr_hugepages") {
            self.reserve(path, text.parse().unwrap());
            Ok(())
        } else if below.ends_with("/compact_memory") {
            let (_, after) = self.pages.get();
            self.pages.set((after, after));
            Ok(())
        } else {
            panic!("{below} is none of our business")
        }
    }

    fn load(&self, module: &str) -> io::Result<()> {
        if module.contains("none") {
            return Err(io::Error::other("FATAL: Module none not found"));
        }
        self.fake.file(&format!("sys/module/{}/refcnt", module.replace('-', "_")), "0");
        if module.ends_with("pci") {
            self.fake.file(&format!("sys/bus/pci/drivers/{module}/unbind"), "");
        }
        Ok(())
    }

    fn give(&self, path: &Path, user: u32) -> io::Result<()> {
        self.given.borrow_mut().push((self.below(path), user));
        Ok(())
    }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn bind(addresses: &[&str]) -> SetupVerb {
    SetupVerb::Bind { addresses: owned(addresses), user: None, force: false }
}

fn force(addresses: &[&str]) -> SetupVerb {
    SetupVerb::Bind { addresses: owned(addresses), user: None, force: true }
}

fn unbind(addresses: &[&str]) -> SetupVerb {
    SetupVerb::Unbind { addresses: owned(addresses) }
}

fn hugepages(pages: Option<u64>, node: Option<&str>) -> SetupVerb {
    SetupVerb::Hugepages { pages, node: node.map(str::to_owned) }
}

#[test]
fn a_drive_goes_to_vfio_and_back_and_each_step_is_said_once() {
    let bed = Bed::new();
    let said = bed.run(false, &[], &bind(&[AT])).said();
    assert_eq!(
        said,
        [
            "module vfio-pci: loaded",
            "module vfio_iommu_type1: loaded",
            "0000:04:00.0 (1b36 0010): nvme -> vfio-pci"
        ]
    );
    assert_eq!(bed.driver(AT).as_deref(), Some("vfio-pci"));
    assert_eq!(bed.driver(OTHER).as_deref(), Some("nvme"));

    let before = bed.fake.snapshot();
    assert_eq!(bed.run(false, &[], &bind(&[AT])).said(), ["nothing to change"]);
    assert_eq!(bed.fake.snapshot(), before);

    let said = bed.run(false, &[], &unbind(&["pcie:0000:04:00.0"])).said();
    assert_eq!(said, ["0000:04:00.0 (1b36 0010): vfio-pci -> nvme"]);
    assert_eq!(bed.function(AT).driver_override, None);
    let before = bed.fake.snapshot();
    assert_eq!(bed.run(false, &[], &unbind(&[AT])).said(), ["nothing to change"]);
    assert_eq!(bed.fake.snapshot(), before);
}

#[test]
fn a_dry_run_says_the_same_and_changes_nothing() {
    let bed = Bed::new();
    let before = bed.fake.snapshot();
    let user = SetupVerb::Bind { addresses: owned(&[AT]), user: Some("ann".into()), force: false };
    assert_eq!(
        bed.run(true, &[], &user).said(),
        [
            "would: module vfio-pci: loaded",
            "would: module vfio_iommu_type1: loaded",
            "would: 0000:04:00.0 (1b36 0010): nvme -> vfio-pci",
            "would: /dev/vfio/7: user 0 -> 1007"
        ]
    );
    let said = bed.run(true, &[], &hugepages(Some(64), Some("0,1"))).said();
    let expected = ["0: 0 -> 64", "1: 8 -> 64"];
    assert_eq!(said, expected.map(|one| format!("would: hugepages of 2 MiB on node {one}")));
    assert_eq!(bed.fake.snapshot(), before);

    bed.run(false, &[], &bind(&[AT])).said();
    let before = bed.fake.snapshot();
    let said = bed.run(true, &[], &unbind(&[AT])).said();
    assert_eq!(said, ["would: 0000:04:00.0 (1b36 0010): vfio-pci -> nvme"]);
    assert_eq!(bed.fake.snapshot(), before);
    assert_eq!(*bed.given.borrow(), []);
}

#[test]
fn a_disk_in_use_is_never_touched_not_even_by_force() {
    let mounted = Bed::new();
    let line = "36 27 259:1 / /srv/data rw - ext4 /dev/nvme1n1 rw\n";
    mounted.fake.file("proc/self/mountinfo", line);
    let held = Bed::new();
    held.fake.holder("nvme1n1", "dm-0", "253:0");
    held.fake.file("sys/block/dm-0/dm/name", "vg-root");
    held.fake.file("sys/block/dm-0/dm/uuid", "LVM-x");
    let swap = Bed::new();
    swap.fake.file("proc/swaps", "Filename Type\n/dev/nvme1n1 partition 1 0 -2\n");
    let open = Bed::new();
    open.fake.process(77, "dd", &["dev/nvme1n1"]);
    for (bed, words) in [
        (mounted, "nvme1n1 is mounted at /srv/data (umount /srv/data first)"),
        (held, "nvme1n1 is held by dm-0 (LVM volume vg-root) (vgchange -an, for the group"),
        (swap, "nvme1n1 is swap (swapoff /dev/nvme1n1 first)"),
        (open, "it is open in process 77 (dd) (end process 77 first)"),
    ] {
        // The other drive is free, and is not taken either.
        for verb in [bind(&[AT, OTHER]), force(&[AT, OTHER])] {
            let line = bed.refusal(&[], &verb);
            assert!(line.starts_with("0000:05:00.0 is in use: "), "{line}");
            assert!(line.contains(words), "{line}");
        }
    }
}

#[test]
fn a_disk_that_is_not_blank_wants_force_and_our_own_store_does_not() {
    let bed = Bed::new();
    let mut content = vec![0; 1 << 20];
    content[512..520].copy_from_slice(b"EFI PART");
    bed.fake.file("dev/nvme0n1", &content);
    let line = bed.refusal(&[], &bind(&[AT]));
    let expected = "0000:04:00.0 is not blank: nvme0n1 holds gpt; --force takes it all the same";
    assert_eq!(line, expected);
    bed.run(false, &[], &force(&[AT])).said();
    assert_eq!(bed.driver(AT).as_deref(), Some("vfio-pci"));

    let bed = Bed::new();
    content[512..520].fill(0);
    content[..4].copy_from_slice(b"UDSB");
    bed.fake.file("dev/nvme0n1", &content);
    bed.run(false, &[], &bind(&[AT])).said();
}

#[test]
fn a_disk_that_cannot_be_looked_at_may_be_in_use() {
    let bed = Bed::new();
    fs::remove_file(bed.fake.root().join("dev/nvme0n1")).unwrap();
    let line = bed.refusal(&[], &bind(&[AT]));
    assert!(
        line.starts_with("0000:04:00.0 may be in use: /dev/nvme0n1 cannot be opened"),
        "{line}"
    );
}

#[test]
fn what_is_no_drive_is_taken_by_force_only_and_never_if_it_is_up_or_a_bridge() {
    let bed = Bed::new();
    let nic = bed.fake.function("0000:06:00.0", "0x020000", Some("e1000e"), Some(9));
    bed.fake.device(&format!("{nic}/net/eth0"), "sys/class/net/eth0");
    bed.fake.file(&format!("{nic}/net/eth0/flags"), "0x1002");
    let line = bed.refusal(&[], &bind(&["06:00.0"]));
    assert!(
        line.contains("is no NVMe controller (class 0x020000, driver e1000e): --force"),
        "{line}"
    );
    bed.fake.file(&format!("{nic}/net/eth0/flags"), "0x1003");
    let line = bed.refusal(&[], &force(&["06:00.0"]));
    assert_eq!(line, "0000:06:00.0 is in use: the network interface eth0 is up");
    bed.fake.function("0000:00:01.0", "0x060400", Some("pcieport"), Some(9));
    assert!(bed.refusal(&[], &force(&["00:01.0"])).contains("is a bridge"));
}

#[test]
fn a_drive_without_an_iommu_or_that_is_not_there_is_refused() {
    let bed = Bed::new();
    bed.fake.nvme("0000:07:00.0", Some("nvme"), None);
    let line = bed.refusal(&[], &bind(&["07:00.0"]));
    assert!(line.starts_with("no IOMMU translates for 0000:07:00.0"), "{line}");
    let line = bed.refusal(&[], &bind(&["08:00.0"]));
    assert!(
        line.starts_with("there is no device at 0000:08:00.0; NVMe controllers are at"),
        "{line}"
    );
    let line = bed.refusal(&[], &bind(&[]));
    assert!(
        line.ends_with("NVMe controllers are at 0000:04:00.0, 0000:05:00.0, 0000:07:00.0"),
        "{line}"
    );
}

#[test]
fn a_drive_that_a_process_drives_is_neither_unbound_nor_taken() {
    let bed = Bed::new();
    bed.run(false, &[], &bind(&[AT])).said();
    bed.fake.process(77, "engine", &["dev/vfio/7"]);
    let line = bed.refusal(&[], &unbind(&[AT]));
    assert_eq!(line, "0000:04:00.0 is in use by process 77 (engine): end it first");
    bed.fake.spdk_lock(OTHER, 78, "nvmf_tgt");
    for verb in [bind(&[OTHER]), force(&[OTHER])] {
        let line = bed.refusal(&[], &verb);
        assert_eq!(line, "0000:05:00.0 is in use by process 78 (nvmf_tgt): end it first");
    }
}

#[test]
fn a_drive_that_the_new_driver_does_not_take_goes_back_to_the_old_one() {
    let bed = Bed::new();
    bed.broken.set(Some(AT));
    let ended = bed.run(false, &[], &bind(&[AT]));
    let (exit, line) = ended.failure.unwrap();
    let expected = "0000:04:00.0 was not taken by vfio-pci and is with nvme: dmesg says why";
    assert_eq!((exit, line.as_str()), (3, expected));
    let loaded = ["module vfio-pci: loaded", "module vfio_iommu_type1: loaded"];
    assert_eq!(ended.said, loaded, "what was changed before is said");
    assert_eq!(bed.driver(AT).as_deref(), Some("nvme"));
    assert_eq!(bed.function(AT).driver_override, None);
}

#[test]
fn a_drive_that_was_taken_goes_back_when_the_next_one_cannot_be() {
    let bed = Bed::new();
    bed.broken.set(Some(OTHER));
    let ended = bed.run(false, &[], &bind(&[AT, OTHER]));
    let (exit, line) = ended.failure.unwrap();
    assert_eq!(exit, 3);
    assert!(line.starts_with("0000:05:00.0 was not taken by vfio-pci and is with nvme"), "{line}");
    let (there, back) = ("nvme -> vfio-pci", "vfio-pci -> nvme");
    let expected = [there, back].map(|moved| format!("0000:04:00.0 (1b36 0010): {moved}"));
    assert_eq!(ended.said[2..], expected);
    for address in [AT, OTHER] {
        assert_eq!(bed.driver(address).as_deref(), Some("nvme"));
        assert_eq!(bed.function(address).driver_override, None);
    }
}

#[test]
fn a_module_that_is_not_to_be_had_is_named() {
    let bed = Bed::new();
    let ended = bed.run(false, &[("DRIVER_OVERRIDE", "none-pci")], &bind(&[AT]));
    let (exit, line) = ended.failure.unwrap();
    assert_eq!(exit, 3);
    assert!(line.starts_with("modprobe none-pci, for kernel ?: FATAL"), "{line}");
    assert_eq!(bed.driver(AT).as_deref(), Some("nvme"));
}

#[test]
fn the_group_goes_to_a_user_by_name_number_or_environment() {
    let bed = Bed::new();
    let to = |user: &str| SetupVerb::Bind {
        addresses: owned(&[AT]),
        user: Some(user.into()),
        force: false,
    };
    let said = bed.run(false, &[("TARGET_USER", "1009")], &bind(&[AT])).said();
    assert!(said.last().unwrap().ends_with("-> 1009"), "{said:?}");
    bed.run(false, &[("TARGET_USER", "1009")], &to("ann")).said();
    let file = || "dev/vfio/7".to_owned();
    assert_eq!(*bed.given.borrow(), [(file(), 1009), (file(), 1007)]);
    let line = bed.refusal(&[], &to("bob"));
    assert_eq!(line, "user \"bob\" is neither in /etc/passwd nor a number");
}

#[test]
fn the_environment_chooses_as_setup_sh_does() {
    let bed = Bed::new();
    let both = ("PCI_ALLOWED", "0000:04:00.0 0000:05:00.0");
    let blocked = ("PCI_BLOCKED", AT);
    let said = bed.run(true, &[both, blocked], &bind(&[])).said();
    assert_eq!(said.last().unwrap(), "would: 0000:05:00.0 (1b36 0010): nvme -> vfio-pci");
    let said = bed.run(true, &[("PCI_ALLOWED", "none")], &bind(&[])).said();
    assert_eq!(said, ["nothing to change"]);
    let said = bed.run(true, &[("DRIVER_OVERRIDE", "uio_pci_generic")], &bind(&[AT])).said();
    assert_eq!(
        said,
        [
            "would: module uio_pci_generic: loaded",
            "would: 0000:04:00.0 (1b36 0010): nvme -> uio_pci_generic"
        ]
    );
    let line = bed.refusal(&[blocked], &bind(&[AT]));
    assert_eq!(line, "0000:04:00.0 is blocked by PCI_BLOCKED");
    let line = bed.refusal(&[("PCI_ALLOWED", OTHER)], &bind(&[AT]));
    assert_eq!(line, "0000:04:00.0 is not among those of PCI_ALLOWED");
    let line = bed.refusal(&[("PCI_ALLOWED", "nvme0")], &bind(&[]));
    assert!(line.starts_with("PCI_ALLOWED: \"nvme0\" is not a PCI address"), "{line}");
    let line = bed.refusal(&[("DRIVER_OVERRIDE", "/x/uio.ko")], &bind(&[AT]));
    assert!(line.contains("a driver's name is wanted, not a path"), "{line}");
}

#[test]
fn another_device_of_the_group_that_still_blocks_is_named() {
    let bed = Bed::new();
    bed.fake.nvme("0000:04:00.1", Some("nvme"), Some(7));
    let ended = bed.run(false, &[], &bind(&[AT]));
    assert!(ended.notes[0].contains("shares IOMMU group 7 with 0000:04:00.1"), "{:?}", ended.notes);
    ended.said();
}

#[test]
fn without_root_one_sentence_says_so() {
    let bed = Bed::new();
    let before = bed.fake.snapshot();
    for verb in [bind(&[AT]), unbind(&[AT]), hugepages(Some(1), None)] {
        let (exit, line) = bed.run_as(1007, false, &[], &verb).failure.unwrap();
        assert_eq!(exit, 2);
        assert!(
            line.starts_with("setup changes the machine and this is user 1007: run it as root")
        );
    }
    let said = bed.run_as(1007, false, &[], &hugepages(None, None)).said();
    assert_eq!(said[1], "hugepages of 2.00 MiB on node 1: 8, 8 free");
    assert_eq!(bed.fake.snapshot(), before);
}

#[test]
fn hugepages_are_reserved_on_the_machine_or_by_node() {
    let bed = Bed::new();
    let said = bed.run(false, &[("NRHUGE", "16")], &hugepages(None, None)).said();
    assert_eq!(said, ["hugepages of 2 MiB: 8 -> 16"]);
    let nodes = ("HUGENODE", "nodes_hp[0]=32,1");
    let said = bed.run(false, &[nodes], &hugepages(Some(4), None)).said();
    assert_eq!(said, ["hugepages of 2 MiB on node 0: 0 -> 32"], "node 1 has more than it should");
    let said = bed.run(false, &[nodes], &hugepages(Some(4), None)).said();
    assert_eq!(said, ["nothing to change"]);
    let said = bed.run(false, &[], &hugepages(Some(0), Some("0,1"))).said();
    assert_eq!(said.len(), 2, "{said:?}");

    let line = bed.refusal(&[], &hugepages(Some(4), Some("3")));
    assert_eq!(line, "node 3 has no hugepages of 2 MiB to reserve: nodes are [0, 1]");
    let line = bed.refusal(&[], &hugepages(None, Some("nodes_hp[0]")));
    assert!(line.starts_with("node \"nodes_hp[0]\": write 0,1"), "{line}");
    let line = bed.refusal(&[("NRHUGE", "many")], &hugepages(None, None));
    assert!(line.starts_with("NRHUGE=many: "), "{line}");
}

#[test]
fn fewer_hugepages_than_asked_for_are_counted_after_memory_was_compacted() {
    let bed = Bed::new();
    bed.pages.set((10, 64));
    let said = bed.run(false, &[], &hugepages(Some(64), Some("0"))).said();
    assert_eq!(said, ["hugepages of 2 MiB on node 0: 0 -> 64"], "compaction helped");
    bed.pages.set((70, 80));
    let ended = bed.run(false, &[], &hugepages(Some(100), Some("0")));
    assert_eq!(ended.said, ["hugepages of 2 MiB on node 0: 64 -> 80"]);
    let (exit, line) = ended.failure.unwrap();
    assert_eq!(exit, 1);
    assert!(line.starts_with("only 80 of 100 on node 0 hugepages of 2 MiB could be had"), "{line}");
}

#[test]
fn the_status_has_a_line_for_each_drive() {
    let bed = Bed::new();
    let line = "36 27 259:1 / /srv rw - ext4 /dev/nvme1n1 rw\n";
    bed.fake.file("proc/self/mountinfo", line);
    bed.run(false, &[], &bind(&[AT])).said();
    bed.fake.process(77, "engine", &["dev/vfio/7"]);
    let host = bed.fake.host();
    // The kernel would have taken the disk away with its driver.
    fs::remove_file(bed.fake.root().join("sys/block/nvme0n1")).unwrap();
    let functions = host.sysfs.functions().unwrap().into_iter();
    let rows: Vec<_> = functions.map(|one| status::Row::of(&host, one)).collect();
    let owner = rustix::process::geteuid().as_raw();
    let expected = format!(
        "\
address       id        node group driver           what
0000:04:00.0  1b36 0010    0     7 vfio-pci         user {owner}, process 77 (engine) drives it
0000:05:00.0  1b36 0010    0     8 nvme             nvme1n1, nvme1n1 is mounted at /srv
hugepages of 2.00 MiB on node 0: 0, 0 free
"
    );
    let pools = crate::host::hugepages::pools(&host);
    assert_eq!(status::text(&rows, &pools[..1]), expected);
    assert_eq!(status::text(&[], &[]), "no NVMe controller\n");
}
