//! A request whose ends do not lie at blocks, on its way.
//!
//! ```text
//!   read    covering blocks, the first and the last into buffers of their own ── copy ──> the caller's memory
//!   write   wait for the edges ── read them ── copy the caller's ends into them ── write the covering blocks
//! ```
//!
//! The covering request is one stream: edge, the caller's memory from block to block, edge. So the middle
//! is not copied, unless the device cannot reach it where it lies.
#![forbid(unsafe_code)]

use std::time::Instant;

use super::edges::{Turn, Wanted};
use crate::block::BlockError;
use crate::dio::{Action, Done, Io, IoVector, Memory, Slice};
use crate::dma::DmaBuf;
use crate::units::{FileBlock, FileId};

/// A request whose ends do not lie at blocks.
#[derive(Debug)]
pub(super) struct Ragged {
    file: FileId,
    action: Action,
    tag: u64,
    /// The bytes that the caller wants, and the blocks around them, in bytes.
    offset: u64,
    len: u64,
    start: u64,
    end: u64,
    block: u64,
    /// The caller's memory, while it is not part of the covering request.
    memory: Memory,
    /// What the memory was made of, while it is.
    shape: Shape,
    head: Option<DmaBuf>,
    tail: Option<DmaBuf>,
    /// The turn of a write at its edges.
    turn: Option<Turn>,
    pub(super) stage: Stage,
    pub(super) since: Instant,
    /// Why it is going to fail.
    error: Option<BlockError>,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Waits for its turn.
    Waiting,
    /// Reads edges: whether head and tail are still to be asked for, and how many answers are out.
    Reading { head: bool, tail: bool, out: u8 },
    /// The covering request is to be sent.
    Moving,
    /// It is out.
    Moved,
}

/// What the caller's memory was.
#[derive(Debug)]
enum Shape {
    One,
    Vector(Vec<Slice>),
}

/// Which part of a ragged request an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Head,
    Tail,
    Covering,
}

impl Ragged {
    /// Takes a request apart; `block` is the size of a block.
    pub(super) fn new(io: Io, block: u64, head: Option<DmaBuf>, tail: Option<DmaBuf>) -> Self {
        let len = io.len();
        let Io { file, offset, action, memory, tag, .. } = io;
        let start = offset - offset % block;
        let end = (offset + len).next_multiple_of(block);
        let stage = match action {
            Action::Read => Stage::Moving,
            _ => Stage::Waiting,
        };
        let shape = Shape::One;
        let (turn, since) = (None, Instant::now());
        Self {
            file,
            action,
            tag,
            offset,
            len,
            start,
            end,
            block,
            memory,
            shape,
            head,
            tail,
            turn,
            stage,
            since,
            error: None,
        }
    }

    /// Returns how many edges a request has: the blocks of which it covers a part.
    pub(super) fn edges(io: &Io, block: u64) -> (bool, bool) {
        let end = io.offset + io.len();
        let head = !io.offset.is_multiple_of(block);
        // Within one block, the head is all there is.
        let one_block = head && end / block == io.offset / block;
        let tail = !(end.is_multiple_of(block) || one_block);
        (head, tail)
    }

    /// Returns the edges that a write has to itself while it rewrites them.
    pub(super) fn wanted(&self) -> Wanted {
        let (first, last) = (self.start / self.block, self.end / self.block - 1);
        Wanted {
            file: self.file,
            head: self.head.is_some().then_some(FileBlock(first)),
            tail: self.tail.is_some().then_some(FileBlock(last)),
            end: false,
        }
    }

    pub(super) fn queued(&mut self, turn: Turn) {
        self.turn = Some(turn);
    }

    /// Notes why it is going to fail; the first reason stays.
    pub(super) fn fail(&mut self, error: BlockError) {
        self.error.get_or_insert(error);
    }

    pub(super) fn has_failed(&self) -> bool {
        self.error.is_some()
    }

    pub(super) fn take_error(&mut self) -> Option<BlockError> {
        self.error.take()
    }

    /// Returns how many requests of it are with the pipeline.
    pub(super) fn requests_out(&self) -> usize {
        match self.stage {
            Stage::Reading { out, .. } => usize::from(out),
            Stage::Moved => 1,
            Stage::Waiting | Stage::Moving => 0,
        }
    }

    /// Says whether its turn has come.
    pub(super) fn may_go(&self) -> bool {
        self.turn.as_ref().is_none_or(Turn::has_come)
    }

    /// Begins to read the edges.
    pub(super) fn read_edges(&mut self) {
        let (head, tail) = (self.head.is_some(), self.tail.is_some());
        self.stage = Stage::Reading { head, tail, out: 0 };
    }

    /// Returns the read of an edge, whose buffer leaves with it.
    pub(super) fn edge_read(&mut self, part: Part, tag: u64) -> Io {
        let (buffer, offset) = match part {
            Part::Head => (self.head.take(), self.start),
            _ => (self.tail.take(), self.end - self.block),
        };
        let mut buffer = buffer.expect("an edge has its buffer");
        // What lies beyond the end of a file is not read, and is zeroes.
        buffer.fill(0);
        Io::read(offset, buffer, tag).of(self.file)
    }

    /// Takes the buffer of an edge back.
    pub(super) fn edge_back(&mut self, part: Part, memory: Memory) {
        let buffer = memory.into_one();
        match part {
            Part::Head => self.head = buffer,
            _ => self.tail = buffer,
        }
    }

