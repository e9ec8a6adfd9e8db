//! One client of a listener: its commands, carried out on the controller.
//!
//! [`Session`] has what the client was given and what it gave: descriptors, memory, events. `wire` knows the words,
//! `config` the PCI function; the rest is the controller's own. A command that cannot be is refused by an errno, and bytes
//! that are no command end the session. Invariant: when a session is dropped the controller is as it was made, and
//! reaches no memory of the client.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::BAR4_BYTES;
use super::config::{Asked, CONFIG_BYTES, ConfigSpace};
use crate::dma::{Access, Arena, Mapper};
use crate::soft::Controller;
use crate::spec::registers::offset::DOORBELLS;
use crate::transport::Transport;
use crate::transport::vfio_user::capabilities::Capabilities;
use crate::transport::vfio_user::channel::{Channel, ChannelError, Message};
use crate::transport::vfio_user::wire::{
    self, Area, Command, DESCRIPTORS_MAX, DeviceInfo, DmaMap, DmaUnmap, IrqInfo, IrqSet, Malformed,
    RegionAccess, RegionInfo, VERSION, Version, irq, region,
};
use crate::units::Iova;

/// How long a client may take from the first byte of a message to the last, and for room for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most pieces of memory that a client may have mapped: a table of them is searched.
const MAPS_MAX: usize = 4096;

/// The most bytes that are read or written at once: those of the configuration space.
const ACCESS_BYTES_MAX: u64 = CONFIG_BYTES as u64;

/// What a command is answered with.
#[derive(Default)]
struct Answer<'a> {
    payload: Vec<u8>,
    file: Option<BorrowedFd<'a>>,
}

impl Answer<'_> {
    fn of(payload: impl Into<Vec<u8>>) -> Self {
        Self { payload: payload.into(), file: None }
    }
}

impl From<Malformed> for Errno {
    fn from(_: Malformed) -> Self {
        Self::INVAL
    }
}

/// Memory that a client has given.
struct Given {
    address: u64,
    size: u64,
    /// What the controller can reach of it: nothing, where no descriptor came with it. QEMU gives ROMs that way. They could
    /// be read by messages only; a command that names them fails, as it does with addresses that are nobody's.
    arena: Option<Arc<Arena>>,
}

impl Given {
    fn overlaps(&self, address: u64, size: u64) -> bool {
        address < self.address.saturating_add(self.size)
            && self.address < address.saturating_add(size)
    }
}

/// One client.
pub(super) struct Session {
    controller: Arc<Controller>,
    channel: Channel,
    has_greeted: bool,
    config: ConfigSpace,
    /// The table of MSI-X, which the client's machine reads itself.
    table: Vec<u8>,
    given: Vec<Given>,
}

impl Session {
    pub(super) fn new(controller: &Arc<Controller>, socket: OwnedFd) -> Self {
        Self {
            controller: Arc::clone(controller),
            channel: Channel::over(socket),
            has_greeted: false,
            config: ConfigSpace::new(register_bytes(controller), controller.vectors()),
            table: vec![0; BAR4_BYTES as usize],
            given: Vec::new(),
        }
    }

    /// Receives a command, which has begun to come, and answers it.
    ///
    /// # Errors
    ///
    /// When the client has gone or is none: the session is over.
    pub(super) fn turn(&mut self) -> Result<(), ChannelError> {
        let Message { header, payload, files } = self.channel.receive(PATIENCE)?;
        if !header.is_command() {
            return Err(Malformed("a reply to no question").into());
        }
        if self.has_greeted == (header.command == Command::VERSION) {
            return Err(Malformed("no version first, or another one later").into());
        }
        // The file of the doorbells, which an answer may show, outlives the borrow of the session.
        let controller = Arc::clone(&self.controller);
        match self.execute(&controller, header.command, &payload, files) {
            Ok(Answer { payload, file }) if header.wants_reply() => {
                let reply = header.of_reply(payload.len());
                self.channel.send(&reply, &[&payload], file.as_slice(), PATIENCE)
            }
            Ok(_) => Ok(()),
            Err(errno) => {
                tracing::debug!(command = %header.command, %errno, "refused");
                self.channel.refuse(&header, errno, PATIENCE)
            }
        }
    }

