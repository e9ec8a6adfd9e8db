//! Metadata on its way: a page for each command, in which tuples are made before a write and checked after a read.
//!
//! Where nobody looks at metadata, all commands share two pages: one of zeroes that is written from, and one that
//! is read into and never looked at. `tagging` says what is in a tuple, `queue` when a page is filled or checked.
//! Invariant: page `n` belongs to slot `n`, and so to whoever the slot belongs to.
#![forbid(unsafe_code)]

use super::guard::{TUPLE_BYTES, Tuple, guard};
use super::limits::{Limits, Piece};
use super::memory::PAGE;
use super::tagging::Tagging;
use crate::block::{BlockError, Cause, Operation, Payload};
use crate::dma::{Access, DmaError, Domain, Span, Window};
use crate::units::Lba;

/// The metadata of the commands of one queue.
pub(super) struct Tags {
    bench: Bench,
    pages: Pages,
}

/// One block and its metadata, looked at in private memory.
struct Bench {
    tagging: Tagging,
    data: Box<[u8]>,
    metadata: Box<[u8]>,
}

enum Pages {
    /// Nobody looks: zeroes to write, and a sink to read into.
    Shared { zeroes: Window, sink: Window },
    /// A page for each slot, and what its command moves.
    Own { pages: Window, pieces: Box<[Piece]> },
}

impl Tags {
    /// Makes room for the metadata of `slots` commands; `None` where none travels.
    pub(super) fn new(
        domain: &Domain,
        limits: &Limits,
        slots: u16,
    ) -> Result<Option<Box<Self>>, DmaError> {
        let Some(tagging) = limits.tagging.filter(Tagging::travels) else { return Ok(None) };
        let page = PAGE as usize;
        let pages = if tagging.is_ours() {
            let count = usize::from(slots);
            let pages = domain.window(count * page, page, Access::Both)?;
            let nothing = Piece { lba: Lba(0), blocks: 0, skipped: 0 };
            Pages::Own { pages, pieces: vec![nothing; count].into() }
        } else {
            let zeroes = domain.window(page, page, Access::DeviceReads)?;
            zeroes.span().fill(0);
            Pages::Shared { zeroes, sink: domain.window(page, page, Access::DeviceWrites)? }
        };
        let block = limits.lba_size.bytes() as usize;
        let data = vec![0; block].into();
        let metadata = vec![0; usize::from(tagging.metadata.bytes)].into();
        Ok(Some(Box::new(Self { bench: Bench { tagging, data, metadata }, pages })))
    }

    /// Says whether metadata is made and checked here, and every request has a page of it.
    pub(super) fn are_looked_at(&self) -> bool {
        matches!(self.pages, Pages::Own { .. })
    }

    /// Returns where the metadata of the next command in `slot` is for the device; 0 where it has none.
    pub(super) fn iova(&self, slot: u16, operation: &Operation) -> u64 {
        match (&self.pages, operation) {
            (Pages::Shared { sink, .. }, Operation::Read { .. }) => sink.iova().0,
            (Pages::Shared { zeroes, .. }, Operation::Write { .. }) => zeroes.iova().0,
            (
                Pages::Own { pages, .. },
                Operation::Read { .. } | Operation::Write { .. } | Operation::Compare { .. },
            ) => pages.iova().0 + u64::from(slot) * PAGE,
            _ => 0,
        }
    }

    /// Remembers what the command in `slot` moves, and makes the tuples of what it sends.
    pub(super) fn prepare(&mut self, slot: u16, operation: &Operation, piece: Piece) {
        let Self { bench, pages: Pages::Own { pages, pieces } } = self else { return };
        pieces[usize::from(slot)] = piece;
        let (Operation::Write { payload, .. } | Operation::Compare { payload, .. }) = operation
        else {
            return;
        };
        let (page, bytes) = (page_of(pages, slot), bench.metadata.len());
        for (index, lba) in blocks(piece) {
            bench.tag(payload, piece.skipped + index as u64, lba);
            part(page, index * bytes, bytes).write_from(&bench.metadata);
        }
    }

    /// Checks what the command in `slot` has read.
    pub(super) fn verify(&mut self, slot: u16, operation: &Operation) -> Result<(), BlockError> {
        let Self { bench, pages: Pages::Own { pages, pieces } } = self else { return Ok(()) };
        let Operation::Read { payload, .. } = operation else { return Ok(()) };
        let (piece, page) = (pieces[usize::from(slot)], page_of(pages, slot));
        let bytes = bench.metadata.len();
        blocks(piece).try_for_each(|(index, lba)| {
            part(page, index * bytes, bytes).read_into(&mut bench.metadata);
            bench.verify(payload, piece.skipped + index as u64, lba)
        })
    }
}

impl Bench {
    /// Makes the metadata of block `index` of a payload.
    fn tag(&mut self, payload: &Payload, index: u64, lba: Lba) {
        let Self { tagging, data, metadata } = self;
        payload.copy_out(index * data.len() as u64, data);
        metadata.fill(0);
        let at = tagging.tuple_at();
        let guard = guard(guard(0, data), &metadata[..at]);
        let (application, reference) = (tagging.application, tagging.reference(lba));
        let tuple = Tuple { guard, application, reference };
        metadata[at..at + TUPLE_BYTES].copy_from_slice(&tuple.to_bytes());
    }

    /// Holds block `index` of a payload against the metadata that came with it.
    fn verify(&mut self, payload: &Payload, index: u64, lba: Lba) -> Result<(), BlockError> {
        let Self { tagging, data, metadata } = self;
        let (before, rest) = metadata.split_at(tagging.tuple_at());
        let bytes = rest.first_chunk().expect("a tuple fits the metadata");
        let tuple = Tuple::from_bytes(*bytes);
        // Tags of all ones are those of blocks that were never written, or whose writer wants no check.
        let escaped =
            tuple.application == u16::MAX && (!tagging.is_type_3() || tuple.reference == u32::MAX);
        if escaped {
            return Ok(());
        }
        payload.copy_out(index * data.len() as u64, data);
        let guard = guard(guard(0, data), before);
        let wrong = |check, expected: u32, found: u32| {
            Err(Cause::Protection { lba, check, expected, found }.into())
        };
        if tuple.guard != guard {
            return wrong("guard", guard.into(), tuple.guard.into());
        }
        if tuple.application != tagging.application {
            let (expected, found) = (tagging.application.into(), tuple.application.into());
            return wrong("application tag", expected, found);
        }
        let reference = tagging.reference(lba);
        if !tagging.is_type_3() && tuple.reference != reference {
            return wrong("reference tag", reference, tuple.reference);
        }
        Ok(())
    }
}

/// Returns the blocks of a piece with their places in it.
fn blocks(piece: Piece) -> impl Iterator<Item = (usize, Lba)> {
    (0..piece.blocks).map(move |index| (index as usize, Lba(piece.lba.0 + index)))
}

fn page_of(pages: &Window, slot: u16) -> Span<'_> {
    part(pages.span(), usize::from(slot) * PAGE as usize, PAGE as usize)
}

fn part(span: Span<'_>, at: usize, len: usize) -> Span<'_> {
    span.slice(at, len).expect("the metadata of a command fits its page")
}
