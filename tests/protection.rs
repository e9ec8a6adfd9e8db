//! Protection information from end to end: what goes wrong on the way is found, by whom, and said with numbers.
//!
//! The driver runs against the software controller, and a [`Gremlin`] between memory and medium flips bits or
//! sends a command to other blocks.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use udirect::block::{
    BlockDevice, BlockError, Cause, Checked, ErrorKind, IoQueue, MetadataPlace, Operation,
    ProtectionKind, QueueOptions, Request,
};
use udirect::dma::{Access, Domain, DomainOptions};
use udirect::nvme::{self, MetadataUse};
use udirect::open::{OpenError, open};
use udirect::soft::{
    CommandContext, Controller, Interposer, MediaOptions, MetadataOptions, NamespaceOptions,
    Options, ProtectionOptions, Verdict,
};
use udirect::units::{BlockCount, Lba, LbaSize, NamespaceId};

const BLOCK: usize = 512;

/// Does the next read or write something.
#[derive(Default)]
struct Gremlin {
    next: Mutex<Option<Verdict>>,
}

impl Interposer for Gremlin {
    fn on_command(&self, context: &CommandContext<'_>) -> Verdict {
        match context.command.opcode {
            1 | 2 => self.next.lock().expect("nobody panics with it").take(),
            _ => None,
        }
        .unwrap_or(Verdict::Execute)
    }
}

struct Bed {
    queue: Box<dyn IoQueue>,
    device: Arc<dyn BlockDevice>,
    gremlin: Arc<Gremlin>,
    /// Last: the driver lets go of it first.
    soft: Arc<Controller>,
}

/// Every kind of namespace that protects its blocks: type, first bytes, bytes, inline.
fn formats() -> Vec<MetadataOptions> {
    let mut all = Vec::new();
    for kind in 1..=3 {
        for (bytes, first) in [(8, false), (16, true), (64, false)] {
            for inline in [false, true] {
                let protection = Some(ProtectionOptions { kind, first });
                all.push(MetadataOptions { bytes, inline, protection });
            }
        }
    }
    all
}

fn is_type_3(format: MetadataOptions) -> bool {
    format.protection.is_some_and(|one| one.kind == 3)
}

impl Bed {
    fn new(format: MetadataOptions, metadata: MetadataUse) -> Self {
        let gremlin = Arc::new(Gremlin::default());
        let namespace = NamespaceOptions {
            lba_size: LbaSize::B512,
            media: MediaOptions::Ram { bytes: 1 << 20 },
            metadata: Some(format),
        };
        let options = Options {
            namespaces: vec![namespace],
            interposer: Some(Arc::clone(&gremlin) as _),
            ..Options::default()
        };
        let soft = Controller::new(options).expect("the options are sound");
        let (device, queue) = attach(&soft, metadata, 0);
        Self { queue, device, gremlin, soft }
    }

    /// Lets another driver have the controller.
    fn reopen(self, metadata: MetadataUse, application_tag: u16) -> Self {
        let Self { queue, device, gremlin, soft } = self;
        drop((queue, device));
        let (device, queue) = attach(&soft, metadata, application_tag);
        Self { queue, device, gremlin, soft }
    }

    fn next(&self, verdict: Verdict) {
        *self.gremlin.next.lock().expect("nobody panics with it") = Some(verdict);
    }

    fn run(&mut self, operation: Operation) -> Result<Request, BlockError> {
        self.queue.submit(Request::new(operation, 0)).expect("there is room");
        self.queue.ring();
        let (deadline, mut done) = (Instant::now() + Duration::from_secs(20), None);
        while done.is_none() {
            self.queue.poll(1, &mut |completion| done = Some(completion));
            assert!(Instant::now() < deadline, "no completion");
        }
        let done = done.expect("the loop waits for it");
        done.result.map(|()| done.request)
    }

