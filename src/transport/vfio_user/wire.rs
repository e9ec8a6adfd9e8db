//! The words of the vfio-user protocol, version 0.1 (libvfio-user, `vfio-user.rst` 0.9.2): bytes to values and back.
//!
//! Each message is a [`Header`] and a payload in the byte order of the machine; file descriptors travel beside it. Client
//! and server share these layouts and nothing else. Names and numbers are those of the protocol, and of `linux/vfio.h`
//! where it borrows. The invariant: nothing here trusts a length, an offset or a count that came from a peer.
#![forbid(unsafe_code)]

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The version of the protocol that is spoken here.
pub const VERSION: Version = Version { major: 0, minor: 1 };

/// The most bytes of one message, its header included. The longest that travels here is a page of configuration space.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// The most descriptors beside one message that are taken.
pub const DESCRIPTORS_MAX: usize = 16;

/// A message that breaks the protocol, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// What a message asks for.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct Command(pub u16);

impl Command {
    /// Proposes a version and capabilities; the first message.
    pub const VERSION: Self = Self(1);
    /// Lets the device reach memory.
    pub const DMA_MAP: Self = Self(2);
    /// Takes that back.
    pub const DMA_UNMAP: Self = Self(3);
    /// Asks what the device is.
    pub const DEVICE_GET_INFO: Self = Self(4);
    /// Asks what a region is, and for the descriptors of what can be mapped of it.
    pub const DEVICE_GET_REGION_INFO: Self = Self(5);
    /// Asks for descriptors that stand for writes to a region.
    pub const DEVICE_GET_REGION_IO_FDS: Self = Self(6);
    /// Asks how many interrupts of a kind there are.
    pub const DEVICE_GET_IRQ_INFO: Self = Self(7);
    /// Says where interrupts go.
    pub const DEVICE_SET_IRQS: Self = Self(8);
    /// Reads a region.
    pub const REGION_READ: Self = Self(9);
    /// Writes a region.
    pub const REGION_WRITE: Self = Self(10);
    /// Reads memory of the client; from the server.
    pub const DMA_READ: Self = Self(11);
    /// Writes memory of the client; from the server.
    pub const DMA_WRITE: Self = Self(12);
    /// Resets the device.
    pub const DEVICE_RESET: Self = Self(13);
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::VERSION => "VERSION",
            Self::DMA_MAP => "DMA_MAP",
            Self::DMA_UNMAP => "DMA_UNMAP",
            Self::DEVICE_GET_INFO => "DEVICE_GET_INFO",
            Self::DEVICE_GET_REGION_INFO => "DEVICE_GET_REGION_INFO",
            Self::DEVICE_GET_REGION_IO_FDS => "DEVICE_GET_REGION_IO_FDS",
            Self::DEVICE_GET_IRQ_INFO => "DEVICE_GET_IRQ_INFO",
            Self::DEVICE_SET_IRQS => "DEVICE_SET_IRQS",
            Self::REGION_READ => "REGION_READ",
            Self::REGION_WRITE => "REGION_WRITE",
            Self::DMA_READ => "DMA_READ",
            Self::DMA_WRITE => "DMA_WRITE",
            Self::DEVICE_RESET => "DEVICE_RESET",
            Self(other) => return write!(f, "command {other}"),
        };
        f.write_str(name)
    }
}

/// What is in front of each message.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Header {
    /// The sender's number for the message; a reply repeats it.
    pub id: u16,
    /// What is asked for; a reply repeats it.
    pub command: Command,
    /// Bytes of the message, with the header.
    pub len: u32,
    /// Type in the low four bits, and `NO_REPLY`, `ERROR`.
    pub flags: u32,
    /// With `ERROR`: why, as an errno, or 0.
    pub error: u32,
}

const _: () = assert!(size_of::<Header>() == HEADER_BYTES);

/// The length of a header.
pub const HEADER_BYTES: usize = 16;

const TYPE_MASK: u32 = 0xf;
const TYPE_COMMAND: u32 = 0;
const TYPE_REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

impl Header {
    /// Makes the header of a command with a payload of `len` bytes.
    pub fn of_command(id: u16, command: Command, len: usize) -> Self {
        Self { id, command, len: total(len), flags: TYPE_COMMAND, error: 0 }
    }

