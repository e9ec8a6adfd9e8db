//! Blocks with metadata: tuples made, checked and taken away, and each way that a command is refused.
//!
//! Tuples are made here once more, bit by bit from the standard's polynomial, and laid by hand.
#![forbid(unsafe_code)]

use super::host::{Host, Queue, Sqe, bytes, fill, small};
use crate::dma::Window;
use crate::soft::{
    Controller, MediaOptions, MetadataOptions, NamespaceOptions, Options, ProtectionOptions,
};
use crate::units::LbaSize;

const BLOCK: usize = 512;
const INVALID_FIELD: u16 = 0x02;
const INVALID_PROTECTION: u16 = 0x181;
const GUARD: u16 = 0x282;
const APPLICATION: u16 = 0x283;
const REFERENCE: u16 = 0x284;
const COMPARE: u16 = 0x285;

const ACT: u32 = 1 << 29;
const CHECK_GUARD: u32 = 1 << 28;
const CHECK_APPLICATION: u32 = 1 << 27;
const CHECK_REFERENCE: u32 = 1 << 26;

#[derive(Clone, Copy, Debug)]
struct Shape {
    ms: u16,
    inline: bool,
    kind: u8,
    first: bool,
}

/// Every type and place, of eight bytes and of more.
fn shapes() -> impl Iterator<Item = Shape> {
    let places = [(8, false), (8, true), (16, false), (64, true)];
    let kinds = (1..=3).flat_map(|kind| [(kind, false), (kind, true)]);
    kinds
        .flat_map(move |(kind, inline)| places.map(|(ms, first)| Shape { ms, inline, kind, first }))
}

fn options(shape: Shape) -> Options {
    let protection =
        (shape.kind > 0).then_some(ProtectionOptions { kind: shape.kind, first: shape.first });
    let metadata = MetadataOptions { bytes: shape.ms, inline: shape.inline, protection };
    let namespace = NamespaceOptions {
        lba_size: LbaSize::B512,
        media: MediaOptions::Ram { bytes: 1 << 20 },
        metadata: Some(metadata),
    };
    Options { namespaces: vec![namespace], ..small() }
}

/// The guard, one bit after the other.
fn crc(bytes: &[u8]) -> u16 {
    let mut crc = 0u16;
    for bit in bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)) {
        let top = crc >> 15 ^ u16::from(bit);
        crc = crc << 1 ^ if top == 1 { 0x8bb7 } else { 0 };
    }
    crc
}

impl Shape {
    fn tuple_at(self) -> usize {
        if self.first { 0 } else { usize::from(self.ms) - 8 }
    }

    fn reference(self, first: u32, index: usize) -> u32 {
        if self.kind == 3 { first } else { first + index as u32 }
    }

    /// The metadata of `data` whose first reference tag is `first`; what is not tuple is `rest`.
    fn metadata(self, data: &[u8], application: u16, first: u32, rest: u8) -> Vec<u8> {
        let mut all = Vec::new();
        for (index, data) in data.chunks(BLOCK).enumerate() {
            let mut metadata = vec![rest; usize::from(self.ms)];
            let at = self.tuple_at();
            let guard = crc(&[data, &metadata[..at]].concat());
            metadata[at..at + 2].copy_from_slice(&guard.to_be_bytes());
            metadata[at + 2..at + 4].copy_from_slice(&application.to_be_bytes());
            let reference = self.reference(first, index);
            metadata[at + 4..at + 8].copy_from_slice(&reference.to_be_bytes());
            all.extend(metadata);
        }
        all
    }

    /// PRCHK bits that this type may ask for.
    fn checks(self) -> u32 {
        let reference = if self.kind == 3 { 0 } else { CHECK_REFERENCE };
        CHECK_GUARD | CHECK_APPLICATION | reference
    }
}

/// A host of one namespace with metadata, and memory to move eight blocks with it.
struct Bed {
    shape: Shape,
    data: Window,
    metadata: Window,
    queue: Queue,
    _admin: Queue,
    host: Host,
}

impl Bed {
    fn new(shape: Shape) -> Self {
        let (host, admin, queue) = Host::with_queue(options(shape));
        // Inline, eight blocks with 64 bytes each take two pages.
        let (data, metadata) = (host.memory(8192), host.memory(4096));
        Self { shape, data, metadata, queue, _admin: admin, host }
    }

