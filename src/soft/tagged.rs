//! Commands on namespaces whose blocks have metadata: the data path of `io` once more, block by block.
//!
//! [`execute`] takes a command from `detour`. It gathers data and metadata from the host or the medium, has
//! `protect` make or check tuples, and only then moves anything on. Nothing here is fast: namespaces without
//! metadata never come this way.
//! Invariant: what fails a check reaches neither the medium nor the host.
#![forbid(unsafe_code)]

use zerocopy::IntoBytes;

use super::engine::Core;
use super::group::Work;
use super::io::{self, COPY_RANGES_MAX, FUA};
use super::namespace::{Namespace, Range};
use super::options::MetadataOptions;
use super::protect::{Protection, TUPLE_BYTES, place, turn_over};
use crate::spec::command::{Command, CopyDword12, CopyRange, IoDword12, NvmOpcode};
use crate::spec::status::Status;

/// PRINFO: the controller makes and takes away the protection information (PRACT).
const ACT: u8 = 1 << 3;
const CHECK_GUARD: u8 = 1 << 2;
const CHECK_APPLICATION: u8 = 1 << 1;
const CHECK_REFERENCE: u8 = 1;
const CHECKS: u8 = CHECK_GUARD | CHECK_APPLICATION | CHECK_REFERENCE;

/// Bits of CDW12 that move data: NLB, PRINFO, FUA, limited retry.
const TRANSFER_BITS: u32 = 0xffff | 0xf << 26 | FUA | 1 << 31;

/// Bits of CDW12 of Write Zeroes: those and deallocate (bit 25).
const ZEROES_BITS: u32 = TRANSFER_BITS | 1 << 25;

/// One byte that a fault has spoilt on its way: which, and the bits.
pub(super) type Flip = (u64, u8);

/// Blocks with their metadata, apart.
struct Blocks {
    data: Vec<u8>,
    metadata: Vec<u8>,
}

/// A command that was understood.
struct Io<'a> {
    namespace: &'a Namespace,
    format: MetadataOptions,
    range: Range,
    /// PRACT.
    act: bool,
    /// PRCHK and the tags, where the namespace is protected.
    protection: Option<Protection>,
}

/// Executes a command on a namespace with metadata; the host asked for the blocks from `asked` on, which are
/// others where a fault misdirects it.
pub(super) fn execute(
    core: &Core,
    work: &mut Work,
    command: &Command,
    asked: u64,
    flip: Option<Flip>,
) -> Result<(), Status> {
    io::check_flags(core, command)?;
    match NvmOpcode(command.opcode) {
        NvmOpcode::READ => read(core, work, command, asked, flip),
        NvmOpcode::WRITE => write(core, work, command, asked, flip),
        NvmOpcode::COMPARE => compare(core, work, command, asked),
        NvmOpcode::VERIFY => verify(core, work, command, asked),
        NvmOpcode::WRITE_ZEROES => write_zeroes(core, work, command, asked),
        NvmOpcode::COPY => copy(core, work, command),
        // Those that are about neither data nor metadata. Deallocated blocks lose both in `namespace`.
        _ => io::execute(core, work, command),
    }
}

fn read(
    core: &Core,
    work: &mut Work,
    command: &Command,
    asked: u64,
    flip: Option<Flip>,
) -> Result<(), Status> {
    let io = Io::parse(core, command, asked, TRANSFER_BITS)?;
    let moved = io.moves_metadata();
    io.check_transfer(core, command, moved)?;
    io.namespace.refuse_spoilt(io.range)?;
    let mut blocks = io.load(work)?;
    io.check(&blocks)?;
    blocks.flip(flip);
    io.deliver(core, work, command, moved, &blocks)?;
    work.counters.bytes_read += io.range.len;
    Ok(())
}

fn write(
    core: &Core,
    work: &mut Work,
    command: &Command,
    asked: u64,
    flip: Option<Flip>,
) -> Result<(), Status> {
    let io = Io::parse(core, command, asked, TRANSFER_BITS)?;
    let moved = io.moves_metadata();
    io.check_transfer(core, command, moved)?;
    io.check_first_tag(asked)?;
    let mut blocks = io.gather(core, work, command, moved)?;
    if io.act {
        io.generate(&mut blocks);
    } else {
        io.check(&blocks)?;
    }
    blocks.flip(flip);
    io.store(work, io.range, &mut blocks)?;
    work.counters.bytes_written += io.range.len;
    io.persist(core, command, io.range)
}

