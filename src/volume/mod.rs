//! The API of a storage engine: a volume, and a handle to it for each core.
//!
//! ```text
//!   Volume   shared: the device, the map of its blocks, who rewrites which edge
//!    └ Handle    one core: submit / ring / poll, blocking calls
//!       └ AsyncHandle   the same as futures, for whatever executor there is
//! ```
//!
//! A handle takes requests of any offset and length. Those that are aligned to blocks go down to the
//! pipeline as they are; for the others the blocks at the edges are read, changed and written back. Nothing
//! here owns a thread: requests move when the caller polls.
#![forbid(unsafe_code)]

mod blocking;
mod edges;
mod extend;
mod future;
mod handle;
mod object;
mod ragged;

use std::sync::Arc;

pub use future::{AsyncHandle, Driver, IoFuture};
pub use handle::{EdgeCounts, Handle};
pub use object::Object;

pub use crate::dio::{
    Action, Done, Io, IoVector, Memory, MemoryPolicy, OpenError, Options, Refused, SEGMENTS_MAX,
    Slice, Source, Statistics,
};

pub use crate::extent::{
    Exclusion, Finding, FormatOptions, ObjectInfo, OpenOptions, Report, Segment, Store, StoreError,
    StoreStatistics, Uuid, check, name_of,
};

use crate::block::{BlockDevice, Geometry, Identity, MapBlocks};
use edges::Edges;

/// A device and the map of its blocks, shared by all cores.
#[derive(Clone)]
pub struct Volume<M = Identity> {
    device: Arc<dyn BlockDevice>,
    map: M,
    edges: Arc<Edges>,
}

impl Volume {
    /// Makes a volume of a whole device: byte n of the volume is byte n of the device.
    ///
    /// ```
    /// use udirect::volume::{Options, Volume};
    ///
    /// let device = udirect::open::open("mem:16MiB")?.device;
    /// let mut handle = Volume::raw(device).handle(&Options::default())?;
    /// handle.write_at(b"bytes anywhere", 12_345)?;
    /// let mut back = [0; 14];
    /// handle.read_at(&mut back, 12_345)?;
    /// assert_eq!(&back, b"bytes anywhere");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn raw(device: Arc<dyn BlockDevice>) -> Self {
        let map = Identity::new(device.geometry());
        Self::over(device, map)
    }
}

impl<M: MapBlocks + Clone> Volume<M> {
    /// Makes a volume of a device whose blocks a map gives to files.
    pub fn over(device: Arc<dyn BlockDevice>, map: M) -> Self {
        Self { device, map, edges: Arc::default() }
    }

    /// Opens a handle for one core.
    ///
    /// # Errors
    ///
    /// `Busy` when the device has no queue left, `Invalid` options, and want of memory.
    pub fn handle(&self, options: &Options) -> Result<Handle<M>, OpenError> {
        Handle::open(&*self.device, self.map.clone(), Arc::clone(&self.edges), options)
    }

    /// Returns the device.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// Returns the device's shape and limits.
    pub fn geometry(&self) -> &Geometry {
        self.device.geometry()
    }

    /// Returns the map.
    pub fn map(&self) -> &M {
        &self.map
    }
}
