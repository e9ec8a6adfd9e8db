//! What a controller and its namespaces say of themselves, checked.
//!
//! Identify data is bytes from a device. It is copied out of shared memory, parsed here once into types
//! whose numbers have bounds, and not looked at again in its raw form by the driver.
#![forbid(unsafe_code)]

use super::limits::{Limits, command_blocks, transfer_blocks};
use super::memory::{PAGE, Rules};
use super::tagging::{INLINE_BLOCKS_MAX, METADATA_BYTES_MAX, MetadataUse, Tagging};
use crate::block::{BlockError, Cause, Geometry, Operations};
use crate::spec::identify::{
    IdentifyController, IdentifyNamespace, IdentifyNvmController, IdentifyNvmNamespace,
};
use crate::units::{BlockCount, ByteLen, LbaSize, NamespaceId};

/// What holds for every namespace of a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ControllerLimits {
    /// Bytes of one command that moves data; `None` is no limit.
    pub(super) transfer_bytes: Option<u64>,
    /// Bytes of one Write Zeroes and one Verify.
    zeroes_bytes: Option<u64>,
    verify_bytes: Option<u64>,
    /// Bytes of one Write Uncorrectable.
    uncorrectable_bytes: Option<u64>,
    /// Blocks of one range of Dataset Management.
    deallocate_blocks: Option<u64>,
    atomic_write: u64,
    volatile_write_cache: bool,
    rules: Rules,
    operations: Operations,
    /// How long to wait before a command is sent again (CRDT1 to CRDT3).
    retry_delays: [u16; 3],
    /// What is to be done with metadata, and the application tag of what is written.
    metadata: (MetadataUse, u16),
}

/// SGLs with any alignment, and with that of a dword (Base Figure 275, SGLS bits 1:0).
const SGL_ANY: u8 = 1;
const SGL_DWORD: u8 = 2;

impl ControllerLimits {
    /// Reads the controller's structures; the second is absent before NVMe 2.0.
    pub(super) fn parse(id: &IdentifyController, nvm: Option<&IdentifyNvmController>) -> Self {
        let oncs = id.oncs();
        let sgl = matches!(id.sgls().support(), SGL_ANY | SGL_DWORD);
        Self {
            transfer_bytes: pages_of(id.mdts),
            zeroes_bytes: nvm.and_then(|nvm| pages_of(nvm.wzsl)),
            verify_bytes: nvm.and_then(|nvm| pages_of(nvm.vsl)),
            uncorrectable_bytes: nvm.and_then(|nvm| pages_of(nvm.wusl)),
            deallocate_blocks: nvm.and_then(|nvm| nonzero(u64::from(nvm.dmrsl.get()))),
            atomic_write: u64::from(id.awupf.get()) + 1,
            volatile_write_cache: id.vwc().present(),
            rules: if sgl { Rules::Sgl } else { Rules::Prp },
            operations: Operations {
                deallocate: oncs.dataset_management(),
                write_zeroes: oncs.write_zeroes(),
                compare: oncs.compare(),
                verify: oncs.verify(),
                copy: oncs.copy(),
                write_uncorrectable: oncs.write_uncorrectable(),
                fua: true,
            },
            retry_delays: [id.crdt1.get(), id.crdt2.get(), id.crdt3.get()],
            metadata: (MetadataUse::Hidden, 0),
        }
    }

    /// Says what is to be done with metadata.
    pub(super) fn use_metadata(&mut self, how: MetadataUse, application_tag: u16) {
        self.metadata = (how, application_tag);
    }

    /// Keeps to PRPs, although the controller offers SGLs.
    pub(super) fn use_prps(&mut self) {
        self.rules = Rules::Prp;
    }

    /// Keeps commands to `bytes`, a page at least.
    pub(super) fn keep_below(&mut self, bytes: u64) {
        let most = self.transfer_bytes.unwrap_or(u64::MAX);
        self.transfer_bytes = Some(most.min(bytes.max(PAGE)));
    }
}

/// Reads a limit of 2^n pages; 0 is no limit, and so is what passes 63 bits.
fn pages_of(exponent: u8) -> Option<u64> {
    if exponent == 0 { None } else { PAGE.checked_shl(u32::from(exponent)).filter(|&b| b >= PAGE) }
}

fn nonzero(value: u64) -> Option<u64> {
    (value != 0).then_some(value)
}

