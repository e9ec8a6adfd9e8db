//! `udirect emulate`: the embedded controller for other processes, behind a vfio-user socket, until a signal ends it.
//!
//! What the controller is made of is an address as everywhere; where it is offered is a folder. Nothing is printed to
//! stdout: whoever waits for the socket sees it in the folder.
#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::Context;

use super::failure::Failure;
use super::output::tell;
use super::signals;
use crate::open::embedded;
use crate::soft::{Controller, ListenError, Listener};

/// Offers the controller at `address` in `folder`.
pub(super) fn run(address: &str, folder: &Path) -> Result<(), Failure> {
    let controller = Controller::new(embedded(address)?.shareable());
    let controller = controller.context(address.to_owned()).map_err(Failure::usage)?;
    let end = signals::stop_pipe().context("signals cannot be listened for");
    let end = end.map_err(Failure::device)?;
    let listener = Listener::bind(&controller, folder).map_err(failure)?;
    tell(&format!("{address} is at vfio-user:{}", folder.display()));
    let served = listener.serve(end.as_fd()).map_err(failure);
    drop(listener);
    let flushed = controller.flush().context(address.to_owned()).map_err(Failure::device);
    served.and(flushed)
}

fn failure(error: ListenError) -> Failure {
    match error {
        ListenError::Kernel { .. } => Failure::device(error),
        _ => Failure::usage(error),
    }
}
