//! One connection of vfio-user: messages with descriptors over a stream socket, each within a deadline.
//!
//! [`Channel`] is used by both sides. A message comes whole or the channel is of no more use: after half a message, or an
//! answer that came too late, nobody can say where the next one begins. Neighbours: `wire` for what is in a message.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fmt, io};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use zerocopy::IntoBytes;

use super::wire::{self, Command, DESCRIPTORS_MAX, HEADER_BYTES, Header, Malformed};

/// Why a message did not come through.
#[derive(Debug)]
#[non_exhaustive]
pub enum ChannelError {
    /// The other side said nothing in time.
    Silent {
        /// How long it was waited for.
        after: Duration,
    },
    /// The other side has closed the connection.
    Closed,
    /// What the other side said is not the protocol.
    Rubbish(Malformed),
    /// The other side refused, with an errno or 0.
    Refused(u32),
    /// The kernel refused.
    Kernel(io::Error),
}

impl fmt::Display for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent { after } => write!(f, "no answer within {after:?}"),
            Self::Closed => f.write_str("the connection was closed"),
            Self::Rubbish(what) => write!(f, "not vfio-user, it sent {what}"),
            Self::Refused(0) => f.write_str("refused without a reason"),
            Self::Refused(errno) => {
                let errno = i32::try_from(*errno).unwrap_or(i32::MAX);
                write!(f, "refused: {}", io::Error::from_raw_os_error(errno))
            }
            Self::Kernel(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ChannelError {}

impl From<Malformed> for ChannelError {
    fn from(what: Malformed) -> Self {
        Self::Rubbish(what)
    }
}

impl From<Errno> for ChannelError {
    fn from(error: Errno) -> Self {
        match error {
            Errno::PIPE | Errno::CONNRESET => Self::Closed,
            error => Self::Kernel(error.into()),
        }
    }
}

/// A message as it came.
#[derive(Debug)]
pub struct Message {
    /// What it is.
    pub header: Header,
    /// What it says.
    pub payload: Vec<u8>,
    /// What travelled beside it.
    pub files: Vec<OwnedFd>,
}

/// One end of a connection.
pub struct Channel {
    socket: OwnedFd,
    next_id: u16,
    /// A message was not sent or received whole.
    is_broken: bool,
}

impl Channel {
    /// Connects to a socket.
    ///
    /// # Errors
    ///
    /// The kernel's; `Silent` where nobody takes the connection in time.
    pub fn connect(path: &Path, patience: Duration) -> Result<Self, ChannelError> {
        let address = SocketAddrUnix::new(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let deadline = Deadline::after(patience);
        loop {
            match net::connect(&socket, &address) {
                // So many are waiting that no more fit.
                Err(Errno::AGAIN) if !deadline.is_over() => std::thread::sleep(RETRY),
                Err(Errno::AGAIN) => return Err(ChannelError::Silent { after: patience }),
                Err(Errno::INTR) => {}
                result => break result?,
            }
        }
        Ok(Self::over(socket))
    }

    /// Makes a channel of a connected socket.
    pub fn over(socket: OwnedFd) -> Self {
        Self { socket, next_id: 0, is_broken: false }
    }

    /// Sends a command and returns the reply to it.
    ///
    /// # Errors
    ///
    /// `Refused` with the channel as good as before; after any other it is of no more use.
    pub fn ask(
        &mut self,
        command: Command,
        payload: &[&[u8]],
        files: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<Message, ChannelError> {
        self.next_id = self.next_id.wrapping_add(1);
        let len = payload.iter().map(|part| part.len()).sum();
        let header = Header::of_command(self.next_id, command, len);
        self.send(&header, payload, files, patience)?;
        let deadline = Deadline::after(patience);
        loop {
            let reply = self.receive_by(&deadline)?;
            if reply.header.is_command() {
                // A device that has its memory mapped has nothing to ask; whoever does is told so.
                self.refuse(&reply.header, Errno::OPNOTSUPP, patience)?;
                continue;
            }
            if (reply.header.id, reply.header.command) != (header.id, command) {
                return Err(self.broken(Malformed("an answer to another question").into()));
            }
            return match reply.header.refusal() {
                Some(errno) => Err(ChannelError::Refused(errno)),
                None => Ok(reply),
            };
        }
    }

    /// Sends a message.
    ///
    /// # Errors
    ///
    /// Any makes the channel useless.
    pub fn send(
        &mut self,
        header: &Header,
        payload: &[&[u8]],
        files: &[BorrowedFd<'_>],
        patience: Duration,
    ) -> Result<(), ChannelError> {
        if self.is_broken {
            return Err(ChannelError::Closed);
        }
        let mut bytes = header.as_bytes().to_vec();
        payload.iter().for_each(|part| bytes.extend_from_slice(part));
        let sent = self.send_bytes(&bytes, files, &Deadline::after(patience));
        sent.map_err(|error| self.broken(error))
    }

    /// Refuses a command, if its sender wants to know.
    ///
    /// # Errors
    ///
    /// As [`Channel::send`].
    pub fn refuse(
        &mut self,
        command: &Header,
        errno: Errno,
        patience: Duration,
    ) -> Result<(), ChannelError> {
        if !command.wants_reply() {
            return Ok(());
        }
        let errno = u32::try_from(errno.raw_os_error()).expect("errors are positive");
        self.send(&command.of_refusal(errno), &[], &[], patience)
    }

    /// Receives a message.
    ///
    /// # Errors
    ///
    /// Any makes the channel useless.
    pub fn receive(&mut self, patience: Duration) -> Result<Message, ChannelError> {
        self.receive_by(&Deadline::after(patience))
    }

    fn receive_by(&mut self, deadline: &Deadline) -> Result<Message, ChannelError> {
        if self.is_broken {
            return Err(ChannelError::Closed);
        }
        let received = self.receive_whole(deadline);
        received.map_err(|error| self.broken(error))
    }

    fn receive_whole(&self, deadline: &Deadline) -> Result<Message, ChannelError> {
        let mut files = VecDeque::new();
        let mut bytes = [0; HEADER_BYTES];
        self.receive_bytes(&mut bytes, &mut files, deadline)?;
        let header: Header = wire::read(&bytes)?;
        let mut payload = vec![0; header.payload_len()?];
        self.receive_bytes(&mut payload, &mut files, deadline)?;
        Ok(Message { header, payload, files: files.into() })
    }

    /// Closes the connection for good: whoever watches it sees that.
    fn broken(&mut self, error: ChannelError) -> ChannelError {
        self.is_broken = true;
        let _ = net::shutdown(&self.socket, net::Shutdown::Both);
        error
    }

    fn send_bytes(
        &self,
        bytes: &[u8],
        files: &[BorrowedFd<'_>],
        deadline: &Deadline,
    ) -> Result<(), ChannelError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            let fits = beside.push(SendAncillaryMessage::ScmRights(files));
            assert!(fits, "{} descriptors beside one message", files.len());
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut done = 0;
        while done < bytes.len() {
            match net::sendmsg(&self.socket, &[IoSlice::new(&bytes[done..])], &mut beside, flags) {
                Ok(sent) => {
                    done += sent;
                    // They went with the first byte.
                    beside.clear();
                }
                Err(Errno::AGAIN) => deadline.wait(self.socket.as_fd(), PollFlags::OUT)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn receive_bytes(
        &self,
        bytes: &mut [u8],
        files: &mut VecDeque<OwnedFd>,
        deadline: &Deadline,
    ) -> Result<(), ChannelError> {
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let mut done = 0;
        while done < bytes.len() {
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
            let mut beside = RecvAncillaryBuffer::new(&mut space);
            let mut to = [IoSliceMut::new(&mut bytes[done..])];
            let received = net::recvmsg(&self.socket, &mut to, &mut beside, flags);
            for message in beside.drain() {
                if let RecvAncillaryMessage::ScmRights(some) = message {
                    files.extend(some);
                }
            }
            match received {
                Ok(some) if some.flags.contains(ReturnFlags::CTRUNC) => {
                    return Err(Malformed("more descriptors than a message may have").into());
                }
                Ok(some) if some.bytes == 0 => return Err(ChannelError::Closed),
                Ok(some) => done += some.bytes,
                Err(Errno::AGAIN) => deadline.wait(self.socket.as_fd(), PollFlags::IN)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if files.len() > DESCRIPTORS_MAX {
            return Err(Malformed("more descriptors than a message may have").into());
        }
        Ok(())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// How long it is waited before a connection is tried again.
const RETRY: Duration = Duration::from_millis(10);

/// A moment that ends a wait.
struct Deadline {
    at: Instant,
    patience: Duration,
}

impl Deadline {
    fn after(patience: Duration) -> Self {
        Self { at: Instant::now() + patience, patience }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.at
    }

    /// Waits until a socket may have something, or takes something.
    fn wait(&self, socket: BorrowedFd<'_>, sign: PollFlags) -> Result<(), ChannelError> {
        let left = self.at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ChannelError::Silent { after: self.patience });
        }
        let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
        match poll(&mut [PollFd::from_borrowed_fd(socket, sign)], Some(&left)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    const PATIENCE: Duration = Duration::from_secs(30);
    const SHORT: Duration = Duration::from_millis(20);

    fn pair() -> (Channel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Channel::over(ours.into()), theirs)
    }

    /// Answers one command with whatever `reply` makes of its header.
    fn answer(reply: impl FnOnce(Header) -> Vec<u8> + Send + 'static) -> Channel {
        let (channel, mut peer) = pair();
        std::thread::spawn(move || {
            let mut bytes = [0; HEADER_BYTES];
            peer.read_exact(&mut bytes).expect("a command");
            let reply = reply(wire::read(&bytes).expect("a header"));
            peer.write_all(&reply).expect("the peer listens");
            // It has said all that it has to say, and listens on.
            peer.shutdown(std::net::Shutdown::Write).expect("it is connected");
            let _ = peer.read_to_end(&mut Vec::new());
        });
        channel
    }

    fn ask(channel: &mut Channel) -> Result<Message, String> {
        let answer = channel.ask(Command::DEVICE_RESET, &[], &[], PATIENCE);
        answer.map_err(|error| error.to_string())
    }

    #[test]
    fn messages_and_descriptors_come_through_whole() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut one, mut other) = (Channel::over(ours.into()), Channel::over(theirs.into()));
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"beside").unwrap();
        let long = vec![7; 40_000];
        let header = Header::of_command(1, Command::DMA_MAP, 3 + long.len());
        one.send(&header, &[b"abc", &long], &[file.as_fd()], PATIENCE).unwrap();
        let message = other.receive(PATIENCE).unwrap();
        assert_eq!((message.header, message.payload.len()), (header, 40_003));
        assert!(message.payload.starts_with(b"abc\x07"));
        assert_eq!(message.files.len(), 1);
        let theirs = File::from(message.files.into_iter().next().unwrap());
        assert_eq!(theirs.metadata().unwrap().len(), 6);
    }

    #[test]
    fn a_peer_that_answers_wrongly_is_named_for_it() {
        type Reply = fn(Header) -> Vec<u8>;
        let cases: [(Reply, &str); 6] = [
            (
                |_| b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
                "not vfio-user, it sent a message of impossible length",
            ),
            (
                |header| Header { id: header.id + 1, ..header.of_reply(0) }.as_bytes().to_vec(),
                "not vfio-user, it sent an answer to another question",
            ),
            (
                |header| Header { flags: 2, ..header }.as_bytes().to_vec(),
                "not vfio-user, it sent a message that is neither command nor reply",
            ),
            (|header| header.of_reply(0).as_bytes()[..10].to_vec(), "the connection was closed"),
            (
                |header| header.of_refusal(22).as_bytes().to_vec(),
                "refused: Invalid argument (os error 22)",
            ),
            (|header| header.of_refusal(0).as_bytes().to_vec(), "refused without a reason"),
        ];
        for (reply, expected) in cases {
            let mut channel = answer(reply);
            assert_eq!(ask(&mut channel).unwrap_err(), expected);
        }
    }

    #[test]
    fn a_peer_that_asks_in_between_is_refused_and_its_answer_is_taken() {
        let mut channel = answer(|header| {
            let question = Header::of_command(9, Command::DMA_READ, 16);
            [question.as_bytes(), &[0; 16], header.of_reply(0).as_bytes()].concat()
        });
        assert!(ask(&mut channel).unwrap().payload.is_empty());
    }

    #[test]
    fn silence_ends_and_so_does_the_channel() {
        let (mut channel, peer) = pair();
        let error = channel.ask(Command::VERSION, &[], &[], SHORT).unwrap_err();
        assert_eq!(error.to_string(), "no answer within 20ms");
        // An answer that comes now is nobody's, and must not be taken for that to the next question.
        let late = Header::of_command(1, Command::VERSION, 0).of_reply(0);
        assert!((&peer).write_all(late.as_bytes()).is_err());
        assert_eq!(ask(&mut channel).unwrap_err(), "the connection was closed");
    }

    #[test]
    fn a_peer_that_takes_nothing_is_given_up() {
        let (mut channel, _peer) = pair();
        let header = Header::of_command(1, Command::REGION_WRITE, 60_000);
        let error =
            (0..1000).find_map(|_| channel.send(&header, &[&[0; 60_000]], &[], SHORT).err());
        assert!(matches!(error, Some(ChannelError::Silent { .. })), "{error:?}");
    }

    #[test]
    fn nobody_who_listens_and_nobody_who_accepts_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let connect = || Channel::connect(&path, SHORT).err();
        let kind = |error: Option<ChannelError>| match error {
            Some(ChannelError::Kernel(error)) => Some(error.kind()),
            _ => None,
        };
        assert_eq!(kind(connect()), Some(io::ErrorKind::NotFound));
        let listener = net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        net::listen(&listener, 1).unwrap();
        let taken: Vec<Channel> =
            std::iter::from_fn(|| Channel::connect(&path, SHORT).ok()).take(100).collect();
        assert!(matches!(connect(), Some(ChannelError::Silent { .. })), "{}", taken.len());
        drop((listener, taken));
        assert_eq!(kind(connect()), Some(io::ErrorKind::ConnectionRefused));
    }
}
