//! Every size of a file from 0 to 16 KiB, and every place of a read around its end, byte by byte.
//!
//! The file's blocks are filled once and its size shrinks a byte at a time, so that the device always holds
//! something else than zeroes past the end. A read answers `min(len, size - offset)` bytes or none; its
//! memory holds the file's bytes, zeroes to the end of the last block that was read, and beyond that
//! whatever it held before.

use udirect::block::{BlockDevice, Placement, ScriptedMap};
use udirect::dio::{Io, IoVector, Memory, Options, Slice, Source};
use udirect::dma::{Access, DmaBuf, Pool, SizeClass};
use udirect::units::{BlockCount, FileBlock};

use crate::bed::{Device, Drive, FILE, Setup, UNTOUCHED, World, bytes, place, stream};

/// The largest file.
const SIZE_MAX: u64 = 16_384;

/// The bytes of a block.
const BLOCK: u64 = 512;

/// A read that reaches past the end from wherever the file has a byte.
const LONG: u64 = SIZE_MAX + 8 * BLOCK;

/// A file of [`SIZE_MAX`] bytes, what is in it, and memory to read it into.
struct Matrix {
    setup: Setup,
    data: Vec<u8>,
    pool: Pool,
    reads: u64,
}

impl Matrix {
    /// The file lies on the device as `lay` places it.
    fn new(unit: u64, lay: impl Fn(&ScriptedMap)) -> Self {
        let world = World::new(&Device { bytes: 1 << 20, ..Device::default() });
        let class = SizeClass { bytes: LONG as usize, count: 2 };
        let pool = Pool::new(world.device.dma(), &[class], Access::Both).expect("a pool");
        let mut setup = Setup::over(world, unit, Placement::Rising, &Options::default());
        lay(&setup.map);
        let data = bytes(SIZE_MAX as usize, 16);
        setup.write(0, &data);
        Self { setup, data, pool, reads: 0 }
    }

    /// Calls `at_size` for each size, the largest first.
    fn shrink(mut self, step: usize, mut at_size: impl FnMut(&mut Self, u64)) {
        for size in (0..=SIZE_MAX).rev().step_by(step) {
            self.setup.map.set_len(FILE, size);
            at_size(&mut self, size);
        }
        assert!(self.reads > SIZE_MAX / step as u64, "it has read at each size");
        let Self { setup, pool, .. } = self;
        drop(pool);
        setup.finish();
    }

    fn buffer(&mut self, len: u64) -> DmaBuf {
        let mut buffer = self.pool.take(len as usize).expect("the last one has come back");
        buffer.fill(UNTOUCHED);
        buffer
    }

    /// Reads, and checks every byte of the memory; returns how many the file had.
    fn read(&mut self, size: u64, offset: u64, memory: impl Into<Memory>) -> u64 {
        let memory = memory.into();
        let len = memory.len();
        let done = self.setup.pipeline.run(Io::read(offset, memory, 0).of(FILE));
        done.result.as_ref().expect("a read");
        self.reads += 1;
        let wanted = if offset < size { len.min(size - offset) } else { 0 };
        let bytes = done.bytes;
        assert_eq!(bytes, wanted, "{len} bytes at {offset} of {size}");
        match done.memory {
            Memory::One(buffer) => {
                self.check(&buffer, size, offset, bytes as usize);
                self.pool.put(buffer);
            }
            memory => self.check(&stream(&memory), size, offset, bytes as usize),
        }
        bytes
    }

    fn check(&self, found: &[u8], size: u64, offset: u64, bytes: usize) {
        static ZEROES: [u8; BLOCK as usize] = [0; BLOCK as usize];
        static REST: [u8; LONG as usize] = [UNTOUCHED; LONG as usize];
        let (len, block) = (found.len(), BLOCK as usize);
        let end = bytes.next_multiple_of(block);
        let start = (offset as usize).min(self.data.len());
        assert!(
            found[..bytes] == self.data[start..start + bytes]
                && found[bytes..end] == ZEROES[..end - bytes]
                && found[end..] == REST[end..len],
            "{len} bytes at {offset} of {size}: what the file has, zeroes, what was there"
        );
    }
}

