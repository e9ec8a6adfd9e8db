//! Our driver's end against targets that say what they should not, or nothing.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use udirect::block::{BlockDevice, ErrorKind, QueueOptions, Request};
use udirect::dma::{Access, Domain, DomainOptions};
use udirect::nvme;
use udirect::transport::Transport;
use udirect::transport::vfio_user::capabilities::Capabilities;
use udirect::transport::vfio_user::channel::{Channel, Message};
use udirect::transport::vfio_user::wire::{
    self, Area, Command, DeviceInfo, RegionAccess, RegionInfo, Version,
};
use udirect::transport::vfio_user::{VfioUser, VfioUserOptions};
use udirect::units::{Lba, NamespaceId};
use zerocopy::IntoBytes;

use crate::target::{Program, Script};
use crate::{PATIENCE, wait};
use rustix::process::Signal;

/// How long a silent target is waited for here.
const SHORT: Duration = Duration::from_millis(100);

/// What a target says, if it tells the truth: that of an NVMe controller with a page of doorbells.
#[derive(Clone)]
struct Story {
    version: Version,
    capabilities: Vec<u8>,
    info: DeviceInfo,
    class: [u8; 3],
    bar: RegionInfo,
    area: Area,
    file_bytes: Option<u64>,
    /// The command that gets no answer.
    silent_at: Option<Command>,
    /// The command that gets other bytes than an answer.
    rubbish_at: Option<Command>,
}

impl Story {
    fn truth() -> Self {
        let flags = RegionInfo::READ | RegionInfo::WRITE | RegionInfo::MMAP;
        Self {
            version: Version { major: 0, minor: 1 },
            capabilities: Capabilities::default().to_bytes(),
            info: DeviceInfo { argsz: 16, flags: 3, regions: 9, irqs: 5 },
            class: [0x02, 0x08, 0x01],
            bar: RegionInfo { flags, size: 0x4000, ..RegionInfo::default() },
            area: Area { offset: 0x1000, size: 0x1000 },
            file_bytes: Some(0x2000),
            silent_at: None,
            rubbish_at: None,
        }
    }

    fn start(self) -> Script {
        Script::start(move |channel, message| self.answer(channel, &message))
    }

    fn answer(&self, channel: &mut Channel, message: &Message) -> bool {
        let command = message.header.command;
        if self.silent_at == Some(command) {
            return true;
        }
        if self.rubbish_at == Some(command) {
            let bytes = File::from(channel.as_fd().try_clone_to_owned().expect("one more"))
                .write(&[0xee; 64]);
            return bytes.is_ok();
        }
        let mut file = None;
        let payload = match command {
            Command::VERSION => [self.version.as_bytes(), &self.capabilities].concat(),
            Command::DEVICE_GET_INFO => self.info.as_bytes().to_vec(),
            Command::DEVICE_GET_REGION_INFO => {
                file = self.file_bytes.map(|bytes| {
                    let file = tempfile::tempfile().expect("a file");
                    file.set_len(bytes).expect("its length");
                    file
                });
                wire::region_reply(self.bar, &[self.area])
            }
            Command::REGION_READ => {
                let access: RegionAccess = wire::read(&message.payload).expect("a read");
                let mut bytes = vec![0; access.count as usize];
                if (access.region, access.offset) == (7, 9) {
                    bytes.copy_from_slice(&self.class);
                }
                [access.as_bytes(), &bytes].concat()
            }
            Command::REGION_WRITE => message.payload[..16].to_vec(),
            _ => Vec::new(),
        };
        let files: Vec<_> = file.iter().map(AsFd::as_fd).collect();
        let reply = message.header.of_reply(payload.len());
        channel.send(&reply, &[&payload], &files, PATIENCE).is_ok()
    }
}

fn open(folder: &Path) -> Result<Arc<VfioUser>, String> {
    let options = VfioUserOptions { patience: SHORT, ..VfioUserOptions::default() };
    let place = folder.join("cntrl");
    VfioUser::open(folder, options).map_err(|error| {
        let said = format!("{:#}", anyhow::Error::from(error));
        said.replace(&place.display().to_string(), "IT")
    })
}

#[test]
fn a_target_that_tells_the_truth_is_taken() {
    let script = Story::truth().start();
    let target = open(script.folder().path()).expect("nothing is wrong with it");
    assert_eq!(target.read32(8), 0, "as the script has it");
    assert!(target.doorbell(0x1ffc).is_ok());
    for outside in [0xffc, 0x1002, 0x2000, u32::MAX] {
        assert!(target.doorbell(outside).is_err(), "{outside:#x}");
    }
}