    fn command(&self, opcode: u8, lba: u64, count: u32, prinfo: u32) -> Sqe {
        let moved = !(prinfo & ACT != 0 && self.shape.ms == 8);
        let inline = moved && self.shape.inline;
        let len = count as usize * (BLOCK + if inline { usize::from(self.shape.ms) } else { 0 });
        let iova = self.data.iova().0;
        let mptr = if moved && !self.shape.inline { self.metadata.iova().0 } else { 0 };
        let second = if len > 4096 { iova + 4096 } else { 0 };
        let mut sqe = Sqe { mptr, ..Sqe::new(opcode, 1) }.prp(iova, second).blocks(lba, count);
        sqe.cdw[2] |= prinfo;
        sqe.cdw[4] = lba as u32;
        sqe.cdw[5] = 0xffff_0000;
        sqe
    }

    /// Puts data and metadata where a command with metadata has them.
    fn lay(&self, data: &[u8], metadata: &[u8]) {
        if self.shape.inline {
            let blocks = data.chunks(BLOCK).zip(metadata.chunks(usize::from(self.shape.ms)));
            let all: Vec<u8> = blocks.flat_map(|(data, more)| [data, more].concat()).collect();
            self.data.span().slice(0, all.len()).unwrap().write_from(&all);
        } else {
            self.data.span().slice(0, data.len()).unwrap().write_from(data);
            self.metadata.span().slice(0, metadata.len()).unwrap().write_from(metadata);
        }
    }

    /// Reads blocks without a check, and returns data and metadata.
    fn look(&mut self, lba: u64, count: u32) -> (Vec<u8>, Vec<u8>) {
        let mut sqe = self.command(2, lba, count, 0);
        sqe.cdw[4] = 0;
        assert_eq!(self.queue.run(sqe).status, 0, "{:?}", self.shape);
        let (ms, count) = (usize::from(self.shape.ms), count as usize);
        let (data, metadata) = (bytes(&self.data), bytes(&self.metadata));
        if !self.shape.inline {
            return (data[..count * BLOCK].to_vec(), metadata[..count * ms].to_vec());
        }
        let blocks: Vec<_> = data.chunks(BLOCK + ms).take(count).collect();
        let data = blocks.iter().flat_map(|block| block[..BLOCK].to_vec()).collect();
        (data, blocks.iter().flat_map(|block| block[BLOCK..].to_vec()).collect())
    }

    /// Writes blocks without a check, with this metadata.
    fn plant(&mut self, lba: u64, data: &[u8], metadata: &[u8]) {
        self.lay(data, metadata);
        let sqe = self.command(1, lba, (data.len() / BLOCK) as u32, 0);
        assert_eq!(self.queue.run(sqe).status, 0, "{:?}", self.shape);
    }

    fn status(&mut self, opcode: u8, lba: u64, count: u32, prinfo: u32) -> u16 {
        let sqe = self.command(opcode, lba, count, prinfo);
        self.queue.run(sqe).status
    }
}

fn pattern(blocks: usize, seed: u8) -> Vec<u8> {
    (0..blocks * BLOCK).map(|at| (at * 7 + at / BLOCK * 13) as u8 ^ seed).collect()
}

#[test]
fn the_controller_makes_checks_and_strips_what_a_plain_host_never_sees() {
    for shape in shapes() {
        let mut bed = Bed::new(shape);
        let data = pattern(8, 3);
        bed.lay(&data, &vec![0x5a; 8 * usize::from(shape.ms)]);
        if shape.ms == 8 {
            // Nothing but data is moved.
            bed.data.span().slice(0, data.len()).unwrap().write_from(&data);
        }
        assert_eq!(bed.status(1, 16, 8, ACT), 0, "{shape:?}");
        fill(&bed.data, 9);
        assert_eq!(bed.status(2, 16, 8, ACT | shape.checks()), 0, "{shape:?}");
        if shape.ms == 8 {
            assert_eq!(bytes(&bed.data)[..data.len()], data[..], "{shape:?}");
        }
        let expected = shape.metadata(&data, 0, 16, 0x5a);
        assert_eq!(bed.look(16, 8), (data, expected), "{shape:?}");
    }
}

