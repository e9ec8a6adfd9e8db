//! The driver's calls for looking and erasing, against the software controller.
//!
//! Log pages in pieces, features by what is selected, and who may not be there while something is erased.

use std::sync::Arc;
use std::time::{Duration, Instant};

use udirect::block::{
    BlockDevice, BlockError, Completion, ErrorKind, IoQueue, Operation, QueueOptions, Request,
};
use udirect::dma::{Access, Domain, DomainOptions, PagePolicy};
use udirect::nvme::{self, FeatureQuery};
use udirect::soft::{self, Disk, MediaOptions, NamespaceOptions, Options};
use udirect::spec::command::{AdminOpcode, Command};
use udirect::spec::erase::{FormatDword10, SanitizeAction, SanitizeDword10, SanitizeOutcome};
use udirect::spec::feature::{FeatureCapabilities, FeatureId, Select};
use udirect::spec::log::LogPage;
use udirect::units::{Lba, LbaSize, NamespaceId};

const PATIENCE: Duration = Duration::from_secs(20);
const ONE: NamespaceId = NamespaceId(1);

fn driver(options: Options) -> Arc<nvme::Controller> {
    let soft = soft::Controller::new(options).expect("the options are sound");
    let domain = Domain::new(DomainOptions { pages: PagePolicy::Ordinary });
    nvme::connect(&soft.transport(), &domain, nvme::Options::default()).expect("it comes up")
}

/// Two namespaces of 1 MiB with blocks of 4096 bytes.
fn two() -> Options {
    let media = MediaOptions::Ram { bytes: 1 << 20 };
    let one = NamespaceOptions { lba_size: LbaSize::B4096, media, metadata: None };
    Options { namespaces: vec![one; 2], ..Options::default() }
}

fn device(driver: &Arc<nvme::Controller>, nsid: NamespaceId) -> Arc<dyn BlockDevice> {
    Arc::new(driver.namespace(nsid, "test").expect("it is there"))
}

fn open(device: &Arc<dyn BlockDevice>) -> Result<Box<dyn IoQueue>, BlockError> {
    device.open_queue(&QueueOptions::default())
}

fn run(queue: &mut dyn IoQueue, request: Request) -> Completion {
    queue.submit(request).expect("an empty queue has room");
    queue.ring();
    let (mut done, deadline) = (None, Instant::now() + PATIENCE);
    while done.is_none() {
        queue.poll(1, &mut |completion| done = Some(completion));
        assert!(Instant::now() < deadline, "no completion");
    }
    done.expect("it was awaited")
}

/// Returns the first byte of block 0, after writing `fill` to it if there is one.
fn first_byte(device: &Arc<dyn BlockDevice>, fill: Option<u8>) -> u8 {
    let mut queue = open(device).expect("nothing is being erased");
    let len = device.geometry().lba_size.bytes() as usize;
    if let Some(fill) = fill {
        let mut buffer = device.dma().buffer(len, Access::Both).expect("a buffer");
        buffer.fill(fill);
        run(&mut *queue, Request::write(Lba(0), buffer, 0)).result.expect("memory does not fail");
    }
    let buffer = device.dma().buffer(len, Access::Both).expect("a buffer");
    let read = run(&mut *queue, Request::read(Lba(0), buffer, 1));
    read.result.expect("memory does not fail");
    read.request.into_payload().expect("the memory is back").segments()[0][0]
}

fn to_512() -> FormatDword10 {
    FormatDword10::new().with_format_index(0)
}