    fn write(&mut self, lba: u64, blocks: usize, salt: u8) -> Result<Vec<u8>, BlockError> {
        let mut buffer = self.device.dma().buffer(blocks * BLOCK, Access::Both).expect("memory");
        (0..)
            .zip(buffer.iter_mut())
            .for_each(|(at, byte)| *byte = (at * 3 + at / 512) as u8 ^ salt);
        let bytes = buffer.to_vec();
        let payload = buffer.into();
        self.run(Operation::Write { lba: Lba(lba), payload, fua: false }).map(|_| bytes)
    }

    fn read(&mut self, lba: u64, blocks: usize) -> Result<Vec<u8>, BlockError> {
        let buffer = self.device.dma().buffer(blocks * BLOCK, Access::Both).expect("memory");
        let request = self.run(Operation::Read { lba: Lba(lba), payload: buffer.into() })?;
        Ok(request.into_payload().expect("a payload").segments()[0].to_vec())
    }
}

fn attach(
    soft: &Arc<Controller>,
    metadata: MetadataUse,
    application_tag: u16,
) -> (Arc<dyn BlockDevice>, Box<dyn IoQueue>) {
    let domain = Domain::new(DomainOptions::default());
    let options = nvme::Options { metadata, application_tag, ..nvme::Options::default() };
    let controller = nvme::connect(&soft.transport(), &domain, options).expect("bring-up");
    let namespace = controller.namespace(NamespaceId(1), "test").expect("it can be driven");
    let device: Arc<dyn BlockDevice> = Arc::new(namespace);
    let queue = device.open_queue(&QueueOptions::default()).expect("a queue");
    (device, queue)
}

#[test]
fn bits_that_flip_on_the_way_to_memory_are_found_there_with_block_and_guards() {
    for format in formats() {
        let mut bed = Bed::new(format, MetadataUse::Check);
        let written = bed.write(100, 4, 5).expect("a write");
        assert_eq!(bed.read(100, 4).expect("a read"), written, "{format:?}");
        bed.next(Verdict::Corrupt { byte: 2 * 512 + 17, mask: 4 });
        let error = bed.read(100, 4).expect_err("a byte is wrong");
        assert_eq!(error.kind(), ErrorKind::Protection, "{format:?}");
        let Cause::Protection { lba, check, expected, found } = error.cause() else {
            panic!("{format:?}: {error}")
        };
        assert_eq!((*lba, *check), (Lba(102), "guard"), "{format:?}");
        let text = format!(
            "block 0x66 failed the check of its guard: {expected:#x} was expected, {found:#x} found"
        );
        assert_eq!(error.to_string(), text);
        assert_ne!(expected, found);
        assert_eq!(bed.read(100, 4).expect("the medium is sound"), written, "{format:?}");
    }
}

#[test]
fn bits_that_flip_on_the_way_to_the_medium_are_found_by_the_device() {
    for format in formats() {
        for metadata in [MetadataUse::Device, MetadataUse::Check] {
            let mut bed = Bed::new(format, metadata);
            bed.next(Verdict::Corrupt { byte: 700, mask: 1 });
            bed.write(8, 3, 9).expect("nobody has looked yet");
            let error = bed.read(8, 3).expect_err("a byte is wrong");
            assert_eq!(error.kind(), ErrorKind::Protection, "{format:?}");
            assert_eq!(
                error.to_string(),
                "a block failed the device's check of its guard, within 3 blocks from 0x8: \
                 End-to-end Guard Check Error (0x2/0x82)"
            );
            let verify = Operation::Verify { lba: Lba(8), blocks: BlockCount(3) };
            let error = bed.run(verify).expect_err("a byte is wrong");
            assert_eq!(error.kind(), ErrorKind::Protection, "{format:?}");
            assert!(bed.read(8, 1).is_ok(), "the first block is sound");
        }
    }
}

#[test]
fn blocks_that_went_astray_are_known_by_their_reference_tags() {
    for format in formats() {
        let mut bed = Bed::new(format, MetadataUse::Check);
        bed.next(Verdict::Misdirect(Lba(200)));
        let strayed = bed.write(100, 1, 1).expect("it went somewhere");
        let found = bed.read(200, 1);
        if is_type_3(format) {
            assert_eq!(found.expect("such tags say nothing of places"), strayed);
            continue;
        }
        let error = found.expect_err("the block belongs elsewhere");
        assert!(error.to_string().contains("reference tag"), "{format:?}: {error}");
    }
}

