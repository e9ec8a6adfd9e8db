//! Describing memory to the controller: PRPs and SGL descriptors.
//!
//! Pure functions from runs of memory to what the command and its list page say. How much of a payload one
//! command can express is a question ([`Rules::segments`]) that is asked before anything is built.
#![forbid(unsafe_code)]

use crate::block::{Run, SegmentRules};
use crate::spec::PRP_ENTRY_BYTES;
use crate::spec::sgl::{SglDescriptor, SglType};

/// The memory page: CC.MPS is always 0, since every controller has to offer 4096 bytes or is refused.
pub(super) const PAGE: u64 = 4096;

/// Entries of the list page of a slot; lists are never chained, longer transfers are split.
pub(super) const LIST_ENTRIES: usize = PAGE as usize / PRP_ENTRY_BYTES;

/// Descriptors of the list page of a slot.
pub(super) const LIST_DESCRIPTORS: usize = PAGE as usize / size_of::<SglDescriptor>();

/// The most that one PRP list page describes wherever the memory starts in its page.
pub(super) const PRP_BYTES_MAX: u64 = LIST_ENTRIES as u64 * PAGE;

/// How a controller wants memory described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rules {
    /// Pages: all but the first begin at a page, all but the last end at one.
    Prp,
    /// Descriptors: anywhere, a dword at least.
    Sgl,
    /// Descriptors, and those of each block's metadata among them.
    Interleaved,
}

impl Rules {
    /// Returns what one command can describe: with PRPs one entry in the command and a list page.
    pub(super) fn segments(self) -> SegmentRules {
        let alignment = 4;
        match self {
            Self::Prp => SegmentRules {
                alignment,
                page: Some(PAGE as u32),
                max_segments: LIST_ENTRIES as u32 + 1,
            },
            Self::Sgl => {
                SegmentRules { alignment, page: None, max_segments: LIST_DESCRIPTORS as u32 }
            }
            // Of 256, 64 are metadata's and 64 more may come of the cuts that it makes (`INLINE_BLOCKS_MAX`).
            Self::Interleaved => {
                SegmentRules { alignment, page: None, max_segments: LIST_DESCRIPTORS as u32 / 2 }
            }
        }
    }
}

/// Returns how many pages a run touches.
#[inline]
pub(super) fn pages(run: Run) -> u64 {
    run.pages(PAGE)
}

/// Returns the PRP entries of `runs`, of which [`Rules::segments`] has said that they can be expressed.
pub(super) fn prp_entries(runs: impl Iterator<Item = Run>) -> impl Iterator<Item = u64> {
    runs.flat_map(|run| {
        let first_page = run.iova & !(PAGE - 1);
        let rest = (1..pages(run)).map(move |page| first_page + page * PAGE);
        core::iter::once(run.iova).chain(rest)
    })
}

/// Lays PRP entries out: returns the two of the command, and hands the others to `list` if they do
/// not fit there (Base 4.1.1: PRP2 is a second page, or a list when there are more than two).
pub(super) fn lay_prps(
    mut entries: impl Iterator<Item = u64>,
    list_iova: u64,
    mut list: impl FnMut(usize, u64),
) -> [u64; 2] {
    let first = entries.next().unwrap_or(0);
    let Some(second) = entries.next() else { return [first, 0] };
    let Some(third) = entries.next() else { return [first, second] };
    list(0, second);
    list(1, third);
    entries.enumerate().for_each(|(index, entry)| list(index + 2, entry));
    [first, list_iova]
}