/// One namespace: its shape for those who use it, its limits for the queues.
#[derive(Clone, Debug)]
pub(super) struct NamespaceIdentity {
    pub(super) geometry: Geometry,
    pub(super) limits: Limits,
}

/// A namespace as it was identified.
pub(super) struct FoundNamespace {
    pub(super) nsid: NamespaceId,
    pub(super) id: Box<IdentifyNamespace>,
    /// What its formats have besides, where the controller's can have that and the namespace is protected.
    pub(super) extended: Option<Box<IdentifyNvmNamespace>>,
}

impl NamespaceIdentity {
    /// Reads a namespace's structure.
    ///
    /// # Errors
    ///
    /// `Unsupported` for formats that this driver does not drive, `Protocol` for contradictions.
    pub(super) fn parse(
        nsid: NamespaceId,
        id: &IdentifyNamespace,
        extended: Option<&IdentifyNvmNamespace>,
        controller: &ControllerLimits,
    ) -> Result<Self, BlockError> {
        let lba_size = lba_size(nsid, id)?;
        let tagging = Tagging::parse(nsid, id, extended, controller.metadata, controller.rules)?;
        let blocks = BlockCount(id.nsze.get());
        if blocks.0 == 0 {
            let what = format!("namespace {nsid} has no blocks").into();
            return Err(Cause::Protocol { what }.into());
        }
        if blocks.to_bytes(lba_size).is_none() {
            let what = format!("namespace {nsid} of {blocks} blocks of {lba_size}").into();
            return Err(Cause::Protocol { what }.into());
        }
        if tagged_blocks(controller, lba_size, tagging) == 0 {
            let most = controller.transfer_bytes.unwrap_or(u64::MAX);
            let what =
                format!("namespace {nsid} with blocks of {lba_size}, above {most} B a command");
            return Err(Cause::Unsupported { what: what.into() }.into());
        }
        let limits = limits(nsid, id, (lba_size, blocks, tagging), controller);
        let geometry = geometry(id, controller, &limits);
        Ok(Self { geometry, limits })
    }
}

fn lba_size(nsid: NamespaceId, id: &IdentifyNamespace) -> Result<LbaSize, BlockError> {
    let format = id.lba_format();
    format.lba_size().ok_or_else(|| {
        let what = format!("namespace {nsid} with LBADS {}, outside 9..=16", format.lbads).into();
        Cause::Unsupported { what }.into()
    })
}

/// Returns the blocks of one command that moves data, and metadata where that travels: which is in one page, and
/// where it is inline is part of the transfer.
fn tagged_blocks(controller: &ControllerLimits, size: LbaSize, tagging: Option<Tagging>) -> u64 {
    let blocks = transfer_blocks(controller.transfer_bytes, size);
    let Some(tagging) = tagging.filter(Tagging::travels) else { return blocks };
    let blocks = blocks.min(METADATA_BYTES_MAX / u64::from(tagging.metadata.bytes));
    if !tagging.is_interleaved() {
        return blocks;
    }
    let bytes = controller.transfer_bytes.unwrap_or(u64::MAX);
    blocks.min(INLINE_BLOCKS_MAX).min(bytes / tagging.block_bytes(size.bytes().into()))
}

fn limits(
    nsid: NamespaceId,
    id: &IdentifyNamespace,
    (lba_size, capacity, tagging): (LbaSize, BlockCount, Option<Tagging>),
    controller: &ControllerLimits,
) -> Limits {
    // Where metadata is inline it counts, whether it is transferred or not.
    let whole = u64::from(lba_size.bytes()) + inline_bytes(id);
    let in_blocks = |bytes: Option<u64>| bytes.map(|bytes| (bytes / whole).max(1));
    let copy = nonzero(u64::from(id.mssrl.get())).zip(nonzero(u64::from(id.mcl.get())));
    let copy_max = copy.map(|(range, command)| range.min(command));
    let transfer_max = tagged_blocks(controller, lba_size, tagging);
    let deallocate_max = controller.deallocate_blocks.unwrap_or(u64::from(u32::MAX));
    Limits {
        nsid,
        lba_size,
        capacity,
        transfer_max,
        plain_max: if tagging.is_some() { 0 } else { transfer_max.min(capacity.0) },
        boundary: u64::from(id.noiob.get()),
        zeroes_max: command_blocks(in_blocks(controller.zeroes_bytes)),
        verify_max: command_blocks(in_blocks(controller.verify_bytes)),
        uncorrectable_max: command_blocks(in_blocks(controller.uncorrectable_bytes)),
        copy_max: command_blocks(copy_max),
        deallocate_max,
        operations: Operations {
            copy: controller.operations.copy && copy_max.is_some(),
            compare: controller.operations.compare && tagging.is_none_or(|one| one.can_compare()),
            ..controller.operations
        },
        rules: match tagging {
            Some(tagging) if tagging.is_interleaved() => Rules::Interleaved,
            _ => controller.rules,
        },
        retry_delays: controller.retry_delays,
        tagging,
    }
}

