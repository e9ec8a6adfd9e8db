//! Direct I/O for NVMe from userspace.
#[expect(unsafe_code, reason = "maps and shares memory with devices")]
pub mod dma;

#[doc(hidden)]
pub mod seed;
pub mod units;