/// Compares data, and metadata except for the tuples, which both sides have had checked.
fn compare(core: &Core, work: &mut Work, command: &Command, asked: u64) -> Result<(), Status> {
    let io = Io::parse(core, command, asked, TRANSFER_BITS)?;
    if io.act {
        return Err(Status::INVALID_PROTECTION_INFORMATION);
    }
    io.check_transfer(core, command, true)?;
    io.namespace.refuse_spoilt(io.range)?;
    let mut theirs = io.gather(core, work, command, true)?;
    io.check(&theirs)?;
    let mut ours = io.load(work)?;
    io.check(&ours)?;
    for blocks in [&mut theirs, &mut ours] {
        io.forget_tuples(blocks);
    }
    match theirs.data == ours.data && theirs.metadata == ours.metadata {
        true => Ok(()),
        false => Err(Status::COMPARE_FAILURE),
    }
}

fn verify(core: &Core, work: &mut Work, command: &Command, asked: u64) -> Result<(), Status> {
    let io = Io::parse(core, command, asked, TRANSFER_BITS)?;
    if io.act {
        return Err(Status::INVALID_PROTECTION_INFORMATION);
    }
    no_pointer(command)?;
    io.namespace.refuse_spoilt(io.range)?;
    let blocks = io.load(work)?;
    io.check(&blocks)
}

fn write_zeroes(core: &Core, work: &mut Work, command: &Command, asked: u64) -> Result<(), Status> {
    let io = Io::parse(core, command, asked, ZEROES_BITS)?;
    if IoDword12::from(command.cdw12).prinfo() & CHECKS != 0 {
        return Err(Status::INVALID_PROTECTION_INFORMATION);
    }
    no_pointer(command)?;
    io.check_first_tag(asked)?;
    io.namespace.zero(io.range)?;
    if io.act {
        let mut blocks = io.blank();
        io.generate(&mut blocks);
        io.store(work, io.range, &mut blocks)?;
    }
    io.persist(core, command, io.range)
}

fn copy(core: &Core, work: &mut Work, command: &Command) -> Result<(), Status> {
    let dword12 = CopyDword12::from(command.cdw12);
    let (reads, writes) = (dword12.prinfor(), dword12.prinfow());
    let namespace = core.namespace(command.nsid)?;
    let format = namespace.metadata().ok_or(Status::INTERNAL_ERROR)?;
    let allowed = if format.protection.is_some() { 0xf << 12 | 0xf << 26 } else { 0 };
    let unknown = command.cdw12 & !(0xff | FUA | 1 << 31 | allowed) != 0;
    if unknown || command.cdw13 != 0 || command.cdw2 | command.cdw3 != 0 || command.mptr != 0 {
        return Err(Status::INVALID_FIELD);
    }
    // Whoever has the tuples made anew has them taken away first (NVM 3.2.2).
    if reads & ACT != writes & ACT {
        return Err(Status::INVALID_FIELD);
    }
    let count = usize::from(dword12.nr()) + 1;
    if count > COPY_RANGES_MAX {
        return Err(Status::COMMAND_SIZE_LIMIT_EXCEEDED);
    }
    let mut ranges = [CopyRange::default(); COPY_RANGES_MAX];
    let ranges = &mut ranges[..count];
    work.dma.read(&core.iommu, command, ranges.as_mut_bytes())?;
    let target = io::check_copy(namespace, ranges, command.slba())?;
    let mut all = Blocks { data: Vec::new(), metadata: Vec::new() };
    for range in ranges {
        let tags = Tags { prinfo: reads, reference: range.eilbrt, application: range.elbat };
        let range = (range.slba, u64::from(range.nlb) + 1);
        let source = Io::new(namespace, format, range, tags, range.0)?;
        let blocks = source.load(work)?;
        source.check(&blocks)?;
        all.data.extend(blocks.data);
        all.metadata.extend(blocks.metadata);
    }
    let tags = Tags { prinfo: writes, reference: command.cdw14, application: command.cdw15 };
    let range = (command.slba(), target.len >> namespace.shift());
    let sink = Io::new(namespace, format, range, tags, range.0)?;
    sink.check_first_tag(command.slba())?;
    if sink.act {
        sink.generate(&mut all);
    } else {
        sink.check(&all)?;
    }
    sink.store(work, target, &mut all)?;
    sink.persist(core, command, target)
}

/// Refuses a metadata pointer where no metadata is moved.
fn no_pointer(command: &Command) -> Result<(), Status> {
    if command.mptr == 0 { Ok(()) } else { Err(Status::INVALID_FIELD) }
}

