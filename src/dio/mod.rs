//! The direct-I/O pipeline: from a request to coalesced commands, and back.
//!
//! ```text
//!  Io ── submit ──> plain? ──────────────────────────────> one command, as it came
//!                   │ no
//!                   └ cursor ── map ──> extents ── join ──> command under assembly ── full? ──> IoQueue
//!                       │  zeroes at new edges   holes: no command
//!                       └ room missing: put away, on at the next poll
//!  Done <── poll ── record: last command back, first error wins, guard committed or dropped
//! ```
//!
//! What the kernel's `O_DIRECT` path does for a file, this does for whatever keeps the contract of
//! [`MapBlocks`](crate::block::MapBlocks), on the queue of one core. `docs/direct-io.md` says rule by rule
//! where each part of that behaviour lives. The invariant: memory is with the device or with the caller,
//! never with both; and what a request made in the map is seen only after its data is on the device.
#![forbid(unsafe_code)]

mod command;
mod cursor;
mod memory;
mod pipeline;
mod record;
mod request;
mod send;
mod settle;
mod shape;
mod walk;
mod walker;

pub use memory::{IoVector, Memory, SEGMENTS_MAX, Slice, Source};
pub use pipeline::{MemoryPolicy, OpenError, Options, Pipeline};
pub use request::{Action, Done, Io, Refused, Statistics};
