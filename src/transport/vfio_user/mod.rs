//! A controller in another process, behind a vfio-user socket: SPDK's NVMe-oF target, or `udirect emulate`.
//!
//! ```text
//!   wire           messages as bytes, for both sides      capabilities   what each side can take
//!   channel        a socket that messages go through, each within a deadline
//!   VfioUser       registers by message, doorbells mapped, arenas handed over by their descriptors
//! ```
//!
//! Registers are read and written by messages, which is slow and rare. Doorbells are memory of the target that is mapped
//! here; a target that does not offer that is refused, since it would cost a message for each command. Memory stays
//! readable when its target has ended, so that a doorbell cannot tell: a thread watches the socket, and after that, or an
//! answer that did not come in time, every register reads as all ones. The invariant: the target is given arenas only.
#![forbid(unsafe_code)]

pub mod capabilities;
pub mod channel;
mod error;
pub mod wire;

pub use error::VfioUserError;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::PollFlags;
use zerocopy::IntoBytes;

use super::removal::Removal;
use super::{Doorbell, Pump, Transport};
use crate::dma::{Access, Arena, IovaLimits, Mapper, PAGE_BYTES, SharedBytes};
use crate::pci::Class;
use crate::units::QueueId;
use capabilities::Capabilities;
use channel::{Channel, ChannelError, Message};
use wire::{
    Area, Command, DESCRIPTORS_MAX, DeviceInfo, DmaMap, DmaUnmap, Malformed, RegionAccess,
    RegionInfo, VERSION, Version, region,
};

/// The name of the socket in the folder that a target makes for it.
pub const SOCKET_NAME: &str = "cntrl";

/// Where doorbells begin in the registers (NVMe 2.0, 3.1.3).
const DOORBELLS: u64 = 0x1000;

/// What a place in a file has to be a multiple of to be mapped.
const PAGE: u64 = PAGE_BYTES as u64;

/// The command register of the configuration space and its bits for memory, bus mastering and no `INTx` (PCI 3.0, 6.2.2).
const COMMAND: u64 = 4;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_NO_INTX: u16 = 1 << 10;

/// Where the class is in the configuration space: three bytes.
const CLASS: u64 = 9;

/// How a target is talked to.
#[derive(Clone, Copy, Debug)]
pub struct VfioUserOptions {
    /// How long each answer may take.
    pub patience: Duration,
    /// Whether memory is mapped read-only for the target that it has no need to write. SPDK's target maps all data for
    /// both, and fails commands then.
    pub strict_rights: bool,
}

impl Default for VfioUserOptions {
    /// 10 seconds, and rights as every target takes them.
    fn default() -> Self {
        Self { patience: Duration::from_secs(10), strict_rights: false }
    }
}

/// An NVMe controller behind a vfio-user socket.
pub struct VfioUser {
    path: PathBuf,
    options: VfioUserOptions,
    /// The thread ends before what it tells of goes.
    removal: Removal,
    /// The part of BAR 0 that is mapped, and where it begins there.
    doorbells: SharedBytes,
    doorbells_at: u64,
    connection: Mutex<Connection>,
}

/// What only one thread at a time may do.
struct Connection {
    channel: Channel,
    patience: Duration,
    /// How many arenas the target may be given, and how many it has.
    maps_max: u64,
    maps: u64,
}