    /// Makes the header of a reply with a payload of `len` bytes.
    pub fn of_reply(&self, len: usize) -> Self {
        Self { len: total(len), flags: TYPE_REPLY, error: 0, ..*self }
    }

    /// Makes the header of a reply that refuses.
    pub fn of_refusal(&self, errno: u32) -> Self {
        Self { len: total(0), flags: TYPE_REPLY | ERROR, error: errno, ..*self }
    }

    /// Returns how many bytes follow.
    ///
    /// # Errors
    ///
    /// When the length cannot be, or the message is of no known type.
    pub fn payload_len(&self) -> Result<usize, Malformed> {
        let len = usize::try_from(self.len).unwrap_or(usize::MAX);
        if !(HEADER_BYTES..=MESSAGE_BYTES_MAX).contains(&len) {
            return Err(Malformed("a message of impossible length"));
        }
        if !matches!(self.flags & TYPE_MASK, TYPE_COMMAND | TYPE_REPLY) {
            return Err(Malformed("a message that is neither command nor reply"));
        }
        Ok(len - HEADER_BYTES)
    }

    /// Says whether it is a command.
    pub fn is_command(&self) -> bool {
        self.flags & TYPE_MASK == TYPE_COMMAND
    }

    /// Says whether the sender waits for a reply.
    pub fn wants_reply(&self) -> bool {
        self.flags & NO_REPLY == 0
    }

    /// Returns the errno of a reply that refuses; 0 where it gives none.
    pub fn refusal(&self) -> Option<u32> {
        (self.flags & ERROR != 0).then_some(self.error)
    }
}

fn total(payload: usize) -> u32 {
    u32::try_from(HEADER_BYTES + payload).expect("payloads are short")
}

/// The version of the protocol, in front of the capabilities.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Version {
    /// Another one is another protocol.
    pub major: u16,
    /// A higher one has more.
    pub minor: u16,
}

/// What a device is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DeviceInfo {
    /// The most bytes of a reply; in a reply, those of all of it.
    pub argsz: u32,
    /// [`DeviceInfo::RESET`], [`DeviceInfo::PCI`].
    pub flags: u32,
    /// Regions, as a PCI device of VFIO numbers them.
    pub regions: u32,
    /// Kinds of interrupts.
    pub irqs: u32,
}

impl DeviceInfo {
    /// The device can be reset.
    pub const RESET: u32 = 1;
    /// It is a PCI device.
    pub const PCI: u32 = 1 << 1;
}

/// Regions of a PCI device.
pub mod region {
    /// The registers of an NVMe controller.
    pub const BAR0: u32 = 0;
    /// Where the table of MSI-X is, in what is emulated here.
    pub const BAR4: u32 = 4;
    /// The configuration space.
    pub const CONFIG: u32 = 7;
    /// How many there are: six BARs, the ROM, the configuration space, VGA.
    pub const COUNT: u32 = 9;
}

/// Kinds of interrupts of a PCI device.
pub mod irq {
    /// MSI-X.
    pub const MSIX: u32 = 2;
    /// How many kinds there are: `INTx`, MSI, MSI-X, errors, requests.
    pub const COUNT: u32 = 5;
}

/// What a region is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RegionInfo {
    /// The most bytes of a reply; in a reply, those of all of it.
    pub argsz: u32,
    /// [`RegionInfo::READ`] and what follows it.
    pub flags: u32,
    /// Which region.
    pub index: u32,
    /// Where the first capability is, from here; 0 for none.
    pub cap_offset: u32,
    /// Its length.
    pub size: u64,
    /// Where it begins in the file to be mapped.
    pub offset: u64,
}

impl RegionInfo {
    /// It can be read.
    pub const READ: u32 = 1;
    /// It can be written.
    pub const WRITE: u32 = 1 << 1;
    /// It, or its areas, can be mapped.
    pub const MMAP: u32 = 1 << 2;
    /// Capabilities follow.
    pub const CAPS: u32 = 1 << 3;
}

/// A part of a region.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Area {
    /// Where it begins in the region.
    pub offset: u64,
    /// Its length.
    pub size: u64,
}

/// What is in front of each capability of a region.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct CapHeader {
    id: u16,
    version: u16,
    /// Where the next one is, from the beginning of the region's information; 0 for none.
    next: u32,
}

/// The header of the capability that says which areas can be mapped, and how many of them follow.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct SparseHeader {
    header: CapHeader,
    count: u32,
    reserved: u32,
}

