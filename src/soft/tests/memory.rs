//! Memory: PRPs and SGLs against a naive walker, and an IOMMU that means it.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;
use std::sync::Arc;

use super::host::{Host, Queue, Sqe, fill, small};
use crate::dma::{Access, Arena, Domain, DomainOptions, IovaLimits, Mapper, PagePolicy, Window};
use crate::seed::Seed;
use crate::transport::Transport;
use crate::units::Iova;

const PAGES: u64 = 300;

/// Hands out pages of a window in random order, some of them adjacent.
struct Scatter {
    window: Window,
    free: Vec<u64>,
}

impl Scatter {
    fn new(host: &Host, seed: &mut Seed) -> Self {
        let window = host.domain.window(PAGES as usize * 4096, 4096, Access::Both).unwrap();
        let mut free: Vec<u64> = (0..PAGES).collect();
        for _ in 0..seed.below(400) {
            let (a, b) = (seed.below(PAGES) as usize, seed.below(PAGES) as usize);
            free.swap(a, b);
        }
        Self { window, free }
    }

    /// Returns the offset of a page that nobody has.
    fn page(&mut self) -> u64 {
        self.free.pop().unwrap() * 4096
    }

    fn iova(&self, offset: u64) -> u64 {
        self.window.iova().0 + offset
    }

    fn store(&self, offset: u64, word: u64) {
        self.window.span().store64(offset as usize, word, Ordering::Relaxed);
    }
}

/// Pieces of memory, as offsets and lengths, that a transfer is made of in order.
type Pieces = Vec<(u64, u64)>;

/// Builds a PRP transfer the plain way: one page after the other.
fn prps(scatter: &mut Scatter, seed: &mut Seed, len: u64) -> ([u64; 2], Pieces) {
    let offset = seed.below(1024) * 4;
    let first = scatter.page() + offset;
    let mut pieces = vec![(first, len.min(4096 - offset))];
    let mut rest = len - pieces[0].1;
    let mut pages = Vec::new();
    while rest > 0 {
        let page = scatter.page();
        pieces.push((page, rest.min(4096)));
        pages.push(scatter.iova(page));
        rest -= rest.min(4096);
    }
    let second = match pages.len() {
        0 => 0,
        1 => pages[0],
        _ => list(scatter, seed, &pages),
    };
    ([scatter.iova(first), second], pieces)
}

/// Writes PRP lists: the first anywhere in its page, each chained to the next when it is full.
fn list(scatter: &mut Scatter, seed: &mut Seed, pages: &[u64]) -> u64 {
    let start = scatter.page() + seed.below(512) * 8;
    let (mut at, mut left) = (start, pages);
    while let Some((page, rest)) = left.split_first() {
        if at % 4096 == 4088 && !rest.is_empty() {
            let next = scatter.page();
            scatter.store(at, scatter.iova(next));
            at = next;
        } else {
            scatter.store(at, *page);
            (at, left) = (at + 8, rest);
        }
    }
    scatter.iova(start)
}

/// Builds an SGL of blocks of any length, with buckets where the device writes.
fn sgl(scatter: &mut Scatter, seed: &mut Seed, len: u64, buckets: bool) -> ([u64; 2], Pieces) {
    let (mut pieces, mut blocks, mut rest) = (Vec::new(), Vec::new(), len);
    while rest > 0 {
        let n = 1 + seed.below(rest.min(4096));
        if buckets && seed.chance(1, 8) {
            blocks.push([0, n | 1 << 60]);
            pieces.push((u64::MAX, n));
        } else {
            let at = scatter.page() + seed.below(4097 - n);
            blocks.push([scatter.iova(at), n]);
            pieces.push((at, n));
        }
        rest -= n;
    }
    if blocks.len() == 1 {
        return (blocks[0], pieces);
    }
    (segments(scatter, seed, &blocks), pieces)
}

/// Writes descriptors into a chain of segments and returns the descriptor of the first.
fn segments(scatter: &mut Scatter, seed: &mut Seed, blocks: &[[u64; 2]]) -> [u64; 2] {
    let here = (1 + seed.below(40) as usize).min(blocks.len());
    let (now, later) = blocks.split_at(here);
    let page = scatter.page();
    let mut all = now.to_vec();
    if !later.is_empty() {
        all.push(segments(scatter, seed, later));
    }
    for (index, [address, rest]) in (0..).zip(&all) {
        scatter.store(page + index * 16, *address);
        scatter.store(page + index * 16 + 8, *rest);
    }
    let kind: u64 = if later.is_empty() { 3 } else { 2 };
    [scatter.iova(page), (all.len() as u64 * 16) | (kind << 60)]
}

