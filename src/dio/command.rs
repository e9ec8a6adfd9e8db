//! The command under assembly: sections join it while they continue it on the device and it can take them.
#![forbid(unsafe_code)]

use crate::block::{Fit, Operation, Payload, Run, SegmentRules};
use crate::dma::DmaPiece;
use crate::units::{BlockCount, Lba};

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Reads into the pieces.
    Read,
    /// Writes from the pieces.
    Write { fua: bool },
    /// Writes zeroes without a transfer.
    WriteZeroes { fua: bool },
    /// Gives blocks back.
    Deallocate,
}

impl Kind {
    /// Says whether it moves data.
    pub(super) fn has_data(self) -> bool {
        matches!(self, Self::Read | Self::Write { .. })
    }
}

/// The command under assembly.
#[derive(Debug)]
pub(super) struct Assembly {
    pub(super) kind: Kind,
    pub(super) lba: u64,
    /// Blocks, where no data says how many.
    bare: u64,
    fit: Fit,
    shift: u8,
    /// The only piece, or the first one while there is no list.
    first: Option<DmaPiece>,
    list: Option<Vec<DmaPiece>>,
    /// Whose it is, and where in that request it begins.
    pub(super) owner: u16,
    pub(super) stream: u64,
    /// The list of all owners, once there is more than one.
    pub(super) merged: Option<u16>,
    /// Whether it takes nothing more.
    closed: bool,
}

impl Assembly {
    pub(super) fn new(
        kind: Kind,
        lba: u64,
        shift: u8,
        rules: SegmentRules,
        owner: u16,
        stream: u64,
    ) -> Self {
        Self {
            kind,
            lba,
            bare: 0,
            fit: Fit::new(rules),
            shift,
            first: None,
            list: None,
            owner,
            stream,
            merged: None,
            closed: false,
        }
    }

    /// Returns its blocks.
    #[inline]
    pub(super) fn blocks(&self) -> u64 {
        self.bare + (self.fit.bytes() >> self.shift)
    }

    /// Says whether a section of this kind at this block continues it.
    #[inline]
    pub(super) fn continues(&self, kind: Kind, lba: u64) -> bool {
        !self.closed && self.kind == kind && self.lba + self.blocks() == lba
    }

    /// Lets nothing more join. It is sent when the next one begins, or with the end of its request.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// Says whether nothing more joins.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Adds blocks that carry no data.
    pub(super) fn add_bare(&mut self, blocks: u64) {
        self.bare += blocks;
    }

    /// Returns how many bytes of `runs` it could take, at most `limit`, in whole blocks; `single` where there
    /// is no list to be had for a second piece.
    pub(super) fn measure(&self, runs: impl Iterator<Item = Run>, limit: u64, single: bool) -> u64 {
        let single = single && self.list.is_none();
        let mut fit = self.fit;
        let mut end = self.first.as_ref().map(|piece| piece.iova().0 + u64::from(piece.len()));
        let before = fit.bytes();
        for run in runs {
            if single && end.is_some_and(|end| end != run.iova) {
                break;
            }
            let left = limit - (fit.bytes() - before);
            let wanted = run.len.min(left);
            if fit.add(Run { len: wanted, ..run }) < run.len {
                break;
            }
            end = Some(run.iova + run.len);
        }
        let fits = fit.bytes() - before;
        fits - fits % (1 << self.shift)
    }

    /// Takes a piece of which [`measure`](Self::measure) has said that it fits.
    pub(super) fn push(&mut self, piece: DmaPiece, new_list: impl FnOnce() -> Vec<DmaPiece>) {
        let run = Run { iova: piece.iova().0, len: u64::from(piece.len()) };
        let taken = self.fit.add(run);
        assert_eq!(taken, run.len, "a piece was measured before it was pushed");
        if let Some(list) = &mut self.list {
            let last = list.last_mut().expect("a list begins with a piece");
            if let Err(piece) = last.join(piece) {
                list.push(piece);
            }
            return;
        }
        let Some(mut first) = self.first.take() else {
            self.first = Some(piece);
            return;
        };
        match first.join(piece) {
            Ok(()) => self.first = Some(first),
            Err(piece) => {
                let mut list = new_list();
                list.extend([first, piece]);
                self.list = Some(list);
            }
        }
    }

    /// Makes the operation; [`take_back`](Self::take_back) undoes it.
    pub(super) fn operation(&mut self) -> Operation {
        let (lba, blocks) = (Lba(self.lba), BlockCount(self.blocks()));
        match self.kind {
            Kind::Read => Operation::Read { lba, payload: self.payload() },
            Kind::Write { fua } => Operation::Write { lba, payload: self.payload(), fua },
            Kind::WriteZeroes { fua } => Operation::WriteZeroes { lba, blocks, fua },
            Kind::Deallocate => Operation::Deallocate { lba, blocks },
        }
    }

    fn payload(&mut self) -> Payload {
        match (self.list.take(), self.first.take()) {
            (Some(list), _) => Payload::Parts(list),
            (None, Some(piece)) => Payload::Part(piece),
            (None, None) => unreachable!("a command with data has a piece"),
        }
    }

    /// Takes the memory of an operation back that the queue had no room for.
    pub(super) fn take_back(&mut self, payload: Option<Payload>) {
        match payload {
            Some(Payload::Parts(list)) => self.list = Some(list),
            Some(Payload::Part(piece)) => self.first = Some(piece),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::{Access, Domain, DomainOptions, Loan, PagePolicy};

    const PAGES: SegmentRules = SegmentRules { alignment: 4, page: Some(4096), max_segments: 2 };

    /// A command that has the first `first` bytes of a page, and a loan with more.
    fn begun(first: usize) -> (Assembly, Loan) {
        let domain = Domain::new(DomainOptions { pages: PagePolicy::Ordinary });
        let mut loan = Loan::new();
        loan.put(domain.buffer(16384, Access::Both).unwrap());
        let mut open = Assembly::new(Kind::Read, 0, 9, PAGES, 0, 0);
        open.push(loan.piece(0, 0, first), Vec::new);
        (open, loan)
    }

    #[test]
    fn what_was_measured_fits_and_is_whole_blocks() {
        let (mut open, loan) = begun(4096);
        let run = Run { iova: loan.iova(0, 8192).0, len: 8192 };
        let fits = open.measure(core::iter::once(run), 1500, false);
        assert_eq!(fits, 1024, "a block at the limit is not cut");
        assert_eq!(open.measure(core::iter::once(run), 8192, false), 4096, "two pages in all");
        assert_eq!(open.measure(core::iter::once(run), 8192, true), 0, "no list to be had");
        open.push(loan.piece(0, 8192, 4096), Vec::new);
        assert_eq!(open.blocks(), 16);
    }

    #[test]
    #[should_panic(expected = "a piece was measured before it was pushed")]
    fn dio_rule_19_a_section_that_does_not_fit_is_a_bug() {
        let (mut open, loan) = begun(512);
        // A page list cannot go on elsewhere after half a page.
        open.push(loan.piece(0, 8192, 512), Vec::new);
    }
}