/// The capability that says which areas of a region can be mapped.
const CAP_SPARSE_MMAP: u16 = 1;

/// Writes a region's information, with the areas that can be mapped, where it is not all of it.
pub fn region_reply(info: RegionInfo, areas: &[Area]) -> Vec<u8> {
    if areas.is_empty() {
        let argsz = size_of::<RegionInfo>() as u32;
        return RegionInfo { argsz, ..info }.as_bytes().to_vec();
    }
    let cap_offset = size_of::<RegionInfo>() as u32;
    let count = u32::try_from(areas.len()).expect("areas are few");
    let header = CapHeader { id: CAP_SPARSE_MMAP, version: 1, next: 0 };
    let sparse = SparseHeader { header, count, reserved: 0 };
    let argsz = cap_offset + (size_of::<SparseHeader>() + size_of_val(areas)) as u32;
    let flags = info.flags | RegionInfo::CAPS;
    let info = RegionInfo { argsz, flags, cap_offset, ..info };
    [info.as_bytes(), sparse.as_bytes(), areas.as_bytes()].concat()
}

/// Reads a region's information, and the areas that can be mapped: `None` where nothing says that it is not all of it.
///
/// # Errors
///
/// When the reply is too short for what it says, or its capabilities go backwards.
pub fn read_region(reply: &[u8]) -> Result<(RegionInfo, Option<Vec<Area>>), Malformed> {
    let info: RegionInfo = read(reply)?;
    if info.flags & RegionInfo::CAPS == 0 {
        return Ok((info, None));
    }
    let mut at = info.cap_offset as usize;
    // Each capability lies behind the one before it, so that the chain ends.
    while at != 0 {
        let rest = reply.get(at..).ok_or(Malformed("a capability outside the message"))?;
        let header: CapHeader = read(rest)?;
        if header.id == CAP_SPARSE_MMAP {
            return areas(rest).map(|areas| (info, Some(areas)));
        }
        let next = header.next as usize;
        if next != 0 && next <= at {
            return Err(Malformed("capabilities that go in circles"));
        }
        at = next;
    }
    Ok((info, None))
}

fn areas(capability: &[u8]) -> Result<Vec<Area>, Malformed> {
    let sparse: SparseHeader = read(capability)?;
    let areas = &capability[size_of::<SparseHeader>()..];
    let count = sparse.count as usize;
    if count > areas.len() / size_of::<Area>() {
        return Err(Malformed("more areas than the message has"));
    }
    areas.chunks_exact(size_of::<Area>()).take(count).map(read).collect()
}

/// Memory that the device may reach; its descriptor travels beside the message.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DmaMap {
    /// The bytes of this.
    pub argsz: u32,
    /// [`DmaMap::READ`], [`DmaMap::WRITE`]: what the device may do.
    pub flags: u32,
    /// Where the memory begins in its file.
    pub offset: u64,
    /// Where the device sees it.
    pub address: u64,
    /// Its length.
    pub size: u64,
}

impl DmaMap {
    /// The device may read.
    pub const READ: u32 = 1;
    /// The device may write.
    pub const WRITE: u32 = 1 << 1;
}

/// Memory that the device may not reach any more.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DmaUnmap {
    /// The most bytes of a reply.
    pub argsz: u32,
    /// [`DmaUnmap::ALL`], or 0.
    pub flags: u32,
    /// Where the device saw it.
    pub address: u64,
    /// Its length.
    pub size: u64,
}

impl DmaUnmap {
    /// Everything that is mapped; address and size are 0.
    pub const ALL: u32 = 1 << 1;
}

/// What is in front of the bytes of a read or a write of a region.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RegionAccess {
    /// Where in the region.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// How many bytes.
    pub count: u32,
}

/// How many interrupts of a kind there are.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct IrqInfo {
    /// The bytes of this.
    pub argsz: u32,
    /// [`IrqInfo::EVENTFD`], or 0.
    pub flags: u32,
    /// Which kind.
    pub index: u32,
    /// How many.
    pub count: u32,
}

impl IrqInfo {
    /// They can be raised through eventfds.
    pub const EVENTFD: u32 = 1;
}

/// Where interrupts go, or what happens to them.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct IrqSet {
    /// The bytes of this and what follows.
    pub argsz: u32,
    /// One of the `DATA` and one of the `ACTION` flags.
    pub flags: u32,
    /// Which kind.
    pub index: u32,
    /// The first interrupt.
    pub start: u32,
    /// How many.
    pub count: u32,
}