/// What a command says of protection information.
#[derive(Clone, Copy)]
struct Tags {
    prinfo: u8,
    reference: u32,
    /// The tag, and its mask in the upper half.
    application: u32,
}

impl<'a> Io<'a> {
    fn parse(core: &'a Core, command: &Command, asked: u64, allowed: u32) -> Result<Self, Status> {
        let namespace = core.namespace(command.nsid)?;
        let format = namespace.metadata().ok_or(Status::INTERNAL_ERROR)?;
        let dword12 = IoDword12::from(command.cdw12);
        let mut reserved = command.cdw12 & !allowed | command.cdw13 & !io::HINT_BITS;
        reserved |= command.cdw2 | command.cdw3;
        if format.protection.is_none() {
            reserved |= u32::from(dword12.prinfo()) | command.cdw14 | command.cdw15;
        }
        if reserved != 0 {
            return Err(Status::INVALID_FIELD);
        }
        let range = (command.slba(), u64::from(dword12.nlb()) + 1);
        let (reference, application) = (command.cdw14, command.cdw15);
        let tags = Tags { prinfo: dword12.prinfo(), reference, application };
        Self::new(namespace, format, range, tags, asked)
    }

    /// Understands PRINFO and the tags of a range.
    fn new(
        namespace: &'a Namespace,
        format: MetadataOptions,
        (first, count): (u64, u64),
        tags: Tags,
        asked: u64,
    ) -> Result<Self, Status> {
        let range = namespace.range(first, count)?;
        let checks = |bit: u8| tags.prinfo & bit != 0;
        let protection = format.protection.map(|format| Protection {
            format,
            checks_guard: checks(CHECK_GUARD),
            checks_application: checks(CHECK_APPLICATION),
            checks_reference: checks(CHECK_REFERENCE),
            application: tags.application as u16,
            application_mask: (tags.application >> 16) as u16,
            reference: tags.reference,
        });
        let act = tags.prinfo & ACT != 0;
        let io = Self { namespace, format, range, act, protection };
        // The reference tag of type 3 is nobody's to check (NVM 5.2.1.3).
        if checks(CHECK_REFERENCE) {
            if io.kind() == Some(3) {
                return Err(Status::INVALID_PROTECTION_INFORMATION);
            }
            io.check_tag_of_type_1(asked)?;
        }
        Ok(io)
    }

    fn kind(&self) -> Option<u8> {
        self.protection.map(|protection| protection.format.kind)
    }

    /// Refuses to make tuples that no reader could check.
    fn check_first_tag(&self, asked: u64) -> Result<(), Status> {
        if self.act { self.check_tag_of_type_1(asked) } else { Ok(()) }
    }

    /// With type 1, the first reference tag is the low half of the first block's number.
    fn check_tag_of_type_1(&self, asked: u64) -> Result<(), Status> {
        match self.protection {
            Some(Protection { format, reference, .. })
                if format.kind == 1 && reference != asked as u32 =>
            {
                Err(Status::INVALID_PROTECTION_INFORMATION)
            }
            _ => Ok(()),
        }
    }

    /// Says whether a read or write moves metadata: not where it is all tuple, and the controller's.
    fn moves_metadata(&self) -> bool {
        !(self.act && self.bytes() == TUPLE_BYTES)
    }

    fn bytes(&self) -> usize {
        usize::from(self.format.bytes)
    }

    fn block(&self) -> usize {
        1 << self.namespace.shift()
    }

    fn metadata_len(&self) -> usize {
        self.namespace.metadata_range(self.range).len as usize
    }

    /// Checks the length of a transfer and the metadata pointer.
    fn check_transfer(&self, core: &Core, command: &Command, moved: bool) -> Result<(), Status> {
        let inline = if moved && self.format.inline { self.metadata_len() as u64 } else { 0 };
        let pointed = moved && !self.format.inline;
        let pointer = if pointed { command.mptr & 3 } else { command.mptr };
        if self.range.len + inline > core.transfer_max || pointer != 0 {
            return Err(Status::INVALID_FIELD);
        }
        Ok(())
    }

    fn blank(&self) -> Blocks {
        Blocks { data: vec![0; self.range.len as usize], metadata: vec![0; self.metadata_len()] }
    }