fn inline_bytes(id: &IdentifyNamespace) -> u64 {
    if id.flbas().metadata_inline() { id.lba_format().ms.get().into() } else { 0 }
}

fn geometry(id: &IdentifyNamespace, controller: &ControllerLimits, limits: &Limits) -> Geometry {
    let own_atomics = id.nsfeat().atomics() && id.nawupf.get() != 0;
    let atomic_write =
        if own_atomics { u64::from(id.nawupf.get()) + 1 } else { controller.atomic_write };
    let atomic_boundary = nonzero(u64::from(id.nabspf.get())).map(|wire| BlockCount(wire + 1));
    Geometry {
        lba_size: limits.lba_size,
        blocks: limits.capacity,
        max_transfer: ByteLen(limits.transfer_max << limits.lba_size.shift()),
        optimal_boundary: nonzero(limits.boundary).map(BlockCount),
        atomic_write: BlockCount(atomic_write),
        // An offset boundary (NABO) makes every write longer than a block cross one somewhere.
        atomic_boundary: if id.nabo.get() == 0 { atomic_boundary } else { Some(BlockCount(1)) },
        volatile_write_cache: controller.volatile_write_cache,
        operations: limits.operations,
        metadata: limits.tagging.map(|tagging| tagging.metadata),
        segments: limits.rules.segments(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn controller() -> IdentifyController {
        IdentifyController::new_zeroed()
    }

    fn namespace(lbads: u8, nsze: u64) -> IdentifyNamespace {
        let mut id = IdentifyNamespace::new_zeroed();
        id.lbaf[0].lbads = lbads;
        id.nsze = nsze.into();
        id
    }

    fn parse(id: &IdentifyNamespace) -> Result<NamespaceIdentity, BlockError> {
        let limits = ControllerLimits::parse(&controller(), None);
        NamespaceIdentity::parse(NamespaceId(1), id, None, &limits)
    }

    #[test]
    fn every_mdts_is_a_limit_or_none_and_never_an_overflow() {
        for mdts in 0..=255 {
            let mut id = controller();
            id.mdts = mdts;
            let limits = ControllerLimits::parse(&id, None);
            let blocks = transfer_blocks(limits.transfer_bytes, LbaSize::B512);
            let expected = if mdts == 0 { 4096 } else { (8u64 << mdts.min(20)).min(4096) };
            assert_eq!(blocks, expected, "MDTS {mdts}");
        }
    }

    #[test]
    fn formats_outside_the_bounds_are_refused_with_their_number() {
        for lbads in [0, 8, 17, 255] {
            let error = parse(&namespace(lbads, 100)).unwrap_err().to_string();
            assert!(error.contains(&format!("LBADS {lbads}")), "{error}");
        }
    }

    #[test]
    fn a_block_that_is_longer_than_a_command_may_be_is_refused() {
        let mut id = controller();
        id.mdts = 1;
        let limits = ControllerLimits::parse(&id, None);
        let parse =
            |lbads| NamespaceIdentity::parse(NamespaceId(1), &namespace(lbads, 9), None, &limits);
        assert_eq!(parse(13).unwrap().geometry.max_transfer, ByteLen(8192));
        assert!(parse(14).unwrap_err().to_string().contains("above 8192 B a command"));
    }

    #[test]
    fn sizes_that_contradict_themselves_are_refused() {
        assert!(parse(&namespace(12, 0)).is_err());
        assert!(parse(&namespace(12, u64::MAX)).is_err());
        assert_eq!(parse(&namespace(12, 9)).unwrap().geometry.capacity(), ByteLen(9 * 4096));
    }
}
