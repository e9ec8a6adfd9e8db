//! Bytes that somebody else may be writing: copied and loaded, never referenced.
//!
//! [`SharedBytes`] owns a piece of such memory (or a share in it), [`Span`] looks at it. Both follow two
//! rules: no `&T` or `&mut T` to the bytes ever exists, and every access is bounds-checked. A racing
//! writer can make a copy torn; it cannot make it anything worse.

use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::any::Any;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use memmap2::{Advice, MmapOptions};

use super::pages::{PageKind, sealed};

use super::vanished::Region;

/// A piece of shared memory, kept alive by whoever owns the mapping.
#[derive(Clone)]
pub struct SharedBytes {
    start: NonNull<u8>,
    len: usize,
    /// Unmaps when the last share is gone.
    _keep: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the bytes are reached through copies and atomics only, so that sharing the pointer between
// threads shares nothing that the compiler believes to be exclusive.
unsafe impl Send for SharedBytes {}
// SAFETY: as above; every method takes `&self`.
unsafe impl Sync for SharedBytes {}

impl SharedBytes {
    /// Makes a share of `start..start + len`.
    ///
    /// # Safety
    ///
    /// The range is mapped readable for as long as `keep` lives, and writable or never written to; nobody holds a
    /// reference to any byte of it while a share exists, except to bytes that no share is asked about.
    pub(super) unsafe fn new(
        start: NonNull<u8>,
        len: usize,
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self { start, len, _keep: keep }
    }

    /// Maps `len` bytes of zeroes that belong to this process alone; pages come when first touched.
    ///
    /// # Errors
    ///
    /// The kernel's, when there is no address space.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        let mut map = MmapOptions::new().len(len).no_reserve_swap().map_anon()?;
        // A hint: large pages make a large medium cheap to walk. It may be refused.
        let _ = map.advise(Advice::HugePage);
        let start = NonNull::new(map.as_mut_ptr()).expect("a mapping is not at address 0");
        // SAFETY: `map` moves into `keep`, which unmaps only when the last share is gone; its own
        // `&mut [u8]` is never asked for again, since `Any` has no way to it.
        Ok(unsafe { Self::new(start, len, Arc::new(map)) })
    }

    /// Makes `len` bytes of zeroes that can be shared with another process by the file that is returned: they begin at
    /// `offset` there. Nobody can shorten the file, which would make reaching for them a SIGBUS.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn shareable(offset: u64, len: usize) -> io::Result<(Self, File)> {
        let file = sealed("udirect-shared", PageKind::Ordinary, offset + len as u64)?;
        Ok((Self::of_device(&file, offset, len as u64)?, file))
    }

    /// Maps a region of a device: its registers, which change by themselves and act on being written. Once the device is
    /// gone they read as all ones.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn of_device(file: &File, offset: u64, len: u64) -> io::Result<Self> {
        let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let len = usize::try_from(len).map_err(too_long)?;
        let map = MmapOptions::new().offset(offset).len(len).map_raw(file)?;
        let start = NonNull::new(map.as_mut_ptr()).expect("a mapping is not at address 0");
        let region = Region::guard(map)?;
        // SAFETY: `map` moves into `keep`, which unmaps only when the last share is gone, and never shows its bytes.
        Ok(unsafe { Self::new(start, len, Arc::new(region)) })
    }

    /// Looks at all of it.
    #[inline]
    pub fn span(&self) -> Span<'_> {
        Span { start: self.start, len: self.len, _life: PhantomData }
    }

    /// Returns the length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Says whether there is no byte in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns a share in part of it, or `None` if the part does not lie within.
    pub fn part(&self, offset: usize, len: usize) -> Option<Self> {
        let span = self.span().slice(offset, len)?;
        Some(Self { start: span.start, len, _keep: Arc::clone(&self._keep) })
    }
}

