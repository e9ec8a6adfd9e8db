//! The waist: what a block device is, whoever drives it.
//!
//! [`BlockDevice`] is the shared, control side: geometry, queues, memory. [`IoQueue`] is the data
//! side: one core submits [`Request`]s and polls for [`Completion`]s. Buffers travel inside the
//! request and come back inside the completion, so that nobody can free or read memory that a device
//! may be writing.
//!
//! ```text
//!   Request --submit--> IoQueue --ring--> device
//!                          |
//!   Completion <--poll-----+        (the request comes back, with its buffers and the result)
//! ```
//!
//! Where a request speaks of a file, [`MapBlocks`] says which blocks of the device that is: the contract
//! that a filesystem's `get_block` keeps for the kernel. [`Identity`] is the map of a raw device, and
//! [`ScriptedMap`] the one of tests.
//!
//! This room knows nothing of NVMe: the native driver, the kernel's rings and SPDK are equals
//! behind it, and one conformance suite runs against all of them.

#![forbid(unsafe_code)]

pub(crate) mod bounds;
pub(crate) mod deadline;
mod device;
mod error;
mod geometry;
mod map;
mod metadata;
mod queue;
mod request;
mod runs;
mod scripted;

pub use device::{BlockDevice, DeviceInfo, QueueOptions};
pub use error::{BlockError, Cause, DeviceStatus, ErrorKind};
pub use geometry::{Geometry, Operations, SegmentRules};
pub use map::{
    Begun, Committed, Durability, End, Extent, Identity, Intent, MapBlocks, Mapping, Mark, Reach,
    UNIT_BLOCKS_MAX,
};
pub use metadata::{Checked, Metadata, MetadataPlace, Protection, ProtectionKind};
pub use queue::{Completion, Counters, IoQueue, Rejected};
pub use request::{Operation, Payload, Request};
pub use runs::{Fit, Run, merged, runs};
pub use scripted::{Event, Placement, ScriptedGuard, ScriptedMap, ScriptedOptions, Twist};
