//! The driver: from registers to per-core queue pairs, in userspace.
//!
//! ```text
//!   BringUp --step--> Controller --namespace--> Namespace (BlockDevice)
//!                        |                          | open_queue
//!                      admin queue              QueuePair (IoQueue, one core)
//!                                                 limits   what one command may be, where to cut
//!                                                 compose  command, PRPs, SGLs
//!                                                 tagging  what is said of metadata, and tags carries it
//!                                                 slots    who owns what the device may touch
//!                                                 rings    entries, indices, doorbells
//! ```
//!
//! Nothing a device writes is believed before it is checked, nothing it may write is handed out before it
//! is stopped, and nothing waits without a deadline. There is no `unsafe` in this room: memory is behind
//! `dma`, registers are behind `transport`.
#![forbid(unsafe_code)]

mod admin;
mod bell;
mod bringup;
mod compose;
mod connection;
mod controller;
mod erase;
mod guard;
mod health;
mod identity;
mod inspect;
mod limits;
mod lists;
mod memory;
mod namespace;
mod queue;
mod queues;
mod recovery;
mod registers;
mod retry;
mod ring;
mod search;
mod slots;
mod split;
mod status;
mod tagging;
mod tags;
mod wait;

use std::sync::Arc;

pub use bringup::{BringUp, Options, Progress};
pub use controller::Controller;
pub use inspect::{FeatureQuery, FeatureValue};
pub use namespace::Namespace;
pub use tagging::MetadataUse;

use crate::block::BlockError;
use crate::dma::Domain;
use crate::transport::Transport;

/// Brings a controller up and waits for it.
///
/// # Errors
///
/// As [`BringUp::begin`] and [`BringUp::step`]; every state has its deadline.
pub fn connect(
    transport: &Arc<dyn Transport>,
    domain: &Arc<Domain>,
    options: Options,
) -> Result<Arc<Controller>, BlockError> {
    let mut bringup = BringUp::begin(transport, domain, options)?;
    let mut pace = wait::Pace::default();
    loop {
        match bringup.step()? {
            Progress::Ready(controller) => return Ok(controller),
            Progress::Pending => pace.pause(),
        }
    }
}
