//! Our controller's end against clients that are none, or are none of ours.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use udirect::open::open;
use udirect::seed::Seed;
use udirect::soft::{Controller, Listener, Options};
use udirect::transport::vfio_user::channel::{Channel, ChannelError, Message};
use udirect::transport::vfio_user::wire::{
    self, Command, DmaMap, DmaUnmap, Header, IrqInfo, IrqSet, RegionAccess, RegionInfo, Version,
};
use zerocopy::IntoBytes;

use crate::server::{Server, shareable};
use crate::{PATIENCE, read, write};

fn ask(
    channel: &mut Channel,
    command: Command,
    payload: &[u8],
    file: Option<&OwnedFd>,
) -> Result<Message, ChannelError> {
    let files: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
    channel.ask(command, &[payload], &files, PATIENCE)
}

/// The errno of a refusal; the connection goes on.
fn refusal(
    channel: &mut Channel,
    command: Command,
    payload: &[u8],
    file: Option<&OwnedFd>,
) -> Errno {
    match ask(channel, command, payload, file) {
        Err(ChannelError::Refused(errno)) => Errno::from_raw_os_error(errno as i32),
        other => panic!("{command} is not refused: {other:?}"),
    }
}

/// Connects without being a driver.
fn connect(server: &Server) -> Channel {
    let path = server.folder.path().join("cntrl");
    Channel::connect(&path, PATIENCE).expect("somebody listens")
}

fn greeted(server: &Server) -> Channel {
    let mut channel = connect(server);
    let version = Version { major: 0, minor: 1 };
    ask(&mut channel, Command::VERSION, version.as_bytes(), None).expect("a version");
    channel
}

fn file(len: u64) -> OwnedFd {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(len).expect("its length");
    file.into()
}

fn access(region: u32, offset: u64, count: u32) -> RegionAccess {
    RegionAccess { offset, region, count }
}

