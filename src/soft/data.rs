//! Data pointers: from PRP entries and SGL descriptors to runs of memory.
//!
//! [`Dma::data`] calls back with each piece of a command's memory in order. One or two adjacent pages take
//! a straight path; everything else is walked into a list of [`Run`]s first, adjacent ones merged.
//! Neighbours: `iommu` translates, `io` and `admin` move bytes.
//! Invariant: the pieces of a transfer are exactly as long as the transfer, or it fails.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::iommu::{Fault, Iommu, Purpose, Tlb};
use crate::spec::command::{Command, PSDT_PRP, PSDT_SGL};
use crate::spec::sgl::{SUBTYPE_ADDRESS, SglDescriptor, SglType};
use crate::spec::status::Status;

/// The memory page: CC.MPS is 0 and nothing else is accepted.
const PAGE: u64 = 4096;

/// The most segments of one SGL, so that a chain that bites its tail ends.
const SEGMENTS_MAX: u32 = 4096;

/// The size of a descriptor.
const DESCRIPTOR_BYTES: u32 = size_of::<SglDescriptor>() as u32;

/// Memory that is adjacent for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) iova: u64,
    pub(super) len: u64,
    /// A bit bucket: bytes that go nowhere.
    pub(super) discard: bool,
}

/// What a queue needs to reach memory: translations, and room for runs that is never given back.
#[derive(Default)]
pub(super) struct Dma {
    pub(super) tlb: Tlb,
    runs: Vec<Run>,
}

impl From<Fault> for Status {
    fn from(_: Fault) -> Self {
        Self::DATA_TRANSFER_ERROR
    }
}

impl Dma {
    /// Calls `each` with every piece of the command's `len` bytes of memory and its offset in them.
    #[inline]
    pub(super) fn data(
        &mut self,
        iommu: &Iommu,
        command: &Command,
        len: u64,
        purpose: Purpose,
        mut each: impl FnMut(u64, crate::dma::Span<'_>) -> Result<(), Status>,
    ) -> Result<(), Status> {
        if let Some(run) = straight(command, len) {
            return visit(&mut self.tlb, iommu, run, purpose, 0, &mut each);
        }
        self.walk(iommu, command, len, purpose)?;
        let mut offset = 0;
        for &run in &self.runs {
            if !run.discard {
                visit(&mut self.tlb, iommu, run, purpose, offset, &mut each)?;
            }
            offset += run.len;
        }
        Ok(())
    }

    /// Copies the command's memory in.
    pub(super) fn read(
        &mut self,
        iommu: &Iommu,
        command: &Command,
        to: &mut [u8],
    ) -> Result<(), Status> {
        self.data(iommu, command, to.len() as u64, Purpose::FromHost, |offset, span| {
            let at = offset as usize;
            span.read_into(&mut to[at..at + span.len()]);
            Ok(())
        })
    }

    /// Copies out to the command's memory.
    pub(super) fn write(
        &mut self,
        iommu: &Iommu,
        command: &Command,
        from: &[u8],
    ) -> Result<(), Status> {
        self.data(iommu, command, from.len() as u64, Purpose::ToHost, |offset, span| {
            let at = offset as usize;
            span.write_from(&from[at..at + span.len()]);
            Ok(())
        })
    }

    /// Copies memory in from one place, where the metadata of a command is.
    pub(super) fn read_at(
        &mut self,
        iommu: &Iommu,
        iova: u64,
        to: &mut [u8],
    ) -> Result<(), Status> {
        let run = Run { iova, len: to.len() as u64, discard: false };
        visit(&mut self.tlb, iommu, run, Purpose::FromHost, 0, &mut |offset, span| {
            let at = offset as usize;
            span.read_into(&mut to[at..at + span.len()]);
            Ok(())
        })
    }

    /// Copies out to one place, where the metadata of a command goes.
    pub(super) fn write_at(&mut self, iommu: &Iommu, iova: u64, from: &[u8]) -> Result<(), Status> {
        let run = Run { iova, len: from.len() as u64, discard: false };
        visit(&mut self.tlb, iommu, run, Purpose::ToHost, 0, &mut |offset, span| {
            let at = offset as usize;
            span.write_from(&from[at..at + span.len()]);
            Ok(())
        })
    }

    /// Fills `runs` with the memory of the command.
    fn walk(
        &mut self,
        iommu: &Iommu,
        command: &Command,
        len: u64,
        purpose: Purpose,
    ) -> Result<(), Status> {
        self.runs.clear();
        let mut walk = Walk { tlb: &mut self.tlb, iommu, runs: &mut self.runs, rest: len };
        match command.flags.psdt() {
            PSDT_PRP => walk.prps(command.dptr),
            PSDT_SGL => walk.sgl(command.dptr, purpose),
            _ => Err(Status::INVALID_FIELD),
        }
    }
}

/// Returns the memory of a transfer by PRPs that is one run: within a page, or two adjacent pages.
#[inline]
fn straight(command: &Command, len: u64) -> Option<Run> {
    let [prp1, prp2] = command.dptr;
    let offset = prp1 & (PAGE - 1);
    let (plain, end) = (command.flags.psdt() == PSDT_PRP && prp1 & 3 == 0, offset + len);
    let one = end <= PAGE && prp2 == 0;
    let two = end > PAGE && end <= 2 * PAGE && prp2 == (prp1 - offset).wrapping_add(PAGE);
    (plain && (one || two)).then_some(Run { iova: prp1, len, discard: false })
}

/// Calls `each` with the pieces of one run: more than one only where it crosses a mapping's end.
#[inline]
fn visit(
    tlb: &mut Tlb,
    iommu: &Iommu,
    run: Run,
    purpose: Purpose,
    offset: u64,
    each: &mut impl FnMut(u64, crate::dma::Span<'_>) -> Result<(), Status>,
) -> Result<(), Status> {
    let mut done = 0;
    while done < run.len {
        // Past the end of the address space it wraps to 0, which is never mapped.
        let at = run.iova.wrapping_add(done);
        let span = tlb.reach(iommu, at, (run.len - done) as usize, purpose)?;
        each(offset + done, span)?;
        done += span.len() as u64;
    }
    Ok(())
}

/// A walk under way.
struct Walk<'a> {
    tlb: &'a mut Tlb,
    iommu: &'a Iommu,
    runs: &'a mut Vec<Run>,
    /// Bytes that no run covers yet.
    rest: u64,
}

impl Walk<'_> {
    /// Adds up to `len` bytes at `iova`, as far as they are needed.
    fn push(&mut self, iova: u64, len: u64) {
        self.rest -= len;
        match self.runs.last_mut() {
            Some(last) if !last.discard && last.iova.wrapping_add(last.len) == iova => {
                last.len += len;
            }
            _ => self.runs.push(Run { iova, len, discard: false }),
        }
    }

