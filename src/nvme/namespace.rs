//! A namespace as a block device.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::controller::Controller;
use super::identity::NamespaceIdentity;
use crate::block::{BlockDevice, BlockError, DeviceInfo, Geometry, IoQueue, QueueOptions};
use crate::dma::Domain;
use crate::spec::identify::IdentifyNamespace;

/// One namespace of a controller.
pub struct Namespace {
    identity: NamespaceIdentity,
    /// What the identity was read from: the controller has another after a format.
    id: Arc<IdentifyNamespace>,
    info: DeviceInfo,
    controller: Arc<Controller>,
}

impl Namespace {
    pub(super) fn new(
        controller: Arc<Controller>,
        identity: NamespaceIdentity,
        id: Arc<IdentifyNamespace>,
        address: &str,
    ) -> Self {
        let whole = controller.identify();
        let info = DeviceInfo {
            address: address.into(),
            model: whole.model_number().into(),
            serial: whole.serial_number().into(),
            firmware: whole.firmware_revision().into(),
        };
        Self { identity, id, info, controller }
    }

    /// Returns the controller.
    pub fn controller(&self) -> &Arc<Controller> {
        &self.controller
    }
}

impl BlockDevice for Namespace {
    fn geometry(&self) -> &Geometry {
        &self.identity.geometry
    }

    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn open_queue(&self, options: &QueueOptions) -> Result<Box<dyn IoQueue>, BlockError> {
        self.controller.open_queue(&self.identity.limits, &self.id, options)
    }

    fn max_depth(&self) -> u32 {
        self.controller.max_depth()
    }

    fn max_queues(&self) -> u32 {
        u32::from(self.controller.queues())
    }

    fn dma(&self) -> &Arc<Domain> {
        self.controller.domain()
    }
}
