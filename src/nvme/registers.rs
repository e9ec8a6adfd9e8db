//! The controller's registers, read into checked types.
//!
//! Every read is tested for all ones, which is what a bus answers with when nobody is there.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use crate::block::{BlockError, Cause};
use crate::spec::registers::{
    ALL_ONES, AdminQueueAttributes, Capabilities, Configuration, ControllerStatus, ReadyTimeouts,
    Version, offset,
};
use crate::transport::Transport;
use crate::units::Iova;

/// A controller's registers.
#[derive(Clone)]
pub(super) struct Registers {
    transport: Arc<dyn Transport>,
}

/// The unit of CAP.TO and CRTO.
const TIMEOUT_UNIT: Duration = Duration::from_millis(500);

/// The longest that a controller is waited for, whatever it says: what CAP.TO can say at most.
const READY_MAX: Duration = Duration::from_secs(128);

impl Registers {
    pub(super) fn new(transport: Arc<dyn Transport>) -> Self {
        Self { transport }
    }

    pub(super) fn transport(&self) -> &Arc<dyn Transport> {
        &self.transport
    }

    pub(super) fn capabilities(&self) -> Result<Capabilities, BlockError> {
        match self.transport.read64(offset::CAP) {
            u64::MAX => Err(gone("CAP")),
            bits => Ok(Capabilities::from_bits(bits)),
        }
    }

    pub(super) fn version(&self) -> Result<Version, BlockError> {
        self.read32(offset::VS, "VS").map(Version::from_bits)
    }

    pub(super) fn status(&self) -> Result<ControllerStatus, BlockError> {
        self.read32(offset::CSTS, "CSTS").map(ControllerStatus::from_bits)
    }

    pub(super) fn configuration(&self) -> Result<Configuration, BlockError> {
        self.read32(offset::CC, "CC").map(Configuration::from_bits)
    }

    pub(super) fn configure(&self, cc: Configuration) {
        self.transport.write32(offset::CC, cc.into_bits());
    }

    /// Tells the controller where its admin queues are.
    pub(super) fn set_admin_queues(&self, aqa: AdminQueueAttributes, asq: Iova, acq: Iova) {
        self.transport.write32(offset::AQA, aqa.into_bits());
        self.transport.write64(offset::ASQ, asq.0);
        self.transport.write64(offset::ACQ, acq.0);
    }

    /// Returns how long the controller may take to become ready or to stop.
    ///
    /// The larger of CAP.TO and CRTO, since some devices get one of them wrong; one unit at least.
    pub(super) fn ready_timeout(&self, cap: Capabilities) -> Duration {
        let crto = match (cap.crms(), self.transport.read32(offset::CRTO)) {
            (0, _) | (_, ALL_ONES) => 0,
            (_, bits) => ReadyTimeouts::from_bits(bits).crwmt(),
        };
        let units = u32::from(crto.max(u16::from(cap.to()))) + 1;
        (TIMEOUT_UNIT * units).min(READY_MAX)
    }

    /// Says what shows that an enabled controller is not there any more, if anything does.
    ///
    /// A bus answers with all ones for a device that has been pulled out; behind some bridges, and where only the device's
    /// memory space was turned off, with zeroes. A version of 0 does not exist.
    pub(super) fn absence(&self) -> Option<String> {
        match self.transport.read32(offset::VS) {
            ALL_ONES => Some("its registers read as all ones".into()),
            0 => Some("its registers read as zeroes".into()),
            _ => None,
        }
    }

    /// Says what is wrong with a controller that answers, if it says so itself.
    pub(super) fn complaint(&self) -> Option<String> {
        let status = ControllerStatus::from_bits(self.transport.read32(offset::CSTS));
        match (status.cfs(), status.rdy()) {
            (true, _) => Some("CSTS.CFS: the controller reports a fatal error".into()),
            (false, false) => Some("CSTS.RDY: the controller was disabled by somebody else".into()),
            (false, true) => None,
        }
    }

    /// Writes down what a person needs to see why a controller does not do what it should.
    pub(super) fn dump(&self) -> String {
        let read = |offset| self.transport.read32(offset);
        format!(
            "CAP={:#018x} CC={:#010x} CSTS={:#010x} AQA={:#010x}",
            self.transport.read64(offset::CAP),
            read(offset::CC),
            read(offset::CSTS),
            read(offset::AQA),
        )
    }

    fn read32(&self, offset: u32, name: &str) -> Result<u32, BlockError> {
        match self.transport.read32(offset) {
            ALL_ONES => Err(gone(name)),
            bits => Ok(bits),
        }
    }
}

#[cold]
fn gone(register: &str) -> BlockError {
    Cause::DeviceGone { what: format!("{register} reads as all ones").into() }.into()
}