    /// Walks PRP entries (NVMe Base 2.0, 4.1.1).
    fn prps(&mut self, [prp1, prp2]: [u64; 2]) -> Result<(), Status> {
        if prp1 & 3 != 0 {
            return Err(Status::INVALID_PRP_OFFSET);
        }
        self.push(prp1, self.rest.min(PAGE - prp1 % PAGE));
        match self.rest {
            0 if prp2 == 0 => Ok(()),
            // PRP2 is reserved when PRP1 suffices.
            0 => Err(Status::INVALID_FIELD),
            1..=PAGE => self.page(prp2),
            _ => self.lists(prp2),
        }
    }

    /// Adds one entry that is not the first.
    fn page(&mut self, entry: u64) -> Result<(), Status> {
        if !entry.is_multiple_of(PAGE) {
            return Err(Status::INVALID_PRP_OFFSET);
        }
        self.push(entry, self.rest.min(PAGE));
        Ok(())
    }

    /// Walks a chain of PRP lists. Only the first may begin within a page.
    fn lists(&mut self, first: u64) -> Result<(), Status> {
        if !first.is_multiple_of(8) {
            return Err(Status::INVALID_PRP_OFFSET);
        }
        let mut next = Some(first);
        while let Some(list) = next {
            next = self.list(list)?;
            if next.is_some_and(|next| !next.is_multiple_of(PAGE)) {
                return Err(Status::INVALID_PRP_OFFSET);
            }
        }
        Ok(())
    }

    /// Walks one list and returns the next: the last slot of a full page, if more is to come.
    fn list(&mut self, list: u64) -> Result<Option<u64>, Status> {
        let (slots, pages) = ((PAGE - list % PAGE) / 8, self.rest.div_ceil(PAGE));
        let (chained, here) = (pages > slots, pages.min(slots));
        let mut entries = [0; PAGE as usize / 8];
        let entries = &mut entries[..here as usize];
        self.load(list, entries)?;
        let next = if chained { entries.last().copied() } else { None };
        let ours = entries.len() - usize::from(chained);
        entries[..ours].iter().try_for_each(|entry| self.page(*entry))?;
        Ok(next)
    }

