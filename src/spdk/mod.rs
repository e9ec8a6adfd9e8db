//! SPDK's block devices behind the waist: an installed SPDK does the work, with our threads and our memory.
//!
//! ```text
//!   Environment   DPDK's EAL and SPDK's subsystems, once in a process, on a thread of their own
//!    └ Bdev          one block device, opened by name; made before and taken away after, where asked for
//!       └ Queue         an SPDK thread and an I/O channel, driven by whoever polls the queue
//! ```
//!
//! SPDK's threads are lightweight: whoever owns one polls it. So a [`Queue`](queue) brings its own and no reactor runs.
//! What SPDK has to do now and then (administration, hotplug, configuration) is done by the environment's thread.
//!
//! Everything is configured by SPDK's own JSON, which is the interface that does not change from release to release.
//! This is one of the doors to `unsafe`; its promises are in `docs/unsafe.md`.

mod address;
mod bdev;
mod environment;
mod memory;
mod queue;

pub use address::{ParseTargetError, Target};
pub use bdev::Bdev;
pub use environment::{Environment, EnvironmentOptions, Hugepages};

/// SPDK's declarations, as bindgen found them in the installed headers.
#[allow(
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    unreachable_pub,
    dead_code,
    clippy::all,
    clippy::pedantic,
    clippy::multiple_unsafe_ops_per_block,
    clippy::undocumented_unsafe_blocks,
    unsafe_op_in_unsafe_fn
)]
mod sys {
    include!(concat!(env!("OUT_DIR"), "/spdk.rs"));
}