/// A bounds-checked look at shared memory.
#[derive(Clone, Copy)]
pub struct Span<'a> {
    start: NonNull<u8>,
    len: usize,
    _life: PhantomData<&'a SharedBytes>,
}

impl<'a> Span<'a> {
    /// Returns the length in bytes.
    #[inline]
    pub fn len(self) -> usize {
        self.len
    }

    /// Says whether there is no byte in it.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Returns a part, or `None` if it does not lie within.
    #[inline]
    pub fn slice(self, offset: usize, len: usize) -> Option<Span<'a>> {
        let end = offset.checked_add(len)?;
        if end > self.len {
            return None;
        }
        // SAFETY: `offset <= self.len` was just checked, so the result is in the mapping or one past it.
        let start = unsafe { self.start.add(offset) };
        Some(Span { start, len, _life: PhantomData })
    }

    /// Copies out.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    #[inline]
    pub fn read_into(self, to: &mut [u8]) {
        assert_eq!(self.len, to.len(), "a copy has two ends of one length");
        // SAFETY: `self` is mapped for `len` bytes while `'a` lives; `to` is exclusive and as long, so the
        // two do not overlap.
        unsafe {
            self.start.as_ptr().copy_to_nonoverlapping(to.as_mut_ptr(), self.len);
        }
    }

    /// Copies in.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    #[inline]
    pub fn write_from(self, from: &[u8]) {
        assert_eq!(self.len, from.len(), "a copy has two ends of one length");
        // SAFETY: `self` is mapped for `len` bytes while `'a` lives; nobody else has a reference into it,
        // so `from` does not overlap.
        unsafe {
            self.start.as_ptr().copy_from_nonoverlapping(from.as_ptr(), self.len);
        }
    }

    /// Copies from other shared memory, which may overlap.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    #[inline]
    pub fn copy_from(self, from: Span<'_>) {
        assert_eq!(self.len, from.len, "a copy has two ends of one length");
        // SAFETY: both spans are mapped for `len` bytes; `copy` allows overlap.
        unsafe { self.start.as_ptr().copy_from(from.start.as_ptr(), self.len) }
    }

    /// Sets every byte.
    #[inline]
    pub fn fill(self, byte: u8) {
        // SAFETY: `self` is mapped for `len` bytes while `'a` lives.
        unsafe { self.start.as_ptr().write_bytes(byte, self.len) }
    }

    /// Asks the processor for the first cache lines, since they will be read soon.
    #[inline]
    pub fn prefetch(self) {
        #[cfg(target_arch = "x86_64")]
        for line in (0..self.len.min(PREFETCH_BYTES)).step_by(64) {
            use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let at = self.start.as_ptr().wrapping_add(line).cast_const().cast();
            // SAFETY: a prefetch is a hint; it reads nothing the program can see and never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at) };
        }
    }

    /// Returns the first offset at which two spans of one length differ.
    ///
    /// # Panics
    ///
    /// If the lengths differ.
    pub fn first_difference(self, other: Span<'_>) -> Option<usize> {
        assert_eq!(self.len, other.len, "a comparison has two sides of one length");
        let (mut left, mut right) = ([0; COMPARE_BYTES], [0; COMPARE_BYTES]);
        for at in (0..self.len).step_by(COMPARE_BYTES) {
            let len = COMPARE_BYTES.min(self.len - at);
            self.slice(at, len)?.read_into(&mut left[..len]);
            other.slice(at, len)?.read_into(&mut right[..len]);
            let pairs = left[..len].iter().zip(&right[..len]);
            if let Some(offset) = pairs.into_iter().position(|(a, b)| a != b) {
                return Some(at + offset);
            }
        }
        None
    }

    /// Reads from `file` at `offset`.
    ///
    /// # Errors
    ///
    /// The kernel's, and `UnexpectedEof` where the file ends before the span; part of the bytes may
    /// have been read.
    pub fn read_file(self, file: &File, offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < self.len {
            let rest = self.slice(done, self.len - done).expect("done <= len");
            let at = file_offset(offset, done)?;
            // SAFETY: `rest` is mapped and writable for its whole length, which is what is passed.
            let n =
                unsafe { libc::pread(file.as_raw_fd(), rest.start.as_ptr().cast(), rest.len, at) };
            match transferred(n)? {
                Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(n) => done += n,
                None => {}
            }
        }
        Ok(())
    }

    /// Writes to `file` at `offset`.
    ///
    /// # Errors
    ///
    /// The kernel's; part of the bytes may have been written.
    pub fn write_file(self, file: &File, offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < self.len {
            let rest = self.slice(done, self.len - done).expect("done <= len");
            let at = file_offset(offset, done)?;
            // SAFETY: `rest` is mapped and readable for its whole length, which is what is passed.
            let n =
                unsafe { libc::pwrite(file.as_raw_fd(), rest.start.as_ptr().cast(), rest.len, at) };
            match transferred(n)? {
                Some(0) => return Err(io::ErrorKind::WriteZero.into()),
                Some(n) => done += n,
                None => {}
            }
        }
        Ok(())
    }

    /// Returns the 32-bit word at `offset`, a multiple of four within the span.
    #[inline]
    pub(super) fn word32(self, offset: usize) -> &'a AtomicU32 {
        let cell = self.cell(offset, size_of::<AtomicU32>());
        // SAFETY: `cell` is aligned and within the mapping for as long as `'a`; all accesses to words of
        // shared memory are atomic or copies.
        unsafe { AtomicU32::from_ptr(cell.cast()) }
    }

    /// Returns the 64-bit word at `offset`, a multiple of eight within the span.
    #[inline]
    pub(super) fn word64(self, offset: usize) -> &'a AtomicU64 {
        let cell = self.cell(offset, size_of::<AtomicU64>());
        // SAFETY: as in `word32`.
        unsafe { AtomicU64::from_ptr(cell.cast()) }
    }

    /// Loads the 32-bit word at `offset`.
    ///
    /// # Panics
    ///
    /// If `offset` is not a multiple of four within the span.
    #[inline]
    pub fn load32(self, offset: usize, order: Ordering) -> u32 {
        self.word32(offset).load(order)
    }

    /// Stores the 32-bit word at `offset`.
    ///
    /// # Panics
    ///
    /// If `offset` is not a multiple of four within the span.
    #[inline]
    pub fn store32(self, offset: usize, value: u32, order: Ordering) {
        self.word32(offset).store(value, order);
    }

    /// Loads the 64-bit word at `offset`.
    ///
    /// # Panics
    ///
    /// If `offset` is not a multiple of eight within the span.
    #[inline]
    pub fn load64(self, offset: usize, order: Ordering) -> u64 {
        self.word64(offset).load(order)
    }

    /// Stores the 64-bit word at `offset`.
    ///
    /// # Panics
    ///
    /// If `offset` is not a multiple of eight within the span.
    #[inline]
    pub fn store64(self, offset: usize, value: u64, order: Ordering) {
        self.word64(offset).store(value, order);
    }

    /// Stores 64-bit words to the end of the span, the first one `first` and each `step` more than the one
    /// before it. Nothing orders them.
    ///
    /// # Panics
    ///
    /// If the span is not made of aligned 64-bit words.
    #[inline]
    pub fn store_steps(self, first: u64, step: u64) {
        const WORD: usize = size_of::<AtomicU64>();
        let start = self.start.as_ptr();
        let whole = start.addr().is_multiple_of(WORD) && self.len.is_multiple_of(WORD);
        assert!(whole, "words over {} bytes", self.len);
        let mut value = first;
        for at in (0..self.len).step_by(WORD) {
            // SAFETY: `at` is a multiple of a word below `len`, which is one too: the word lies within.
            let cell = unsafe { start.add(at) };
            // SAFETY: as in `word64`, which checks for each word what is checked above for all.
            unsafe { AtomicU64::from_ptr(cell.cast()) }.store(value, Ordering::Relaxed);
            value = value.wrapping_add(step);
        }
    }

    #[inline]
    fn cell(self, offset: usize, size: usize) -> *mut u8 {
        let in_bounds = offset.checked_add(size).is_some_and(|end| end <= self.len);
        let at = self.start.as_ptr().wrapping_add(offset);
        assert!(in_bounds && at.addr().is_multiple_of(size), "{size} bytes at {offset}");
        at
    }

    /// Returns the address, for the rooms behind the same door.
    pub(super) fn as_ptr(self) -> NonNull<u8> {
        self.start
    }
}

