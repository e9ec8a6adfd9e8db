//! The memory of a request: one buffer, or slices of several that form one stream of bytes.
#![forbid(unsafe_code)]

use crate::dma::DmaBuf;

/// The most segments of one request, as the kernel's `UIO_MAXIOV`.
pub const SEGMENTS_MAX: usize = 1024;

/// The memory of a request.
#[derive(Debug, Default)]
pub enum Memory {
    /// None: the request moves no data.
    #[default]
    Nothing,
    /// All of one buffer.
    One(DmaBuf),
    /// Slices of buffers, and of memory that no device reaches.
    Vector(Box<IoVector>),
}

/// One segment: a slice of a buffer of the vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Which buffer.
    pub source: Source,
    /// First byte of it.
    pub offset: u32,
    /// Length in bytes.
    pub len: u32,
}

/// A buffer of a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Memory that the device reaches, by index.
    Dma(u16),
    /// Memory that it does not reach, by index: its bytes are bounced.
    Plain(u16),
}

/// Buffers, and the slices of them that a request reads or writes, in order.
#[derive(Debug, Default)]
pub struct IoVector {
    /// Memory that the device reaches.
    pub dma: Vec<DmaBuf>,
    /// Memory that it does not reach.
    pub plain: Vec<Vec<u8>>,
    /// The segments.
    pub slices: Vec<Slice>,
}

impl IoVector {
    /// Makes a vector without segments.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a buffer, and all of it as the next segment.
    ///
    /// # Panics
    ///
    /// If there are 65536 buffers already.
    #[must_use]
    pub fn with(mut self, buffer: DmaBuf) -> Self {
        let source = Source::Dma(index(self.dma.len()));
        self.slices.push(Slice { source, offset: 0, len: buffer.len() as u32 });
        self.dma.push(buffer);
        self
    }

    /// Adds memory that no device reaches, and all of it as the next segment.
    ///
    /// # Panics
    ///
    /// If there are 65536 such already, or it is 4 GiB or longer.
    #[must_use]
    pub fn with_plain(mut self, bytes: Vec<u8>) -> Self {
        let len = u32::try_from(bytes.len()).expect("a segment is shorter than 4 GiB");
        let source = Source::Plain(index(self.plain.len()));
        self.slices.push(Slice { source, offset: 0, len });
        self.plain.push(bytes);
        self
    }

    /// Returns the length in bytes of all segments.
    pub fn len(&self) -> u64 {
        self.slices.iter().map(|slice| u64::from(slice.len)).sum()
    }

    /// Says whether there is no byte in it.
    pub fn is_empty(&self) -> bool {
        self.slices.iter().all(|slice| slice.len == 0)
    }

    /// Returns the bytes of a segment.
    ///
    /// # Panics
    ///
    /// If the slice does not lie within its buffer; the pipeline refuses such vectors.
    pub fn bytes(&self, slice: Slice) -> &[u8] {
        let buffer = match slice.source {
            Source::Dma(index) => &self.dma[usize::from(index)][..],
            Source::Plain(index) => &self.plain[usize::from(index)][..],
        };
        &buffer[slice.offset as usize..][..slice.len as usize]
    }

    /// Returns the bytes of a segment, to be changed.
    ///
    /// # Panics
    ///
    /// As [`bytes`](Self::bytes).
    pub fn bytes_mut(&mut self, slice: Slice) -> &mut [u8] {
        let buffer = match slice.source {
            Source::Dma(index) => &mut self.dma[usize::from(index)][..],
            Source::Plain(index) => &mut self.plain[usize::from(index)][..],
        };
        &mut buffer[slice.offset as usize..][..slice.len as usize]
    }

    /// Returns the length of the buffer of a slice, or `None` if there is no such buffer.
    pub(super) fn source_len(&self, source: Source) -> Option<usize> {
        match source {
            Source::Dma(index) => self.dma.get(usize::from(index)).map(|buffer| buffer.len()),
            Source::Plain(index) => self.plain.get(usize::from(index)).map(Vec::len),
        }
    }
}

fn index(count: usize) -> u16 {
    u16::try_from(count).expect("a vector has at most 65536 buffers")
}

