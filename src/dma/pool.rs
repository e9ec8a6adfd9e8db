//! Pools of buffers in size classes, one pool a core, filled at start-up.
//!
//! The owning core takes and puts without a lock or an atomic. A buffer dropped on another core goes
//! home through a lock-free queue that the owner empties when its own list runs dry. Exhaustion is
//! backpressure: a pool never grows.

use std::sync::Arc;

use crossbeam_queue::ArrayQueue;

use super::arena::Access;
use super::buf::{DmaBuf, Place};
use super::domain::Domain;
use super::window::Window;
use super::{DmaError, PAGE_BYTES};

/// So many buffers of such a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeClass {
    /// Bytes of each; from a page up they are page-aligned.
    pub bytes: usize,
    /// How many.
    pub count: usize,
}

/// Where buffers go when they are dropped.
pub(super) struct Home {
    /// Bytes of each class.
    classes: Vec<usize>,
    /// Dropped buffers on their way back; `None` where there is no pool to go back to.
    returned: Option<ArrayQueue<Place>>,
    /// The memory behind the buffers.
    _windows: Vec<Window>,
}

impl Home {
    /// The home of one buffer: its memory leaves with it.
    pub(super) fn single(window: Window) -> Self {
        Self { classes: vec![window.len()], returned: None, _windows: vec![window] }
    }

    pub(super) fn class_bytes(&self, class: u8) -> usize {
        self.classes[usize::from(class)]
    }

    pub(super) fn welcome(&self, place: Place) {
        if let Some(returned) = &self.returned {
            let room = returned.push(place).is_ok();
            assert!(room, "the queue has room for every buffer of its pool");
        }
    }
}

/// A core's buffers.
pub struct Pool {
    home: Arc<Home>,
    access: Access,
    /// Buffers at rest, by class; the last one put is the first one taken, since it is warm.
    idle: Vec<Vec<Place>>,
}

impl Pool {
    /// Takes the memory of all classes from the domain.
    ///
    /// # Errors
    ///
    /// When there is not so much memory, or a class is empty.
    pub fn new(domain: &Domain, classes: &[SizeClass], access: Access) -> Result<Self, DmaError> {
        let mut classes = classes.to_vec();
        classes.sort_by_key(|class| class.bytes);
        let windows = classes
            .iter()
            .map(|class| take_class(domain, *class, access))
            .collect::<Result<Vec<_>, _>>()?;
        let idle = (0u8..).zip(classes.iter().zip(&windows)).map(cut).collect();
        let count = classes.iter().map(|class| class.count).sum::<usize>().max(1);
        let home = Home {
            classes: classes.iter().map(|class| class.bytes).collect(),
            returned: Some(ArrayQueue::new(count)),
            _windows: windows,
        };
        Ok(Self { home: Arc::new(home), access, idle })
    }

    /// Takes a buffer of `len` bytes from the smallest class that fits and has one left.
    pub fn take(&mut self, len: usize) -> Option<DmaBuf> {
        self.take_idle(len).or_else(|| {
            self.collect();
            self.take_idle(len)
        })
    }

    /// Puts a buffer back on its own core; one of another pool goes to its own home.
    pub fn put(&mut self, buffer: DmaBuf) {
        let (place, home) = buffer.into_place();
        if Arc::ptr_eq(&home, &self.home) {
            self.idle[usize::from(place.class)].push(place);
        } else {
            home.welcome(place);
        }
    }

    /// Returns how many buffers are at rest here, with those on their way home.
    pub fn idle(&mut self) -> usize {
        self.collect();
        self.idle.iter().map(Vec::len).sum()
    }

    fn take_idle(&mut self, len: usize) -> Option<DmaBuf> {
        let fits = self.home.classes.iter().position(|&bytes| bytes >= len)?;
        let place = self.idle[fits..].iter_mut().find_map(Vec::pop)?;
        let len = u32::try_from(len).ok()?;
        // SAFETY: `place` was cut from a window that `home` holds, its class is at least `len` bytes, and it
        // was just taken off the list of places that nobody owns.
        Some(unsafe { DmaBuf::at(place, len, self.access, Arc::clone(&self.home)) })
    }

    /// Empties the queue of buffers that were dropped elsewhere.
    fn collect(&mut self) {
        while let Some(place) = self.home.returned.as_ref().and_then(ArrayQueue::pop) {
            self.idle[usize::from(place.class)].push(place);
        }
    }
}