    fn execute<'a>(
        &mut self,
        controller: &'a Controller,
        command: Command,
        payload: &[u8],
        files: Vec<OwnedFd>,
    ) -> Result<Answer<'a>, Errno> {
        match command {
            Command::VERSION => self.greet(payload),
            Command::DEVICE_GET_INFO => device_info(payload),
            Command::DEVICE_GET_REGION_INFO => region_info(controller, payload),
            Command::DEVICE_GET_IRQ_INFO => irq_info(controller, payload),
            Command::DEVICE_SET_IRQS => set_irqs(controller, payload, files),
            Command::DMA_MAP => self.map(payload, files),
            Command::DMA_UNMAP => self.unmap(payload),
            Command::REGION_READ => self.read(payload),
            Command::REGION_WRITE => self.write(payload),
            Command::DEVICE_RESET => {
                self.reset();
                Ok(Answer::default())
            }
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    fn greet(&mut self, payload: &[u8]) -> Result<Answer<'static>, Errno> {
        let proposed: Version = wire::read(payload)?;
        Capabilities::from_bytes(&payload[size_of::<Version>()..])?;
        if proposed.major != VERSION.major {
            return Err(Errno::OPNOTSUPP);
        }
        self.has_greeted = true;
        let agreed = Version { minor: proposed.minor.min(VERSION.minor), ..VERSION };
        let ours = Capabilities {
            max_msg_fds: DESCRIPTORS_MAX as u64,
            max_data_xfer_size: ACCESS_BYTES_MAX,
            max_dma_maps: MAPS_MAX as u64,
        };
        Ok(Answer::of([agreed.as_bytes(), &ours.to_bytes()].concat()))
    }

    fn map(&mut self, payload: &[u8], files: Vec<OwnedFd>) -> Result<Answer<'static>, Errno> {
        let DmaMap { flags, offset, address, size, .. } = wire::read(payload)?;
        let access = match flags {
            DmaMap::READ => Access::DeviceReads,
            DmaMap::WRITE => Access::DeviceWrites,
            flags if flags == DmaMap::READ | DmaMap::WRITE => Access::Both,
            _ => return Err(Errno::INVAL),
        };
        if size == 0 || address.checked_add(size).is_none() {
            return Err(Errno::INVAL);
        }
        if self.given.iter().any(|given| given.overlaps(address, size)) {
            return Err(Errno::EXIST);
        }
        if self.given.len() == MAPS_MAX {
            return Err(Errno::NOSPC);
        }
        let arena = match files.into_iter().next() {
            None => None,
            Some(file) => {
                let arena = Arena::foreign(File::from(file), offset, size, Iova(address), access);
                let arena = arena.map_err(|error| errno_of(&error))?;
                self.controller.map(&arena).map_err(|error| errno_of(&error))?;
                Some(arena)
            }
        };
        self.given.push(Given { address, size, arena });
        Ok(Answer::default())
    }

    fn unmap(&mut self, payload: &[u8]) -> Result<Answer<'static>, Errno> {
        let asked: DmaUnmap = wire::read(payload)?;
        match (asked.flags, asked.address, asked.size) {
            (DmaUnmap::ALL, 0, 0) => self.take_all_back(),
            (0, address, size) => {
                let is_it = |given: &Given| (given.address, given.size) == (address, size);
                let at = self.given.iter().position(is_it).ok_or(Errno::NOENT)?;
                let given = self.given.swap_remove(at);
                self.take_back(&given);
            }
            _ => return Err(Errno::INVAL),
        }
        Ok(Answer::of(asked.as_bytes()))
    }

    /// When this returns no queue touches it.
    fn take_back(&self, given: &Given) {
        if let Some(arena) = &given.arena {
            self.controller.unmap(arena);
        }
    }

    fn take_all_back(&mut self) {
        let given = core::mem::take(&mut self.given);
        given.iter().for_each(|given| self.take_back(given));
    }

    fn read(&self, payload: &[u8]) -> Result<Answer<'static>, Errno> {
        let access: RegionAccess = wire::read(payload)?;
        let (offset, len) = self.place(&access)?;
        let bytes = match access.region {
            region::BAR0 => read_registers(&self.controller, offset, len),
            region::BAR4 => self.table[offset..offset + len].to_vec(),
            _ => self.config.read(access.offset, len).ok_or(Errno::INVAL)?.to_vec(),
        };
        Ok(Answer::of([access.as_bytes(), &bytes].concat()))
    }

    fn write(&mut self, payload: &[u8]) -> Result<Answer<'static>, Errno> {
        let access: RegionAccess = wire::read(payload)?;
        let (offset, len) = self.place(&access)?;
        let bytes = &payload[size_of::<RegionAccess>()..];
        if bytes.len() != len {
            return Err(Errno::INVAL);
        }
        match access.region {
            region::BAR0 => write_registers(&self.controller, offset, bytes)?,
            region::BAR4 => self.table[offset..offset + len].copy_from_slice(bytes),
            _ => match self.config.write(access.offset, bytes).ok_or(Errno::INVAL)? {
                Asked::Nothing => {}
                Asked::Reset => self.reset(),
            },
        }
        Ok(Answer::of(access.as_bytes()))
    }

    /// Returns where in a region an access lies, if it lies within.
    fn place(&self, access: &RegionAccess) -> Result<(usize, usize), Errno> {
        let bytes = match access.region {
            region::BAR0 => register_bytes(&self.controller),
            region::BAR4 => BAR4_BYTES,
            region::CONFIG => CONFIG_BYTES as u64,
            _ => return Err(Errno::INVAL),
        };
        let end = access.offset.checked_add(access.count.into());
        if u64::from(access.count) > ACCESS_BYTES_MAX || end.is_none_or(|end| end > bytes) {
            return Err(Errno::INVAL);
        }
        let offset = usize::try_from(access.offset).map_err(|_| Errno::INVAL)?;
        Ok((offset, access.count as usize))
    }

    /// Starts the controller over. The client's memory stays mapped, and its interrupts routed.
    fn reset(&mut self) {
        self.controller.reset();
        self.config = ConfigSpace::new(register_bytes(&self.controller), self.controller.vectors());
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.controller.reset();
        self.take_all_back();
        self.controller.forget_interrupts();
    }
}

