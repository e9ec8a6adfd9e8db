//! Identify: what the controller and its namespaces say of themselves.
//!
//! [`page`] answers each CNS that is on offer with 4096 bytes; everything comes from the options and the
//! namespaces, nothing is kept here. `admin` moves the bytes.
//! Invariant: nothing is claimed that `io` or `admin` refuses.
#![forbid(unsafe_code)]

use zerocopy::{FromZeros, IntoBytes};

use super::engine::Core;
use super::io::{COPY_BLOCKS_MAX, COPY_RANGE_BLOCKS_MAX, COPY_RANGES_MAX};
use super::logs::ERRORS_MAX;
use super::namespace::Namespace;
use super::options::{MetadataOptions, ProtectionOptions};
use super::registers::VERSION;
use super::sanitize;
use crate::spec::command::Cns;
use crate::spec::identify::{
    ActiveNamespaceList, ControllerType, Dlfeat, Dps, EntrySize, Flbas, Frmw, IdentifyController,
    IdentifyNamespace, IdentifyNvmController, LbaFormat, Lpa, NamespaceIdDescriptor,
    NamespaceIdType, NsFeat, Oacs, Oncs, Sgls, Vwc,
};
use crate::spec::status::Status;
use crate::units::{LbaSize, NamespaceId};

/// A page of the answer.
pub(super) type Page = [u8; 4096];

/// The LBA formats on offer, in order: 512 bytes to 64 KiB, without metadata.
pub(super) const FORMATS: [LbaSize; 8] = {
    let mut formats = [LbaSize::B512; 8];
    let mut index = 0;
    while index < formats.len() {
        if let Some(size) = LbaSize::from_shift(9 + index as u8) {
            formats[index] = size;
        }
        index += 1;
    }
    formats
};

/// Asynchronous Event Requests that can wait (AERL + 1).
pub(super) const EVENT_REQUESTS_MAX: usize = 8;

/// Answers one Identify.
pub(super) fn page(core: &Core, cns: Cns, csi: u8, nsid: u32) -> Result<Page, Status> {
    match (cns, csi) {
        (Cns::NAMESPACE | Cns::ALLOCATED_NAMESPACE, 0) => namespace(core, nsid),
        (Cns::CONTROLLER, 0) => unnamed(nsid).map(|()| bytes(&controller(core))),
        (Cns::ACTIVE_NAMESPACES | Cns::ALLOCATED_NAMESPACES, 0) => list(core, nsid),
        (Cns::NAMESPACE_DESCRIPTORS, 0) => identifiers(core, nsid),
        // Namespaces of the NVM command set have nothing to add without protection information.
        (Cns::COMMAND_SET_NAMESPACE, 0) => core.namespace(nsid).map(|_| [0; 4096]),
        (Cns::COMMAND_SET_CONTROLLER, 0) => {
            unnamed(nsid).map(|()| bytes(&IdentifyNvmController::new_zeroed()))
        }
        (Cns::INDEPENDENT_NAMESPACE, 0) => core.namespace(nsid).map(|_| independent()),
        _ => Err(Status::INVALID_FIELD),
    }
}

/// Refuses a namespace where none is meant.
fn unnamed(nsid: u32) -> Result<(), Status> {
    if nsid == 0 { Ok(()) } else { Err(Status::INVALID_FIELD) }
}

fn controller(core: &Core) -> IdentifyController {
    let options = &core.options;
    let mut id = IdentifyController::new_zeroed();
    id.sn = padded(&options.serial);
    id.mn = padded(&options.model);
    id.fr = padded(&options.firmware);
    id.rab = 6;
    id.mdts = options.mdts.map_or(0, |bytes| (bytes.ilog2() - 12) as u8);
    id.cntlid = 1.into();
    id.ver = u32::from(VERSION).into();
    // Namespace attribute notices (bit 8).
    id.oaes = (1 << 8).into();
    id.cntrltype = ControllerType::IO.0;
    id.nvmsr = 1;
    id.aerl = (EVENT_REQUESTS_MAX - 1) as u8;
    id.acl = 3;
    [id.crdt1, id.crdt2, id.crdt3] = options.retry_delays.map(Into::into);
    id.frmw = Frmw::new().with_slot_1_read_only(true).with_slots(1).into();
    id.elpe = (ERRORS_MAX - 1) as u8;
    id.wctemp = 343.into();
    id.cctemp = 358.into();
    id.sqes = EntrySize::new().with_min(6).with_max(6).into();
    id.cqes = EntrySize::new().with_min(4).with_max(4).into();
    id.nn = (core.namespaces.len() as u32).into();
    id.mnan = id.nn;
    id.tnvmcap = core.namespaces.iter().map(capacity).sum::<u128>().into();
    id.awun = u16::MAX.into();
    id.awupf = ((options.awupf_blocks - 1) as u16).into();
    let nqn = format!("nqn.2014-08.org.nvmexpress:udirect:{}", options.serial);
    id.subnqn[..nqn.len()].copy_from_slice(nqn.as_bytes());
    abilities(core, &mut id);
    id
}