/// Lays SGL descriptors out: returns the one of the command, and hands them to `list` if there is more
/// than one (Base 4.1.2: the command's descriptor is then a Last Segment).
pub(super) fn lay_sgl(
    runs: impl Iterator<Item = Run>,
    list_iova: u64,
    mut list: impl FnMut(usize, SglDescriptor),
) -> SglDescriptor {
    let describe = |run: Run| {
        let len = u32::try_from(run.len).expect("a command transfers less than 4 GiB");
        SglDescriptor::new(SglType::DATA_BLOCK, run.iova, len)
    };
    let mut runs = runs.peekable();
    let first = runs.next().map_or_else(SglDescriptor::default, describe);
    if runs.peek().is_none() {
        return first;
    }
    list(0, first);
    let mut count = 1;
    for run in runs {
        list(count, describe(run));
        count += 1;
    }
    let bytes = u32::try_from(count * size_of::<SglDescriptor>()).expect("a page of descriptors");
    SglDescriptor::new(SglType::LAST_SEGMENT, list_iova, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::merged;
    use crate::seed::Seed;

    const LIST: u64 = 0x7000_0000;

    /// What a controller does with PRPs, page by page and without cleverness: returns the bytes'
    /// addresses in runs of one page at most.
    fn walk_prps(dptr: [u64; 2], list: &[u64], len: u64) -> Vec<Run> {
        let mut walked = Vec::new();
        let mut left = len;
        let mut take = |iova: u64, first: bool| {
            assert!(first || iova.is_multiple_of(PAGE), "only the first entry has an offset");
            let run = Run { iova, len: left.min(PAGE - iova % PAGE) };
            left -= run.len;
            walked.push(run);
            left
        };
        let left = take(dptr[0], true);
        if left > PAGE {
            assert_eq!(dptr[1], LIST);
            let mut entries = list.iter();
            while take(*entries.next().expect("the list is long enough"), false) > 0 {}
            assert!(entries.next().is_none(), "the list is not longer than it has to be");
        } else if left > 0 {
            assert!(list.is_empty(), "two pages need no list");
            take(dptr[1], false);
        } else {
            assert_eq!(dptr[1], 0);
        }
        walked
    }

    fn walk_sgl(first: SglDescriptor, list: &[SglDescriptor]) -> Vec<Run> {
        let data = |descriptor: &SglDescriptor| {
            assert_eq!(descriptor.kind(), SglType::DATA_BLOCK);
            Run { iova: descriptor.address, len: u64::from(descriptor.len) }
        };
        if first.kind() != SglType::LAST_SEGMENT {
            return vec![data(&first)];
        }
        assert_eq!((first.address, first.len as usize), (LIST, list.len() * 16));
        list.iter().map(data).collect()
    }

    /// Bytes' addresses as maximal runs, so that two descriptions of one memory compare equal.
    fn normal(runs: impl IntoIterator<Item = Run>) -> Vec<Run> {
        merged(runs.into_iter().filter(|run| run.len > 0)).collect()
    }

    fn cut(runs: &[Run], len: u64) -> Vec<Run> {
        let mut left = len;
        let cut = runs.iter().map(|run| {
            let len = run.len.min(left);
            left -= len;
            Run { len, ..*run }
        });
        normal(cut.collect::<Vec<_>>())
    }

    fn random_runs(seed: &mut Seed) -> Vec<Run> {
        let many = if seed.chance(1, 50) { 600 } else { 6 };
        let count = 1 + seed.below(many);
        let legal = seed.chance(2, 3);
        let mut iova = PAGE * (1 + seed.below(1 << 20));
        (0..count)
            .map(|index| {
                let (first, last) = (index == 0, index + 1 == count);
                let most = if seed.chance(1, 20) { 700 } else { 4 };
                let pages = 1 + seed.below(most);
                let head = if first || !legal { 4 * seed.below(PAGE / 4) } else { 0 };
                let tail = if last || !legal { 4 * seed.below(PAGE / 4) } else { 0 };
                let run = Run { iova: iova + head, len: pages * PAGE + tail - head };
                iova +=
                    (pages + 1 + seed.below(3)) * PAGE - if seed.chance(1, 9) { PAGE } else { 0 };
                Run { len: run.len.max(4), ..run }
            })
            .collect()
    }

    fn check_prps(all: &[Run], limit: u64) {
        let len = Rules::Prp.segments().prefix(merged(all.iter().copied()), limit);
        assert!(len > 0 && len <= limit);
        let (expected, mut list) = (cut(all, len), Vec::new());
        let dptr = lay_prps(prp_entries(expected.iter().copied()), LIST, |index, entry| {
            assert_eq!(index, list.len());
            list.push(entry);
        });
        assert!(list.len() <= LIST_ENTRIES);
        assert_eq!(normal(walk_prps(dptr, &list, len)), expected);
    }

    fn check_sgl(all: &[Run], limit: u64) {
        let len = Rules::Sgl.segments().prefix(merged(all.iter().copied()), limit);
        assert!(len > 0 && len <= limit);
        let (expected, mut list) = (cut(all, len), Vec::new());
        let first = lay_sgl(expected.iter().copied(), LIST, |index, descriptor| {
            assert_eq!(index, list.len());
            list.push(descriptor);
        });
        assert!(list.len() <= LIST_DESCRIPTORS);
        assert_eq!(normal(walk_sgl(first, &list)), expected);
    }

    /// `UDIRECT_LISTS` sets how many lists are tried; a million in the optimised test run.
    fn lists() -> u64 {
        let wanted = std::env::var("UDIRECT_LISTS").ok().and_then(|text| text.parse().ok());
        wanted.unwrap_or(if cfg!(debug_assertions) { 20_000 } else { 1_000_000 })
    }

    #[test]
    fn prps_and_sgls_describe_what_a_naive_walker_reads() {
        let mut seed = Seed::from_env("PRP and SGL builders");
        for _ in 0..lists() {
            let all = random_runs(&mut seed);
            let total: u64 = all.iter().map(|run| run.len).sum();
            let limit = if seed.chance(1, 2) { total } else { 4 + 4 * seed.below(total / 4) };
            check_prps(&all, limit);
            check_sgl(&all, limit);
        }
    }

    /// The longest legal prefix, found by trying: every cut is legal or not by the letter of Base 4.1.1.
    #[test]
    fn the_prefix_is_the_longest_that_the_standard_allows() {
        let mut seed = Seed::from_env("PRP prefix");
        let legal = |runs: &[Run]| {
            let last = runs.len() - 1;
            let starts = runs.iter().skip(1).all(|run| run.iova.is_multiple_of(PAGE));
            let ends = runs[..last].iter().all(|run| (run.iova + run.len).is_multiple_of(PAGE));
            let entries: u64 = runs.iter().map(|run| pages(*run)).sum();
            starts && ends && entries <= LIST_ENTRIES as u64 + 1
        };
        for _ in 0..lists() / 20 {
            let all: Vec<Run> = random_runs(&mut seed).into_iter().take(5).collect();
            let total: u64 = all.iter().map(|run| run.len).sum();
            let found = Rules::Prp.segments().prefix(merged(all.iter().copied()), total);
            assert!(legal(&cut(&all, found)), "{all:?} at {found}");
            assert!(found == total || !legal(&cut(&all, found + 4)), "{all:?} beyond {found}");
        }
    }

    #[test]
    fn one_page_uses_prp1_alone_and_two_pages_use_prp2() {
        let lay = |run: Run| {
            lay_prps(prp_entries([run].into_iter()), LIST, |_, _| panic!("no list is needed"))
        };
        assert_eq!(lay(Run { iova: 0x5000, len: 4096 }), [0x5000, 0]);
        assert_eq!(lay(Run { iova: 0x5200, len: 512 }), [0x5200, 0]);
        assert_eq!(lay(Run { iova: 0x5200, len: 4096 }), [0x5200, 0x6000]);
        assert_eq!(lay(Run { iova: 0x5000, len: 8192 }), [0x5000, 0x6000]);
    }

    /// OpenVMM's builder filled one page of 512 entries and was asked for up to 4096; SPDK stops at
    /// 503. Ours says what fits and the rest becomes another command.
    #[test]
    fn a_transfer_longer_than_one_list_page_is_cut_not_truncated() {
        let unaligned = Run { iova: 0x10_0ffc, len: 8 << 20 };
        let prefix = Rules::Prp.segments().prefix([unaligned].into_iter(), u64::MAX);
        assert_eq!(prefix, LIST_ENTRIES as u64 * PAGE + 4);
        assert_eq!(pages(Run { len: prefix, ..unaligned }), LIST_ENTRIES as u64 + 1);
        assert!(PRP_BYTES_MAX <= prefix, "the limit holds wherever memory starts");
    }
}
