//! vfio-user, both ends: our driver on our controller in another process or thread, and each end against a liar.
//!
//! `target` has what is driven: a listener in a thread, the program in a process, or a script of answers. What the two ends
//! agree upon is held against SPDK by `scripts/peers`, since both could be wrong in the same way here.
#![cfg(feature = "program")]

mod liars;
mod server;
mod strangers;
mod target;

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use server::Server;
use target::Program;
use udirect::block::{Completion, ErrorKind, IoQueue, Operation, Payload, QueueOptions, Request};
use udirect::dma::Access;
use udirect::open::{Opened, open};
use udirect::units::Lba;

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(20);

fn queue(opened: &Opened, depth: u32) -> Box<dyn IoQueue> {
    let options = QueueOptions { depth, ..QueueOptions::default() };
    opened.device.open_queue(&options).expect("a queue")
}

/// Waits for `count` completions.
fn wait(queue: &mut dyn IoQueue, count: usize) -> Vec<Completion> {
    let deadline = Instant::now() + PATIENCE;
    let mut back = Vec::new();
    while back.len() < count {
        queue.poll(count, &mut |completion| back.push(completion));
        assert!(Instant::now() < deadline, "{} of {count} are back", back.len());
    }
    back
}

fn run(queue: &mut dyn IoQueue, request: Request) -> Completion {
    queue.submit(request).expect("a free slot");
    queue.ring();
    wait(queue, 1).pop().expect("one")
}

/// Writes a block of one byte.
fn write(opened: &Opened, lba: u64, byte: u8) {
    let mut buffer = opened.device.dma().buffer(4096, Access::DeviceReads).expect("a buffer");
    buffer.fill(byte);
    let mut queue = queue(opened, 1);
    run(&mut *queue, Request::write(Lba(lba), buffer, 1)).result.expect("it is written");
    run(&mut *queue, Request::new(Operation::Flush, 2)).result.expect("it is flushed");
}

/// Reads the first byte of a block.
fn read(opened: &Opened, lba: u64) -> u8 {
    let buffer = opened.device.dma().buffer(4096, Access::DeviceWrites).expect("a buffer");
    let mut queue = queue(opened, 1);
    let completion = run(&mut *queue, Request::read(Lba(lba), buffer, 1));
    completion.result.expect("it is read");
    match completion.request.operation {
        Operation::Read { payload: Payload::One(buffer), .. } => buffer[0],
        other => panic!("a read comes back as {other:?}"),
    }
}

#[test]
fn one_client_after_another_finds_what_the_one_before_has_written() {
    let server = Server::start("mem:16MiB");
    for byte in 1..4 {
        let opened = open(&server.address()).expect("the next one is let in");
        assert_eq!(read(&opened, 7), byte - 1);
        write(&opened, 7, byte);
    }
}

#[test]
fn namespaces_of_one_target_share_its_only_connection() {
    let server = Server::start("mem:16MiB?namespaces=2");
    let first = open(&server.address()).expect("the first");
    let second = open(&format!("{}?ns=2", server.address())).expect("the second");
    let [one, other] = [&first, &second].map(|opened| opened.controller().expect("ours"));
    assert!(Arc::ptr_eq(one, other));
    write(&first, 0, 1);
    write(&second, 0, 2);
    assert_eq!((read(&first, 0), read(&second, 0)), (1, 2));
    let error = open(&format!("{}?ns=3", server.address())).expect_err("there is none");
    let said = format!("{:#}", anyhow::Error::from(error));
    assert!(said.ends_with("namespace 3: attached to the controller are 1, 2"), "{said}");
}

#[test]
fn memory_that_the_controller_may_only_read_is_mapped_like_that_if_it_is_asked_for() {
    let server = Server::start("mem:16MiB?sgl=0");
    let opened = open(&format!("{}?rights=strict", server.address())).expect("a device");
    write(&opened, 3, 9);
    assert_eq!(read(&opened, 3), 9);
    assert_eq!(server.controller.counters().dma_faults, 0);
}