    /// Copies the ends of a write into its edges.
    pub(super) fn fill_edges(&mut self) {
        let (head_end, tail_start) = (self.head_end(), self.tail_start());
        if let Some(head) = &mut self.head {
            let at = (self.offset - self.start) as usize;
            let len = (head_end - self.offset) as usize;
            self.memory.read(0, &mut head[at..at + len]);
        }
        if let Some(tail) = &mut self.tail {
            let len = (self.offset + self.len - tail_start) as usize;
            self.memory.read(tail_start - self.offset, &mut tail[..len]);
        }
    }

    /// Copies what a read found in the edges into the ends of its memory.
    fn empty_edges(&mut self) {
        let (head_end, tail_start) = (self.head_end(), self.tail_start());
        if let Some(head) = &self.head {
            let at = (self.offset - self.start) as usize;
            let len = (head_end - self.offset) as usize;
            self.memory.write(0, &head[at..at + len]);
        }
        if let Some(tail) = &self.tail {
            let len = (self.offset + self.len - tail_start) as usize;
            self.memory.write(tail_start - self.offset, &tail[..len]);
        }
    }

    /// The byte where what the head covers ends, and the one where the tail begins.
    fn head_end(&self) -> u64 {
        let end = self.offset + self.len;
        if self.head.is_some() { end.min(self.start + self.block) } else { self.offset }
    }

    fn tail_start(&self) -> u64 {
        let end = self.offset + self.len;
        if self.tail.is_some() { self.end - self.block } else { end }
    }

    /// Returns the covering request, into which all memory moves.
    pub(super) fn covering(&mut self, tag: u64) -> Io {
        let (from, to) = (self.head_end() - self.offset, self.tail_start() - self.offset);
        let mut vector = match core::mem::take(&mut self.memory) {
            Memory::One(buffer) => {
                self.shape = Shape::One;
                IoVector::new().with(buffer)
            }
            Memory::Vector(vector) => {
                self.shape = Shape::Vector(vector.slices.clone());
                *vector
            }
            Memory::Nothing => unreachable!("a ragged request has memory"),
        };
        let middle = cut(&vector.slices, from, to);
        vector.slices.clear();
        if self.action == Action::Read {
            // What a failed or short read leaves in an edge is nobody else's old bytes.
            [&mut self.head, &mut self.tail].into_iter().flatten().for_each(|edge| edge.fill(0));
        }
        vector = match self.head.take() {
            Some(head) => vector.with(head),
            None => vector,
        };
        vector.slices.extend(middle);
        vector = match self.tail.take() {
            Some(tail) => vector.with(tail),
            None => vector,
        };
        let excess = match self.action {
            Action::Read => 0,
            _ => (self.end - (self.offset + self.len)) as u32,
        };
        let (file, offset, action, memory) = (self.file, self.start, self.action, vector.into());
        Io { file, offset, action, memory, excess, tag }
    }

    /// Takes all memory back out of a covering request.
    pub(super) fn uncover(&mut self, memory: Memory) {
        let (has_head, has_tail) = Self::edges_of(self.offset, self.len, self.block);
        let mut vector = memory.into_vector().expect("a covering request is a vector");
        self.tail = if has_tail { vector.dma.pop() } else { None };
        self.head = if has_head { vector.dma.pop() } else { None };
        self.memory = match core::mem::replace(&mut self.shape, Shape::One) {
            Shape::One => vector.dma.pop().map_or(Memory::Nothing, Memory::One),
            Shape::Vector(slices) => {
                vector.slices = slices;
                vector.into()
            }
        };
    }

    fn edges_of(offset: u64, len: u64, block: u64) -> (bool, bool) {
        Self::edges(&Io { offset, ..Io::bare(offset, Action::Deallocate { len }, 0) }, block)
    }

    /// Ends it with the answer of a part; returns the answer to the caller, and the edges' buffers.
    pub(super) fn finish(mut self, done: Done) -> (Done, [Option<DmaBuf>; 2]) {
        let Done { bytes, result, .. } = done;
        // Of the covering bytes, those before the caller's do not count.
        let bytes = bytes.saturating_sub(self.offset - self.start).min(self.len);
        if self.action == Action::Read {
            self.empty_edges();
        }
        let edges = [self.head.take(), self.tail.take()];
        (Done { tag: self.tag, memory: self.memory, bytes, result }, edges)
    }
}

/// Returns the slices of the stream from byte `from` to byte `to`.
fn cut(slices: &[Slice], from: u64, to: u64) -> Vec<Slice> {
    let mut begins = 0;
    let mut parts = Vec::new();
    for slice in slices {
        let ends = begins + u64::from(slice.len);
        let (low, high) = (from.max(begins), to.min(ends));
        if low < high {
            let offset = slice.offset + (low - begins) as u32;
            parts.push(Slice { offset, len: (high - low) as u32, ..*slice });
        }
        begins = ends;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dio::Source;

    #[test]
    fn a_cut_keeps_the_stream() {
        let slice = |offset, len| Slice { source: Source::Plain(0), offset, len };
        let slices = [slice(100, 10), slice(0, 0), slice(50, 20)];
        assert_eq!(cut(&slices, 0, 30), [slice(100, 10), slice(50, 20)]);
        assert_eq!(cut(&slices, 4, 12), [slice(104, 6), slice(50, 2)]);
        assert_eq!(cut(&slices, 10, 10), []);
    }

    #[test]
    fn edges_are_the_blocks_that_are_covered_in_part() {
        let edges =
            |offset, len| Ragged::edges(&Io::bare(offset, Action::Deallocate { len }, 0), 512);
        assert_eq!(edges(0, 512), (false, false));
        assert_eq!(edges(0, 100), (false, true));
        assert_eq!(edges(100, 100), (true, false), "one block has one edge");
        assert_eq!(edges(100, 412), (true, false));
        assert_eq!(edges(100, 413), (true, true));
        assert_eq!(edges(512, 1000), (false, true));
    }
}
