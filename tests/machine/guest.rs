//! The guest: its zoo, its drivers, QEMU's monitor, and a caller of one queue.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use udirect::block::{Completion, IoQueue, Operation, QueueOptions, Request};
use udirect::dma::Access;
use udirect::open::{Opened, open};
use udirect::units::Lba;

/// How long anything may take: emulation is slow, and the host may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

fn place(device: &str) -> Option<String> {
    let zoo = fs::read_to_string("/zoo").expect("the zoo");
    let entry = zoo.lines().find_map(|line| line.strip_prefix(&format!("{device} ")));
    entry.map(str::to_owned)
}

/// Says whether the machine has a device.
pub(crate) fn has(device: &str) -> bool {
    place(device).is_some()
}

/// Returns the PCI address of a device.
pub(crate) fn address(device: &str) -> String {
    place(device).unwrap_or_else(|| panic!("the zoo has no {device}"))
}

/// Returns the folder of a device in sysfs.
pub(crate) fn folder(device: &str) -> PathBuf {
    Path::new("/sys/bus/pci/devices").join(address(device))
}

/// Gives a device to a driver.
pub(crate) fn bind(driver: &str, device: &str) {
    let output = run("bind", &[driver, device]);
    assert!(output.status.success(), "bind {driver} {device}: {}", text(&output));
}

/// A device that is ours until the scene ends, however that is.
pub(crate) struct Ours(&'static str);

impl Ours {
    pub(crate) fn take(device: &'static str) -> Self {
        bind("vfio-pci", device);
        Self(device)
    }

    pub(crate) fn open(&self) -> Opened {
        self.open_with("")
    }

    /// Opens it with options, as in `?resets=0`.
    pub(crate) fn open_with(&self, options: &str) -> Opened {
        let address = format!("pcie:{}{options}", address(self.0));
        open(&address).unwrap_or_else(|error| panic!("{address}: {error:?}"))
    }

    /// Returns the file of its IOMMU group.
    pub(crate) fn group(&self) -> PathBuf {
        let group = fs::read_link(folder(self.0).join("iommu_group")).expect("a group");
        Path::new("/dev/vfio").join(group.file_name().expect("its number"))
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        if folder(self.0).exists() {
            run("bind", &["nvme", self.0]);
        }
    }
}

/// Runs a program of the guest to its end.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// Returns what a program has said, on both ways.
pub(crate) fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}

/// Runs udirect, which has to be refused before anything is touched; returns its sentence.
pub(crate) fn refused(arguments: &[&str]) -> String {
    let output = run("udirect", arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output));
    assert!(output.stdout.is_empty(), "{arguments:?}: {}", text(&output));
    String::from_utf8_lossy(&output.stderr).trim_end().to_owned()
}

/// Sends a command to QEMU's monitor, which has to obey.
pub(crate) fn monitor(command: &str) {
    let mut port =
        fs::OpenOptions::new().read(true).write(true).open("/dev/qmp").expect("the port");
    writeln!(port, "{command}").expect("the monitor listens");
    for line in BufReader::new(port).lines() {
        let line = line.expect("the monitor answers");
        // Events pass in between, and may name anything.
        assert!(!line.starts_with("{\"error\""), "{command}: {line}");
        if line.starts_with("{\"return\"") {
            return;
        }
    }
    panic!("{command}: the monitor has closed");
}

/// Waits until something has come true.
pub(crate) fn wait_for(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < deadline, "{what} has not come true in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Opens a queue whose commands may take so long.
pub(crate) fn queue(opened: &Opened, timeout: Duration) -> Box<dyn IoQueue> {
    let options = QueueOptions { depth: 32, timeout };
    opened.device.open_queue(&options).expect("a queue")
}

/// Bytes that say where they belong.
pub(crate) fn pattern(len: usize, salt: u64) -> Vec<u8> {
    let word = |at: u64| (at ^ salt << 48).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    (0..len as u64 / 8).flat_map(word).collect()
}

/// Submits a read.
pub(crate) fn submit_read(opened: &Opened, queue: &mut dyn IoQueue, lba: u64, len: usize) {
    let buffer = opened.device.dma().buffer(len, Access::DeviceWrites).expect("a buffer");
    queue.submit(Request::read(Lba(lba), buffer, lba)).expect("a free slot");
    queue.ring();
}

/// Submits a write.
pub(crate) fn submit_write(opened: &Opened, queue: &mut dyn IoQueue, lba: u64, data: &[u8]) {
    let mut buffer = opened.device.dma().buffer(data.len(), Access::DeviceReads).expect("a buffer");
    buffer.copy_from_slice(data);
    queue.submit(Request::write(Lba(lba), buffer, lba)).expect("a free slot");
    queue.ring();
}

/// Waits for so many completions.
pub(crate) fn wait(queue: &mut dyn IoQueue, count: usize) -> Vec<Completion> {
    let deadline = Instant::now() + PATIENCE;
    let mut back = Vec::new();
    while back.len() < count {
        queue.poll(count - back.len(), &mut |completion| back.push(completion));
        assert!(Instant::now() < deadline, "{} of {count} are back", back.len());
    }
    back
}

/// Reads bytes from the beginning of a device, in requests of 1 MiB.
pub(crate) fn read_all(opened: &Opened, len: usize) -> Vec<u8> {
    let mut queue = queue(opened, PATIENCE);
    let block = opened.device.geometry().lba_size.bytes() as usize;
    let mut bytes = Vec::with_capacity(len);
    for at in (0..len).step_by(1 << 20) {
        let piece = (len - at).min(1 << 20);
        submit_read(opened, &mut *queue, (at / block) as u64, piece);
        let completion = wait(&mut *queue, 1).pop().expect("one");
        completion.result.as_ref().expect("a read");
        let payload = completion.request.into_payload().expect("a payload");
        payload.segments().iter().for_each(|buffer| bytes.extend_from_slice(buffer));
    }
    bytes
}

/// Writes bytes to the beginning of a device, in requests of 1 MiB.
pub(crate) fn write_all(opened: &Opened, bytes: &[u8]) {
    let mut queue = queue(opened, PATIENCE);
    let block = opened.device.geometry().lba_size.bytes() as usize;
    for (nth, piece) in bytes.chunks(1 << 20).enumerate() {
        submit_write(opened, &mut *queue, ((nth << 20) / block) as u64, piece);
        wait(&mut *queue, 1).pop().expect("one").result.expect("a write");
    }
    queue.submit(Request::new(Operation::Flush, 1)).expect("a free slot");
    queue.ring();
    wait(&mut *queue, 1).pop().expect("one").result.expect("a flush");
}

/// Returns the node of the kernel's driver for the first namespace of a device.
pub(crate) fn kernel_node(device: &str) -> PathBuf {
    let mut found = None;
    wait_for("a node of the kernel's driver", || {
        let controllers = fs::read_dir(folder(device).join("nvme"));
        let names = controllers.into_iter().flatten().flatten().map(|entry| entry.file_name());
        let nodes =
            names.map(|name| Path::new("/dev").join(format!("{}n1", name.to_string_lossy())));
        found = nodes.into_iter().find(|node| node.exists());
        found.is_some()
    });
    found.expect("it was waited for")
}

/// Keeps a domain honest: all memory is home.
pub(crate) fn assert_home(opened: Opened) {
    let domain = Arc::clone(opened.device.dma());
    drop(opened);
    assert_eq!(domain.usage().1, 0, "DMA memory did not come home");
}
