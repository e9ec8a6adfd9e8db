//! Direct I/O for NVMe from userspace.
//!
#![doc = include_str!("../README.md")]
#[expect(unsafe_code, reason = "maps and shares memory with devices")]
pub mod dma;
#[cfg(feature = "spdk")]
#[expect(unsafe_code, reason = "calls an installed SPDK")]
pub mod spdk;
#[expect(unsafe_code, reason = "asks the kernel for devices and what they may reach")]
pub mod transport;

#[cfg(feature = "program")]
pub mod bench;
pub mod block;
#[cfg(feature = "program")]
#[doc(hidden)]
pub mod cli;
pub mod dio;
pub mod extent;
#[cfg(feature = "program")]
#[doc(hidden)]
pub mod host;
pub mod nvme;
pub mod open;
pub mod pci;
#[doc(hidden)]
pub mod seed;
pub mod soft;
pub mod spec;
pub mod units;
pub mod volume;
