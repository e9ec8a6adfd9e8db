//! An NVMe controller in software, in this process, down to its registers.
//!
//! A driver reaches it through [`Transport`](crate::transport::Transport) like any other controller: it writes
//! CC, rings doorbells, and reads completions in its own memory. It is stricter than hardware is: reserved
//! fields that are set, pages that are misaligned, and accesses outside the mapped memory are errors.
//!
//! ```text
//!   Controller     registers, the thread if there is one          (control, rare)
//!    └ Core           namespaces, IOMMU, doorbells, settings
//!       ├ sanitize       erases everything, a piece with each turn of the admin queue
//!       └ Group          a completion queue and its submission queues, under one lock: one core's work
//!          ├ queue          rings and indices
//!          ├ io             what an opcode does    ── namespace ── media (RAM, file, disk, nothing)
//!          ├ data           PRPs and SGLs          ── iommu (a few compares on a hit)
//!          └ detour         the way of a command that a fault or a power cut may meet
//!             └ tagged          commands on blocks with metadata ── protect (tuples)
//! ```
//!
//! A [`Listener`] offers one to other processes, over vfio-user.
//!
//! `inline` the host's poll gives it turns, on a `thread` it serves itself, `stepped` a test does. It shares
//! the layouts of [`spec`](crate::spec) with the driver and no logic, so that their agreement means something.
#![forbid(unsafe_code)]

mod admin;
mod controller;
mod counters;
mod data;
mod detour;
mod disk;
mod engine;
mod events;
mod faults;
mod features;
mod group;
mod identify;
mod interposer;
mod interrupts;
mod interval;
mod io;
mod iommu;
mod listen;
mod logs;
mod media;
mod namespace;
mod options;
mod protect;
mod queue;
mod registers;
mod sanitize;
mod shadow;
mod tagged;
#[cfg(test)]
mod tests;
mod thread;

pub use controller::Controller;
pub use counters::{DeviceCounters, OpcodeCounts};
pub use disk::{Disk, DiskCounters, FillPattern, Pending, PendingWrite};
pub use events::Event;
pub use faults::{FaultAction, FaultId, FaultRule, Faults};
pub use interposer::{CommandContext, Interposer, Lie, Verdict};
pub use listen::{ListenError, Listener};
pub use logs::SmartOverrides;
pub use options::{
    Execution, MediaOptions, MetadataOptions, NamespaceOptions, Options, ProtectionOptions,
    SoftError,
};