#[test]
fn each_field_of_a_tuple_has_its_own_status() {
    for shape in shapes() {
        let mut bed = Bed::new(shape);
        let data = pattern(4, 77);
        let good = shape.metadata(&data, 0x1234, 20, 0);
        let at = 2 * usize::from(shape.ms) + shape.tuple_at();
        let cases = [(at + 1, CHECK_GUARD, GUARD), (at + 3, CHECK_APPLICATION, APPLICATION)];
        let reference = (at + 7, CHECK_REFERENCE, REFERENCE);
        let cases = cases.into_iter().chain((shape.kind != 3).then_some(reference));
        for (byte, check, status) in cases {
            let mut bad = good.clone();
            bad[byte] ^= 1;
            bed.plant(20, &data, &bad);
            for opcode in [2, 1] {
                bed.lay(&data, &bad);
                let mut sqe = bed.command(opcode, 20, 4, check);
                sqe.cdw[5] = 0xffff_1234;
                assert_eq!(bed.queue.run(sqe).status, status, "{shape:?} opcode {opcode}");
                // The other checks do not see it, and neither does the block before.
                bed.lay(&data, &bad);
                sqe.cdw[2] = 3 | shape.checks() & !check;
                assert_eq!(bed.queue.run(sqe).status, 0, "{shape:?} opcode {opcode}");
                bed.lay(&data, &bad);
                sqe.cdw[2] = 1 | shape.checks();
                assert_eq!(bed.queue.run(sqe).status, 0, "{shape:?} opcode {opcode}");
            }
        }
        // Bits of the application tag that the mask leaves out are not looked at.
        bed.plant(20, &data, &good);
        let mut sqe = bed.command(2, 20, 4, shape.checks());
        sqe.cdw[5] = 0xff00_12ff;
        assert_eq!(bed.queue.run(sqe).status, 0, "{shape:?}");
    }
}

#[test]
fn what_fails_a_check_reaches_neither_the_medium_nor_the_host() {
    for shape in shapes() {
        let mut bed = Bed::new(shape);
        let (old, new) = (pattern(2, 1), pattern(2, 2));
        let good = shape.metadata(&old, 0, 5, 0);
        bed.plant(5, &old, &good);
        let mut bad = shape.metadata(&new, 0, 5, 0);
        bad[usize::from(shape.ms) + shape.tuple_at()] ^= 0x80;
        bed.lay(&new, &bad);
        assert_eq!(bed.status(1, 5, 2, shape.checks()), GUARD, "{shape:?}");
        assert_eq!(bed.look(5, 2), (old, good), "{shape:?}");
        bed.plant(5, &new, &bad);
        let before = fill(&bed.data, 33);
        assert_eq!(bed.status(2, 5, 2, shape.checks()), GUARD, "{shape:?}");
        assert_eq!(bytes(&bed.data), before, "{shape:?}");
    }
}

#[test]
fn tags_of_all_ones_turn_the_checks_off() {
    for shape in shapes() {
        let mut bed = Bed::new(shape);
        let data = pattern(1, 8);
        let mut escaped = shape.metadata(&data, 0xffff, 40, 0);
        escaped[shape.tuple_at()] ^= 0xff;
        bed.plant(40, &data, &escaped);
        let expected = if shape.kind == 3 { GUARD } else { 0 };
        assert_eq!(bed.status(2, 40, 1, shape.checks()), expected, "{shape:?}");
        escaped[shape.tuple_at() + 4..][..4].fill(0xff);
        bed.plant(40, &data, &escaped);
        assert_eq!(bed.status(2, 40, 1, shape.checks()), 0, "{shape:?}");
        // Blocks that were never written have such tags.
        assert_eq!(bed.status(2, 41, 1, shape.checks()), 0, "{shape:?}");
        let (zeroes, metadata) = bed.look(41, 1);
        assert_eq!(zeroes, vec![0; BLOCK]);
        assert_eq!(metadata[shape.tuple_at()..][..8], [0xff; 8], "{shape:?}");
    }
}