/// Says which optional things there are.
fn abilities(core: &Core, id: &mut IdentifyController) {
    let options = &core.options;
    let oacs = Oacs::new().with_format(true).with_doorbell_buffer(options.shadow_doorbells);
    id.oacs = u16::from(oacs).into();
    id.sanicap = u32::from(sanitize::CAPABILITIES).into();
    id.lpa = Lpa::new().with_command_effects(true).with_extended_data(true).into();
    let oncs = Oncs::new()
        .with_compare(true)
        .with_write_uncorrectable(true)
        .with_dataset_management(true)
        .with_write_zeroes(true)
        .with_save_and_select(true)
        .with_verify(true)
        .with_copy(true);
    id.oncs = u16::from(oncs).into();
    // Copy descriptor format 0.
    id.cdfs = 1.into();
    let vwc = Vwc::new().with_present(options.volatile_write_cache);
    id.vwc = vwc.with_flush_all(Vwc::FLUSH_ALL_ACCEPTED).into();
    if options.sgl {
        let sgls = Sgls::new().with_support(Sgls::BYTE_ALIGNED).with_bit_bucket(true);
        id.sgls = u32::from(sgls).into();
    }
}

fn namespace(core: &Core, nsid: u32) -> Result<Page, Status> {
    let (namespace, options) = (core.namespace(nsid)?, &core.options);
    let mut id = IdentifyNamespace::new_zeroed();
    let blocks = namespace.blocks();
    id.nsze = blocks.into();
    id.ncap = blocks.into();
    id.nuse = blocks.into();
    id.nsfeat = NsFeat::new().into();
    id.nlbaf = (FORMATS.len() - 1) as u8;
    let flbas = Flbas::new().with_format_index(namespace.shift() - FORMATS[0].shift());
    id.flbas = flbas.into();
    let dlfeat = Dlfeat::new().with_read(Dlfeat::READS_ZEROS);
    id.dlfeat = dlfeat.with_write_zeroes_deallocates(true).into();
    id.noiob = (options.noiob as u16).into();
    id.nvmcap = capacity(namespace).into();
    id.mssrl = COPY_RANGE_BLOCKS_MAX.into();
    id.mcl = COPY_BLOCKS_MAX.into();
    id.msrc = (COPY_RANGES_MAX - 1) as u8;
    id.nguid = unique(core, nsid);
    for (place, size) in id.lbaf.iter_mut().zip(FORMATS) {
        *place = LbaFormat { ms: 0.into(), lbads: size.shift(), rp: 0 };
    }
    if let Some(metadata) = namespace.metadata() {
        describe_metadata(&mut id, metadata);
    }
    Ok(bytes(&id))
}

/// Says what is beside each block. Nothing else can be formatted, and so nothing else is on offer.
fn describe_metadata(id: &mut IdentifyNamespace, metadata: MetadataOptions) {
    let format = id.format_index();
    id.lbaf[format].ms = metadata.bytes.into();
    id.flbas = id.flbas().with_metadata_inline(metadata.inline).into();
    id.mc = if metadata.inline { 1 } else { 2 };
    if let Some(ProtectionOptions { kind, first }) = metadata.protection {
        id.dps = Dps::new().with_kind(kind).with_first_bytes(first).into();
        id.dpc = 1 << (kind - 1) | if first { 1 << 3 } else { 1 << 4 };
    }
}

/// Lists the namespaces after `nsid`.
fn list(core: &Core, nsid: u32) -> Result<Page, Status> {
    if nsid >= NamespaceId::ALL.0 - 1 {
        return Err(Status::INVALID_NAMESPACE);
    }
    let mut list = ActiveNamespaceList::new_zeroed();
    let after = nsid + 1..=core.namespaces.len() as u32;
    list.nsid.iter_mut().zip(after).for_each(|(place, nsid)| *place = nsid.into());
    Ok(bytes(&list))
}

fn identifiers(core: &Core, nsid: u32) -> Result<Page, Status> {
    core.namespace(nsid)?;
    let mut page = [0; 4096];
    let mut at = 0;
    let unique = unique(core, nsid);
    let kinds: [(NamespaceIdType, &[u8]); 3] = [
        (NamespaceIdType::NGUID, &unique),
        (NamespaceIdType::UUID, &unique),
        (NamespaceIdType::CSI, &[0]),
    ];
    for (kind, id) in kinds {
        let header = NamespaceIdDescriptor::new(kind, id.len() as u8);
        page[at..at + 4].copy_from_slice(header.as_bytes());
        page[at + 4..at + 4 + id.len()].copy_from_slice(id);
        at += 4 + id.len();
    }
    Ok(page)
}

/// The part of a namespace that no command set owns (NVMe Base 2.0, Figure 280): NSTAT says ready.
fn independent() -> Page {
    let mut page = [0; 4096];
    page[14] = 1;
    page
}

/// Returns an identifier that is the same whenever serial number and namespace are: a version 8 UUID.
fn unique(core: &Core, nsid: u32) -> [u8; 16] {
    let serial = crc32c::crc32c(core.options.serial.as_bytes());
    let mut id = *b"udirect\x80\x80NS-0000";
    id[9..12].copy_from_slice(&serial.to_be_bytes()[..3]);
    id[12..].copy_from_slice(&nsid.to_be_bytes());
    id[6] = 0x80 | id[6] & 0x0f;
    id
}

fn capacity(namespace: &Namespace) -> u128 {
    u128::from(namespace.capacity())
}

/// Returns text as the standard wants it: left-aligned, filled with spaces.
pub(super) fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    field.iter_mut().zip(text.bytes()).for_each(|(place, byte)| *place = byte);
    field
}

fn bytes(structure: &(impl IntoBytes + zerocopy::Immutable)) -> Page {
    let mut page = [0; 4096];
    page.copy_from_slice(structure.as_bytes());
    page
}
