//! Queues as the controller sees them: rings in the host's memory, indices that the host announces.
//!
//! [`SubmissionQueue`] fetches commands, [`CompletionQueue`] posts completions, [`Index`] reads one doorbell,
//! from its register or from its shadow in memory. `group` serves them.
//! Invariant: an index that the host announces is checked once, here, and then kept as our own copy.
#![forbid(unsafe_code)]

use core::sync::atomic::{Ordering, fence};

use super::interposer::Lie;
use crate::dma::{Ring, SharedBytes};
use crate::spec::command::Command;
use crate::spec::completion::Completion;

/// What a doorbell register holds once a ring was noticed, where doorbells are shadowed.
const UNRUNG: u32 = u32::MAX;

/// A word with a doorbell's index that the host writes.
pub(super) struct Index {
    register: SharedBytes,
    shadow: Option<Shadow>,
}

/// A doorbell's copy in the host's memory (NVMe Base 2.0, 5.8).
struct Shadow {
    /// What the host stores instead of ringing.
    value: SharedBytes,
    /// What we store: the host rings when it passes this.
    event: SharedBytes,
    /// Whether the value is looked at. Off once we have caught up, until the next ring.
    awake: bool,
    last: u32,
}

impl Index {
    /// Takes a doorbell register over and clears it.
    pub(super) fn new(register: SharedBytes) -> Self {
        register.span().store32(0, 0, Ordering::Release);
        Self { register, shadow: None }
    }

    /// Reads the index from `value` from now on, and asks for rings through `event`.
    pub(super) fn shadow(&mut self, value: SharedBytes, event: SharedBytes) {
        let last = self.load();
        self.shadow = Some(Shadow { value, event, awake: true, last });
    }

    /// Loads the index. Acquire: what the host wrote before announcing it can be read after.
    #[inline]
    pub(super) fn load(&mut self) -> u32 {
        match &mut self.shadow {
            None => self.register.span().load32(0, Ordering::Acquire),
            Some(shadow) => shadow.load(&self.register),
        }
    }

    /// Says that everything up to `index` has been dealt with.
    #[inline]
    pub(super) fn caught_up(&mut self, index: u32) {
        if let Some(shadow) = &mut self.shadow {
            shadow.sleep(index);
        }
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        // Nobody's doorbell: a later ring can be told from the last one of a queue that is gone.
        self.register.span().store32(0, 0, Ordering::Release);
    }
}

impl Shadow {
    #[cold]
    fn load(&mut self, register: &SharedBytes) -> u32 {
        let register = register.span();
        if register.load32(0, Ordering::Acquire) != UNRUNG {
            register.store32(0, UNRUNG, Ordering::Relaxed);
            // A ring between the load and the store is overwritten. The host stored the shadow before
            // it rang, so looking at the shadow after the fence sees what that ring announced.
            fence(Ordering::SeqCst);
            self.awake = true;
        }
        if self.awake {
            self.last = self.value.span().load32(0, Ordering::Acquire);
        }
        self.last
    }

    #[cold]
    fn sleep(&mut self, index: u32) {
        if !self.awake {
            return;
        }
        self.event.span().store32(0, index, Ordering::Relaxed);
        // The event index is visible before the shadow is looked at for the last time; the host stores
        // the shadow before it looks at the event index. One of the two sees the other's store.
        fence(Ordering::SeqCst);
        self.awake = self.value.span().load32(0, Ordering::Acquire) != index;
    }
}

/// The host announced an index that it cannot mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadIndex(pub(super) u32);

/// Where commands come from.
pub(super) struct SubmissionQueue {
    pub(super) id: u16,
    /// Where the host sees the ring, to know it again when its memory is unmapped.
    pub(super) iova: u64,
    ring: Ring<8>,
    tail: Index,
    head: u32,
    /// The last tail that made sense.
    known_tail: u32,
    /// The last that did not, so that it is reported once.
    bad: Option<u32>,
}

impl SubmissionQueue {
    pub(super) fn new(id: u16, iova: u64, ring: Ring<8>, tail: Index) -> Self {
        Self { id, iova, ring, tail, head: 0, known_tail: 0, bad: None }
    }

    /// Says whether the ring touches `len` bytes at `iova`.
    pub(super) fn lies_in(&self, iova: u64, len: u64) -> bool {
        touches(self.iova, u64::from(self.ring.entries()) * 64, iova, len)
    }

    /// Returns the doorbell, for Doorbell Buffer Config.
    pub(super) fn doorbell(&mut self) -> &mut Index {
        &mut self.tail
    }

    /// Returns how many commands have been announced and not fetched, and whether the tail is news.
    ///
    /// # Errors
    ///
    /// Once for each tail that lies outside the queue or passes its own head.
    #[inline]
    pub(super) fn announced(&mut self) -> Result<(u32, bool), BadIndex> {
        let tail = self.tail.load();
        if tail != self.known_tail {
            if !self.plausible(tail) {
                return self.implausible(tail);
            }
            self.known_tail = tail;
            return Ok((self.ahead(tail), true));
        }
        Ok((self.ahead(tail), false))
    }

    /// Fetches the next command.
    #[inline]
    pub(super) fn fetch(&mut self) -> Command {
        let words = self.ring.load(self.head);
        let next = self.head + 1;
        self.head = if next == self.ring.entries() { 0 } else { next };
        zerocopy::transmute!(words)
    }

    /// Peeks at two words of the next command: opcode and namespace, and the first block.
    #[inline]
    pub(super) fn peek(&self) -> (u64, u64) {
        let word = |index: usize| self.ring.entry(self.head)[index].load(Ordering::Relaxed);
        (word(0), word(5))
    }

