//! Looking at a controller: log pages, features, namespaces.
//!
//! What comes back is bytes from a device, copied out of shared memory; who asks gives them a meaning.
#![forbid(unsafe_code)]

use zerocopy::FromBytes;

use super::admin::no_memory;
use super::controller::Controller;
use super::identity::FoundNamespace;
use super::memory::PAGE;
use crate::block::{BlockError, Cause};
use crate::dma::{Access, Window};
use crate::spec::command::{
    AdminOpcode, Cns, Command, GetFeaturesDword10, GetLogPageDword10, GetLogPageDword11,
    IdentifyDword10, SetFeaturesDword10,
};
use crate::spec::completion::Completion;
use crate::spec::feature::{FeatureId, Select};
use crate::spec::identify::IdentifyNamespace;
use crate::spec::log::LogPage;
use crate::units::NamespaceId;

/// The longest log page that is read: 16 MiB, more than any but telemetry has.
const LOG_BYTES_MAX: usize = 16 << 20;

/// Which value of which feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureQuery {
    /// The feature.
    pub id: FeatureId,
    /// The namespace, for features that each namespace has a value of.
    pub nsid: NamespaceId,
    /// The value in use, the default, the saved one, or what can be done with the feature.
    pub select: Select,
    /// What chooses among several values, as for a temperature threshold.
    pub dword11: u32,
}

impl FeatureQuery {
    /// Asks for the value in use of a feature of the controller.
    pub const fn of(id: FeatureId) -> Self {
        Self { id, nsid: NamespaceId::NONE, select: Select::CURRENT, dword11: 0 }
    }
}

/// The value of a feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureValue {
    /// Dword 0 of the completion.
    pub dword0: u32,
    /// What the feature has beside it; empty for most.
    pub data: Vec<u8>,
}

impl Controller {
    /// Reads a log page of `len` bytes, a multiple of four; what is longer than a page comes in pieces.
    ///
    /// # Errors
    ///
    /// `Unsupported` if it takes pieces and the controller knows no offsets (LPA); otherwise as
    /// [`execute`](Self::execute).
    pub fn log_page(
        &self,
        page: LogPage,
        nsid: NamespaceId,
        len: usize,
    ) -> Result<Vec<u8>, BlockError> {
        if !len.is_multiple_of(4) || !(4..=LOG_BYTES_MAX).contains(&len) {
            let (value, most) = (len as u64, LOG_BYTES_MAX as u64);
            return Err(
                Cause::Invalid { what: "length of a log page", value, least: 4, most }.into()
            );
        }
        if len > PAGE as usize && !self.identify().lpa().extended_data() {
            let what = format!("a log page of {len} bytes: it takes no offset, so {PAGE} at most");
            return Err(Cause::Unsupported { what: what.into() }.into());
        }
        let mut bytes = vec![0; len];
        let window = self.scratch(len.min(PAGE as usize))?;
        for (index, piece) in bytes.chunks_mut(PAGE as usize).enumerate() {
            let offset = index as u64 * PAGE;
            // An event that the page explains is over once the last piece was read.
            let more = offset + PAGE < len as u64;
            self.log_piece((page, nsid), offset, more, &window, piece)?;
        }
        Ok(bytes)
    }

    fn log_piece(
        &self,
        (page, nsid): (LogPage, NamespaceId),
        offset: u64,
        more: bool,
        window: &Window,
        piece: &mut [u8],
    ) -> Result<(), BlockError> {
        let numd = piece.len() as u32 / 4 - 1;
        let dword10 = GetLogPageDword10::new().with_lid(page.0).with_rae(more);
        let command = Command {
            opcode: AdminOpcode::GET_LOG_PAGE.0,
            nsid: nsid.0,
            dptr: [window.iova().0, 0],
            cdw10: dword10.with_numdl(numd as u16).into_bits(),
            cdw11: GetLogPageDword11::new().with_numdu((numd >> 16) as u16).into_bits(),
            cdw12: offset as u32,
            cdw13: (offset >> 32) as u32,
            ..Command::default()
        };
        self.execute(command, "Get Log Page")?;
        window.span().slice(0, piece.len()).expect("no longer than it").read_into(piece);
        Ok(())
    }