#[test]
fn an_application_tag_of_others_is_found() {
    for format in formats() {
        let mut bed = Bed::new(format, MetadataUse::Check);
        let written = bed.write(3, 2, 1).expect("a write");
        bed = bed.reopen(MetadataUse::Check, 0x1234);
        let error = bed.read(3, 2).expect_err("another application's");
        assert!(error.to_string().contains("application tag"), "{format:?}: {error}");
        bed = bed.reopen(MetadataUse::Device, 0);
        assert_eq!(bed.read(3, 2).expect("nobody asks for the tag"), written, "{format:?}");
    }
}

#[test]
fn what_one_way_of_using_metadata_writes_every_other_reads() {
    let ways = [MetadataUse::Device, MetadataUse::Check, MetadataUse::Ignore];
    for format in formats() {
        let mut bed = Bed::new(format, ways[0]);
        for (round, way) in (0..).zip(ways) {
            bed = bed.reopen(way, 0);
            let written = bed.write(40, 130, round).expect("a write of several commands");
            bed.run(Operation::WriteZeroes { lba: Lba(50), blocks: BlockCount(3), fua: false })
                .expect("zeroes");
            bed.run(Operation::Copy { source: Lba(41), target: Lba(500), blocks: BlockCount(4) })
                .expect("a copy");
            for other in ways {
                bed = bed.reopen(other, 0);
                let read = bed.read(40, 130).expect("a read");
                let zeroed = 10 * BLOCK..13 * BLOCK;
                assert_eq!(read[..zeroed.start], written[..zeroed.start], "{format:?} {other:?}");
                assert!(read[zeroed.clone()].iter().all(|byte| *byte == 0));
                assert_eq!(read[zeroed.end..], written[zeroed.end..], "{format:?} {other:?}");
                let copied = bed.read(500, 4).expect("what was copied");
                assert_eq!(copied, written[BLOCK..5 * BLOCK], "{format:?} {other:?}");
            }
        }
    }
}

#[test]
fn geometry_says_what_is_beside_a_block_and_who_looks() {
    let opened = open("mem:1MiB?lba=512&ms=16&pi=2&pil=1&mset=1&metadata=check").unwrap();
    let metadata = opened.device.geometry().metadata.expect("there is metadata");
    assert_eq!((metadata.bytes, metadata.place), (16, MetadataPlace::Inline));
    let protection = metadata.protection.expect("it protects");
    assert_eq!((protection.kind, protection.first), (ProtectionKind::Type2, true));
    assert_eq!(protection.checked, Checked::Both);
    assert_eq!(opened.device.geometry().capacity().0, 1 << 20);
    assert_eq!(open("mem:1MiB").unwrap().device.geometry().metadata, None);
}

#[test]
fn metadata_that_nobody_asked_for_is_refused_in_one_sentence() {
    let cases = [
        (
            "mem:1MiB?ms=8",
            "namespace 1 has 8 bytes of metadata beside each block: open it with metadata=ignore, \
             which writes zeroes there",
        ),
        (
            "mem:1MiB?ms=64&pi=1",
            "namespace 1 has 64 bytes of metadata beside each block, 8 of which protect it: open it \
             with metadata=device, check or ignore",
        ),
        (
            "mem:1MiB?metadata=check",
            "namespace 1 has no protection information to check: open it without metadata=",
        ),
        (
            "mem:1MiB?ms=16&metadata=device",
            "namespace 1 has no protection information to check: open it without metadata=",
        ),
        (
            "mem:1MiB?ms=8&pi=1&mset=1&sgl=0&metadata=check",
            "namespace 1 has 8 bytes of metadata between its blocks, which only SGLs can keep apart \
             from data: format it with separate metadata",
        ),
    ];
    for (address, sentence) in cases {
        let error = open(address).expect_err(address);
        assert!(error.is_usage(), "{address}: nothing has failed");
        let OpenError::Device { source, .. } = error else { panic!("{address}: {error:?}") };
        assert_eq!(source.to_string(), sentence, "{address}");
        assert_eq!(source.kind(), ErrorKind::Unsupported);
    }
}

