//! Direct I/O for NVMe from userspace.
//!
#![doc = include_str!("../README.md")]
#[expect(unsafe_code, reason = "maps and shares memory with devices")]
pub mod dma;

#[cfg(feature = "program")]
pub mod bench;
pub mod block;
#[cfg(feature = "program")]
#[doc(hidden)]
pub mod cli;
pub mod dio;
pub mod extent;
pub mod nvme;
pub mod open;
#[doc(hidden)]
pub mod seed;
pub mod soft;
pub mod spec;
pub mod transport;
pub mod units;
pub mod volume;