impl IrqSet {
    /// Nothing follows: all of them.
    pub const DATA_NONE: u32 = 1;
    /// A byte for each follows: those with one that is not 0.
    pub const DATA_BOOL: u32 = 1 << 1;
    /// Eventfds travel beside the message.
    pub const DATA_EVENTFD: u32 = 1 << 2;
    /// They are raised; with eventfds: where they go when they are.
    pub const ACTION_TRIGGER: u32 = 1 << 5;
}

/// Reads a value from the beginning of a payload.
///
/// # Errors
///
/// When the payload is too short for it.
pub fn read<T: FromBytes>(payload: &[u8]) -> Result<T, Malformed> {
    let (value, _) =
        T::read_from_prefix(payload).map_err(|_| Malformed("a message that is too short"))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let header = Header::of_command(7, Command::REGION_READ, 16);
        let bytes = [7, 0, 9, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(header.as_bytes(), bytes);
        assert_eq!(read::<Header>(&bytes), Ok(header));
        assert_eq!(header.payload_len(), Ok(16));
        assert!(header.is_command() && header.wants_reply());
        let refusal = header.of_refusal(22);
        assert_eq!((refusal.refusal(), refusal.payload_len()), (Some(22), Ok(0)));
        assert!(!refusal.is_command());
        assert_eq!(header.of_reply(4).refusal(), None);
    }

    #[test]
    fn lengths_and_types_that_cannot_be_are_refused() {
        let header = Header::of_command(7, Command::VERSION, 0);
        for len in [0, 15, MESSAGE_BYTES_MAX as u32 + 1, u32::MAX] {
            let header = Header { len, ..header };
            assert_eq!(header.payload_len(), Err(Malformed("a message of impossible length")));
        }
        let header = Header { flags: 2, ..header };
        let said = Malformed("a message that is neither command nor reply");
        assert_eq!(header.payload_len(), Err(said));
    }

    fn doorbells() -> (RegionInfo, Vec<Area>) {
        let flags = RegionInfo::READ | RegionInfo::WRITE | RegionInfo::MMAP;
        let info = RegionInfo { flags, size: 0x4000, offset: 0x2000, ..RegionInfo::default() };
        (info, vec![Area { offset: 0x1000, size: 0x1000 }, Area { offset: 0x3000, size: 0x1000 }])
    }

    #[test]
    fn areas_come_through_and_so_does_their_absence() {
        let (info, areas) = doorbells();
        let bytes = region_reply(info, &areas);
        // 32 bytes, a header of 16 with the count, two areas of 16.
        assert_eq!((bytes.len(), bytes[0], bytes[12], bytes[40]), (80, 80, 32, 2));
        let (read, found) = read_region(&bytes).unwrap();
        assert_eq!((read.size, read.offset, found), (0x4000, 0x2000, Some(areas)));
        assert_eq!(read_region(&region_reply(info, &[])).unwrap().1, None);
    }

    #[test]
    fn a_reply_that_is_cut_off_or_goes_in_circles_is_refused() {
        let (info, areas) = doorbells();
        let whole = region_reply(info, &areas);
        for len in 0..whole.len() {
            assert!(read_region(&whole[..len]).is_err(), "{len} bytes");
        }
        let mut circle = whole.clone();
        // Another capability, whose next one is itself.
        circle[32..40].copy_from_slice(&[9, 0, 1, 0, 32, 0, 0, 0]);
        assert_eq!(read_region(&circle), Err(Malformed("capabilities that go in circles")));
        let mut many = whole;
        many[40..44].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(read_region(&many), Err(Malformed("more areas than the message has")));
    }

    #[test]
    fn whatever_bytes_come_something_is_said_of_them() {
        let mut random = Seed::from_env("replies about regions");
        let (info, areas) = doorbells();
        let whole = region_reply(info, &areas);
        let mut refused = 0;
        for _ in 0..20_000 {
            let mut bytes = whole.clone();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            bytes.truncate(random.usize(..=bytes.len()));
            match read_region(&bytes) {
                Ok((_, areas)) => assert!(areas.unwrap_or_default().len() * 16 <= bytes.len()),
                Err(_) => refused += 1,
            }
        }
        assert!(refused > 1000, "{refused}");
    }
}
