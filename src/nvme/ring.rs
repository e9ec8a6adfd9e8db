//! Submission and completion rings as the host sees them: indices, phase, doorbells.
//!
//! Indices are private copies: the host's own tail and head, and the controller's head as completions
//! report it, believed only inside the window of what was submitted. Every size from 2 to 65536 works,
//! not only powers of two.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;

use super::bell::Bell;
use crate::dma::Ring;
use crate::spec::command::Command;
use crate::spec::completion::Completion;
use crate::units::CommandId;

/// The host's end of a submission queue.
pub(super) struct SubmissionRing {
    ring: Ring<8>,
    bell: Bell,
    /// Where the next command goes.
    tail: u32,
    /// The tail that the controller was told of.
    rung: u32,
    /// The controller's head, as the last good completion reported it.
    head: u32,
}

impl SubmissionRing {
    pub(super) fn new(ring: Ring<8>, bell: Bell) -> Self {
        Self { ring, bell, tail: 0, rung: 0, head: 0 }
    }

    /// Begins anew, for a controller that knows nothing of the queue.
    pub(super) fn restart(&mut self) {
        (self.tail, self.rung, self.head) = (0, 0, 0);
        self.bell.clear();
    }

    /// Returns the identifiers of commands that the controller was not told of.
    pub(super) fn unannounced(&self) -> impl Iterator<Item = CommandId> {
        let entries = self.ring.entries();
        (0..distance(self.rung, self.tail, entries)).map(move |ahead| {
            let command: Command =
                zerocopy::transmute!(self.ring.load((self.rung + ahead) % entries));
            CommandId(command.cid)
        })
    }

    /// Writes a command. The caller has fewer commands outstanding than the ring has entries, less one,
    /// so that the tail cannot run into the head.
    #[inline(always)]
    pub(super) fn push(&mut self, command: Command) {
        self.ring.store(self.tail, zerocopy::transmute!(command));
        self.tail = next(self.tail, self.ring.entries());
    }

    /// Tells the controller of new commands; says whether a register was written.
    #[inline]
    pub(super) fn ring(&mut self) -> bool {
        if self.tail == self.rung {
            return false;
        }
        let written = self.bell.ring(self.rung, self.tail);
        self.rung = self.tail;
        written
    }

    /// Takes the head that a completion reports, if it lies between the last one and the tail; says
    /// whether it does.
    #[inline(always)]
    pub(super) fn accept_head(&mut self, head: u16) -> bool {
        let (head, entries) = (u32::from(head), self.ring.entries());
        let submitted = distance(self.head, self.rung, entries);
        let accepted = head < entries && distance(self.head, head, entries) <= submitted;
        if accepted {
            self.head = head;
        }
        accepted
    }

    /// Says why [`accept_head`](Self::accept_head) did not.
    #[cold]
    pub(super) fn explain_head(&self, head: u16) -> String {
        let (from, to, entries) = (self.head, self.rung, self.ring.entries());
        format!("submission queue head {head} is outside {from}..={to} of {entries} entries")
    }

    pub(super) fn state(&self) -> (u32, u32) {
        (self.head, self.tail)
    }
}

/// The host's end of a completion queue.
pub(super) struct CompletionRing {
    ring: Ring<2>,
    bell: Bell,
    /// Where the next completion will be.
    head: u32,
    /// The head that the controller was told of.
    rung: u32,
    /// What the phase tag of a new completion is: one on the first lap, then alternating.
    phase: bool,
}

impl CompletionRing {
    pub(super) fn new(ring: Ring<2>, bell: Bell) -> Self {
        Self { ring, bell, head: 0, rung: 0, phase: true }
    }

    /// Begins anew, for a controller that knows nothing of the queue: with entries of no phase.
    pub(super) fn restart(&mut self) {
        (0..self.ring.entries()).for_each(|index| self.ring.store(index, [0; 2]));
        (self.head, self.rung, self.phase) = (0, 0, true);
        self.bell.clear();
    }

    /// Returns a private copy of the next completion, if there is one.
    #[inline(always)]
    pub(super) fn peek(&self) -> Option<Completion> {
        // Acquire: the word that holds the phase tag first, then the rest of the entry and the data that
        // the command transferred. One load, so that no later rewrite can split the decision.
        let [low, high] = self.ring.entry(self.head);
        let high = high.load(Ordering::Acquire);
        if (high >> PHASE_BIT & 1 == 1) != self.phase {
            return None;
        }
        let low = low.load(Ordering::Relaxed);
        Some(zerocopy::transmute!([low, high]))
    }

    /// Steps over the completion that was peeked.
    #[inline(always)]
    pub(super) fn advance(&mut self) {
        self.head = next(self.head, self.ring.entries());
        self.phase ^= self.head == 0;
    }

    /// Tells the controller of the entries that may be used again; says whether a register was written.
    #[inline]
    pub(super) fn acknowledge(&mut self) -> bool {
        if self.head == self.rung {
            return false;
        }
        let written = self.bell.ring(self.rung, self.head);
        self.rung = self.head;
        written
    }

    pub(super) fn state(&self) -> (u32, bool) {
        (self.head, self.phase)
    }
}

/// The phase tag in the second word of a completion (NVMe Base 2.0, Figure 89: DW3 bit 16).
const PHASE_BIT: u32 = 48;

/// Returns the index after `index`.
#[inline(always)]
fn next(index: u32, entries: u32) -> u32 {
    let next = index + 1;
    if next == entries { 0 } else { next }
}