/// The places of reads: the start, the last block, the end rounded up to a block, and beyond.
fn offsets(size: u64) -> [u64; 4] {
    let end = size.next_multiple_of(BLOCK);
    [0, end.saturating_sub(BLOCK), end, end + 7 * BLOCK]
}

fn in_one_piece(map: &ScriptedMap) {
    place(map, 0, 64, SIZE_MAX / BLOCK);
}

/// Pieces of three blocks that lie backwards, so that a read is many commands.
fn backwards(map: &ScriptedMap) {
    let blocks = SIZE_MAX / BLOCK;
    for at in (0..blocks).step_by(3) {
        place(map, at, 512 - 2 * at, 3.min(blocks - at));
    }
}

/// Four offsets and three lengths at each size.
fn read_everywhere(matrix: &mut Matrix, size: u64) {
    for offset in offsets(size) {
        for len in [BLOCK, 8 * BLOCK, LONG] {
            let buffer = matrix.buffer(len);
            matrix.read(size, offset, buffer);
        }
    }
}

#[test]
fn every_size_reads_short_at_its_end_in_units_of_one_block() {
    Matrix::new(1, in_one_piece).shrink(1, read_everywhere);
}

#[test]
fn every_size_reads_short_at_its_end_in_units_of_eight_blocks() {
    Matrix::new(8, in_one_piece).shrink(1, read_everywhere);
}

#[test]
fn every_size_reads_short_at_its_end_in_pieces_all_over_the_device() {
    Matrix::new(1, backwards).shrink(3, read_everywhere);
}

#[test]
fn pieces_of_any_length_add_up_to_the_size() {
    let lengths = [1, 3, 5, 8, 13, 40].map(|blocks| blocks * BLOCK);
    let mut turn = lengths.iter().cycle();
    Matrix::new(8, in_one_piece).shrink(1, |matrix, size| {
        let len = *turn.next().expect("it goes round");
        let mut offset = 0;
        loop {
            let buffer = matrix.buffer(len);
            let bytes = matrix.read(size, offset, buffer);
            offset += bytes;
            if bytes < len {
                break;
            }
        }
        assert_eq!(offset, size, "in pieces of {len}");
    });
}

#[test]
fn every_kind_of_memory_ends_where_the_file_does() {
    // A step that meets every remainder of a block.
    Matrix::new(8, in_one_piece).shrink(7, |matrix, size| {
        for offset in offsets(size) {
            // The end falls into the first, the second or no segment.
            let buffer = matrix.setup.world.buffer(LONG as usize, Access::Both);
            let mut split = IoVector::new().with(buffer);
            // Cut at a page it goes out as it lies, cut anywhere else it is bounced.
            let cut = if size % 2 == 0 { 4096 } else { 4100 + 4 * (size as u32 % 1000) };
            let from = Source::Dma(0);
            let rest = LONG as u32 - cut;
            split.slices = vec![
                Slice { source: from, offset: rest, len: cut },
                Slice { source: from, offset: 0, len: rest },
            ];
            split.dma[0].fill(UNTOUCHED);
            matrix.read(size, offset, split);
            let plain = vec![UNTOUCHED; LONG as usize];
            matrix.read(size, offset, Memory::plain(plain));
        }
    });
}

#[test]
fn a_hole_at_the_end_reads_as_short_as_data() {
    Matrix::new(1, in_one_piece).shrink(5, |matrix, size| {
        // Block by block, the end of the file turns into a hole just before it is reached.
        let last = size.saturating_sub(1) / BLOCK;
        matrix.setup.map.punch(FILE, FileBlock(last), BlockCount(1));
        let from = (last * BLOCK) as usize;
        matrix.data[from..SIZE_MAX as usize].fill(0);
        read_everywhere(matrix, size);
    });
}