/// A file's blocks are on the disk when the program has ended by a signal, and its socket is gone.
#[test]
fn a_program_that_is_told_to_end_closes_in_order() {
    for signal in [Signal::TERM, Signal::INT] {
        let place = tempfile::tempdir().expect("a folder");
        let image = place.path().join("image");
        let program = Program::start(&format!("file:{}?size=16MiB", image.display()));
        let opened = open(&program.address()).expect("a device");
        write(&opened, 5, 77);
        drop(opened);
        let (code, folder) = program.end(signal);
        assert_eq!(code, Some(0));
        assert!(!folder.path().join("cntrl").exists());
        let opened = open(&format!("file:{}", image.display())).expect("the image");
        assert_eq!(read(&opened, 5), 77);
    }
}

/// What the controller was about to do for it is done or is not, and its memory is let go of.
#[test]
fn a_client_that_is_killed_at_depth_128_leaves_a_controller_for_the_next() {
    let server = Server::start("mem:16MiB");
    let mut client = Command::new(env!("CARGO_BIN_EXE_udirect"))
        .args(["bench", &server.address(), "--rw=randwrite", "--bs=4k", "--iodepth=128"])
        .args(["--runtime=60", "--time_based", "--quiet"])
        .stdout(Stdio::null())
        .spawn()
        .expect("the program was built");
    let deadline = Instant::now() + PATIENCE;
    while server.controller.counters().io_total() < 1000 {
        assert!(Instant::now() < deadline, "the client writes nothing");
        std::thread::yield_now();
    }
    client.kill().expect("it is our child");
    client.wait().expect("it has ended");
    let opened = open(&server.address()).expect("the next one is let in");
    write(&opened, 9, 3);
    assert_eq!(read(&opened, 9), 3);
    assert_eq!(server.controller.counters().dma_faults, 0);
}

/// Whoever still holds a device of the old target is told that it is gone; whoever opens the address gets the new one.
#[test]
fn a_target_that_was_started_again_can_be_opened_again() {
    let program = Program::start("mem:16MiB");
    let address = program.address();
    let old = open(&address).expect("a device");
    write(&old, 0, 1);
    let (_, folder) = program.end(Signal::KILL);
    let deadline = Instant::now() + PATIENCE;
    let error = loop {
        match old.device.open_queue(&QueueOptions::default()) {
            Err(error) => break error,
            Ok(queue) => drop(queue),
        }
        assert!(Instant::now() < deadline, "nobody has noticed");
    };
    assert_eq!(error.kind(), ErrorKind::DeviceGone, "{error}");
    let _program = Program::start_in("mem:16MiB", folder);
    let new = open(&address).expect("the new one");
    assert_eq!(read(&new, 0), 0, "another medium");
}

/// The memory behind the doorbells and the queues stays, so that nothing but the socket shows that nobody is there.
#[test]
fn a_target_that_is_killed_at_depth_128_gives_every_request_back() {
    let program = Program::start("mem:16MiB");
    let opened = open(&program.address()).expect("a device");
    let (_, before) = opened.device.dma().usage();
    let mut queue = queue(&opened, 128);
    program.stop();
    for tag in 0..128 {
        let buffer = opened.device.dma().buffer(4096, Access::DeviceWrites).expect("a buffer");
        queue.submit(Request::read(Lba(tag), buffer, tag)).expect("a free slot");
    }
    queue.ring();
    assert_eq!(queue.poll(128, &mut |_| panic!("it stands still")), 0);
    program.signal(Signal::KILL);
    let began = Instant::now();
    for completion in wait(&mut *queue, 128) {
        let error = completion.result.expect_err("nobody is there");
        assert_eq!(error.kind(), ErrorKind::DeviceGone);
        assert!(error.to_string().contains("it has closed the connection"), "{error}");
    }
    // Far below the deadline of a request: the socket has told.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let refused = opened.device.open_queue(&QueueOptions::default()).err().expect("it is gone");
    assert_eq!(refused.kind(), ErrorKind::DeviceGone);
    drop(queue);
    let (_, after) = opened.device.dma().usage();
    assert!(after <= before, "{after} bytes are out, and {before} were before the requests");
}