/// Returns the length of BAR 0, which is a power of two.
fn register_bytes(controller: &Controller) -> u64 {
    controller.register_bytes().next_power_of_two()
}

fn device_info(payload: &[u8]) -> Result<Answer<'static>, Errno> {
    let asked: DeviceInfo = wire::read(payload)?;
    let argsz = size_of::<DeviceInfo>() as u32;
    if asked.argsz < argsz {
        return Err(Errno::INVAL);
    }
    let flags = DeviceInfo::RESET | DeviceInfo::PCI;
    let info = DeviceInfo { argsz, flags, regions: region::COUNT, irqs: irq::COUNT };
    Ok(Answer::of(info.as_bytes()))
}

fn region_info<'a>(controller: &'a Controller, payload: &[u8]) -> Result<Answer<'a>, Errno> {
    let RegionInfo { argsz, index, .. } = wire::read(payload)?;
    let both = RegionInfo::READ | RegionInfo::WRITE;
    let doorbells = controller.doorbells_file().filter(|_| index == region::BAR0);
    let offset = u64::from(DOORBELLS);
    let areas = doorbells.map(|_| [Area { offset, size: controller.register_bytes() - offset }]);
    let (size, flags) = match index {
        region::BAR0 => {
            (register_bytes(controller), both | doorbells.map_or(0, |_| RegionInfo::MMAP))
        }
        region::BAR4 => (BAR4_BYTES, both),
        region::CONFIG => (CONFIG_BYTES as u64, both),
        index if index < region::COUNT => (0, 0),
        _ => return Err(Errno::INVAL),
    };
    let info = RegionInfo { flags, index, size, ..RegionInfo::default() };
    let mut payload =
        wire::region_reply(info, areas.as_ref().map_or(&[], |areas| areas.as_slice()));
    // Who has too little room is told how much there has to be, and asks again.
    let has_room = argsz as usize >= payload.len();
    if !has_room {
        payload.truncate((argsz as usize).max(size_of::<RegionInfo>()));
    }
    let file = doorbells.filter(|_| has_room).map(AsFd::as_fd);
    Ok(Answer { payload, file })
}