fn take_class(domain: &Domain, class: SizeClass, access: Access) -> Result<Window, DmaError> {
    let invalid = |what, value: usize| DmaError::Invalid {
        what,
        value: value as u64,
        least: 1,
        most: u64::from(u32::MAX),
    };
    if class.bytes == 0 || u32::try_from(class.bytes).is_err() {
        return Err(invalid("buffer size", class.bytes));
    }
    if class.count == 0 {
        return Err(invalid("number of buffers", class.count));
    }
    domain.window(stride(class.bytes) * class.count, PAGE_BYTES, access)
}

/// Buffers of a page and more start at pages; smaller ones at cache lines.
fn stride(bytes: usize) -> usize {
    if bytes >= PAGE_BYTES {
        bytes.next_multiple_of(PAGE_BYTES)
    } else {
        bytes.next_power_of_two().max(64)
    }
}

fn cut((class, (size, window)): (u8, (&SizeClass, &Window))) -> Vec<Place> {
    let stride = stride(size.bytes);
    let place = |index: usize| {
        let piece = window.span().slice(index * stride, size.bytes);
        let start = piece.expect("the window was made for this many").as_ptr();
        let iova = window.iova().checked_add((index * stride) as u64);
        Place { start, iova: iova.expect("a window does not wrap"), class }
    };
    // Reversed, so that they are handed out in rising order.
    (0..size.count).rev().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::{DomainOptions, PagePolicy};

    fn pool(classes: &[SizeClass]) -> Pool {
        let domain = Domain::new(DomainOptions { pages: PagePolicy::Ordinary });
        Pool::new(&domain, classes, Access::Both).unwrap()
    }

    const SMALL: SizeClass = SizeClass { bytes: 512, count: 2 };
    const PAGE: SizeClass = SizeClass { bytes: 4096, count: 2 };

    #[test]
    fn the_smallest_class_that_fits_is_used_and_a_larger_one_helps_out() {
        let mut pool = pool(&[PAGE, SMALL]);
        let taken: Vec<DmaBuf> = (0..4).map(|_| pool.take(500).unwrap()).collect();
        let capacities: Vec<usize> = taken.iter().map(DmaBuf::capacity).collect();
        assert_eq!(capacities, [512, 512, 4096, 4096]);
        assert!(pool.take(1).is_none(), "exhaustion is an answer");
        assert!(taken.iter().all(|buffer| buffer.len() == 500));
    }

    #[test]
    fn buffers_dropped_on_another_core_come_home() {
        let mut pool = pool(&[PAGE]);
        let buffers = [pool.take(4096).unwrap(), pool.take(4096).unwrap()];
        assert!(pool.take(4096).is_none());
        std::thread::spawn(move || drop(buffers)).join().unwrap();
        assert_eq!(pool.idle(), 2);
        assert!(pool.take(4096).is_some());
    }

    #[test]
    fn the_buffer_put_last_is_taken_first() {
        let mut pool = pool(&[PAGE]);
        let (first, second) = (pool.take(4096).unwrap(), pool.take(4096).unwrap());
        let warm = first.iova();
        pool.put(second);
        pool.put(first);
        assert_eq!(pool.take(4096).unwrap().iova(), warm);
    }

    #[test]
    fn a_buffer_of_another_pool_goes_to_its_own_home() {
        let (mut ours, mut theirs) = (pool(&[PAGE]), pool(&[PAGE]));
        ours.put(theirs.take(4096).unwrap());
        assert_eq!((ours.idle(), theirs.idle()), (2, 2));
    }

    #[test]
    fn pages_are_page_aligned_for_the_device() {
        let mut pool = pool(&[SizeClass { bytes: 5000, count: 3 }]);
        let buffers: Vec<DmaBuf> = (0..3).map(|_| pool.take(5000).unwrap()).collect();
        assert!(buffers.iter().all(|buffer| buffer.iova().0.is_multiple_of(4096)));
    }

    #[test]
    fn memory_goes_home_to_the_domain_only_after_the_last_buffer() {
        let domain = Domain::new(DomainOptions { pages: PagePolicy::Ordinary });
        let mut pool = Pool::new(&domain, &[PAGE], Access::Both).unwrap();
        let mut buffer = pool.take(4096).unwrap();
        drop(pool);
        buffer.fill(7);
        assert_eq!(domain.usage().1, 8192);
        drop(buffer);
        assert_eq!(domain.usage().1, 0);
    }
}