    /// Fetches blocks from the host.
    fn gather(
        &self,
        core: &Core,
        work: &mut Work,
        command: &Command,
        moved: bool,
    ) -> Result<Blocks, Status> {
        let mut blocks = self.blank();
        if moved && self.format.inline {
            let mut all = vec![0; blocks.data.len() + blocks.metadata.len()];
            work.dma.read(&core.iommu, command, &mut all)?;
            let parts = blocks.parts(self.block(), self.bytes());
            for (from, (data, metadata)) in all.chunks(self.block() + self.bytes()).zip(parts) {
                let (first, second) = from.split_at(data.len());
                data.copy_from_slice(first);
                metadata.copy_from_slice(second);
            }
        } else {
            work.dma.read(&core.iommu, command, &mut blocks.data)?;
            if moved {
                work.dma.read_at(&core.iommu, command.mptr, &mut blocks.metadata)?;
            }
        }
        Ok(blocks)
    }

    /// Hands blocks to the host.
    fn deliver(
        &self,
        core: &Core,
        work: &mut Work,
        command: &Command,
        moved: bool,
        blocks: &Blocks,
    ) -> Result<(), Status> {
        if moved && self.format.inline {
            let data = blocks.data.chunks(self.block());
            let parts = data.zip(blocks.metadata.chunks(self.bytes()));
            let all: Vec<u8> =
                parts.flat_map(|(data, metadata)| [data, metadata].concat()).collect();
            return work.dma.write(&core.iommu, command, &all);
        }
        work.dma.write(&core.iommu, command, &blocks.data)?;
        match moved {
            true => work.dma.write_at(&core.iommu, command.mptr, &blocks.metadata),
            false => Ok(()),
        }
    }

    /// Reads blocks from the medium.
    fn load(&self, work: &mut Work) -> Result<Blocks, Status> {
        let data = load(work, self.namespace, self.range)?;
        let mut metadata = load(work, self.namespace, self.namespace.metadata_range(self.range))?;
        turn_over(self.format, &mut metadata);
        Ok(Blocks { data, metadata })
    }

    /// Writes blocks to the medium.
    fn store(&self, work: &mut Work, to: Range, blocks: &mut Blocks) -> Result<(), Status> {
        turn_over(self.format, &mut blocks.metadata);
        store(work, self.namespace, to, &blocks.data)?;
        store(work, self.namespace, self.namespace.metadata_range(to), &blocks.metadata)?;
        self.namespace.heal(to);
        Ok(())
    }

    fn persist(&self, core: &Core, command: &Command, range: Range) -> Result<(), Status> {
        let both = [range, self.namespace.metadata_range(range)];
        io::persist(core, self.namespace, command, both)
    }

    fn check(&self, blocks: &Blocks) -> Result<(), Status> {
        let (block, bytes) = (self.block(), self.bytes());
        let check = |one: Protection| one.check(&blocks.data, &blocks.metadata, block, bytes);
        self.protection.map_or(Ok(()), check)
    }

    fn generate(&self, blocks: &mut Blocks) {
        if let Some(protection) = self.protection {
            let (block, bytes) = (self.block(), self.bytes());
            protection.generate(&blocks.data, &mut blocks.metadata, block, bytes);
        }
    }

    fn forget_tuples(&self, blocks: &mut Blocks) {
        let Some(protection) = self.protection else { return };
        let at = place(protection.format, self.bytes());
        for metadata in blocks.metadata.chunks_exact_mut(self.bytes()) {
            metadata[at..][..TUPLE_BYTES].fill(0);
        }
    }
}

impl Blocks {
    /// Returns data and metadata block by block.
    fn parts(
        &mut self,
        block: usize,
        bytes: usize,
    ) -> impl Iterator<Item = (&mut [u8], &mut [u8])> {
        self.data.chunks_exact_mut(block).zip(self.metadata.chunks_exact_mut(bytes))
    }

    /// Flips bits of one byte of data, counted modulo the length.
    fn flip(&mut self, flip: Option<Flip>) {
        let Some((byte, mask)) = flip else { return };
        let at = byte.checked_rem(self.data.len() as u64).unwrap_or(0) as usize;
        if let Some(byte) = self.data.get_mut(at) {
            *byte ^= mask;
        }
    }
}

fn load(work: &mut Work, namespace: &Namespace, range: Range) -> Result<Vec<u8>, Status> {
    let (_, stage) = work.dma_and_stage(range.len).ok_or(Status::INTERNAL_ERROR)?;
    namespace.read(range.offset, stage)?;
    let mut bytes = vec![0; stage.len()];
    stage.read_into(&mut bytes);
    Ok(bytes)
}

fn store(work: &mut Work, namespace: &Namespace, range: Range, bytes: &[u8]) -> Result<(), Status> {
    let (_, stage) = work.dma_and_stage(range.len).ok_or(Status::INTERNAL_ERROR)?;
    stage.write_from(bytes);
    namespace.write(range.offset, stage)
}
