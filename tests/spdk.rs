//! SPDK as a backend, where an installed one was linked: what its devices do when things go wrong. What they do when nothing
//! does is the conformance suite's to show (`UDIRECT_ADDRESSES='spdk:Malloc0?malloc=64MiB'`).
#![cfg(feature = "spdk")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use udirect::block::{
    BlockDevice, Completion, ErrorKind, IoQueue, QueueOptions, Rejected, Request,
};
use udirect::dma::{Access, Domain};
use udirect::open::open;
use udirect::spdk::{Bdev, Environment, EnvironmentOptions, Target};
use udirect::units::Lba;

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(20);

fn environment() -> Arc<Environment> {
    Environment::start(&EnvironmentOptions::default()).expect("SPDK starts")
}

fn named(name: &str) -> Bdev {
    let target = Target::Named(name.into());
    Bdev::open(target, name, &EnvironmentOptions::default()).expect("a device")
}

fn submit(queue: &mut dyn IoQueue, domain: &Domain, lba: u64) -> Result<(), Rejected> {
    let buffer = domain.buffer(4096, Access::Both).expect("a buffer");
    queue.submit(Request::read(Lba(lba), buffer, lba))
}

fn wait(queue: &mut dyn IoQueue, count: usize) -> Vec<Completion> {
    let deadline = Instant::now() + PATIENCE;
    let mut back = Vec::new();
    while back.len() < count {
        queue.poll(count, &mut |completion| back.push(completion));
        assert!(Instant::now() < deadline, "{} of {count} came back", back.len());
    }
    back
}

/// The pieces of memory that are out, once everything was dropped.
fn assert_home(domain: &Domain) {
    assert_eq!(domain.usage().1, 0, "DMA memory did not come home");
}

#[test]
fn a_device_that_is_taken_away_under_load_says_so_and_goes() {
    let environment = environment();
    let create = r#"{"subsystems": [{"subsystem": "bdev", "config": [
        {"method": "bdev_malloc_create", "params": {"name": "Vanishing", "num_blocks": 4096, "block_size": 4096}}]}]}"#;
    environment.load(create).expect("a device is made");
    let device = named("Vanishing");
    let domain = Arc::clone(device.dma());
    let mut queue = device.open_queue(&QueueOptions::default()).expect("a queue");
    let remover = std::thread::spawn(move || {
        let delete = r#"{"subsystems": [{"subsystem": "bdev", "config": [
            {"method": "bdev_malloc_delete", "params": {"name": "Vanishing"}}]}]}"#;
        environment.load(delete)
    });
    let deadline = Instant::now() + PATIENCE;
    let mut served = 0;
    let error = loop {
        assert!(Instant::now() < deadline, "after {served} requests it is still there");
        match submit(&mut *queue, &domain, served % 4096) {
            Ok(()) => served += 1,
            Err(Rejected::Invalid(_, error)) => break error,
            Err(Rejected::QueueFull(_)) => {
                queue.ring();
                queue.poll(128, &mut |_| {});
            }
        }
    };
    assert_eq!(error.kind(), ErrorKind::DeviceGone, "{error}");
    assert_eq!(error.to_string(), "the device is gone: SPDK has taken Vanishing away");
    queue.ring();
    let left = queue.inflight();
    for completion in wait(&mut *queue, left) {
        let kind = completion.result.err().map(|error| error.kind());
        assert!(matches!(kind, None | Some(ErrorKind::DeviceGone)), "{kind:?}");
    }
    let refused = device.open_queue(&QueueOptions::default()).err().expect("it is gone");
    assert_eq!(refused.kind(), ErrorKind::DeviceGone);
    // SPDK waits for whoever has it open.
    drop((queue, device));
    remover.join().expect("no panic").expect("the device is deleted");
    assert_home(&domain);
}

#[test]
fn a_device_that_takes_too_long_gives_back_what_it_has() {
    let create = r#"{"subsystems": [{"subsystem": "bdev", "config": [
        {"method": "bdev_malloc_create", "params": {"name": "Base", "num_blocks": 4096, "block_size": 4096}},
        {"method": "bdev_delay_create", "params": {"name": "Slow", "base_bdev_name": "Base",
            "avg_read_latency": 60000000, "p99_read_latency": 60000000,
            "avg_write_latency": 60000000, "p99_write_latency": 60000000}}]}]}"#;
    environment().load(create).expect("a slow device is made");
    let device = named("Slow");
    let domain = Arc::clone(device.dma());
    let timeout = Duration::from_millis(400);
    let mut queue = device.open_queue(&QueueOptions { depth: 64, timeout }).expect("a queue");
    let began = Instant::now();
    (0..64).for_each(|lba| submit(&mut *queue, &domain, lba).expect("there is room"));
    queue.ring();
    for completion in wait(&mut *queue, 64) {
        let error = completion.result.expect_err("a minute has not passed");
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        assert_eq!(error.to_string(), "read did not finish within 400 ms");
    }
    assert!(began.elapsed() >= timeout, "{:?}", began.elapsed());
    drop((queue, device));
    assert_home(&domain);
}

#[test]
fn memory_of_another_device_is_refused_and_comes_back() {
    let address = "spdk:Mine?malloc=16MiB";
    let (mine, other) = (open(address).expect("a device"), open("mem:16MiB").expect("a device"));
    let mut queue = mine.device.open_queue(&QueueOptions::default()).expect("a queue");
    submit(&mut *queue, other.device.dma(), 0).expect("it is looked at when it is sent");
    queue.ring();
    let back = wait(&mut *queue, 1).pop().expect("one");
    let error = back.result.expect_err("memory that SPDK was not given");
    assert_eq!(error.kind(), ErrorKind::Device, "{error}");
    assert!(back.request.into_payload().is_some());
}

#[test]
fn what_cannot_be_opened_is_named() {
    let target = std::env::temp_dir().join("no-such-target");
    let taken = open("spdk:Taken?malloc=16MiB").expect("a device");
    let claim = r#"{"subsystems": [{"subsystem": "bdev", "config": [
        {"method": "bdev_malloc_create", "params": {"name": "Claimed", "num_blocks": 64, "block_size": 4096}},
        {"method": "bdev_passthru_create", "params": {"name": "Above", "base_bdev_name": "Claimed"}}]}]}"#;
    environment().load(claim).expect("a device that another one claims");
    let missing = format!("spdk:trtype:VFIOUSER traddr:{}", target.display());
    let cases = [
        ("spdk:Nothing", ErrorKind::NotFound, "block device Nothing: SPDK has none of that name"),
        ("spdk:Claimed", ErrorKind::Busy, "Claimed: somebody else in this process writes to it"),
        ("spdk:Taken?malloc=16MiB", ErrorKind::Unsupported, "SPDK refused the configuration: "),
        ("spdk:Other?config=/no/such.json", ErrorKind::NotFound, "the configuration /no/such.json"),
        (&missing, ErrorKind::Unsupported, "SPDK refused the configuration: "),
        ("spdk:trtype:PCIe traddr:0000:ff:1f.7", ErrorKind::Busy, "started without PCI devices"),
    ];
    for (address, kind, words) in cases {
        let error = open(address).expect_err(address);
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        let found = match &error {
            udirect::open::OpenError::Device { source, .. } => source.kind(),
            other => panic!("{address}: {other}"),
        };
        assert_eq!(found, kind, "{address}: {source}");
        assert!(source.contains(words), "{address}: {source}");
        println!("{address}: {source}");
    }
    drop(taken);
    open("spdk:Taken?malloc=16MiB").expect("it was taken away, and is made again");
}