impl VfioUser {
    /// Connects to a target: to its socket, or to the one named `cntrl` in its folder. The controller is reset by that,
    /// and stands still until the driver brings it up.
    ///
    /// # Errors
    ///
    /// [`VfioUserError`], with a sentence about what helps, each within the deadline of a few answers.
    pub fn open(path: &Path, options: VfioUserOptions) -> Result<Arc<Self>, VfioUserError> {
        let path = socket_at(path)?;
        let channel = connect(&path, options.patience)?;
        let failed = |step| {
            let path = path.clone();
            move |source| VfioUserError::Failed { path, step, source }
        };
        let kernel = |what| {
            let path = path.clone();
            move |source| VfioUserError::Kernel { path, what, source }
        };
        let unusable = |what| VfioUserError::Unusable { path: path.clone(), what };
        let mut connection =
            Connection { channel, patience: options.patience, maps_max: 0, maps: 0 };
        let (version, has) = connection.negotiate().map_err(failed("its version"))?;
        if version.major != VERSION.major {
            let Version { major, minor } = version;
            return Err(unusable(format!(
                "it speaks version {major}.{minor} of vfio-user and this is {}.{}",
                VERSION.major, VERSION.minor
            )));
        }
        connection.maps_max = has.max_dma_maps;
        let info = connection.info().map_err(failed("what it is"))?;
        if info.flags & DeviceInfo::PCI == 0 || info.regions <= region::CONFIG {
            let (flags, regions) = (info.flags, info.regions);
            return Err(unusable(format!(
                "it is no PCI device: flags {flags:#x}, {regions} regions"
            )));
        }
        let class = connection.class().map_err(failed("its class"))?;
        if class != Class::NVME {
            return Err(unusable(format!("its class is {:#08x} and not 0x010802", class.0)));
        }
        let found = connection.region(region::BAR0).map_err(failed("its registers"))?;
        let place = Place::find(&found).map_err(unusable)?;
        let doorbells = SharedBytes::of_device(&place.file, place.at, place.area.size)
            .map_err(kernel("its doorbells cannot be mapped"))?;
        if info.flags & DeviceInfo::RESET != 0 {
            connection.ask(Command::DEVICE_RESET, &[], &[]).map_err(failed("its reset"))?;
        }
        let on = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_NO_INTX;
        connection.set_command(on, 0).map_err(failed("its bus mastering"))?;
        let removal = connection.watch(&path).map_err(kernel("its end cannot be watched for"))?;
        let (doorbells_at, connection) = (place.area.offset, Mutex::new(connection));
        Ok(Arc::new(Self { path, options, removal, doorbells, doorbells_at, connection }))
    }

    /// Returns where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // Whoever panicked under this lock left a channel that is whole or knows that it is not.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a register; nothing comes from a target that is gone.
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        match self.connection().read_region(region::BAR0, offset.into(), &mut bytes) {
            Ok(()) => Some(bytes),
            Err(error) => {
                self.lament(&error, offset);
                None
            }
        }
    }

    fn write(&self, offset: u32, bytes: &[u8]) {
        if let Err(error) = self.connection().write_region(region::BAR0, offset.into(), bytes) {
            self.lament(&error, offset);
        }
    }

    /// Says why a register did not answer. The end of a connection is told of elsewhere, and once.
    fn lament(&self, error: &ChannelError, offset: u32) {
        if !matches!(error, ChannelError::Closed) {
            tracing::warn!(path = %self.path.display(), offset, %error, "a register did not answer");
        }
    }
}

impl Drop for VfioUser {
    /// The driver has stopped the controller; what is left of it has no business with memory either.
    fn drop(&mut self) {
        if let Err(error) = self.connection().set_command(0, COMMAND_BUS_MASTER) {
            tracing::debug!(path = %self.path.display(), %error, "bus mastering was not turned off");
        }
    }
}

/// Finds the socket that a path means.
fn socket_at(path: &Path) -> Result<PathBuf, VfioUserError> {
    let look = |path: &Path| {
        path.metadata().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => VfioUserError::NotThere { path: path.into() },
            _ => VfioUserError::Unreachable {
                path: path.into(),
                source: ChannelError::Kernel(source),
            },
        })
    };
    let inside = path.join(SOCKET_NAME);
    let (place, found) = match look(path)? {
        folder if folder.is_dir() => (inside.as_path(), look(&inside)?),
        found => (path, found),
    };
    match found.file_type().is_socket() {
        true => Ok(place.into()),
        false => Err(VfioUserError::NotASocket { path: path.into() }),
    }
}

fn connect(path: &Path, patience: Duration) -> Result<Channel, VfioUserError> {
    Channel::connect(path, patience).map_err(|source| match source {
        ChannelError::Kernel(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            VfioUserError::NobodyListens { path: path.into() }
        }
        source => VfioUserError::Unreachable { path: path.into(), source },
    })
}

