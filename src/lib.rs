//! Direct I/O for NVMe from userspace.
pub mod units;