fn gather(scatter: &Scatter, pieces: &Pieces) -> Vec<u8> {
    let mut all = Vec::new();
    for &(at, len) in pieces {
        let mut piece = vec![0; len as usize];
        scatter.window.span().slice(at as usize, len as usize).unwrap().read_into(&mut piece);
        all.extend(piece);
    }
    all
}

#[test]
fn scattered_transfers_agree_with_a_naive_walker() {
    let mut seed = Seed::from_env("scattered_transfers_agree_with_a_naive_walker");
    let (host, _admin, mut queue) = Host::with_queue(small());
    for round in 0..120 {
        let mut scatter = Scatter::new(&host, &mut seed);
        fill(&scatter.window, round as u8);
        let most = if seed.chance(1, 4) { 1000 } else { 40 };
        let blocks = 1 + seed.below(most);
        let by_sgl = seed.chance(1, 2) && blocks < 100;
        let shape = |scatter: &mut Scatter, seed: &mut Seed, buckets| match by_sgl {
            true => sgl(scatter, seed, blocks * 512, buckets),
            false => prps(scatter, seed, blocks * 512),
        };
        let flags = if by_sgl { 0x40 } else { 0 };
        let (from, source) = shape(&mut scatter, &mut seed, false);
        let expected = gather(&scatter, &source);
        let send = Sqe { flags, dptr: from, ..Sqe::new(1, 1) }.blocks(3, blocks as u32);
        assert_eq!(queue.run(send).status, 0, "round {round}: write of {blocks}");
        let mut scatter = Scatter::new(&host, &mut seed);
        let (to, target) = shape(&mut scatter, &mut seed, true);
        let receive = Sqe { flags, dptr: to, ..Sqe::new(2, 1) }.blocks(3, blocks as u32);
        assert_eq!(queue.run(receive).status, 0, "round {round}: read of {blocks}");
        check(&scatter, &target, &expected, round);
    }
}

/// Holds what arrived against what was sent, bucket by bucket.
fn check(scatter: &Scatter, target: &Pieces, expected: &[u8], round: u64) {
    let mut at = 0;
    for &(offset, len) in target {
        let want = &expected[at..at + len as usize];
        if offset != u64::MAX {
            assert!(gather(scatter, &vec![(offset, len)]) == want, "round {round}, byte {at}");
        }
        at += len as usize;
    }
    assert_eq!(at, expected.len());
}

#[test]
fn wrong_lists_have_their_own_status() {
    let (host, _admin, mut queue) = Host::with_queue(small());
    let list = host.memory(4096);
    let data = host.memory(16384).iova().0;
    let at = list.iova().0;
    let put = |words: &[u64]| {
        for (index, word) in words.iter().enumerate() {
            list.span().store64(index * 8, *word, Ordering::Relaxed);
        }
    };
    let run = |queue: &mut Queue, flags, dptr, blocks| {
        queue.run(Sqe { flags, dptr, ..Sqe::new(2, 1) }.blocks(0, blocks)).status
    };
    put(&[data + 4096, data + 8192 + 4]);
    assert_eq!(run(&mut queue, 0, [data, at], 24), 0x13, "entry with an offset");
    assert_eq!(run(&mut queue, 0, [data, at + 4], 24), 0x13, "list misaligned");
    assert_eq!(run(&mut queue, 0, [data, 4096], 24), 0x04, "list unmapped");
    put(&[data + 4096, 1 << 40]);
    assert_eq!(run(&mut queue, 0, [data, at], 24), 0x04, "entry unmapped");
    let last = |len: u64| [at, len | 3 << 60];
    for (what, words, first, status) in [
        ("too short", vec![], [data, 511], 0x0f),
        ("too long", vec![], [data, 513], 0x0f),
        ("keyed", vec![], [data, 512 | 4 << 60], 0x11),
        ("subtype", vec![], [data, 512 | 1 << 56], 0x11),
        ("reserved", vec![], [data, 512 | 1 << 40], 0x02),
        ("empty segment", vec![], last(0), 0x0d),
        ("odd segment", vec![], last(8), 0x0d),
        ("segment in the last", vec![data, 256, at, 16 | 3 << 60], last(32), 0x0d),
        ("no segment at the end", vec![data, 512], [at, 16 | 2 << 60], 0x0d),
        ("segment before the end", vec![at, 16 | 3 << 60, data, 512], [at, 32 | 2 << 60], 0x0e),
        ("chain that bites its tail", vec![at, 16 | 2 << 60], [at, 16 | 2 << 60], 0x0e),
        ("unmapped segment", vec![], [4096, 16 | 3 << 60], 0x04),
        ("unmapped data", vec![], [4096, 512], 0x04),
    ] {
        put(&words);
        assert_eq!(run(&mut queue, 0x40, first, 1), status, "{what}");
    }
    put(&[data, 0, data, 512]);
    assert_eq!(run(&mut queue, 0x40, last(32), 1), 0, "an empty block is legal");
}