    /// Copies entries out of a list.
    fn load(&mut self, list: u64, entries: &mut [u64]) -> Result<(), Status> {
        let span = self.tlb.reach(self.iommu, list, size_of_val(entries), Purpose::List)?;
        if span.len() < size_of_val(entries) {
            return Err(Fault.into());
        }
        for (index, entry) in entries.iter_mut().enumerate() {
            *entry = span.load64(index * 8, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Walks an SGL (NVMe Base 2.0, 4.1.2), from the descriptor in the command.
    fn sgl(&mut self, first: [u64; 2], purpose: Purpose) -> Result<(), Status> {
        let mut segment = match Descriptor::parse(zerocopy::transmute!(first))? {
            Descriptor::Segment(segment) => Some(segment),
            data => self.descriptor(data, purpose).map(|()| None)?,
        };
        let mut segments = 0;
        while let Some(here) = segment {
            segments += 1;
            if segments > SEGMENTS_MAX {
                return Err(Status::INVALID_SGL_COUNT);
            }
            segment = self.segment(here, purpose)?;
        }
        if self.rest == 0 { Ok(()) } else { Err(Status::INVALID_SGL_LENGTH) }
    }

    /// Walks one segment and returns the next.
    fn segment(&mut self, here: Segment, purpose: Purpose) -> Result<Option<Segment>, Status> {
        let count = here.len / DESCRIPTOR_BYTES;
        for index in 0..count {
            let at = u64::from(index) * u64::from(DESCRIPTOR_BYTES);
            let raw = self.fetch(here.iova.wrapping_add(at))?;
            match Descriptor::parse(raw)? {
                Descriptor::Segment(_) if here.last => {
                    return Err(Status::INVALID_SGL_SEGMENT);
                }
                Descriptor::Segment(next) if index + 1 == count => return Ok(Some(next)),
                Descriptor::Segment(_) => return Err(Status::INVALID_SGL_COUNT),
                data => self.descriptor(data, purpose)?,
            }
        }
        // A segment that is not the last ends in a segment descriptor.
        if here.last { Ok(None) } else { Err(Status::INVALID_SGL_SEGMENT) }
    }

    fn fetch(&mut self, iova: u64) -> Result<SglDescriptor, Status> {
        let mut raw = [0; DESCRIPTOR_BYTES as usize];
        let span = self.tlb.reach(self.iommu, iova, raw.len(), Purpose::List)?;
        if span.len() < raw.len() {
            return Err(Fault.into());
        }
        span.read_into(&mut raw);
        Ok(zerocopy::transmute!(raw))
    }

    /// Adds the bytes of one descriptor.
    fn descriptor(&mut self, descriptor: Descriptor, purpose: Purpose) -> Result<(), Status> {
        let (iova, len, discard) = match descriptor {
            Descriptor::Data { iova, len } => (iova, u64::from(len), false),
            // For data from the host, a bucket has no bytes whatever its length says.
            Descriptor::BitBucket { .. } if purpose == Purpose::FromHost => return Ok(()),
            Descriptor::BitBucket { len } => (0, u64::from(len), true),
            Descriptor::Segment(_) => return Err(Status::INVALID_SGL_SEGMENT),
        };
        if len > self.rest {
            return Err(Status::INVALID_SGL_LENGTH);
        }
        match (len, discard) {
            (0, _) => {}
            (len, false) => self.push(iova, len),
            (len, true) => {
                self.rest -= len;
                self.runs.push(Run { iova, len, discard });
            }
        }
        Ok(())
    }
}

/// A further part of an SGL.
#[derive(Clone, Copy, Debug)]
struct Segment {
    iova: u64,
    len: u32,
    last: bool,
}

/// An SGL descriptor that was understood.
#[derive(Clone, Copy, Debug)]
enum Descriptor {
    Data { iova: u64, len: u32 },
    BitBucket { len: u32 },
    Segment(Segment),
}

impl Descriptor {
    /// Understands a descriptor (NVMe Base 2.0, 4.1.2.1).
    fn parse(raw: SglDescriptor) -> Result<Self, Status> {
        let (iova, len) = (raw.address, raw.len);
        if raw.subtype() != SUBTYPE_ADDRESS {
            return Err(Status::INVALID_SGL_TYPE);
        }
        if raw.reserved != [0; 3] {
            return Err(Status::INVALID_FIELD);
        }
        match raw.kind() {
            SglType::DATA_BLOCK => Ok(Self::Data { iova, len }),
            SglType::BIT_BUCKET => Ok(Self::BitBucket { len }),
            SglType::SEGMENT => Segment::parse(iova, len, false),
            SglType::LAST_SEGMENT => Segment::parse(iova, len, true),
            _ => Err(Status::INVALID_SGL_TYPE),
        }
    }
}

impl Segment {
    fn parse(iova: u64, len: u32, last: bool) -> Result<Descriptor, Status> {
        if len == 0 || !len.is_multiple_of(DESCRIPTOR_BYTES) {
            return Err(Status::INVALID_SGL_SEGMENT);
        }
        Ok(Descriptor::Segment(Self { iova, len, last }))
    }
}
