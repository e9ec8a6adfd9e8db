//! The hold on a controller: it sees our memory from here on, and does not when this is dropped.
//!
//! Whoever owns a [`Connection`] may hand out device addresses. Dropping it stops the controller and then
//! unmaps all memory from it, in that order, on every path: a failed bring-up, an error, a panic, the
//! ordinary end. A controller that does not stop in time is cut off from memory all the same.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use super::admin::Admin;
use super::registers::Registers;
use super::wait::Wait;
use crate::block::{BlockError, Cause};
use crate::dma::{Attachment, Domain, Mapper};
use crate::spec::registers::{Capabilities, Configuration, SHN_NORMAL, SHST_COMPLETE};
use crate::transport::Transport;

/// The shortest and the longest time that a shutdown is given (RTD3E is clamped to this).
const SHUTDOWN_MIN: Duration = Duration::from_secs(5);
const SHUTDOWN_MAX: Duration = Duration::from_secs(60);

/// A controller that can see the memory of a domain.
pub(super) struct Connection {
    pub(super) registers: Registers,
    pub(super) cap: Capabilities,
    /// How long the controller may take to become ready or to stop.
    pub(super) ready_timeout: Duration,
    /// How long it may take to shut down; set once the controller has said so.
    pub(super) shutdown_timeout: Duration,
    /// `None` once the controller is cut off.
    attachment: Option<Attachment>,
}

/// A connection and the admin queue on it.
pub(super) struct Session {
    /// First: the controller lets go of memory before the rings go.
    pub(super) connection: Connection,
    pub(super) admin: Admin,
}

impl Connection {
    /// Lets the controller see the domain's memory.
    pub(super) fn open(
        transport: Arc<dyn Transport>,
        domain: &Arc<Domain>,
    ) -> Result<Self, BlockError> {
        let registers = Registers::new(Arc::clone(&transport));
        let cap = registers.capabilities()?;
        let mapper: Arc<dyn Mapper> = transport;
        let attachment = domain.attach(mapper).map_err(|error| {
            let what = "memory for the controller".into();
            BlockError::new(Cause::NoSpace { what }).with_source(error)
        })?;
        let ready_timeout = registers.ready_timeout(cap);
        let shutdown_timeout = SHUTDOWN_MIN;
        Ok(Self { registers, cap, ready_timeout, shutdown_timeout, attachment: Some(attachment) })
    }

    /// Takes over how long the controller says that it needs to shut down (RTD3E, microseconds).
    pub(super) fn set_shutdown_time(&mut self, rtd3e_us: u32) {
        let said = Duration::from_micros(u64::from(rtd3e_us));
        self.shutdown_timeout = said.clamp(SHUTDOWN_MIN, SHUTDOWN_MAX);
    }

    /// Stops the controller, and cuts it off from memory in any case.
    ///
    /// After this no buffer can be written by the device, whether it obeyed or not.
    pub(super) fn stop(&mut self) {
        if self.attachment.is_none() {
            return;
        }
        if let Err(error) = self.disable() {
            tracing::warn!(%error, registers = self.registers.dump(), "the controller did not stop");
        }
        self.attachment = None;
    }

    /// Asks for an orderly shutdown: caches written, counters saved.
    ///
    /// # Errors
    ///
    /// `Timeout` if the controller took longer than it said, `DeviceGone` if it is not there.
    pub(super) fn shut_down(&mut self) -> Result<(), BlockError> {
        let cc = self.registers.configuration()?;
        let status = self.registers.status()?;
        if !cc.en() || status.cfs() {
            return Ok(());
        }
        self.registers.configure(cc.with_shn(SHN_NORMAL));
        let mut wait = Wait::for_at_most(self.shutdown_timeout);
        while self.registers.status()?.shst() != SHST_COMPLETE {
            if wait.is_over() {
                let (what, after) = ("the controller's shutdown".into(), self.shutdown_timeout);
                return Err(Cause::Timeout { what, after }.into());
            }
            wait.pause();
        }
        Ok(())
    }

    fn disable(&self) -> Result<(), BlockError> {
        self.registers.configure(Configuration::new());
        let mut wait = Wait::for_at_most(self.ready_timeout);
        while self.registers.status()?.rdy() {
            if wait.is_over() {
                let (what, after) = ("disabling the controller".into(), self.ready_timeout);
                return Err(Cause::Timeout { what, after }.into());
            }
            wait.pause();
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.stop();
    }
}