#[test]
fn zeroes_deallocation_verify_compare_and_copy_mind_the_tuples() {
    for shape in shapes() {
        let mut bed = Bed::new(shape);
        let none = |mut sqe: Sqe| {
            (sqe.mptr, sqe.dptr) = (0, [0, 0]);
            sqe
        };
        let data = pattern(4, 21);
        let metadata = shape.metadata(&data, 0, 8, 0);
        bed.plant(8, &data, &metadata);
        let verify = none(bed.command(12, 8, 4, shape.checks()));
        assert_eq!(bed.queue.run(verify).status, 0, "{shape:?}");
        let acts = none(bed.command(12, 8, 4, ACT));
        assert_eq!(bed.queue.run(acts).status, INVALID_PROTECTION, "{shape:?}");

        bed.lay(&data, &metadata);
        assert_eq!(bed.status(5, 8, 4, shape.checks()), 0, "{shape:?}");
        let mut sqe = bed.command(5, 8, 4, ACT);
        sqe.mptr = 0;
        assert_eq!(bed.queue.run(sqe).status, INVALID_PROTECTION, "{shape:?}");
        let mut other = data.clone();
        other[700] ^= 1;
        bed.lay(&other, &shape.metadata(&other, 0, 8, 0));
        assert_eq!(bed.status(5, 8, 4, shape.checks()), COMPARE, "{shape:?}");

        let copy = bed.copy(8, 2, 100, ACT, ACT);
        assert_eq!(copy, 0, "{shape:?}");
        let expected = shape.metadata(&data[..2 * BLOCK], 0, 100, 0);
        assert_eq!(bed.look(100, 2), (data[..2 * BLOCK].to_vec(), expected), "{shape:?}");
        assert_eq!(bed.copy(8, 2, 100, ACT, 0), INVALID_FIELD, "{shape:?}");

        let zeroes = none(bed.command(8, 9, 1, ACT));
        assert_eq!(bed.queue.run(zeroes).status, 0, "{shape:?}");
        let expected = shape.metadata(&[0; BLOCK], 0, 9, 0);
        assert_eq!(bed.look(9, 1), (vec![0; BLOCK], expected), "{shape:?}");
        let checked = none(bed.command(8, 9, 1, CHECK_GUARD));
        assert_eq!(bed.queue.run(checked).status, INVALID_PROTECTION, "{shape:?}");
        let plain = none(bed.command(8, 10, 1, 0));
        assert_eq!(bed.queue.run(plain).status, 0, "{shape:?}");
        assert_eq!(bed.look(10, 1).1[shape.tuple_at()..][..8], [0xff; 8], "{shape:?}");
        assert_eq!(bed.look(11, 1).0, data[3 * BLOCK..], "{shape:?}");
    }
}

impl Bed {
    /// Copies `count` blocks; the reference tags are the blocks' numbers.
    fn copy(&mut self, from: u64, count: u32, to: u64, reads: u32, writes: u32) -> u16 {
        use core::sync::atomic::Ordering::Relaxed;
        let list = self.host.memory(32);
        list.span().fill(0);
        list.span().store64(8, from, Relaxed);
        list.span().store32(16, count - 1, Relaxed);
        list.span().store32(24, from as u32, Relaxed);
        let prinfo = writes | reads >> 14;
        let sqe = Sqe::new(0x19, 1).prp(list.iova().0, 0);
        let sqe = sqe.cdw([to as u32, 0, prinfo, 0, to as u32, 0]);
        self.queue.run(sqe).status
    }
}

#[test]
fn commands_that_contradict_the_format_are_refused() {
    for shape in shapes() {
        let mut bed = Bed::new(shape);
        let reference = Sqe { cdw: [9, 0, CHECK_REFERENCE, 0, 8, 0], ..bed.command(2, 9, 1, 0) };
        let expected = if shape.kind == 2 { 0 } else { INVALID_PROTECTION };
        assert_eq!(bed.queue.run(reference).status, expected, "{shape:?}");
        let mut made = bed.command(1, 9, 1, ACT);
        made.cdw[4] = 8;
        let expected = if shape.kind == 1 { INVALID_PROTECTION } else { 0 };
        assert_eq!(bed.queue.run(made).status, expected, "{shape:?}");
        let mut pointed = bed.command(2, 9, 1, if shape.ms == 8 { ACT } else { 0 });
        pointed.mptr = if pointed.mptr == 0 { 4096 } else { pointed.mptr + 2 };
        assert_eq!(bed.queue.run(pointed).status, INVALID_FIELD, "{shape:?}");
        let mut reserved = bed.command(2, 9, 1, 0);
        reserved.cdw[3] = 1 << 8;
        assert_eq!(bed.queue.run(reserved).status, INVALID_FIELD, "{shape:?}");
    }
}

