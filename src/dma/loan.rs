//! Buffers that several commands use at once: a loan keeps them, each command holds a piece.
//!
//! A [`DmaBuf`] belongs to one request. Where a request becomes many commands, its buffers go into a
//! [`Loan`], and each command carries [`DmaPiece`]s: the place of its bytes, and a share in keeping them
//! mapped. While pieces are out nobody can name the bytes; once the last one is back, the buffers come
//! out again. So a command that is forgotten keeps its memory, and never loses it under a device.

use std::sync::Arc;

use super::arena::Access;
use super::buf::DmaBuf;
use crate::units::Iova;

/// The buffers of one request while commands use them.
#[derive(Debug, Default)]
pub struct Loan {
    buffers: Arc<Vec<DmaBuf>>,
}

impl Loan {
    /// Makes a loan with room for one buffer, so that the most frequent request allocates nothing.
    pub fn new() -> Self {
        Self { buffers: Arc::new(Vec::with_capacity(1)) }
    }

    /// Puts one buffer in.
    ///
    /// # Panics
    ///
    /// If pieces are out.
    pub fn put(&mut self, buffer: DmaBuf) {
        self.all().push(buffer);
    }

    /// Takes the last buffer out.
    ///
    /// # Panics
    ///
    /// If pieces are out.
    pub fn take(&mut self) -> Option<DmaBuf> {
        self.all().pop()
    }

    /// Exchanges all buffers for others.
    ///
    /// # Panics
    ///
    /// If pieces are out.
    pub fn exchange(&mut self, buffers: &mut Vec<DmaBuf>) {
        core::mem::swap(self.all(), buffers);
    }

    /// Says whether pieces are out.
    pub fn is_lent(&self) -> bool {
        Arc::strong_count(&self.buffers) > 1
    }

    /// Returns where the device sees byte `offset` of buffer `index`.
    ///
    /// # Panics
    ///
    /// If there is no such byte.
    #[inline]
    pub fn iova(&self, index: usize, offset: usize) -> Iova {
        let buffer = &self.buffers[index];
        assert!(offset < buffer.len(), "byte {offset} of a buffer of {}", buffer.len());
        Iova(buffer.iova().0 + offset as u64)
    }

    /// Lends `len` bytes from byte `offset` of buffer `index` on.
    ///
    /// # Panics
    ///
    /// If the bytes do not lie within the buffer.
    #[inline]
    pub fn piece(&self, index: usize, offset: usize, len: usize) -> DmaPiece {
        let buffer = &self.buffers[index];
        check(buffer, offset, len);
        DmaPiece {
            iova: Iova(buffer.iova().0 + offset as u64),
            // It lies within a buffer, whose length has 32 bits.
            len: len as u32,
            access: buffer.access(),
            keep: Arc::clone(&self.buffers),
        }
    }

    /// Fills bytes that no command uses with zeroes, while commands may be using others.
    ///
    /// # Panics
    ///
    /// If the bytes do not lie within the buffer.
    pub fn zero(&self, index: usize, offset: usize, len: usize) {
        let buffer = &self.buffers[index];
        check(buffer, offset, len);
        // SAFETY: `check` has found `offset` within the buffer.
        let start = unsafe { buffer.as_shared_ptr().add(offset) };
        // SAFETY: the bytes lie within the buffer (`check`). No reference to them exists: a loan shows its
        // buffers to nobody, and gives them out only when it is their one owner (`all`).
        unsafe { start.write_bytes(0, len) };
    }

    /// Returns the buffers of a loan of which no piece is out.
    fn all(&mut self) -> &mut Vec<DmaBuf> {
        Arc::get_mut(&mut self.buffers).expect("every piece of the loan is back")
    }
}

fn check(buffer: &DmaBuf, offset: usize, len: usize) {
    check_within(buffer.len(), offset, len);
}

fn check_within(whole: usize, offset: usize, len: usize) {
    let within = offset.checked_add(len).is_some_and(|end| end <= whole);
    assert!(within, "{len} bytes at {offset} of a buffer of {whole}");
}

/// A piece of a loan: memory that one command uses, contiguous for the device.
///
/// It shows no bytes, and copies them out where somebody has to look. Dropping it is giving it back.
#[derive(Debug)]
pub struct DmaPiece {
    iova: Iova,
    len: u32,
    access: Access,
    keep: Arc<Vec<DmaBuf>>,
}

// Small, since commands carry many.
const _: () = assert!(size_of::<DmaPiece>() == 24);

impl DmaPiece {
    /// Returns where the device sees the first byte.
    #[inline]
    pub fn iova(&self) -> Iova {
        self.iova
    }