#[test]
fn addresses_that_contradict_themselves_about_metadata_are_refused() {
    let cases = [
        ("mem:1MiB?pi=1", "pi=, mset= and pil= are about metadata: add ms=8"),
        ("mem:1MiB?ms=4&pi=1", "pi=1 takes 8 bytes of metadata, and ms=4"),
        ("mem:1MiB?ms=8&pi=4", "pi=4 is not a number from 0 to 3"),
        ("mem:1MiB?ms=8k", "ms=8k is not a number from 0 to 4096"),
        ("mem:1MiB?metadata=maybe", "metadata=maybe is none of device, check, ignore"),
        ("mem:1MiB?apptag=65535", "apptag=65535 is not a number from 0 to 65534"),
    ];
    for (address, problem) in cases {
        assert_eq!(open(address).unwrap_err().to_string(), format!("{address}: {problem}"));
    }
    let null = open("null:1MiB?ms=8&pi=1").unwrap_err();
    let cause = std::error::Error::source(&null).expect("the controller says why").to_string();
    assert!(cause.starts_with("a medium of nothing keeps no metadata"), "{cause}");
}

/// The controller is the same; only what the driver may believe differs.
#[test]
fn compare_is_offered_where_all_metadata_is_known() {
    let offered = |options: &str| {
        let opened = open(&format!("mem:1MiB?lba=512&{options}")).unwrap();
        opened.device.geometry().operations.compare
    };
    assert!(offered("ms=0"));
    assert!(offered("ms=8&pi=1&metadata=check"));
    assert!(!offered("ms=8&pi=1"));
    assert!(!offered("ms=16&pi=1&metadata=check"));
    assert!(!offered("ms=16&metadata=ignore"));
}

/// Reads whose metadata is looked at have a record each; a queue has as many as it has slots.
#[test]
fn a_deep_queue_takes_as_many_checked_reads_as_it_has_slots() {
    let device = open("mem:1MiB?lba=512&ms=8&pi=1&metadata=check").unwrap().device;
    let options = QueueOptions { depth: 700, ..QueueOptions::default() };
    let mut queue = device.open_queue(&options).unwrap();
    for tag in 0..700 {
        let buffer = device.dma().buffer(BLOCK, Access::Both).unwrap();
        queue.submit(Request::read(Lba(tag), buffer, tag)).expect("there is a slot");
    }
    assert_eq!(queue.counters().splits, 0, "each is one command");
    queue.ring();
    let mut done = 0;
    while done < 700 {
        queue.poll(64, &mut |completion| {
            completion.result.expect("blocks never written have nothing to check");
            done += 1;
        });
    }
}

/// The volume's pipeline lends pieces of memory to several commands at once; what they have read is checked there.
#[test]
fn what_goes_through_the_pipeline_in_pieces_is_checked_too() {
    use udirect::volume::{Options, Volume};
    for address in ["mem:4MiB?lba=512&ms=8&pi=1", "mem:4MiB?lba=512&ms=16&pi=2&mset=1"] {
        let device = open(&format!("{address}&metadata=check&noiob=24")).unwrap().device;
        let volume = Volume::raw(device);
        let mut handle = volume.handle(&Options::default()).unwrap();
        let written: Vec<u8> = (0..300_000u32).map(|at| (at * 7 + at / 4096) as u8).collect();
        handle.write_at(&written, 12_345).unwrap();
        let mut read = vec![0; written.len()];
        assert_eq!(handle.read_at(&mut read, 12_345).unwrap(), written.len());
        assert!(read == written, "{address}");
        handle.flush().unwrap();
    }
}