    /// Returns a value of a feature.
    ///
    /// # Errors
    ///
    /// As [`execute`](Self::execute): a feature that the controller does not have is its `Invalid Field`.
    pub fn feature(&self, query: &FeatureQuery) -> Result<FeatureValue, BlockError> {
        let len = match query.select {
            Select::CAPABILITIES => 0,
            _ => query.id.data_bytes(),
        };
        let window = (len > 0).then(|| self.scratch(len)).transpose()?;
        let dword10 = GetFeaturesDword10::new().with_fid(query.id.0).with_sel(query.select.0);
        let command = Command {
            opcode: AdminOpcode::GET_FEATURES.0,
            nsid: query.nsid.0,
            dptr: [window.as_ref().map_or(0, |window| window.iova().0), 0],
            cdw10: dword10.into_bits(),
            cdw11: query.dword11,
            ..Command::default()
        };
        let dword0 = self.execute(command, "Get Features")?.dw0;
        let mut data = vec![0; len];
        if let Some(window) = window {
            window.span().read_into(&mut data);
        }
        Ok(FeatureValue { dword0, data })
    }

    /// Changes a feature whose value is a dword, and returns what the controller answers. `save` keeps the
    /// value through resets.
    ///
    /// # Errors
    ///
    /// `Unsupported` for features whose value has data beside it; otherwise as [`execute`](Self::execute).
    pub fn set_feature(
        &self,
        id: FeatureId,
        nsid: NamespaceId,
        value: u32,
        save: bool,
    ) -> Result<Completion, BlockError> {
        if id.data_bytes() > 0 {
            let what = format!("setting {id} by a dword: it has {} bytes", id.data_bytes());
            return Err(Cause::Unsupported { what: what.into() }.into());
        }
        let command = Command {
            opcode: AdminOpcode::SET_FEATURES.0,
            nsid: nsid.0,
            cdw10: SetFeaturesDword10::new().with_fid(id.0).with_sv(save).into_bits(),
            cdw11: value,
            ..Command::default()
        };
        self.execute(command, "Set Features")
    }

    /// Asks again what Identify Namespace returns, which a format changes.
    pub(super) fn identify_namespace(
        &self,
        nsid: NamespaceId,
    ) -> Result<FoundNamespace, BlockError> {
        let id: IdentifyNamespace = self.identify_page(Cns::NAMESPACE, nsid)?;
        let extended = match id.dps().kind() != 0 && self.identify().has_extended_formats() {
            true => Some(Box::new(self.identify_page(Cns::COMMAND_SET_NAMESPACE, nsid)?)),
            false => None,
        };
        Ok(FoundNamespace { nsid, id: Box::new(id), extended })
    }

    fn identify_page<T: FromBytes>(&self, cns: Cns, nsid: NamespaceId) -> Result<T, BlockError> {
        let window = self.scratch(PAGE as usize)?;
        let command = Command {
            opcode: AdminOpcode::IDENTIFY.0,
            nsid: nsid.0,
            dptr: [window.iova().0, 0],
            cdw10: IdentifyDword10::new().with_cns(cns.0).into_bits(),
            ..Command::default()
        };
        self.execute(command, "Identify Namespace")?;
        let mut bytes = [0; PAGE as usize];
        window.span().read_into(&mut bytes);
        let (page, _) = T::read_from_prefix(&bytes).expect("a page holds the structure");
        Ok(page)
    }

    /// Makes memory, a page at most, that the controller may write.
    fn scratch(&self, len: usize) -> Result<Window, BlockError> {
        self.domain().window(len, PAGE as usize, Access::DeviceWrites).map_err(no_memory)
    }
}