#[test]
fn metadata_without_protection_is_bytes_and_nothing_else() {
    for inline in [false, true] {
        let shape = Shape { ms: 16, inline, kind: 0, first: false };
        let mut bed = Bed::new(shape);
        let data = pattern(3, 5);
        let metadata: Vec<u8> = (0..48).collect();
        bed.lay(&data, &metadata);
        let bare = |bed: &Bed, opcode, prinfo| {
            let mut sqe = bed.command(opcode, 3, 3, prinfo);
            (sqe.cdw[4], sqe.cdw[5]) = (0, 0);
            sqe
        };
        let write = bare(&bed, 1, 0);
        assert_eq!(bed.queue.run(write).status, 0);
        bed.data.span().fill(0);
        let read = bare(&bed, 2, 0);
        assert_eq!(bed.queue.run(read).status, 0);
        let compare = bare(&bed, 5, 0);
        assert_eq!(bed.queue.run(compare).status, 0);
        bed.lay(&data, &[1; 48]);
        assert_eq!(bed.queue.run(compare).status, COMPARE, "metadata is compared");
        for prinfo in [ACT, CHECK_GUARD] {
            let asked = bare(&bed, 2, prinfo);
            assert_eq!(bed.queue.run(asked).status, INVALID_FIELD);
        }
    }
}

#[test]
fn inline_metadata_counts_against_the_largest_transfer() {
    let shape = Shape { ms: 8, inline: true, kind: 1, first: false };
    let (host, _admin, mut queue) =
        Host::with_queue(Options { mdts: Some(8192), ..options(shape) });
    let memory = host.memory(16_384);
    let (iova, blocks) = (memory.iova().0, 16);
    let read = |count| Sqe::new(2, 1).prp(iova, iova + 4096).blocks(0, count);
    assert_eq!(queue.run(read(blocks)).status, INVALID_FIELD);
    assert_eq!(queue.run(read(blocks - 1)).status, 0);
    let mut stripped = read(blocks);
    stripped.cdw[2] |= ACT;
    assert_eq!(queue.run(stripped).status, 0);
}

#[test]
fn a_file_keeps_metadata_behind_its_data_and_gives_both_back() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("disk");
    let shape = Shape { ms: 16, inline: false, kind: 1, first: false };
    let with = |bytes| {
        let mut options = options(shape);
        options.namespaces[0].media = MediaOptions::File { path: path.clone(), bytes };
        options
    };
    let data = pattern(8, 44);
    let metadata = shape.metadata(&data, 7, 2040, 0x77);
    {
        let (host, admin, queue) = Host::with_queue(with(Some(1 << 20)));
        let (memory, more) = (host.memory(8192), host.memory(4096));
        let mut bed = Bed { shape, data: memory, metadata: more, queue, _admin: admin, host };
        bed.plant(2040, &data, &metadata);
    }
    assert_eq!(path.metadata().unwrap().len(), (1 << 20) + 2048 * 16);
    let (host, admin, queue) = Host::with_queue(with(None));
    let (memory, more) = (host.memory(8192), host.memory(4096));
    let mut bed = Bed { shape, data: memory, metadata: more, queue, _admin: admin, host };
    assert_eq!(bed.look(2040, 8), (data, metadata));
}

#[test]
fn metadata_that_cannot_be_kept_is_refused_with_its_number() {
    let refused = |shape: Shape, media: Option<MediaOptions>| {
        let mut options = options(shape);
        if let Some(media) = media {
            options.namespaces[0].media = media;
        }
        Controller::new(options).err().expect("it is refused").to_string()
    };
    let shape = Shape { ms: 7, inline: false, kind: 1, first: false };
    assert_eq!(refused(shape, None), "metadata of a block in bytes is 7, outside 8..=4096");
    let unknown = Shape { ms: 8, kind: 4, ..shape };
    let text = refused(unknown, None);
    assert_eq!(text, "the type of protection information is 4, outside 1..=3");
    let null = Some(MediaOptions::Null { bytes: 1 << 20 });
    let text = refused(Shape { ms: 8, ..shape }, null);
    assert!(text.contains("keeps no metadata"), "{text}");
}