/// How much of a span is asked for ahead: enough to start the hardware's own prefetcher.
const PREFETCH_BYTES: usize = 256;

/// How much two spans are compared by.
const COMPARE_BYTES: usize = 4096;

fn file_offset(offset: u64, done: usize) -> io::Result<libc::off_t> {
    let at = offset.checked_add(done as u64).and_then(|at| libc::off_t::try_from(at).ok());
    at.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Reads the result of a transfer; `None` is an interruption, to be tried again.
fn transferred(n: isize) -> io::Result<Option<usize>> {
    match usize::try_from(n) {
        Ok(n) => Ok(Some(n)),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            error => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_end_where_their_memory_ends() {
        let bytes = SharedBytes::anonymous(4096).unwrap();
        let span = bytes.span();
        assert!(span.slice(4096, 0).is_some());
        assert!(span.slice(4095, 2).is_none());
        assert!(span.slice(1, usize::MAX).is_none());
    }

    #[test]
    fn shared_bytes_are_those_of_their_file_which_keeps_its_length() {
        let (bytes, file) = SharedBytes::shareable(4096, 8192).unwrap();
        bytes.span().store32(8, 7, Ordering::Release);
        let mut out = [0; 4];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut out, 4104).unwrap();
        assert_eq!((u32::from_ne_bytes(out), bytes.len()), (7, 8192));
        assert!(file.set_len(4096).is_err());
        assert!(file.set_len(1 << 20).is_err());
    }

    #[test]
    fn copies_go_in_and_out_and_differences_are_found() {
        let bytes = SharedBytes::anonymous(3 * 4096).unwrap();
        let (left, right) = (bytes.part(0, 6000).unwrap(), bytes.part(6000, 6000).unwrap());
        let pattern: Vec<u8> = (0..6000).map(|i| (i % 251) as u8).collect();
        left.span().write_from(&pattern);
        right.span().copy_from(left.span());
        assert_eq!(left.span().first_difference(right.span()), None);
        right.span().slice(5000, 1).unwrap().fill(!pattern[5000]);
        assert_eq!(left.span().first_difference(right.span()), Some(5000));
        let mut out = vec![0; 6000];
        left.span().read_into(&mut out);
        assert_eq!(out, pattern);
    }

    #[test]
    #[should_panic(expected = "4 bytes at 2")]
    fn unaligned_words_are_a_bug_that_shouts() {
        let bytes = SharedBytes::anonymous(4096).unwrap();
        bytes.span().load32(2, Ordering::Relaxed);
    }

    #[test]
    fn what_lies_past_the_end_of_a_file_is_an_error_and_not_zeroes() {
        let file = tempfile::tempfile().unwrap();
        let bytes = SharedBytes::anonymous(8192).unwrap();
        bytes.span().slice(0, 100).unwrap().fill(7);
        bytes.span().slice(0, 100).unwrap().write_file(&file, 4000).unwrap();
        let target = bytes.part(4096, 4096).unwrap();
        let error = target.span().read_file(&file, 4000).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        target.span().slice(0, 100).unwrap().read_file(&file, 4000).unwrap();
        let mut out = vec![1; 100];
        target.span().slice(0, 100).unwrap().read_into(&mut out);
        assert_eq!(out, [7; 100]);
    }
}