impl Memory {
    /// Makes the memory of several buffers, each as a whole.
    pub fn list(buffers: impl IntoIterator<Item = DmaBuf>) -> Self {
        Self::Vector(Box::new(buffers.into_iter().fold(IoVector::new(), IoVector::with)))
    }

    /// Makes the memory of bytes that no device reaches.
    pub fn plain(bytes: Vec<u8>) -> Self {
        Self::Vector(Box::new(IoVector::new().with_plain(bytes)))
    }

    /// Returns the length in bytes.
    #[inline]
    pub fn len(&self) -> u64 {
        match self {
            Self::Nothing => 0,
            Self::One(buffer) => buffer.len() as u64,
            Self::Vector(vector) => vector.len(),
        }
    }

    /// Says whether there is no byte in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the buffer of a memory that is one.
    pub fn into_one(self) -> Option<DmaBuf> {
        match self {
            Self::One(buffer) => Some(buffer),
            _ => None,
        }
    }

    /// Returns the vector of a memory that is one.
    pub fn into_vector(self) -> Option<IoVector> {
        match self {
            Self::Vector(vector) => Some(*vector),
            _ => None,
        }
    }

    /// Copies bytes out, from byte `offset` of the stream on.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    pub fn read(&self, offset: u64, to: &mut [u8]) {
        let mut done = 0;
        self.visit(offset, to.len(), |bytes| {
            to[done..done + bytes.len()].copy_from_slice(bytes);
            done += bytes.len();
        });
    }

    /// Copies bytes in, from byte `offset` of the stream on.
    ///
    /// # Panics
    ///
    /// If there is no room for so many.
    pub fn write(&mut self, offset: u64, from: &[u8]) {
        let mut done = 0;
        self.visit_mut(offset, from.len(), |bytes| {
            bytes.copy_from_slice(&from[done..done + bytes.len()]);
            done += bytes.len();
        });
    }

    /// Fills `len` bytes from byte `offset` of the stream on with zeroes.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    pub fn zero(&mut self, offset: u64, len: usize) {
        self.visit_mut(offset, len, |bytes| bytes.fill(0));
    }

    fn visit(&self, offset: u64, len: usize, mut see: impl FnMut(&[u8])) {
        match self {
            Self::Nothing => assert_eq!(len, 0, "there is no memory"),
            Self::One(buffer) => see(&buffer[offset as usize..][..len]),
            Self::Vector(vector) => {
                let mut begins = 0;
                for slice in &vector.slices {
                    if let Some(part) = part(*slice, begins, offset, len) {
                        see(vector.bytes(part));
                    }
                    begins += u64::from(slice.len);
                }
                assert!(offset + len as u64 <= begins, "{len} bytes at {offset} of {begins}");
            }
        }
    }

    fn visit_mut(&mut self, offset: u64, len: usize, mut see: impl FnMut(&mut [u8])) {
        match self {
            Self::Nothing => assert_eq!(len, 0, "there is no memory"),
            Self::One(buffer) => see(&mut buffer[offset as usize..][..len]),
            Self::Vector(vector) => {
                let mut begins = 0;
                for at in 0..vector.slices.len() {
                    let slice = vector.slices[at];
                    if let Some(part) = part(slice, begins, offset, len) {
                        see(vector.bytes_mut(part));
                    }
                    begins += u64::from(slice.len);
                }
                assert!(offset + len as u64 <= begins, "{len} bytes at {offset} of {begins}");
            }
        }
    }
}

/// Returns the part of a segment, which begins at byte `begins` of the stream, within `len` bytes from
/// `offset` on.
fn part(slice: Slice, begins: u64, offset: u64, len: usize) -> Option<Slice> {
    let from = offset.max(begins);
    let to = (offset + len as u64).min(begins + u64::from(slice.len));
    (from < to).then(|| Slice {
        offset: slice.offset + (from - begins) as u32,
        len: (to - from) as u32,
        ..slice
    })
}

impl From<DmaBuf> for Memory {
    fn from(buffer: DmaBuf) -> Self {
        Self::One(buffer)
    }
}

impl From<IoVector> for Memory {
    fn from(vector: IoVector) -> Self {
        Self::Vector(Box::new(vector))
    }
}
