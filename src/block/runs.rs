//! Memory as devices see it: runs of contiguous addresses, and how many of them one command can describe.
#![forbid(unsafe_code)]

use super::{Payload, SegmentRules};

/// Memory that is contiguous for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where the device sees the first byte.
    pub iova: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Run {
    /// Returns how many pages of `page` bytes (a power of two) the run touches.
    #[inline]
    pub fn pages(self, page: u64) -> u64 {
        ((self.iova & (page - 1)) + self.len).div_ceil(page)
    }
}

/// Returns the runs of `payload` from byte `offset` on, `len` bytes in all, neighbours merged.
pub fn runs(payload: &Payload, offset: u64, len: u64) -> impl Iterator<Item = Run> {
    let (mut skip, mut left) = (offset, len);
    let pieces = (0..payload.count()).filter_map(move |index| {
        let run = payload.run(index);
        let skipped = skip.min(run.len);
        skip -= skipped;
        let len = (run.len - skipped).min(left);
        left -= len;
        (len > 0).then_some(Run { iova: run.iova + skipped, len })
    });
    merged(pieces)
}

/// Merges runs that continue each other.
pub fn merged(runs: impl Iterator<Item = Run>) -> impl Iterator<Item = Run> {
    let mut runs = runs.peekable();
    core::iter::from_fn(move || {
        let mut run = runs.next()?;
        while let Some(next) = runs.next_if(|next| next.iova == run.iova + run.len) {
            run.len += next.len;
        }
        Some(run)
    })
}

/// How much of a stream of memory one command can describe, found run by run.
#[derive(Clone, Copy, Debug)]
pub struct Fit {
    rules: SegmentRules,
    bytes: u64,
    /// Segments, or pages where the rules count those.
    segments: u64,
    /// The address after the last byte.
    end: u64,
}

impl Fit {
    /// Makes the fit of a command without memory.
    #[inline]
    pub fn new(rules: SegmentRules) -> Self {
        Self { rules, bytes: 0, segments: 0, end: 0 }
    }

    /// Returns the bytes so far.
    #[inline]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds as much of a run as one command can describe with what it has; returns how many bytes.
    ///
    /// Once that is less than the run, the command can take nothing more.
    #[inline]
    pub fn add(&mut self, run: Run) -> u64 {
        let follows = self.bytes > 0 && run.iova == self.end;
        let odd = u64::from(self.rules.alignment) - 1;
        let run = Run { len: run.len & !odd, ..run };
        if run.len == 0 || run.iova & odd != 0 {
            return 0;
        }
        let len = match self.rules.page {
            Some(page) => self.add_pages(run, u64::from(page), follows),
            None => self.add_segment(run, follows),
        };
        if len > 0 {
            self.bytes += len;
            self.end = run.iova + len;
        }
        len
    }

    fn add_pages(&mut self, run: Run, page: u64, follows: bool) -> u64 {
        let offset = run.iova & (page - 1);
        let whole_so_far = self.end & (page - 1) == 0;
        if self.bytes > 0 && !follows && !(offset == 0 && whole_so_far) {
            return 0;
        }
        // A run that goes on in the middle of a page shares the page's entry with what came before.
        let shared = u64::from(follows && offset != 0);
        let room = u64::from(self.rules.max_segments) + shared - self.segments;
        let len = run.len.min((room * page).saturating_sub(offset));
        if len > 0 {
            self.segments += Run { len, ..run }.pages(page) - shared;
        }
        len
    }

    fn add_segment(&mut self, run: Run, follows: bool) -> u64 {
        if !follows {
            if self.segments == u64::from(self.rules.max_segments) {
                return 0;
            }
            self.segments += 1;
        }
        run.len
    }
}

impl SegmentRules {
    /// Returns how many bytes of `runs` one command can describe, at most `limit`.
    pub fn prefix(self, runs: impl Iterator<Item = Run>, limit: u64) -> u64 {
        let mut fit = Fit::new(self);
        for run in runs {
            let wanted = run.len.min(limit - fit.bytes());
            if fit.add(Run { len: wanted, ..run }) < run.len {
                break;
            }
        }
        fit.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    const PAGES: SegmentRules = SegmentRules { alignment: 4, page: Some(4096), max_segments: 5 };
    const SEGMENTS: SegmentRules = SegmentRules { alignment: 4, page: None, max_segments: 3 };

    fn run(iova: u64, len: u64) -> Run {
        Run { iova, len }
    }

    #[test]
    fn pages_but_the_outer_edges_are_whole() {
        let prefix = |runs: &[Run]| PAGES.prefix(runs.iter().copied(), u64::MAX);
        assert_eq!(prefix(&[run(0x1200, 0xe00), run(0x5000, 0x800)]), 0x1600);
        assert_eq!(prefix(&[run(0x1200, 0xc00), run(0x5000, 0x800)]), 0xc00, "an inner end");
        assert_eq!(prefix(&[run(0x1000, 0x1000), run(0x5200, 0x800)]), 0x1000, "an inner start");
        assert_eq!(prefix(&[run(0x1ffc, 0x9000)]), 0x4004, "five pages and no more");
    }

    #[test]
    fn segments_lie_anywhere_and_are_counted() {
        let runs = [run(0x1204, 4), run(0x5008, 8), run(0x9000, 512), run(0xf000, 512)];
        assert_eq!(SEGMENTS.prefix(runs.into_iter(), u64::MAX), 524);
        assert_eq!(SEGMENTS.prefix(runs.into_iter(), 8), 8);
        assert_eq!(SEGMENTS.prefix([run(0x1202, 512)].into_iter(), 512), 0, "not a dword");
        let odd = [run(0x1000, 510), run(0x2000, 514)];
        assert_eq!(SEGMENTS.prefix(odd.into_iter(), 1024), 508, "nor an end inside one");
    }

    /// Run by run or merged first, the answer is one: a section that goes on in the same memory costs nothing.
    #[test]
    fn cutting_a_run_in_two_changes_nothing() {
        let mut seed = Seed::from_env("fit of runs");
        for _ in 0..50_000 {
            let rules = if seed.chance(1, 2) { PAGES } else { SEGMENTS };
            let mut whole = Vec::new();
            let mut iova = 0x10_0000;
            for _ in 0..1 + seed.below(4) {
                let len = 4 * (1 + seed.below(2500));
                whole.push(run(iova, len));
                iova = (iova + len).next_multiple_of(4096) + 4096 * seed.below(2);
            }
            let whole: Vec<Run> = merged(whole.into_iter()).collect();
            let mut parts = Vec::new();
            for one in &whole {
                let cut = 4 * seed.below(one.len / 4);
                parts.extend([run(one.iova, cut), run(one.iova + cut, one.len - cut)]);
            }
            let parts = parts.into_iter().filter(|part| part.len > 0);
            let expected = rules.prefix(whole.iter().copied(), u64::MAX);
            assert_eq!(rules.prefix(parts, u64::MAX), expected, "{whole:?}");
        }
    }
}