fn irq_info(controller: &Controller, payload: &[u8]) -> Result<Answer<'static>, Errno> {
    let IrqInfo { index, .. } = wire::read(payload)?;
    let argsz = size_of::<IrqInfo>() as u32;
    let (flags, count) = match index {
        irq::MSIX => (IrqInfo::EVENTFD, controller.vectors().into()),
        index if index < irq::COUNT => (0, 0),
        _ => return Err(Errno::INVAL),
    };
    Ok(Answer::of(IrqInfo { argsz, flags, index, count }.as_bytes()))
}

fn set_irqs(
    controller: &Controller,
    payload: &[u8],
    files: Vec<OwnedFd>,
) -> Result<Answer<'static>, Errno> {
    let IrqSet { flags, index, start, count, .. } = wire::read(payload)?;
    let end = start.checked_add(count).filter(|end| *end <= controller.vectors().into());
    let (Some(end), irq::MSIX) = (end, index) else { return Err(Errno::INVAL) };
    let vectors = (start..end).map(|vector| vector as u16);
    let Some(data) = flags.checked_sub(IrqSet::ACTION_TRIGGER) else { return Err(Errno::INVAL) };
    match data {
        IrqSet::DATA_NONE if count == 0 => controller.forget_interrupts(),
        IrqSet::DATA_NONE => vectors.for_each(|vector| controller.raise_interrupt(vector)),
        IrqSet::DATA_BOOL => {
            let which = &payload[size_of::<IrqSet>()..];
            if which.len() != count as usize {
                return Err(Errno::INVAL);
            }
            let raised = vectors.zip(which).filter(|(_, is_it)| **is_it != 0);
            raised.for_each(|(vector, _)| controller.raise_interrupt(vector));
        }
        IrqSet::DATA_EVENTFD if files.is_empty() || files.len() == count as usize => {
            let mut files = files.into_iter();
            for vector in vectors {
                let routed = controller.route_interrupt(vector, files.next());
                routed.map_err(|error| errno_of(&error))?;
            }
        }
        _ => return Err(Errno::INVAL),
    }
    Ok(Answer::default())
}

/// Reads registers, word by word; doorbells cannot be read.
fn read_registers(controller: &Controller, offset: usize, len: usize) -> Vec<u8> {
    let begin = offset / 4 * 4;
    let words = (begin..offset + len).step_by(4).flat_map(|at| {
        let is_doorbell = at >= DOORBELLS as usize;
        if is_doorbell { 0 } else { controller.read32(at as u32) }.to_le_bytes()
    });
    words.skip(offset - begin).take(len).collect()
}

/// Writes a register of 4 or 8 bytes, or rings a doorbell.
fn write_registers(controller: &Controller, offset: usize, bytes: &[u8]) -> Result<(), Errno> {
    let at = u32::try_from(offset).map_err(|_| Errno::INVAL)?;
    match (bytes.len(), at.is_multiple_of(4)) {
        (4, true) if at >= DOORBELLS => {
            let doorbell = controller.doorbell(at).map_err(|_| Errno::INVAL)?;
            doorbell.ring(word(bytes));
        }
        (4, true) => controller.write32(at, word(bytes)),
        (8, true) if at < DOORBELLS => {
            controller.write32(at, word(&bytes[..4]));
            controller.write32(at + 4, word(&bytes[4..]));
        }
        _ => return Err(Errno::INVAL),
    }
    Ok(())
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("four bytes"))
}

fn errno_of(error: &std::io::Error) -> Errno {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    errno.unwrap_or(Errno::INVAL)
}
