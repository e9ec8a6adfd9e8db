//! Distinct integers for the quantities that a storage stack confuses most easily.
//!
//! Each type wraps one integer and converts only through named, checked methods, so that an address
//! is never added to an address and a count is never used as an index. Zero-based wire counts are a
//! type too ([`ZeroBased16`]), so that the `+ 1` exists once.
#![forbid(unsafe_code)]

use core::fmt;

/// A logical block address: the index of one LBA in a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lba(pub u64);

impl Lba {
    /// Returns the address `count` blocks further on, or `None` past 2^64.
    #[inline]
    pub fn checked_add(self, count: BlockCount) -> Option<Self> {
        self.0.checked_add(count.0).map(Self)
    }

    /// Returns how many blocks lie between `earlier` and this address, or `None` if it is not earlier.
    #[inline]
    pub fn blocks_since(self, earlier: Self) -> Option<BlockCount> {
        self.0.checked_sub(earlier.0).map(BlockCount)
    }
}

impl fmt::Display for Lba {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A number of logical blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockCount(pub u64);

impl BlockCount {
    /// Returns the length in bytes of this many blocks, or `None` past 2^64.
    #[inline]
    pub fn to_bytes(self, size: LbaSize) -> Option<ByteLen> {
        let bytes = self.0.checked_mul(u64::from(size.bytes()))?;
        Some(ByteLen(bytes))
    }
}

impl fmt::Display for BlockCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A block of a file: its index from the start of the file, in blocks of the device's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileBlock(pub u64);

impl fmt::Display for FileBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A file, an object or a volume, as whoever maps its blocks numbers them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u64);

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A length in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteLen(pub u64);

impl ByteLen {
    /// Returns the number of whole blocks, or `None` if the length is not a multiple of the block.
    #[inline]
    pub fn to_blocks(self, size: LbaSize) -> Option<BlockCount> {
        size.divides(self.0).then_some(BlockCount(self.0 >> size.shift()))
    }
}

impl fmt::Display for ByteLen {
    /// Writes the length with the largest binary unit that divides it: `4 KiB`, `513 B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.iter().find(|(shift, _)| self.0 != 0 && self.0.trailing_zeros() >= *shift) {
            Some((shift, unit)) => write!(f, "{} {unit}", self.0 >> shift),
            None => write!(f, "{} B", self.0),
        }
    }
}

/// The size of one logical block: a power of two from 512 bytes to 64 KiB.
///
/// The standard's LBADS is the exponent; values outside 9 to 16 are refused at the door
/// (NVM Command Set 1.0, Figure 98; the upper bound is ours).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LbaSize(u8);

impl LbaSize {
    /// 512 bytes.
    pub const B512: Self = Self(9);
    /// 4096 bytes.
    pub const B4096: Self = Self(12);

    /// Returns the size `2^shift`, or `None` outside 9 to 16.
    pub const fn from_shift(shift: u8) -> Option<Self> {
        match shift {
            9..=16 => Some(Self(shift)),
            _ => None,
        }
    }

    /// Returns the size of `bytes`, or `None` if it is not a power of two from 512 to 65536.
    pub fn from_bytes(bytes: u64) -> Option<Self> {
        let shift = u8::try_from(bytes.trailing_zeros()).ok()?;
        if bytes.is_power_of_two() { Self::from_shift(shift) } else { None }
    }

    /// Returns the base-two logarithm of the size.
    #[inline]
    pub const fn shift(self) -> u8 {
        self.0
    }

    /// Returns the size in bytes.
    #[inline]
    pub const fn bytes(self) -> u32 {
        1 << self.0
    }

    /// Says whether `bytes` is a multiple of the block.
    #[inline]
    pub const fn divides(self, bytes: u64) -> bool {
        bytes & ((1 << self.0) - 1) == 0
    }
}

impl fmt::Display for LbaSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} B", self.bytes())
    }
}

/// An address as a device sees it, on its side of the IOMMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Iova(pub u64);

impl Iova {
    /// Returns the address `bytes` further on, or `None` past 2^64.
    #[inline]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }

    /// Returns the distance in bytes from `base`, or `None` if `base` is higher.
    #[inline]
    pub fn offset_from(self, base: Self) -> Option<u64> {
        self.0.checked_sub(base.0)
    }
}

impl fmt::Display for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A queue identifier; 0 is the admin queue (NVMe Base 2.0, 3.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId(pub u16);

impl QueueId {
    /// The admin queue.
    pub const ADMIN: Self = Self(0);
}

impl fmt::Display for QueueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A command identifier, unique among the outstanding commands of one submission queue
/// (NVMe Base 2.0, Figure 85, CDW0 bits 31:16).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CommandId(pub u16);

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#06x}", self.0)
    }
}

/// A namespace identifier; 0 names none and `0xffff_ffff` names all (NVMe Base 2.0, 3.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespaceId(pub u32);

impl NamespaceId {
    /// No namespace: what commands carry that concern the controller.
    pub const NONE: Self = Self(0);
    /// Every namespace that is attached to the controller.
    pub const ALL: Self = Self(u32::MAX);
}

impl fmt::Display for NamespaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A count from 1 to 65536 as it travels: one less, in 16 bits ("0's based", NVMe Base 2.0, 1.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ZeroBased16(u16);

impl ZeroBased16 {
    /// Returns the wire form of `count`, or `None` outside 1 to 65536.
    #[inline]
    pub fn from_count(count: u32) -> Option<Self> {
        let wire = count.checked_sub(1)?;
        u16::try_from(wire).ok().map(Self)
    }

    /// Reads the wire form.
    #[inline]
    pub const fn from_wire(wire: u16) -> Self {
        Self(wire)
    }

    /// Returns the wire form.
    #[inline]
    pub const fn wire(self) -> u16 {
        self.0
    }

    /// Returns the count, 1 to 65536.
    #[inline]
    pub const fn count(self) -> u32 {
        self.0 as u32 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_based_counts_round_trip_at_both_ends() {
        assert_eq!(ZeroBased16::from_count(0), None);
        assert_eq!(ZeroBased16::from_count(65_537), None);
        for count in [1, 2, 256, 65_535, 65_536] {
            let wire = ZeroBased16::from_count(count).unwrap();
            assert_eq!(wire.count(), count);
            assert_eq!(u32::from(wire.wire()), count - 1);
        }
    }

    #[test]
    fn lba_sizes_are_powers_of_two_from_512_to_65536() {
        assert_eq!(LbaSize::from_bytes(512), Some(LbaSize::B512));
        assert_eq!(LbaSize::from_bytes(65_536).map(LbaSize::shift), Some(16));
        for bytes in [0, 1, 256, 520, 4_095, 131_072] {
            assert_eq!(LbaSize::from_bytes(bytes), None, "{bytes}");
        }
    }

    #[test]
    fn lengths_convert_to_whole_blocks_only() {
        assert_eq!(ByteLen(8192).to_blocks(LbaSize::B4096), Some(BlockCount(2)));
        assert_eq!(ByteLen(8193).to_blocks(LbaSize::B4096), None);
        assert_eq!(BlockCount(u64::MAX).to_bytes(LbaSize::B512), None);
    }

    #[test]
    fn lengths_print_with_the_largest_unit_that_divides() {
        let text = |bytes| ByteLen(bytes).to_string();
        assert_eq!(text(0), "0 B");
        assert_eq!(text(513), "513 B");
        assert_eq!(text(4096), "4 KiB");
        assert_eq!(text(3 << 30), "3 GiB");
    }
}
