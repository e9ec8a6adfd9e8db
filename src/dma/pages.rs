//! Pages: hugepages where there are any, locked ordinary ones where there are not.
#![forbid(unsafe_code)]

use core::fmt;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::{MmapMut, MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags};

use super::{DmaError, PAGE_BYTES};

/// What kind of page memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// 4 KiB pages, locked where the limit allows.
    Ordinary,
    /// 2 MiB hugepages.
    Huge2MiB,
    /// 1 GiB hugepages.
    Huge1GiB,
}

impl PageKind {
    /// Returns the size of one page.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Ordinary => PAGE_BYTES as u64,
            Self::Huge2MiB => 2 << 20,
            Self::Huge1GiB => 1 << 30,
        }
    }

    fn memfd_flags(self) -> MemfdFlags {
        match self {
            Self::Ordinary => MemfdFlags::empty(),
            Self::Huge2MiB => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
            Self::Huge1GiB => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
        }
    }
}

impl fmt::Display for PageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ordinary => "ordinary pages",
            Self::Huge2MiB => "2 MiB hugepages",
            Self::Huge1GiB => "1 GiB hugepages",
        })
    }
}

/// Which pages are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PagePolicy {
    /// Hugepages if there are any, otherwise ordinary ones, with one warning.
    #[default]
    PreferHuge,
    /// Hugepages of one size, or an error.
    Require(PageKind),
    /// Ordinary pages, without a warning.
    Ordinary,
}

/// Mapped memory, behind a file descriptor where it can be shared with a device process.
pub(super) struct Pages {
    /// Mapping first: it is unmapped before the descriptor is closed.
    pub(super) map: MmapRaw,
    /// `None` for memory that somebody else mapped.
    pub(super) file: Option<File>,
    pub(super) kind: PageKind,
}

impl Pages {
    /// Maps at least `len` bytes, rounded up to whole pages, zeroed.
    pub(super) fn map(len: u64, policy: PagePolicy) -> Result<Self, DmaError> {
        match policy {
            PagePolicy::Ordinary | PagePolicy::Require(PageKind::Ordinary) => Self::ordinary(len),
            PagePolicy::Require(kind) => {
                Self::of_kind(kind, len).map_err(|source| DmaError::NoHugepages { len, source })
            }
            PagePolicy::PreferHuge => Self::of_kind(PageKind::Huge2MiB, len).or_else(|reason| {
                warn_once(len, &reason);
                Self::ordinary(len)
            }),
        }
    }

    fn ordinary(len: u64) -> Result<Self, DmaError> {
        let kind = PageKind::Ordinary;
        let pages =
            Self::of_kind(kind, len).map_err(|source| DmaError::Map { len, kind, source })?;
        pages.lock();
        Ok(pages)
    }

    fn of_kind(kind: PageKind, len: u64) -> io::Result<Self> {
        let file = sealed("udirect-dma", kind, len.next_multiple_of(kind.bytes()))?;
        // Hugepages are populated at once: running out is an error here and a SIGBUS later.
        let map = match kind {
            PageKind::Ordinary => MmapOptions::new().map_raw(&file)?,
            _ => MmapOptions::new().populate().map_raw(&file)?,
        };
        Ok(Self { map, file: Some(file), kind })
    }

    /// Takes over memory that somebody else mapped, and locks it where the limit allows.
    ///
    /// # Errors
    ///
    /// `Invalid` if it is not made of whole pages.
    pub(super) fn adopt(map: MmapMut) -> Result<Self, DmaError> {
        let len = map.len() as u64;
        if len == 0 || !map.len().is_multiple_of(PAGE_BYTES) {
            let (least, most) = (PAGE_BYTES as u64, u64::from(u32::MAX));
            let what = "length of registered memory, in whole pages of 4096 bytes:";
            return Err(DmaError::Invalid { what, value: len, least, most });
        }
        let pages = Self { map: map.into(), file: None, kind: PageKind::Ordinary };
        pages.lock();
        Ok(pages)
    }

    /// Maps part of a file that another process shares, as a whole or not at all.
    ///
    /// # Errors
    ///
    /// As `Arena::foreign`.
    pub(super) fn share(file: File, offset: u64, len: u64, is_writable: bool) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let whole = |value: u64| value.is_multiple_of(PAGE_BYTES as u64);
        let is_inside = offset.checked_add(len).is_some_and(|end| end <= metadata.len());
        let length = usize::try_from(len).ok().filter(|len| *len > 0);
        let (Some(length), true) = (length, whole(offset) && whole(len) && is_inside) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut options = MmapOptions::new();
        options.offset(offset).len(length);
        let map =
            if is_writable { options.map_raw(&file)? } else { options.map_raw_read_only(&file)? };
        Ok(Self { map, file: Some(file), kind: PageKind::Ordinary })
    }

    /// Locks the pages. Locked pages keep a real device's mapping true. An IOMMU mapping pins them anyway,
    /// and an in-process controller does not need it, so a small limit is worth a word, not an error.
    fn lock(&self) {
        if let Err(reason) = self.map.lock() {
            let len = self.map.len();
            tracing::debug!(len, %reason, "DMA memory is not locked (RLIMIT_MEMLOCK)");
        }
    }
}

/// Makes a file in memory that keeps its length, whoever it is shared with: reaching for what was cut off is a SIGBUS.
pub(super) fn sealed(name: &str, kind: PageKind, len: u64) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | kind.memfd_flags();
    let file = File::from(rustix::fs::memfd_create(name, flags)?);
    file.set_len(len)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

/// Says once in the life of the process that there are no hugepages.
fn warn_once(len: u64, reason: &io::Error) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        let wanted = len.div_ceil(PageKind::Huge2MiB.bytes());
        tracing::warn!(
            "no hugepages for DMA memory ({reason}); using ordinary pages. \
             Reserve some with `sysctl vm.nr_hugepages={wanted}` or more"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_pages_are_always_there_and_zeroed() {
        let pages = Pages::map(5000, PagePolicy::Ordinary).unwrap();
        assert_eq!(pages.map.len(), 8192);
        let file = pages.file.as_ref().unwrap();
        assert!(file.set_len(4096).is_err() && file.set_len(1 << 20).is_err(), "it is sealed");
        assert_eq!(pages.kind, PageKind::Ordinary);
    }

    #[test]
    fn required_hugepages_are_an_error_with_the_fix_when_there_are_none() {
        // Far more than any machine that runs tests has reserved.
        let result = Pages::map(1 << 46, PagePolicy::Require(PageKind::Huge2MiB));
        let text = result.err().map(|error| error.to_string()).unwrap();
        assert!(text.contains("vm.nr_hugepages"), "{text}");
    }
}