/// What SPDK's and QEMU's clients look for before they drive anything.
#[test]
fn it_is_an_nvme_controller_with_doorbells_to_map_and_vectors_to_route() {
    let server = Server::start("mem:16MiB?queues=8");
    let mut channel = greeted(&server);
    let info = ask(
        &mut channel,
        Command::DEVICE_GET_INFO,
        &[16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        None,
    )
    .expect("what it is");
    assert_eq!(info.payload, [16, 0, 0, 0, 3, 0, 0, 0, 9, 0, 0, 0, 5, 0, 0, 0]);
    let mut region = |index, argsz| {
        let asked = RegionInfo { argsz, index, ..RegionInfo::default() };
        let reply = ask(&mut channel, Command::DEVICE_GET_REGION_INFO, asked.as_bytes(), None);
        reply.expect("a region")
    };
    let registers = region(0, 4096);
    let (bar, areas) = wire::read_region(&registers.payload).expect("it can be read");
    assert_eq!((bar.size, bar.offset, bar.flags), (0x2000, 0, 0xf));
    let areas: Vec<_> = areas.expect("areas").iter().map(|area| (area.offset, area.size)).collect();
    assert_eq!((areas, registers.files.len()), (vec![(0x1000, 0x1000)], 1));
    // Who has no room for the areas learns how much they take.
    let short = region(0, 32);
    assert_eq!((short.payload.len(), short.payload[0], short.files.len()), (32, 64, 0));
    let flags = [1, 4, 7, 8].map(|index| {
        let (info, _) = wire::read_region(&region(index, 4096).payload).expect("it can be read");
        (info.size, info.flags)
    });
    assert_eq!(flags, [(0, 0), (128 << 10, 3), (4096, 3), (0, 0)]);
    let class = ask(&mut channel, Command::REGION_READ, access(7, 8, 4).as_bytes(), None);
    assert_eq!(class.expect("the class").payload[16..], [2, 2, 8, 1]);
    let counts = [0, 2, 4].map(|index| {
        let asked = IrqInfo { argsz: 16, index, ..IrqInfo::default() };
        let reply = ask(&mut channel, Command::DEVICE_GET_IRQ_INFO, asked.as_bytes(), None);
        wire::read::<IrqInfo>(&reply.expect("interrupts").payload).expect("it can be read").count
    });
    assert_eq!(counts, [0, 9, 0]);
}

#[test]
fn registers_are_words_and_doorbells_can_be_rung_by_message() {
    let server = Server::start("mem:16MiB?queues=8");
    let mut channel = greeted(&server);
    let mut read = |offset, count| {
        let asked = access(0, offset, count);
        ask(&mut channel, Command::REGION_READ, asked.as_bytes(), None).expect("a read").payload
            [16..]
            .to_vec()
    };
    assert_eq!(read(8, 4), [0, 0, 2, 0], "VS");
    assert_eq!((read(10, 1), read(9, 3)), (vec![2], vec![0, 2, 0]));
    assert_eq!(read(0, 8)[..2], [0xff, 0xff], "CAP.MQES");
    assert_eq!(read(0x1000, 8), [0; 8]);
    let mut write = |offset, bytes: &[u8]| {
        let asked = access(0, offset, bytes.len() as u32);
        let payload = [asked.as_bytes(), bytes].concat();
        ask(&mut channel, Command::REGION_WRITE, &payload, None).map(|_| ())
    };
    write(0x28, &[0, 0x10, 0, 0, 1, 0, 0, 0]).expect("ASQ, eight bytes");
    write(0x1000, &[1, 0, 0, 0]).expect("a doorbell");
    for (offset, bytes) in
        [(0x14, &[0; 2][..]), (0x16, &[0; 4]), (0x1000, &[0; 8]), (0x1ffc, &[0; 4])]
    {
        let refused = write(offset, bytes);
        assert!(matches!(refused, Err(ChannelError::Refused(22))), "{offset:#x}: {refused:?}");
    }
    let asq = ask(&mut channel, Command::REGION_READ, access(0, 0x28, 8).as_bytes(), None);
    assert_eq!(asq.expect("ASQ").payload[16..], [0, 0x10, 0, 0, 1, 0, 0, 0]);
    ask(&mut channel, Command::DEVICE_RESET, &[], None).expect("a reset");
    let asq = ask(&mut channel, Command::REGION_READ, access(0, 0x28, 8).as_bytes(), None);
    assert_eq!(asq.expect("ASQ").payload[16..], [0; 8]);
}

#[test]
fn memory_is_mapped_once_and_taken_back_as_it_was_given() {
    let server = Server::start("mem:16MiB");
    let mut channel = greeted(&server);
    let map = |address, size| DmaMap { argsz: 32, flags: 3, offset: 0, address, size };
    let unmap = |flags, address, size| DmaUnmap { argsz: 24, flags, address, size };
    let memory = file(1 << 20);
    let given = map(0, 1 << 20);
    ask(&mut channel, Command::DMA_MAP, given.as_bytes(), Some(&memory)).expect("at address 0");
    let refused = [
        (given, Some(&memory), Errno::EXIST, "twice"),
        (map(0xff000, 0x1000), Some(&memory), Errno::EXIST, "in the middle of it"),
        (map(0xff000, 0x1000), None, Errno::EXIST, "in the middle of it, without a descriptor"),
        (map(1 << 30, 2 << 20), Some(&memory), Errno::INVAL, "beyond the file"),
        (map(1 << 30, 0), Some(&memory), Errno::INVAL, "nothing"),
        (map((1 << 30) + 100, 1 << 20), Some(&memory), Errno::INVAL, "off the page"),
        (map(u64::MAX - 0xfff, 0x2000), Some(&memory), Errno::INVAL, "around the end"),
        (DmaMap { flags: 0, ..map(1 << 30, 4096) }, Some(&memory), Errno::INVAL, "for nothing"),
        (DmaMap { flags: 7, ..map(1 << 30, 4096) }, Some(&memory), Errno::INVAL, "for more"),
    ];
    for (asked, file, errno, what) in refused {
        assert_eq!(
            refusal(&mut channel, Command::DMA_MAP, asked.as_bytes(), file),
            errno,
            "{what}"
        );
    }
    let null = OwnedFd::from(File::open("/dev/null").expect("it is everywhere"));
    let asked = map(1 << 30, 4096);
    assert_eq!(
        refusal(&mut channel, Command::DMA_MAP, asked.as_bytes(), Some(&null)),
        Errno::INVAL
    );
    for asked in [unmap(0, 0, 4096), unmap(0, 4096, 1 << 20), unmap(0, 1 << 30, 4096)] {
        assert_eq!(refusal(&mut channel, Command::DMA_UNMAP, asked.as_bytes(), None), Errno::NOENT);
    }
    let asked = unmap(0, 0, 1 << 20);
    let reply = ask(&mut channel, Command::DMA_UNMAP, asked.as_bytes(), None).expect("as it was");
    assert_eq!(reply.payload, asked.as_bytes());
    ask(&mut channel, Command::DMA_MAP, given.as_bytes(), Some(&memory)).expect("there is room");
    // What cannot be mapped is noted, and that is all: QEMU gives its ROMs like that.
    let rom = map(1 << 30, 0x1000);
    ask(&mut channel, Command::DMA_MAP, rom.as_bytes(), None).expect("it is noted");
    assert_eq!(refusal(&mut channel, Command::DMA_MAP, rom.as_bytes(), None), Errno::EXIST);
    let all = unmap(DmaUnmap::ALL, 0, 0);
    ask(&mut channel, Command::DMA_UNMAP, all.as_bytes(), None).expect("everything");
    ask(&mut channel, Command::DMA_MAP, given.as_bytes(), Some(&memory)).expect("there is room");
}

#[test]
fn interrupts_go_where_they_are_routed() {
    let server = Server::start("mem:16MiB?queues=8");
    let mut channel = greeted(&server);
    let event: OwnedFd = eventfd(0, EventfdFlags::NONBLOCK).expect("an event");
    let raised = || {
        let mut count = [0; 8];
        rustix::io::read(&event, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    };
    let set = |flags, start, count| IrqSet { argsz: 20, flags: flags | 32, index: 2, start, count };
    let mut send = |asked: IrqSet, more: &[u8], file: Option<&OwnedFd>| {
        let payload = [asked.as_bytes(), more].concat();
        ask(&mut channel, Command::DEVICE_SET_IRQS, &payload, file).map(|_| ())
    };
    send(set(IrqSet::DATA_EVENTFD, 3, 1), &[], Some(&event)).expect("vector 3 is routed");
    send(set(IrqSet::DATA_NONE, 2, 1), &[], None).expect("vector 2 goes nowhere");
    assert_eq!(raised(), 0);
    send(set(IrqSet::DATA_NONE, 2, 2), &[], None).expect("2 and 3");
    send(set(IrqSet::DATA_BOOL, 2, 2), &[1, 0], None).expect("2 only");
    send(set(IrqSet::DATA_BOOL, 2, 2), &[0, 1], None).expect("3 only");
    assert_eq!(raised(), 2);
    send(set(IrqSet::DATA_EVENTFD, 3, 1), &[], None).expect("vector 3 goes nowhere");
    send(set(IrqSet::DATA_NONE, 3, 1), &[], None).expect("as I say");
    send(set(IrqSet::DATA_EVENTFD, 8, 1), &[], Some(&event)).expect("the last one");
    send(set(IrqSet::DATA_NONE, 0, 0), &[], None).expect("none goes anywhere");
    send(set(IrqSet::DATA_NONE, 8, 1), &[], None).expect("as I say");
    assert_eq!(raised(), 0);
    for (asked, more) in [
        (set(IrqSet::DATA_NONE, 8, 2), &[][..]),
        (set(IrqSet::DATA_NONE, u32::MAX, 1), &[]),
        (set(IrqSet::DATA_BOOL, 0, 2), &[1]),
        (IrqSet { index: 0, ..set(IrqSet::DATA_NONE, 0, 0) }, &[]),
        (IrqSet { flags: 9, ..set(0, 0, 1) }, &[]),
    ] {
        let refused = send(asked, more, None);
        assert!(matches!(refused, Err(ChannelError::Refused(22))), "{asked:?}: {refused:?}");
    }
}

#[test]
fn a_second_client_is_turned_away_and_the_first_stays() {
    let server = Server::start("mem:16MiB");
    let first = open(&server.address()).expect("the first");
    let mut second = connect(&server);
    let version = Version { major: 0, minor: 1 };
    let answer = ask(&mut second, Command::VERSION, version.as_bytes(), None);
    assert!(matches!(answer, Err(ChannelError::Closed)), "{answer:?}");
    write(&first, 0, 4);
    assert_eq!(read(&first, 0), 4);
}

#[test]
fn who_speaks_no_vfio_user_is_sent_away_and_the_next_one_is_served() {
    let server = Server::start("mem:16MiB");
    let get_info = Header::of_command(1, Command::DEVICE_GET_INFO, 16);
    let reply = Header::of_command(1, Command::VERSION, 4).of_reply(4);
    let first_words: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        &[0; 64],
        &[0xff; 64],
        &[get_info.as_bytes(), &[0; 16]].concat(),
        &[reply.as_bytes(), &[0; 4]].concat(),
    ];
    for words in first_words {
        let mut stranger =
            UnixStream::connect(server.folder.path().join("cntrl")).expect("a socket");
        stranger.write_all(words).expect("it listens");
        stranger.set_read_timeout(Some(PATIENCE)).expect("a deadline");
        let mut answer = Vec::new();
        // The end of the connection, or a reset since not all was read.
        let _ = std::io::Read::read_to_end(&mut stranger, &mut answer);
        assert_eq!(answer, Vec::<u8>::new(), "{words:?}");
    }
    let opened = open(&server.address()).expect("the next one");
    write(&opened, 0, 5);
}

#[test]
fn another_version_is_refused_and_a_lower_one_agreed_upon() {
    let server = Server::start("mem:16MiB");
    let mut channel = connect(&server);
    let ahead = Version { major: 1, minor: 0 };
    assert_eq!(refusal(&mut channel, Command::VERSION, ahead.as_bytes(), None), Errno::OPNOTSUPP);
    let bad = [Version { major: 0, minor: 1 }.as_bytes(), b"{"].concat();
    assert_eq!(refusal(&mut channel, Command::VERSION, &bad, None), Errno::INVAL);
    for (proposed, agreed) in [(0, 0), (9, 1)] {
        drop(channel);
        channel = connect(&server);
        let version = Version { major: 0, minor: proposed };
        let reply =
            ask(&mut channel, Command::VERSION, version.as_bytes(), None).expect("a version");
        let said: Version = wire::read(&reply.payload).expect("it can be read");
        assert_eq!((said.major, said.minor), (0, agreed));
    }
}

/// Messages with sound headers and payloads of any bytes: each is answered or ends the session, and nothing worse.
#[test]
fn whatever_a_client_says_the_next_one_is_served() {
    let mut random = Seed::from_env("strangers");
    let server = Server::start("mem:16MiB?queues=4");
    let (mut answered, mut refused) = (0, 0);
    let mut channel = greeted(&server);
    let memory = file(1 << 20);
    for _ in 0..3000 {
        let command = Command(random.u16(2..18));
        let mut payload = vec![0; random.usize(0..48)];
        for byte in &mut payload {
            // Small numbers lead further than large ones.
            *byte = if random.bool() { 0 } else { random.u8(..) };
        }
        let files = random.bool().then_some(&memory);
        match ask(&mut channel, command, &payload, files) {
            Ok(_) => answered += 1,
            Err(ChannelError::Refused(_)) => refused += 1,
            Err(error) => panic!("{command} {payload:?}: {error}"),
        }
    }
    assert!(answered > 50 && refused > 500, "{answered} answered, {refused} refused");
    drop(channel);
    let opened = open(&server.address()).expect("the next one");
    write(&opened, 1, 6);
    assert_eq!(read(&opened, 1), 6);
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let controller = shareable("mem:16MiB");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cntrl");
    let said = || {
        let error = Listener::bind(&controller, folder.path()).err().expect("it is refused");
        error.to_string().replace(&folder.path().display().to_string(), "FOLDER")
    };
    // Somebody else's, who knows nothing of our lock.
    let live = UnixListener::bind(&path).expect("a socket");
    assert_eq!(said(), "FOLDER is served by another process");
    drop(live);
    let listener = Listener::bind(&controller, folder.path()).expect("nobody listens there");
    let found = std::fs::symlink_metadata(&path).expect("a socket");
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    assert_eq!(said(), "FOLDER is served by another process");
    drop(listener);
    assert!(!path.exists());
    std::fs::write(&path, "mine").expect("a file");
    assert_eq!(said(), "FOLDER/cntrl is in the way: it is no socket");
    assert_eq!(std::fs::read(&path).expect("it is still there"), b"mine");
}

#[test]
fn a_folder_is_made_and_one_that_cannot_be_is_named() {
    let controller = shareable("mem:16MiB");
    let place = tempfile::tempdir().expect("a folder");
    let new = place.path().join("new");
    drop(Listener::bind(&controller, &new).expect("the folder is made"));
    assert_eq!(std::fs::metadata(&new).expect("it stays").permissions().mode() & 0o777, 0o700);
    for impossible in ["/dev/null/x", "/proc/x", "/no/such/folder"] {
        let error = Listener::bind(&controller, impossible.as_ref()).err().expect("it is refused");
        assert_eq!(error.to_string(), format!("{impossible}: the folder cannot be made"));
    }
    let long = place.path().join("x".repeat(120));
    let error = Listener::bind(&controller, &long).err().expect("no socket has such a name");
    assert!(error.to_string().ends_with("no socket can be made in it"), "{error}");
    let private = Controller::new(Options::default()).expect("a controller");
    let error = Listener::bind(&private, &new).err().expect("it shares nothing");
    assert_eq!(
        error.to_string(),
        "the controller has no doorbells to share, or no thread to serve them"
    );
}

/// A client that sends half a message holds nobody up for ever: see `PATIENCE` of a session.
#[test]
fn a_client_that_stops_in_the_middle_is_sent_away() {
    let server = Server::start("mem:16MiB");
    let mut stranger = UnixStream::connect(server.folder.path().join("cntrl")).expect("a socket");
    stranger.write_all(&[1, 0, 1]).expect("it listens");
    stranger.set_read_timeout(Some(Duration::from_secs(15))).expect("a deadline");
    let mut answer = [0];
    assert_eq!(std::io::Read::read(&mut stranger, &mut answer).expect("the end"), 0);
}