    /// Returns the length in bytes.
    #[inline]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Says whether there is no byte in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns what the device may do with it.
    #[inline]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Copies bytes out, from byte `offset` of the piece on.
    ///
    /// No command of the piece's own may be on its way: what it writes meanwhile is seen in part.
    ///
    /// # Panics
    ///
    /// If the bytes do not lie within the piece.
    pub fn copy_out(&self, offset: usize, to: &mut [u8]) {
        check_within(self.len as usize, offset, to.len());
        let start = self.iova.0 + offset as u64;
        let place = |buffer: &DmaBuf| start.checked_sub(buffer.iova().0);
        let holds = |buffer: &&DmaBuf| place(buffer).is_some_and(|at| at < buffer.len() as u64);
        let buffer =
            self.keep.iter().find(holds).expect("a piece lies within a buffer of its loan");
        let at = (start - buffer.iova().0) as usize;
        check(buffer, at, to.len());
        // SAFETY: `check` has found `at` within the buffer.
        let from = unsafe { buffer.as_shared_ptr().add(at) };
        // SAFETY: the bytes lie within the buffer (`check`), which `keep` holds, and `to` is exclusive memory
        // elsewhere. No reference to the buffer exists: a loan shows its buffers to nobody.
        unsafe { from.as_ptr().copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
    }

    /// Takes in the piece that follows in the same memory; gives it back if it does not.
    ///
    /// # Errors
    ///
    /// The other piece, if it is of another loan, does not begin where this one ends, or makes it longer
    /// than 32 bits can say.
    #[inline]
    pub fn join(&mut self, next: Self) -> Result<(), Self> {
        let follows = self.iova.checked_add(u64::from(self.len)) == Some(next.iova);
        match self.len.checked_add(next.len) {
            Some(len) if follows && Arc::ptr_eq(&self.keep, &next.keep) => {
                self.len = len;
                Ok(())
            }
            _ => Err(next),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::{Domain, DomainOptions, PagePolicy};

    fn loan(bytes: usize) -> Loan {
        let domain = Domain::new(DomainOptions { pages: PagePolicy::Ordinary });
        let mut loan = Loan::new();
        let mut buffer = domain.buffer(bytes, Access::Both).unwrap();
        buffer.fill(7);
        loan.put(buffer);
        loan
    }

    #[test]
    fn buffers_come_out_when_every_piece_is_back() {
        let mut loan = loan(8192);
        let (first, second) = (loan.piece(0, 0, 4096), loan.piece(0, 4096, 4096));
        assert!(loan.is_lent());
        assert_eq!(first.iova().checked_add(4096), Some(second.iova()));
        drop((first, second));
        assert!(!loan.is_lent());
        assert_eq!(loan.take().map(|buffer| buffer.len()), Some(8192));
    }

    #[test]
    #[should_panic(expected = "every piece of the loan is back")]
    fn buffers_do_not_come_out_under_a_command() {
        let mut loan = loan(4096);
        let _piece = loan.piece(0, 0, 512);
        loan.take();
    }

    #[test]
    #[should_panic(expected = "4097 bytes at 0 of a buffer of 4096")]
    fn no_piece_is_longer_than_its_buffer() {
        loan(4096).piece(0, 0, 4097);
    }

    #[test]
    fn a_piece_outlives_its_loan_and_keeps_the_memory() {
        let domain = Domain::new(DomainOptions { pages: PagePolicy::Ordinary });
        let mut loan = Loan::new();
        loan.put(domain.buffer(4096, Access::Both).unwrap());
        let piece = loan.piece(0, 0, 4096);
        drop(loan);
        assert_eq!(domain.usage().1, 4096);
        drop(piece);
        assert_eq!(domain.usage().1, 0);
    }

    #[test]
    fn a_piece_copies_out_what_is_at_its_place() {
        let mut loan = loan(4096);
        loan.zero(0, 1000, 10);
        let mut bytes = [1; 20];
        loan.piece(0, 512, 1024).copy_out(483, &mut bytes);
        assert_eq!(bytes[..5], [7; 5]);
        assert_eq!(bytes[5..15], [0; 10]);
        assert_eq!(bytes[15..], [7; 5]);
        assert!(loan.take().is_some());
    }

    #[test]
    #[should_panic(expected = "2 bytes at 511 of a buffer of 512")]
    fn a_piece_copies_out_nothing_beyond_its_end() {
        loan(4096).piece(0, 0, 512).copy_out(511, &mut [0; 2]);
    }

    #[test]
    fn neighbours_join_and_others_do_not() {
        let loan = loan(8192);
        let mut piece = loan.piece(0, 0, 512);
        piece.join(loan.piece(0, 512, 1024)).unwrap();
        assert_eq!(piece.len(), 1536);
        let other = piece.join(loan.piece(0, 4096, 512)).unwrap_err();
        assert_eq!((piece.len(), other.len()), (1536, 512));
    }

    #[test]
    fn zeroes_go_where_they_were_asked_for() {
        let mut loan = loan(4096);
        loan.zero(0, 100, 50);
        let buffer = loan.take().unwrap();
        let zeroes = buffer.iter().filter(|byte| **byte == 0).count();
        assert_eq!((zeroes, buffer[99], buffer[100], buffer[150]), (50, 7, 0, 7));
    }
}