#[test]
fn a_log_page_that_is_longer_than_a_page_comes_in_pieces() {
    let driver = driver(Options::default());
    let wrong = Command { opcode: 0x55, ..Command::default() };
    for _ in 0..64 {
        driver.execute(wrong, "a wrong opcode").expect_err("there is no such command");
    }
    // 64 entries fill a page; the second piece begins where the log ends, and is nothing.
    let page = driver.log_page(LogPage::ERROR, NamespaceId::ALL, 8192).expect("it is there");
    let counts: Vec<u8> = page.chunks_exact(64).map(|entry| entry[0]).collect();
    assert_eq!(counts[..64], (1..=64).rev().collect::<Vec<u8>>());
    assert_eq!(counts[64..], [0; 64]);
    let effects = driver.log_page(LogPage::COMMAND_EFFECTS, NamespaceId::ALL, 4096);
    assert_eq!(effects.expect("it is there")[usize::from(AdminOpcode::SANITIZE.0) * 4] & 1, 1);
    let error = driver.log_page(LogPage::ERROR, NamespaceId::ALL, 4097);
    assert_eq!(error.expect_err("not a multiple of four").kind(), ErrorKind::Invalid);
    let error = driver.log_page(LogPage::ERROR, NamespaceId::ALL, 0);
    assert_eq!(error.expect_err("nothing").kind(), ErrorKind::Invalid);
}

#[test]
fn features_are_read_by_what_is_selected() {
    let driver = driver(Options::default());
    let at = |select| FeatureQuery { select, ..FeatureQuery::of(FeatureId::ERROR_RECOVERY) };
    let read = |select| driver.feature(&at(select)).expect("it is there").dword0;
    let set = |save| driver.set_feature(FeatureId::ERROR_RECOVERY, NamespaceId::NONE, 7, save);
    set(false).expect("it can be changed");
    assert_eq!((read(Select::CURRENT), read(Select::DEFAULT), read(Select::SAVED)), (7, 0, 0));
    let can = FeatureCapabilities::from_bits(read(Select::CAPABILITIES));
    assert!(can.changeable() && !can.saveable() && !can.per_namespace());
    let error = set(true).expect_err("nothing can be saved").to_string();
    assert!(error.contains("Feature Identifier Not Saveable"), "{error}");
    let absent = FeatureQuery::of(FeatureId::TIMESTAMP);
    let error = driver.feature(&absent).expect_err("there is no clock").to_string();
    assert!(error.contains("Invalid Field in Command"), "{error}");
    let error = driver.set_feature(FeatureId::TIMESTAMP, NamespaceId::NONE, 7, false);
    assert_eq!(error.expect_err("it has data").kind(), ErrorKind::Unsupported);
}

#[test]
fn a_format_changes_the_blocks_and_outdates_who_has_them() {
    let driver = driver(two());
    let (before, other) = (device(&driver, ONE), device(&driver, NamespaceId(2)));
    assert_eq!((first_byte(&before, Some(7)), first_byte(&other, Some(8))), (7, 8));
    driver.format(ONE, to_512(), PATIENCE).expect("there is such a format");

    let error = open(&before).err().expect("its blocks are others now");
    assert_eq!(error.kind(), ErrorKind::Poisoned);
    assert!(error.to_string().contains("namespace 1 was formatted"), "{error}");
    let after = device(&driver, ONE);
    assert_eq!(after.geometry().lba_size, LbaSize::B512);
    assert_eq!(after.geometry().blocks.0, 2048);
    assert_eq!(first_byte(&after, None), 0, "erased");
    assert_eq!(first_byte(&other, None), 8, "the other one is as it was");
    let listed = driver.namespaces();
    assert_eq!(listed.iter().map(|(nsid, _)| nsid.0).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(listed[0].1.format_index(), 0);
}

#[test]
fn a_format_that_keeps_the_blocks_outdates_nobody() {
    let driver = driver(two());
    let device = device(&driver, ONE);
    assert_eq!(first_byte(&device, Some(7)), 7);
    let same = FormatDword10::new().with_format_index(3);
    driver.format(ONE, same, PATIENCE).expect("there is such a format");
    assert_eq!(first_byte(&device, None), 0, "erased, and still open");
}

#[test]
fn a_refused_format_changes_nothing() {
    let driver = driver(two());
    let device = device(&driver, ONE);
    assert_eq!(first_byte(&device, Some(7)), 7);
    for wrong in [to_512().with_format_index(9), to_512().with_pi(1), to_512().with_mset(true)] {
        let error = driver.format(ONE, wrong, PATIENCE).expect_err("there is no such format");
        assert!(error.to_string().contains("Invalid Format"), "{error}");
    }
    assert_eq!(first_byte(&device, None), 7);
}

#[test]
fn all_namespaces_are_formatted_by_their_common_name() {
    let driver = driver(two());
    driver.format(NamespaceId::ALL, to_512(), PATIENCE).expect("both can be");
    for nsid in [ONE, NamespaceId(2)] {
        assert_eq!(device(&driver, nsid).geometry().lba_size, LbaSize::B512);
    }
}

#[test]
fn nothing_is_erased_while_a_queue_is_open() {
    let driver = driver(two());
    let device = device(&driver, NamespaceId(2));
    assert_eq!(first_byte(&device, Some(7)), 7);
    let queue = open(&device).expect("there are queues");
    let error = driver.format(ONE, to_512(), PATIENCE).expect_err("a queue is open");
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("1 open queues: Format NVM"), "{error}");
    let how = SanitizeDword10::new().with_sanact(SanitizeAction::BLOCK_ERASE.0);
    assert_eq!(driver.sanitize(how, 0).expect_err("a queue is open").kind(), ErrorKind::Busy);
    drop(queue);
    assert_eq!(first_byte(&device, None), 7, "nothing happened");
    driver.format(ONE, to_512(), PATIENCE).expect("it is closed");
}