#[test]
fn the_rights_of_memory_are_held() {
    let (host, _admin, mut queue) = Host::with_queue(small());
    let window = |access| host.domain.window(4096, 4096, access).unwrap();
    let (reads, writes) = (window(Access::DeviceReads), window(Access::DeviceWrites));
    let at = |opcode, window: &Window| Sqe::new(opcode, 1).prp(window.iova().0, 0).blocks(0, 1);
    assert_eq!(queue.run(at(1, &reads)).status, 0);
    assert_eq!(queue.run(at(2, &writes)).status, 0);
    assert_eq!(queue.run(at(2, &reads)).status, 0x04);
    assert_eq!(queue.run(at(1, &writes)).status, 0x04);
    assert_eq!(host.controller.counters().dma_faults, 2);
}

#[test]
fn a_transfer_may_cross_from_one_arena_to_the_next() {
    let (host, _admin, mut queue) = Host::with_queue(small());
    let [low, high] = host.domain.adjacent_windows(Access::Both);
    assert_eq!(low.iova().0 + low.len() as u64, high.iova().0);
    fill(&low, 1);
    fill(&high, 2);
    let start = low.iova().0 + (2 << 20) - 4096;
    let dptr = [start, high.iova().0];
    assert_eq!(queue.run(Sqe { dptr, ..Sqe::new(1, 1) }.blocks(0, 16)).status, 0);
    let back = host.memory(8192);
    let dptr = [back.iova().0, back.iova().0 + 4096];
    assert_eq!(queue.run(Sqe { dptr, ..Sqe::new(2, 1) }.blocks(0, 16)).status, 0);
    let half = |offset| back.span().slice(offset, 4096).unwrap();
    let tail = low.span().slice((2 << 20) - 4096, 4096).unwrap();
    assert_eq!(half(0).first_difference(tail), None);
    assert_eq!(half(4096).first_difference(high.span().slice(0, 4096).unwrap()), None);
}

#[test]
fn memory_that_was_unmapped_is_out_of_reach_at_once() {
    let (host, _admin, mut queue) = Host::with_queue(small());
    // A second domain, whose window lies beyond the addresses of the host's own.
    let other = Domain::new(DomainOptions { pages: PagePolicy::Ordinary });
    let filler = other.window(64 << 20, 4096, Access::DeviceReads).unwrap();
    let window = other.window(4096, 4096, Access::Both).unwrap();
    assert!(host.domain.usage().0 < 64 << 20);
    let beyond = Beyond { controller: Arc::clone(&host.transport), only: window.iova() };
    let attachment = other.attach(Arc::new(beyond)).unwrap();
    let write = Sqe::new(1, 1).prp(window.iova().0, 0).blocks(0, 1);
    assert_eq!(queue.run(write).status, 0);
    drop(attachment);
    assert_eq!(queue.run(write).status, 0x04, "the translation was remembered and is gone");
    drop((filler, window));
    assert_eq!(host.controller.counters().dma_faults, 1);
}

/// Passes on the arena that holds one address, and no other.
struct Beyond {
    controller: Arc<dyn Transport>,
    only: Iova,
}

impl Beyond {
    fn passes(&self, arena: &Arena) -> bool {
        let offset = self.only.offset_from(arena.iova());
        offset.is_some_and(|offset| offset < arena.len())
    }
}

impl Mapper for Beyond {
    fn name(&self) -> String {
        "beyond".into()
    }

    fn limits(&self) -> IovaLimits {
        self.controller.limits()
    }

    fn map(&self, arena: &Arc<Arena>) -> std::io::Result<()> {
        if self.passes(arena) { self.controller.map(arena) } else { Ok(()) }
    }

    fn unmap(&self, arena: &Arena) {
        if self.passes(arena) {
            self.controller.unmap(arena);
        }
    }
}

#[test]
fn unmapping_a_queue_is_fatal_and_touches_nothing_more() {
    let (mut host, _admin, mut queue) = Host::with_queue(small());
    drop(host.attachment.take());
    queue.push(Sqe::new(0, 1));
    queue.ring();
    queue.turn();
    assert_eq!(queue.peek(), None);
    assert_eq!(host.transport.read32(super::host::CSTS) & 2, 2, "CFS");
    host.attachment = Some(host.domain.attach(Arc::clone(&host.transport) as _).unwrap());
    host.transport.write32(super::host::CC, 0);
    let mut admin = host.enable();
    assert_eq!(host.queue(&mut admin, 1, 16).run(Sqe::new(0, 1)).status, 0);
}
