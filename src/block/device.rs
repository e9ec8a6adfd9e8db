//! The control side of a device: what it is, and how to get a queue to it.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use super::{BlockError, Geometry, IoQueue};
use crate::dma::Domain;

/// A block device, shared by all cores.
pub trait BlockDevice: Send + Sync {
    /// Returns the device's shape and limits.
    fn geometry(&self) -> &Geometry;

    /// Returns who the device says it is.
    fn info(&self) -> &DeviceInfo;

    /// Opens a queue for one core.
    ///
    /// # Errors
    ///
    /// `Busy` when the device has no queue left, `Invalid` when the depth does not fit, and whatever
    /// the device says.
    fn open_queue(&self, options: &QueueOptions) -> Result<Box<dyn IoQueue>, BlockError>;

    /// Returns the most requests that one queue of this device can have in flight.
    fn max_depth(&self) -> u32;

    /// Returns the most queues that may be open at once.
    fn max_queues(&self) -> u32;

    /// Returns the memory that this device can reach.
    fn dma(&self) -> &Arc<Domain>;
}

/// Who a device says it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The address it was opened by.
    pub address: String,
    /// Model, without padding.
    pub model: String,
    /// Serial number, without padding.
    pub serial: String,
    /// Firmware revision, without padding.
    pub firmware: String,
}

/// What a queue should be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueOptions {
    /// Requests in flight at most.
    pub depth: u32,
    /// How long a request may take before the device is taken to have failed it.
    pub timeout: Duration,
}

impl Default for QueueOptions {
    /// 128 requests, 30 seconds each.
    fn default() -> Self {
        Self { depth: 128, timeout: Duration::from_secs(30) }
    }
}