impl Connection {
    fn ask(
        &mut self,
        command: Command,
        payload: &[&[u8]],
        files: &[BorrowedFd<'_>],
    ) -> Result<Message, ChannelError> {
        self.channel.ask(command, payload, files, self.patience)
    }

    fn negotiate(&mut self) -> Result<(Version, Capabilities), ChannelError> {
        let ours = Capabilities { max_msg_fds: DESCRIPTORS_MAX as u64, ..Capabilities::default() };
        let reply = self.ask(Command::VERSION, &[VERSION.as_bytes(), &ours.to_bytes()], &[])?;
        let version = wire::read(&reply.payload)?;
        let theirs = Capabilities::from_bytes(&reply.payload[size_of::<Version>()..])?;
        Ok((version, theirs))
    }

    fn info(&mut self) -> Result<DeviceInfo, ChannelError> {
        let asked = DeviceInfo { argsz: size_of::<DeviceInfo>() as u32, ..DeviceInfo::default() };
        let reply = self.ask(Command::DEVICE_GET_INFO, &[asked.as_bytes()], &[])?;
        Ok(wire::read(&reply.payload)?)
    }

    fn class(&mut self) -> Result<Class, ChannelError> {
        let mut bytes = [0; 4];
        self.read_region(region::CONFIG, CLASS, &mut bytes[..3])?;
        Ok(Class(u32::from_le_bytes(bytes)))
    }

    fn region(&mut self, index: u32) -> Result<Message, ChannelError> {
        let argsz = INFO_BYTES_MAX;
        let asked = RegionInfo { argsz, index, ..RegionInfo::default() };
        self.ask(Command::DEVICE_GET_REGION_INFO, &[asked.as_bytes()], &[])
    }

    fn read_region(&mut self, region: u32, offset: u64, to: &mut [u8]) -> Result<(), ChannelError> {
        let count = u32::try_from(to.len()).expect("registers are short");
        let asked = RegionAccess { offset, region, count };
        let reply = self.ask(Command::REGION_READ, &[asked.as_bytes()], &[])?;
        let said: RegionAccess = wire::read(&reply.payload)?;
        let bytes = &reply.payload[size_of::<RegionAccess>()..];
        if said != asked || bytes.len() != to.len() {
            return Err(Malformed("other bytes of a region than were asked for").into());
        }
        to.copy_from_slice(bytes);
        Ok(())
    }

    fn write_region(&mut self, region: u32, offset: u64, bytes: &[u8]) -> Result<(), ChannelError> {
        let count = u32::try_from(bytes.len()).expect("registers are short");
        let asked = RegionAccess { offset, region, count };
        let reply = self.ask(Command::REGION_WRITE, &[asked.as_bytes(), bytes], &[])?;
        match wire::read::<RegionAccess>(&reply.payload)? == asked {
            true => Ok(()),
            false => Err(Malformed("that it wrote something else than it was asked to").into()),
        }
    }

    /// Sets and clears bits of the command register.
    fn set_command(&mut self, set: u16, clear: u16) -> Result<(), ChannelError> {
        let mut bytes = [0; 2];
        self.read_region(region::CONFIG, COMMAND, &mut bytes)?;
        let command = u16::from_le_bytes(bytes) & !clear | set;
        self.write_region(region::CONFIG, COMMAND, &command.to_le_bytes())
    }

    /// Waits for the target to end, or to close the connection.
    fn watch(&self, path: &Path) -> io::Result<Removal> {
        let words =
            format!("the target at {} is gone: it has closed the connection", path.display());
        Removal::watch(self.channel.as_fd().try_clone_to_owned()?, PollFlags::RDHUP, words)
    }

    fn map(&mut self, arena: &Arena, strict_rights: bool) -> io::Result<()> {
        let Some(file) = arena.file() else {
            let what = "memory that was registered has no descriptor to share with another process";
            return Err(io::Error::new(io::ErrorKind::Unsupported, what));
        };
        if self.maps >= self.maps_max {
            let what = format!("the target takes {} pieces of memory and no more", self.maps_max);
            return Err(io::Error::new(io::ErrorKind::StorageFull, what));
        }
        let access = if strict_rights { arena.access() } else { Access::Both };
        let asked = DmaMap {
            argsz: size_of::<DmaMap>() as u32,
            flags: rights(access),
            offset: 0,
            address: arena.iova().0,
            size: arena.len(),
        };
        self.ask(Command::DMA_MAP, &[asked.as_bytes()], &[file.as_fd()]).map_err(io_error)?;
        self.maps += 1;
        Ok(())
    }

    fn unmap(&mut self, arena: &Arena) -> Result<(), ChannelError> {
        let (argsz, address, size) = (size_of::<DmaUnmap>() as u32, arena.iova().0, arena.len());
        let asked = DmaUnmap { argsz, flags: 0, address, size };
        self.maps = self.maps.saturating_sub(1);
        self.ask(Command::DMA_UNMAP, &[asked.as_bytes()], &[]).map(|_| ())
    }
}

/// The most that a target says about a region: its areas are few.
const INFO_BYTES_MAX: u32 = 4096;

fn rights(access: Access) -> u32 {
    let read = if access.device_reads() { DmaMap::READ } else { 0 };
    let write = if access.device_writes() { DmaMap::WRITE } else { 0 };
    read | write
}

fn io_error(error: ChannelError) -> io::Error {
    match error {
        ChannelError::Kernel(error) => error,
        error => io::Error::other(error),
    }
}

/// Where the doorbells are: a part of BAR 0, and where in which file it is.
#[derive(Debug)]
struct Place {
    area: Area,
    file: File,
    at: u64,
}

impl Place {
    /// Finds the doorbells in what a target says of BAR 0, and says otherwise why they cannot be mapped.
    fn find(reply: &Message) -> Result<Self, String> {
        let (info, areas) = wire::read_region(&reply.payload).map_err(|what| what.to_string())?;
        let (size, flags) = (info.size, info.flags);
        let mappable = RegionInfo::READ | RegionInfo::WRITE | RegionInfo::MMAP;
        let areas = areas.unwrap_or_else(|| vec![Area { offset: 0, size }]);
        let holds = |area: &Area| {
            let end = area.offset.checked_add(area.size);
            area.offset <= DOORBELLS && end.is_some_and(|end| DOORBELLS < end && end <= size)
        };
        let place = areas.iter().position(holds);
        let (Some(place), true) = (place, flags & mappable == mappable) else {
            return Err(format!(
                "its doorbells cannot be mapped, and each command would take a message: BAR 0 has {size:#x} bytes and \
                 flags {flags:#x}"
            ));
        };
        // One descriptor for each area, or one for all.
        let file = reply.files.get(place).or(reply.files.first());
        let file =
            file.ok_or("its doorbells are to be mapped, and no descriptor came with them")?;
        let file = File::from(file.try_clone().map_err(|error| error.to_string())?);
        let area = areas[place];
        let at = info.offset.checked_add(area.offset);
        let at = at.filter(|at| at.is_multiple_of(PAGE) && at.checked_add(area.size).is_some());
        let at = at.ok_or_else(|| {
            format!("its doorbells are at {:#x}+{:#x} of a file", info.offset, area.offset)
        })?;
        // A mapping beyond the end of its file is a SIGBUS, later.
        let file_len = file.metadata().map_err(|error| error.to_string())?;
        if file_len.is_file() && file_len.len() < at + area.size {
            let (have, want) = (file_len.len(), at + area.size);
            return Err(format!("its doorbells end at {want:#x} of a file of {have:#x} bytes"));
        }
        Ok(Self { area, file, at })
    }
}

impl Transport for VfioUser {
    fn read32(&self, offset: u32) -> u32 {
        self.read(offset).map_or(u32::MAX, u32::from_le_bytes)
    }