    /// Returns the index of the next command to be fetched.
    #[inline]
    pub(super) fn head(&self) -> u16 {
        self.head as u16
    }

    /// Tells the host that nothing is left, where doorbells are shadowed.
    #[inline]
    pub(super) fn rest(&mut self) {
        self.tail.caught_up(self.head);
    }

    #[inline]
    fn ahead(&self, tail: u32) -> u32 {
        distance(self.head, tail, self.ring.entries())
    }

    /// Says whether the host can have moved its tail here: never past the head from behind.
    #[inline]
    fn plausible(&self, tail: u32) -> bool {
        let entries = self.ring.entries();
        tail < entries
            && self.ahead(self.known_tail) + distance(self.known_tail, tail, entries) < entries
    }

    #[cold]
    fn implausible(&mut self, tail: u32) -> Result<(u32, bool), BadIndex> {
        if self.bad.replace(tail) == Some(tail) {
            return Ok((self.ahead(self.known_tail), false));
        }
        Err(BadIndex(tail))
    }
}

/// Where completions go.
pub(super) struct CompletionQueue {
    pub(super) id: u16,
    pub(super) iova: u64,
    ring: Ring<2>,
    head: Index,
    /// The host's head as last seen.
    known_head: u32,
    tail: u32,
    /// The phase tag of this pass; the first is 1 (NVMe Base 2.0, 4.2.4).
    phase: bool,
    bad: Option<u32>,
    /// The interrupt that completions raise, and the tail that the last one told of.
    vector: Option<u16>,
    told_tail: u32,
}

impl CompletionQueue {
    pub(super) fn new(id: u16, iova: u64, ring: Ring<2>, head: Index, vector: Option<u16>) -> Self {
        let (known_head, tail, told_tail) = (0, 0, 0);
        Self { id, iova, ring, head, known_head, tail, phase: true, bad: None, vector, told_tail }
    }

    /// Returns the interrupt to be raised, if completions were posted since the last call.
    pub(super) fn interrupt(&mut self) -> Option<u16> {
        let is_news = core::mem::replace(&mut self.told_tail, self.tail) != self.tail;
        self.vector.filter(|_| is_news)
    }

    /// Says whether the ring touches `len` bytes at `iova`.
    pub(super) fn lies_in(&self, iova: u64, len: u64) -> bool {
        touches(self.iova, u64::from(self.ring.entries()) * 16, iova, len)
    }

    /// Returns the doorbell, for Doorbell Buffer Config.
    pub(super) fn doorbell(&mut self) -> &mut Index {
        &mut self.head
    }

    /// Returns how many completions can be posted before the host has to consume some.
    ///
    /// # Errors
    ///
    /// Once for each head that lies outside the queue or past what was posted.
    #[inline]
    pub(super) fn room(&mut self, wanted: u32) -> Result<u32, BadIndex> {
        let room = self.known_room();
        if room >= wanted {
            return Ok(room);
        }
        self.look()?;
        Ok(self.known_room())
    }

    /// Posts a completion; there is room.
    #[inline]
    pub(super) fn post(&mut self, mut completion: Completion) {
        completion.status.set_phase(self.phase);
        let [first, second]: [u64; 2] = zerocopy::transmute!(completion);
        self.ring.entry(self.tail)[0].store(first, Ordering::Relaxed);
        // Release: the host that sees the phase tag in this word sees the other one, and the data.
        self.ring.entry(self.tail)[1].store(second, Ordering::Release);
        self.tail += 1;
        if self.tail == self.ring.entries() {
            self.tail = 0;
            self.phase = !self.phase;
        }
    }

    /// Posts a completion that lies; there is room for one, and a second is posted only if there is.
    #[cold]
    pub(super) fn post_lie(&mut self, mut completion: Completion, lie: Lie) {
        match lie {
            Lie::Twice if self.known_room() > 1 => self.post(completion),
            Lie::Twice => {}
            Lie::Identifier(bits) => completion.cid ^= bits,
            Lie::Queue(further) => completion.sq_id = completion.sq_id.wrapping_add(further),
            Lie::Head(further) => completion.sq_head = completion.sq_head.wrapping_add(further),
            Lie::Phase => {
                self.phase = !self.phase;
                let (tail, phase) = (self.tail, self.phase);
                self.post(completion);
                (self.tail, self.phase) = (tail, !phase);
                return;
            }
        }
        self.post(completion);
    }

    #[inline]
    fn known_room(&self) -> u32 {
        let entries = self.ring.entries();
        entries - 1 - distance(self.known_head, self.tail, entries)
    }

    /// Looks at the host's head.
    fn look(&mut self) -> Result<(), BadIndex> {
        let (head, entries) = (self.head.load(), self.ring.entries());
        let used = distance(self.known_head, self.tail, entries);
        if head < entries && distance(self.known_head, head, entries) <= used {
            self.known_head = head;
            self.head.caught_up(head);
        } else if self.bad.replace(head) != Some(head) {
            return Err(BadIndex(head));
        }
        Ok(())
    }
}

/// Returns how far `to` is ahead of `from` in a ring.
#[inline]
fn distance(from: u32, to: u32, entries: u32) -> u32 {
    if to >= from { to - from } else { to + entries - from }
}

fn touches(base: u64, len: u64, other: u64, other_len: u64) -> bool {
    base < other.saturating_add(other_len) && other < base.saturating_add(len)
}
