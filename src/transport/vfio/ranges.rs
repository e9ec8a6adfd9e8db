//! The device addresses that the kernel's type 1 IOMMU allows, read out of its chain of capabilities.
#![forbid(unsafe_code)]

use crate::dma::{IovaLimits, IovaRange};

use vfio_bindings::bindings::vfio::{
    VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, vfio_info_cap_header,
    vfio_iommu_type1_info, vfio_iommu_type1_info_cap_iova_range, vfio_iova_range,
};

/// Reads the usable ranges out of `vfio_iommu_type1_info` and what follows it; `None` where the kernel does not say them
/// (before 5.4) or contradicts itself.
pub(super) fn read(info: &[u8]) -> Option<IovaLimits> {
    let flags = word(info, core::mem::offset_of!(vfio_iommu_type1_info, flags))?;
    if flags & VFIO_IOMMU_INFO_CAPS == 0 {
        return None;
    }
    let mut at = word(info, core::mem::offset_of!(vfio_iommu_type1_info, cap_offset))? as usize;
    // Each capability lies behind the one before it, so that the chain ends.
    while at != 0 {
        let id = half(info, at + core::mem::offset_of!(vfio_info_cap_header, id))?;
        let next = word(info, at + core::mem::offset_of!(vfio_info_cap_header, next))? as usize;
        if u32::from(id) == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE {
            return ranges(info, at);
        }
        if next != 0 && next <= at {
            return None;
        }
        at = next;
    }
    None
}

fn ranges(info: &[u8], at: usize) -> Option<IovaLimits> {
    type Cap = vfio_iommu_type1_info_cap_iova_range;
    let count = word(info, at + core::mem::offset_of!(Cap, nr_iovas))? as usize;
    let first = at + core::mem::offset_of!(Cap, iova_ranges);
    let mut ranges = Vec::new();
    for nth in 0..count {
        let at = first.checked_add(nth.checked_mul(size_of::<vfio_iova_range>())?)?;
        let start = long(info, at + core::mem::offset_of!(vfio_iova_range, start))?;
        let end = long(info, at + core::mem::offset_of!(vfio_iova_range, end))?;
        ranges.push(IovaRange { first: start, last: end });
    }
    ranges.sort_by_key(|range| range.first);
    Some(IovaLimits { ranges })
}

fn bytes<const N: usize>(from: &[u8], at: usize) -> Option<[u8; N]> {
    from.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn half(from: &[u8], at: usize) -> Option<u16> {
    bytes(from, at).map(u16::from_ne_bytes)
}

fn word(from: &[u8], at: usize) -> Option<u32> {
    bytes(from, at).map(u32::from_ne_bytes)
}

fn long(from: &[u8], at: usize) -> Option<u64> {
    bytes(from, at).map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a kernel with a 39-bit IOMMU says: another capability first, then two ranges with the MSI window between.
    fn info() -> Vec<u8> {
        let mut info = Vec::new();
        for word in [120_u32, 3] {
            info.extend(word.to_ne_bytes());
        }
        info.extend(0x4020_1000_u64.to_ne_bytes());
        info.extend([24_u32.to_ne_bytes(), 0_u32.to_ne_bytes()].concat());
        // Id 3 (how many mappings are left), version 1, next at 40.
        info.extend([3_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat());
        info.extend([40_u32.to_ne_bytes(), 65_535_u32.to_ne_bytes(), [0; 4]].concat());
        info.extend([1_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat());
        info.extend([0_u32.to_ne_bytes(), 2_u32.to_ne_bytes(), [0; 4]].concat());
        for end in [0xfef0_0000_u64, 0x7f_ffff_ffff, 0, 0xfedf_ffff] {
            info.extend(end.to_ne_bytes());
        }
        info
    }

    #[test]
    fn ranges_are_found_behind_other_capabilities_and_sorted() {
        let limits = read(&info()).unwrap();
        let ranges: Vec<(u64, u64)> =
            limits.ranges.iter().map(|one| (one.first, one.last)).collect();
        assert_eq!(ranges, [(0, 0xfedf_ffff), (0xfef0_0000, 0x7f_ffff_ffff)]);
    }

    #[test]
    fn what_is_cut_off_or_goes_in_circles_is_nothing() {
        let whole = info();
        for len in 0..whole.len() {
            assert_eq!(read(&whole[..len]), None, "{len} bytes");
        }
        let mut circle = whole.clone();
        circle[28..32].copy_from_slice(&24_u32.to_ne_bytes());
        assert_eq!(read(&circle), None);
        let mut silent = whole;
        silent[4] = 1;
        assert_eq!(read(&silent), None);
    }
}