    fn read64(&self, offset: u32) -> u64 {
        self.read(offset).map_or(u64::MAX, u64::from_le_bytes)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    fn write64(&self, offset: u32, value: u64) {
        self.write(offset, &value.to_le_bytes());
    }

    fn doorbell(&self, offset: u32) -> io::Result<Doorbell> {
        let at = u64::from(offset).checked_sub(self.doorbells_at);
        let at = at.and_then(|at| usize::try_from(at).ok());
        let doorbell = at.and_then(|at| Doorbell::at(&self.doorbells, at));
        doorbell.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn pump(&self, _: QueueId) -> Option<Box<dyn Pump>> {
        None
    }

    fn on_removal(&self, told: Box<dyn FnOnce(&str) + Send>) {
        self.removal.tell(told);
    }
}

impl Mapper for VfioUser {
    fn name(&self) -> String {
        format!("vfio-user:{}", self.path.display())
    }

    fn limits(&self) -> IovaLimits {
        IovaLimits::bits(64)
    }

    fn map(&self, arena: &Arc<Arena>) -> io::Result<()> {
        self.connection().map(arena, self.options.strict_rights)
    }

    fn unmap(&self, arena: &Arena) {
        match self.connection().unmap(arena) {
            // Whoever closed the connection has unmapped everything, or is not there to use it.
            Ok(()) | Err(ChannelError::Closed) => {}
            Err(error) => {
                let (iova, len) = (arena.iova().0, arena.len());
                tracing::error!(path = %self.path.display(), iova, len, %error, "memory stays mapped for the target");
            }
        }
    }
}