#[test]
fn every_lie_is_answered_by_one_sentence() {
    type Lie = fn(&mut Story);
    let cases: [(Lie, &str); 17] = [
        (
            |story| story.version.major = 1,
            "IT cannot be driven: it speaks version 1.1 of vfio-user and this is 0.1",
        ),
        (
            |story| story.capabilities = b"{\"capabilities\":".to_vec(),
            "IT: its version: not vfio-user, it sent capabilities that are no JSON",
        ),
        (
            |story| story.info.flags = 1,
            "IT cannot be driven: it is no PCI device: flags 0x1, 9 regions",
        ),
        (
            |story| story.info.regions = 7,
            "IT cannot be driven: it is no PCI device: flags 0x3, 7 regions",
        ),
        (
            |story| story.class = [0, 0, 2],
            "IT cannot be driven: its class is 0x020000 and not 0x010802",
        ),
        (
            |story| story.bar.flags = 3,
            "IT cannot be driven: its doorbells cannot be mapped, and each command would take a message: BAR 0 has \
             0x4000 bytes and flags 0xb",
        ),
        (
            |story| story.area.offset = 0x2000,
            "IT cannot be driven: its doorbells cannot be mapped, and each command would take a message: BAR 0 has \
             0x4000 bytes and flags 0xf",
        ),
        (
            |story| story.area.size = u64::MAX,
            "IT cannot be driven: its doorbells cannot be mapped, and each command would take a message: BAR 0 has \
             0x4000 bytes and flags 0xf",
        ),
        (
            |story| story.file_bytes = None,
            "IT cannot be driven: its doorbells are to be mapped, and no descriptor came with them",
        ),
        (
            |story| story.file_bytes = Some(0x1fff),
            "IT cannot be driven: its doorbells end at 0x2000 of a file of 0x1fff bytes",
        ),
        (
            |story| story.bar.offset = 0x800,
            "IT cannot be driven: its doorbells are at 0x800+0x1000 of a file",
        ),
        (
            |story| story.bar.offset = u64::MAX - 0xfff,
            "IT cannot be driven: its doorbells are at 0xfffffffffffff000+0x1000 of a file",
        ),
        (
            |story| story.silent_at = Some(Command::VERSION),
            "IT: its version: no answer within 100ms",
        ),
        (
            |story| story.silent_at = Some(Command::DEVICE_RESET),
            "IT: its reset: no answer within 100ms",
        ),
        (
            |story| story.rubbish_at = Some(Command::VERSION),
            "IT: its version: not vfio-user, it sent a message of impossible length",
        ),
        (
            |story| story.rubbish_at = Some(Command::DEVICE_GET_REGION_INFO),
            "IT: its registers: not vfio-user, it sent a message of impossible length",
        ),
        (
            |story| story.silent_at = Some(Command::REGION_WRITE),
            "IT: its bus mastering: no answer within 100ms",
        ),
    ];
    for (lie, expected) in cases {
        let mut story = Story::truth();
        lie(&mut story);
        let script = story.start();
        let began = Instant::now();
        let said = open(script.folder().path()).err().expect(expected);
        assert_eq!(said, expected);
        assert!(began.elapsed() < PATIENCE / 2, "{expected}: {:?}", began.elapsed());
    }
}

#[test]
fn a_target_that_hangs_up_is_said_to_have_done_so() {
    let script = Script::start(|_, _| false);
    let said = open(script.folder().path()).err().expect("nobody answers");
    assert_eq!(said, "IT: its version: the connection was closed");
    let script = Script::start(|channel, message| {
        channel.refuse(&message.header, rustix::io::Errno::BUSY, PATIENCE).is_ok()
    });
    let said = open(script.folder().path()).err().expect("it refuses");
    assert_eq!(said, "IT: its version: refused: Device or resource busy (os error 16)");
}

#[test]
fn nobody_at_a_socket_is_told_from_no_socket() {
    let folder = tempfile::tempdir().expect("a folder");
    drop(std::os::unix::net::UnixListener::bind(folder.path().join("cntrl")).expect("a socket"));
    let said = open(folder.path()).err().expect("nobody listens");
    assert_eq!(said, "nobody listens at IT: the target that made it has ended");
}

/// The registers of a target that stands still read as all ones in the end, and its requests come back with that reason.
#[test]
fn a_target_that_stands_still_is_given_up() {
    let program = Program::start("mem:16MiB");
    let path = program.address().split_once(':').expect("a scheme").1.to_owned();
    let options = VfioUserOptions { patience: SHORT, ..VfioUserOptions::default() };
    let transport: Arc<dyn Transport> = VfioUser::open(path.as_ref(), options).expect("a target");
    let domain = Domain::new(DomainOptions::default());
    let driver =
        nvme::connect(&transport, &domain, nvme::Options::default()).expect("a controller");
    let device = driver.namespace(NamespaceId(1), "tested").expect("a namespace");
    let timeout = Duration::from_millis(200);
    let mut queue =
        device.open_queue(&QueueOptions { timeout, ..QueueOptions::default() }).expect("a queue");
    program.stop();
    for tag in 0..8 {
        let buffer = domain.buffer(4096, Access::DeviceWrites).expect("a buffer");
        queue.submit(Request::read(Lba(tag), buffer, tag)).expect("a free slot");
    }
    queue.ring();
    for completion in wait(&mut *queue, 8) {
        let error = completion.result.expect_err("nobody answers");
        assert_eq!(error.kind(), ErrorKind::DeviceGone, "{error}");
    }
    program.signal(Signal::CONT);
}
