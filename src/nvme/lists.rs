//! List pages of a queue: where PRP lists, SGL segments and range lists go that do not fit a command.
//!
//! Most commands need none, so there are fewer pages than slots in a deep queue. Running out is
//! backpressure, like running out of slots.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::memory::PAGE;
use super::slots::ListPage;
use crate::dma::{Access, DmaError, Domain, Window};

/// The most list pages of one queue: 4 MiB.
const PAGES_MAX: u16 = 1024;

/// The list pages of one queue.
pub(super) struct Lists {
    memory: Window,
    free: Vec<u16>,
}

/// One list page, to be filled.
pub(super) struct Page<'a> {
    memory: &'a Window,
    offset: usize,
}

impl Lists {
    /// Takes a page for each of `depth` slots, up to a limit. Devices may read them and nothing else.
    pub(super) fn new(domain: &Domain, depth: u16) -> Result<Self, DmaError> {
        let pages = depth.min(PAGES_MAX);
        let bytes = usize::from(pages) * PAGE as usize;
        let memory = domain.window(bytes, PAGE as usize, Access::DeviceReads)?;
        Ok(Self { memory, free: (0..pages).rev().collect() })
    }

    /// Takes a page, if there is one.
    pub(super) fn take(&mut self) -> Option<(ListPage, Page<'_>)> {
        let index = self.free.pop()?;
        let page = Page { memory: &self.memory, offset: usize::from(index) * PAGE as usize };
        Some((ListPage(index), page))
    }

    /// Takes a page back.
    #[inline]
    pub(super) fn give_back(&mut self, list: ListPage) {
        self.free.push(list.0);
    }
}

impl Page<'_> {
    /// Returns where the device sees the page.
    pub(super) fn iova(&self) -> u64 {
        self.memory.iova().0 + self.offset as u64
    }

    /// Writes `count` words that begin with `first` and rise by `step`: the pages of one run.
    #[inline]
    pub(super) fn store_steps(&self, count: usize, first: u64, step: u64) {
        let page = self.memory.span().slice(self.offset, count * size_of::<u64>());
        let page =
            page.filter(|page| page.len() <= PAGE as usize).expect("a run fits its list page");
        page.store_steps(first, step);
    }

    /// Writes a word. The doorbell's release makes it visible with the command.
    #[inline]
    pub(super) fn store(&self, index: usize, word: u64) {
        assert!(index < PAGE as usize / size_of::<u64>(), "word {index} of a list page");
        let at = self.offset + index * size_of::<u64>();
        self.memory.span().store64(at, word, Ordering::Relaxed);
    }
}
