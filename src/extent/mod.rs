//! The extent store: objects on a device, and what is durable of them.
//!
//! ```text
//!   Store      create, remove, rename (store), sizes and holes (shape); a map of blocks for the pipeline (map)
//!    └ Shared     what handles share
//!       ├ objects    each with a tree of extents                                  tree, object
//!       ├ space      what no object has                                           space
//!       ├ log        what was done and is not in the journal yet                  log, record
//!       └ engine     journal, checkpoints, superblock: a step with every poll     engine
//!                       │
//!   device     superblock x 4 │ journal │ checkpoint x 2 │ data                   layout, seal, superblock, checkpoint
//!                       │
//!   open       superblock -> checkpoint -> journal -> free space                  open, replay
//!   check      the same and more, and nothing is changed                          check
//! ```
//!
//! The whole map is in memory, its history on the device. Data goes to the medium before the operation that makes it
//! part of an object, and that operation before the space it replaces is used again; the format is described in
//! `docs/on-disk-format.md`.
//!
//! The invariant: every unit of the device belongs to one extent of one object, or is free, and never both; after a
//! power cut the store is as it was after some operation that came no earlier than the last one that was durable.
#![forbid(unsafe_code)]

mod bytes;
mod check;
mod checkpoint;
mod claim;
mod engine;
mod error;
mod io;
mod layout;
mod log;
mod map;
mod object;
mod open;
mod record;
mod replay;
mod seal;
mod shape;
mod shared;
#[doc(hidden)]
pub mod space;
mod store;
mod superblock;
#[doc(hidden)]
pub mod tree;
mod uuid;

pub use check::{Finding, Report, check};
pub use engine::JournalCounts;
pub use error::{Area, Damage, StoreError};
pub use map::Guard;
pub use open::{FormatOptions, OpenOptions};
pub use record::{KEY_BYTES_MAX, NAME_BYTES_MAX, VALUE_BYTES_MAX};
pub use shape::Exclusion;
pub use shared::Clock;
pub use store::{ObjectInfo, Segment, Store, StoreInfo, StoreStatistics, name_of};
pub use uuid::Uuid;