/// Returns how far it is from one index forward to another.
#[inline(always)]
fn distance(from: u32, to: u32, entries: u32) -> u32 {
    if to >= from { to - from } else { to + entries - from }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::SharedBytes;
    use crate::seed::Seed;
    use crate::transport::Doorbell;

    fn bell(space: &SharedBytes, offset: usize) -> Bell {
        Bell::Register(Doorbell::at(space, offset).unwrap())
    }

    /// A controller of nothing: consumes and posts whatever number it is asked to.
    struct World {
        space: SharedBytes,
        sq: SubmissionRing,
        cq: CompletionRing,
        entries: u32,
        posts: Ring<2>,
        consumed: u64,
        posted: u64,
    }

    impl World {
        fn new(entries: u32) -> Self {
            let space = SharedBytes::anonymous(4096).unwrap();
            let sq = SharedBytes::anonymous(entries as usize * 64).unwrap();
            let cq = SharedBytes::anonymous(entries as usize * 16).unwrap();
            Self {
                sq: SubmissionRing::new(Ring::over(sq, entries).unwrap(), bell(&space, 0)),
                cq: CompletionRing::new(Ring::over(cq.clone(), entries).unwrap(), bell(&space, 4)),
                posts: Ring::over(cq, entries).unwrap(),
                space,
                entries,
                consumed: 0,
                posted: 0,
            }
        }

        fn post(&mut self, cid: u16) {
            let index = (self.posted % u64::from(self.entries)) as u32;
            let phase = (self.posted / u64::from(self.entries)).is_multiple_of(2);
            let head = self.consumed % u64::from(self.entries);
            let high = head | u64::from(cid) << 32 | u64::from(phase) << PHASE_BIT;
            self.posts.entry(index)[0].store(0, Ordering::Relaxed);
            self.posts.entry(index)[1].store(high, Ordering::Release);
            self.posted += 1;
        }
    }

    #[test]
    fn phase_and_indices_hold_across_many_laps_of_every_size() {
        let mut seed = Seed::from_env("nvme ring wrap-around");
        for entries in (2..70).chain([255, 256, 257, 1000]) {
            let mut world = World::new(entries);
            let (mut submitted, mut seen) = (0u64, 0u64);
            while submitted < u64::from(entries) * 5 {
                let room = u64::from(entries) - 1 - (submitted - seen);
                for _ in 0..seed.below(room + 1) {
                    world.sq.push(Command { cid: submitted as u16, ..Command::default() });
                    submitted += 1;
                }
                world.sq.ring();
                let told = world.space.span().load32(0, Ordering::Acquire);
                assert_eq!(u64::from(told), submitted % u64::from(entries));
                let done = seed.below(submitted - world.consumed + 1);
                for _ in 0..done {
                    world.consumed += 1;
                    world.post(world.posted as u16);
                }
                while let Some(completion) = world.cq.peek() {
                    assert_eq!(completion.cid, seen as u16);
                    assert!(world.sq.accept_head(completion.sq_head));
                    world.cq.advance();
                    seen += 1;
                }
                world.cq.acknowledge();
                assert_eq!(seen, world.posted, "every posted entry is seen, and no other");
            }
        }
    }

    #[test]
    fn a_head_outside_the_submitted_window_is_refused() {
        let mut world = World::new(8);
        (0..5).for_each(|_| world.sq.push(Command::default()));
        world.sq.ring();
        assert!(world.sq.accept_head(3));
        assert!(!world.sq.accept_head(2), "heads do not go back");
        assert!(!world.sq.accept_head(6), "nothing was submitted there");
        assert!(!world.sq.accept_head(8), "there is no such entry");
        assert!(world.sq.accept_head(5));
        let text = world.sq.explain_head(2);
        assert_eq!(text, "submission queue head 2 is outside 5..=5 of 8 entries");
    }

    #[test]
    fn a_command_that_was_not_announced_cannot_have_been_fetched() {
        let mut world = World::new(8);
        world.sq.push(Command::default());
        assert!(!world.sq.accept_head(1));
    }

    /// SPDK reads a completion in place, several times, and QEMU's userspace driver asserts on what it finds. Here a
    /// device rewrites an entry for as long as it is read: each look is at one of the two that it writes, never at a
    /// head from one and an identifier from the other.
    #[test]
    fn an_entry_that_is_rewritten_while_it_is_read_is_decided_once() {
        let looks = if cfg!(debug_assertions) { 100_000 } else { 10_000_000 };
        let world = World::new(2);
        let entry = |head: u64, cid: u64| head | cid << 32 | 1 << PHASE_BIT;
        let (one, other) = (entry(1, 0x1111), entry(2, 0x2222));
        let done = core::sync::atomic::AtomicBool::new(false);
        world.posts.entry(0)[1].store(one, Ordering::Release);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    world.posts.entry(0)[1].store(other, Ordering::Release);
                    world.posts.entry(0)[1].store(one, Ordering::Release);
                }
            });
            // On a machine with other things to do the other thread comes late.
            let mut seen = [0u32; 2];
            let torn = loop {
                let found = world.cq.peek().map(|found| (found.sq_head, found.cid));
                match found {
                    Some((1, 0x1111)) => seen[0] += 1,
                    Some((2, 0x2222)) => seen[1] += 1,
                    torn => break Some(torn),
                }
                if seen[0] + seen[1] >= looks && !seen.contains(&0) {
                    break None;
                }
            };
            done.store(true, Ordering::Relaxed);
            assert_eq!(torn, None, "what was never written");
        });
    }

    #[test]
    fn doorbells_are_silent_when_nothing_is_new() {
        let mut world = World::new(4);
        assert!(!world.sq.ring());
        assert!(!world.cq.acknowledge());
        world.sq.push(Command::default());
        assert!(world.sq.ring());
        assert!(!world.sq.ring());
    }
}