#[test]
fn a_sanitize_is_watched_to_its_end() {
    let driver = driver(two());
    let device = device(&driver, ONE);
    assert_eq!(first_byte(&device, Some(7)), 7);
    assert_eq!(driver.sanitize_status().expect("it is there").sstat().state().0, 0);
    let how = SanitizeDword10::new().with_sanact(SanitizeAction::OVERWRITE.0).with_owpass(5);
    driver.sanitize(how, 0x5a5a_5a5a).expect("overwrite is on offer");

    let mut queue = open(&device).expect("queues can be opened");
    let error = run(&mut *queue, Request::new(Operation::Flush, 0)).result.expect_err("it goes on");
    assert!(error.to_string().contains("Sanitize In Progress"), "{error}");
    drop(queue);

    let (mut seen, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    loop {
        let status = driver.sanitize_status().expect("it is there");
        if status.sstat().state() != SanitizeOutcome::RUNNING {
            assert_eq!(status.sstat().state(), SanitizeOutcome::DONE);
            assert_eq!((status.sstat().passes(), status.scdw10.get()), (5, how.into_bits()));
            break;
        }
        seen.push(status.fraction());
        assert!(Instant::now() < deadline, "it comes to an end");
    }
    assert!(seen.is_sorted() && seen.iter().all(|part| (0.0..1.0).contains(part)), "{seen:?}");
    assert_eq!(first_byte(&device, None), 0x5a);
}

#[test]
fn a_sanitize_that_fails_says_so() {
    let disk = Disk::new(1 << 20, LbaSize::B4096);
    let media = MediaOptions::Disk(Arc::clone(&disk));
    let one = NamespaceOptions { lba_size: LbaSize::B4096, media, metadata: None };
    let driver = driver(Options { namespaces: vec![one], ..Options::default() });
    disk.cut_power_after(0, 1);
    let mut queue = open(&device(&driver, ONE)).expect("there are queues");
    run(&mut *queue, Request::new(Operation::Flush, 0)).result.expect_err("the power goes with it");
    drop(queue);
    let how = SanitizeDword10::new().with_sanact(SanitizeAction::BLOCK_ERASE.0);
    driver.sanitize(how, 0).expect("it is started");
    let status = driver.sanitize_status().expect("it is there").sstat();
    assert_eq!(status.state(), SanitizeOutcome::FAILED);
    let leave = SanitizeDword10::new().with_sanact(SanitizeAction::EXIT_FAILURE.0);
    let error = driver.sanitize(leave, 0).expect_err("the failure is of the restricted kind");
    assert!(error.to_string().contains("Sanitize Failed"), "{error}");
}
