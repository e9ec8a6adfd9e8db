//! Metadata of a namespace: what is done with it, and what commands say of it.
//!
//! [`Tagging::parse`] decides once, from what the namespace says of itself and what was asked for; [`Tagging::dress`]
//! then adds PRINFO and the tags to every command. `tags` carries metadata that has to travel.
//! Invariant: a namespace is never driven with metadata that nobody asked for, except for protection information
//! that the controller makes and takes away unseen.
#![forbid(unsafe_code)]

use super::guard::TUPLE_BYTES;
use super::memory::{PAGE, Rules};
use crate::block::{
    BlockError, Cause, Checked, Metadata, MetadataPlace, Protection, ProtectionKind,
};
use crate::spec::command::{Command, CopyDword12, CopyRange, IoDword12, NvmOpcode};
use crate::spec::identify::{IdentifyNamespace, IdentifyNvmNamespace};
use crate::units::{Lba, NamespaceId};

/// What is to be done with metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MetadataUse {
    /// Protection information that is all there is, is the controller's to make, check and take away; with any
    /// other metadata, a namespace is refused.
    #[default]
    Hidden,
    /// The controller makes and checks protection information. What else there is, is zero in what is written.
    Device,
    /// Protection information is made and checked by this driver, and checked by the controller as well. What
    /// else there is, is zero in what is written.
    Check,
    /// Nothing is checked: metadata is zero in what is written, and protection information made by the controller.
    Ignore,
}

/// PRINFO: the controller inserts and strips protection information (NVM Figure 11).
const ACT: u8 = 1 << 3;
const CHECK_GUARD: u8 = 1 << 2;
const CHECK_APPLICATION: u8 = 1 << 1;
const CHECK_REFERENCE: u8 = 1;

/// The most metadata of one command: a page, so that it is contiguous wherever the page is.
pub(super) const METADATA_BYTES_MAX: u64 = PAGE;

/// The most blocks of one command whose metadata is inline. Each needs a descriptor for its metadata and one or
/// more for its data, of the 256 that a list page holds.
pub(super) const INLINE_BLOCKS_MAX: u64 = 64;

/// What commands of a namespace with metadata say and carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tagging {
    pub(super) metadata: Metadata,
    /// The application tag of what is written.
    pub(super) application: u16,
}

impl Tagging {
    /// Decides what is done with a namespace's metadata; `None` where there is none.
    ///
    /// # Errors
    ///
    /// `Unsupported` for metadata that nobody asked for or that cannot be driven as asked, `Protocol` for
    /// contradictions.
    pub(super) fn parse(
        nsid: NamespaceId,
        id: &IdentifyNamespace,
        extended: Option<&IdentifyNvmNamespace>,
        asked: (MetadataUse, u16),
        rules: Rules,
    ) -> Result<Option<Self>, BlockError> {
        let bytes = id.lba_format().ms.get();
        let kind = kind(nsid, id)?;
        let refuse = |what: String| Err(Cause::Format { what: what.into() }.into());
        if kind.is_none() && matches!(asked.0, MetadataUse::Device | MetadataUse::Check) {
            return refuse(format!(
                "namespace {nsid} has no protection information to check: open it without metadata="
            ));
        }
        if asked.1 == u16::MAX {
            let (value, most) = (asked.1.into(), u64::from(u16::MAX) - 1);
            return Err(Cause::Invalid { what: "application tag", value, least: 0, most }.into());
        }
        if bytes == 0 {
            return Ok(None);
        }
        if kind.is_some()
            && let Some(what) = strange_guard(id, extended)
        {
            return refuse(format!(
                "namespace {nsid} is protected with {what}, and guards of 16 bits are what is understood: format it"
            ));
        }
        if u64::from(bytes) > METADATA_BYTES_MAX {
            return refuse(format!(
                "namespace {nsid} has {bytes} bytes of metadata beside each block, above {METADATA_BYTES_MAX}: format it"
            ));
        }
        let alone = usize::from(bytes) == TUPLE_BYTES;
        let checked = match (asked.0, kind) {
            (MetadataUse::Hidden, Some(_)) if alone => Checked::Device,
            (MetadataUse::Hidden, Some(_)) => {
                return refuse(format!(
                    "namespace {nsid} has {bytes} bytes of metadata beside each block, \
                     {TUPLE_BYTES} of which protect it: open it with metadata=device, check or ignore"
                ));
            }
            (MetadataUse::Hidden, None) => {
                return refuse(format!(
                    "namespace {nsid} has {bytes} bytes of metadata beside each block: \
                     open it with metadata=ignore, which writes zeroes there"
                ));
            }
            (MetadataUse::Device, _) => Checked::Device,
            (MetadataUse::Check, _) => Checked::Both,
            (MetadataUse::Ignore, _) => Checked::Nobody,
        };
        let first = id.dps().first_bytes();
        let inline = id.flbas().metadata_inline();
        let place = if inline { MetadataPlace::Inline } else { MetadataPlace::Separate };
        let protection = kind.map(|kind| Protection { kind, first, checked });
        let metadata = Metadata { bytes, place, protection };
        let tagging = Self { metadata, application: asked.1 };
        if inline && tagging.travels() && (rules == Rules::Prp || !bytes.is_multiple_of(4)) {
            return refuse(format!(
                "namespace {nsid} has {bytes} bytes of metadata between its blocks, which only SGLs can keep \
                 apart from data: format it with separate metadata"
            ));
        }
        Ok(Some(tagging))
    }

    /// Says whether metadata is part of reads and writes.
    pub(super) fn travels(&self) -> bool {
        !(self.acts() && usize::from(self.metadata.bytes) == TUPLE_BYTES)
    }

    /// Says whether tuples are made and checked here.
    pub(super) fn is_ours(&self) -> bool {
        self.metadata.protection.is_some_and(|one| one.checked == Checked::Both)
    }

    /// Says whether metadata has to be between the blocks of data.
    pub(super) fn is_interleaved(&self) -> bool {
        self.travels() && self.metadata.place == MetadataPlace::Inline
    }

    /// Says whether data can be compared: whatever metadata there is, is compared as well, and has to be known.
    pub(super) fn can_compare(&self) -> bool {
        self.is_ours() && usize::from(self.metadata.bytes) == TUPLE_BYTES
    }

    /// Returns the bytes of a block as it travels.
    pub(super) fn block_bytes(&self, data: u64) -> u64 {
        if self.is_interleaved() { data + u64::from(self.metadata.bytes) } else { data }
    }

    /// Returns where the tuple is in the metadata of a block.
    pub(super) fn tuple_at(&self) -> usize {
        let first = self.metadata.protection.is_some_and(|one| one.first);
        if first { 0 } else { usize::from(self.metadata.bytes) - TUPLE_BYTES }
    }

    /// Returns the reference tag of a block: with type 1 its number, with type 2 the same, which keeps the
    /// commands of one request together, with type 3 nothing.
    pub(super) fn reference(&self, lba: Lba) -> u32 {
        if self.is_type_3() { 0 } else { lba.0 as u32 }
    }

    pub(super) fn is_type_3(&self) -> bool {
        self.metadata.protection.is_some_and(|one| one.kind == ProtectionKind::Type3)
    }

    fn acts(&self) -> bool {
        self.metadata.protection.is_some_and(|one| one.checked != Checked::Both)
    }

    /// Returns what the controller is to check.
    fn checks(&self) -> u8 {
        let reference = if self.is_type_3() { 0 } else { CHECK_REFERENCE };
        match self.metadata.protection.map(|one| one.checked) {
            None | Some(Checked::Nobody) => 0,
            Some(Checked::Device) => CHECK_GUARD | reference,
            Some(Checked::Both) => CHECK_GUARD | CHECK_APPLICATION | reference,
        }
    }

    /// Returns the application tag and the mask of all its bits, as dword 15 has them.
    fn application(&self) -> u32 {
        u32::from(self.application) | 0xffff_0000
    }

    /// Adds PRINFO and the tags to a command of blocks.
    pub(super) fn dress(&self, mut command: Command) -> Command {
        if self.metadata.protection.is_none() {
            return command;
        }
        let act = if self.acts() { ACT } else { 0 };
        let prinfo = match NvmOpcode(command.opcode) {
            NvmOpcode::READ => act | self.checks(),
            NvmOpcode::WRITE if self.acts() => ACT,
            NvmOpcode::WRITE | NvmOpcode::COMPARE | NvmOpcode::VERIFY => self.checks(),
            // Zeroes get tuples that fit them; without, they would have those of blocks never written.
            NvmOpcode::WRITE_ZEROES => ACT,
            _ => return command,
        };
        command.cdw12 |= IoDword12::new().with_prinfo(prinfo).into_bits();
        command.cdw14 = self.reference(Lba(command.slba()));
        command.cdw15 = self.application();
        command
    }

    /// Adds the same to a copy: tuples are checked and taken away at the source, and made at the target.
    pub(super) fn dress_copy(
        &self,
        mut command: Command,
        mut range: CopyRange,
    ) -> (Command, CopyRange) {
        if self.metadata.protection.is_none() {
            return (command, range);
        }
        let prinfo = CopyDword12::new().with_prinfor(ACT | self.checks()).with_prinfow(ACT);
        command.cdw12 |= prinfo.into_bits();
        command.cdw14 = self.reference(Lba(command.slba()));
        command.cdw15 = self.application();
        range.eilbrt = self.reference(Lba(range.slba));
        range.elbat = self.application();
        (command, range)
    }
}

fn kind(nsid: NamespaceId, id: &IdentifyNamespace) -> Result<Option<ProtectionKind>, BlockError> {
    let bytes = id.lba_format().ms.get();
    let kind = match id.dps().kind() {
        0 => None,
        1 => Some(ProtectionKind::Type1),
        2 => Some(ProtectionKind::Type2),
        3 => Some(ProtectionKind::Type3),
        other => {
            let what =
                format!("namespace {nsid} has protection information of type {other}").into();
            return Err(Cause::Protocol { what }.into());
        }
    };
    if kind.is_some() && usize::from(bytes) < TUPLE_BYTES {
        let what =
            format!("namespace {nsid} has protection information in {bytes} bytes of metadata");
        return Err(Cause::Protocol { what: what.into() }.into());
    }
    Ok(kind)
}

/// Says which guards and tags a namespace has, if they are not those of 16 bits.
fn strange_guard(
    id: &IdentifyNamespace,
    extended: Option<&IdentifyNvmNamespace>,
) -> Option<String> {
    let format = extended?.elbaf(id.format_index());
    let guard = match format.pif() {
        0 if format.sts() == 0 => return None,
        0 => return Some(format!("storage tags of {} bits", format.sts())),
        1 => "guards of 32 bits",
        2 => "guards of 64 bits",
        _ => "guards of an unknown format",
    };
    Some(guard.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn namespace(ms: u16, dps: u8) -> IdentifyNamespace {
        let mut id = IdentifyNamespace::new_zeroed();
        id.lbaf[0].ms = ms.into();
        id.dps = dps;
        id
    }

    fn parse(
        id: &IdentifyNamespace,
        extended: Option<&IdentifyNvmNamespace>,
        how: MetadataUse,
    ) -> Result<Option<Tagging>, BlockError> {
        Tagging::parse(NamespaceId(1), id, extended, (how, 0), Rules::Prp)
    }

    #[test]
    fn guards_and_tags_of_other_widths_are_refused_by_name() {
        let mut extended = IdentifyNvmNamespace::new_zeroed();
        let id = namespace(16, 1);
        assert!(parse(&id, Some(&extended), MetadataUse::Check).is_ok());
        for (bits, words) in
            [(1 << 7, "guards of 32 bits"), (2 << 7, "guards of 64"), (16, "storage tags of 16")]
        {
            extended.elbaf[0] = bits.into();
            let error = parse(&id, Some(&extended), MetadataUse::Check).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
        // What is not protection information may be of any kind.
        assert!(parse(&namespace(16, 0), Some(&extended), MetadataUse::Ignore).is_ok());
    }

    #[test]
    fn formats_that_contradict_themselves_break_the_protocol() {
        for (ms, dps) in [(0, 1), (4, 2), (8, 4), (8, 7)] {
            let error = parse(&namespace(ms, dps), None, MetadataUse::Hidden).unwrap_err();
            assert_eq!(error.kind(), crate::block::ErrorKind::Protocol, "{ms} {dps}");
        }
    }

    #[test]
    fn metadata_that_is_longer_than_a_page_is_refused_with_its_length() {
        let error = parse(&namespace(4100, 0), None, MetadataUse::Ignore).unwrap_err();
        assert!(error.to_string().contains("4100 bytes"), "{error}");
    }

    #[test]
    fn only_type_3_has_no_reference_tags() {
        for kind in 1..=3 {
            let tagging = parse(&namespace(8, kind), None, MetadataUse::Check).unwrap().unwrap();
            let lba = Lba(0x1_2345_6789);
            assert_eq!(tagging.reference(lba), if kind == 3 { 0 } else { 0x2345_6789 });
            let command = Command { opcode: NvmOpcode::READ.0, ..Command::default() };
            let prinfo = IoDword12::from(tagging.dress(command.with_slba(lba.0)).cdw12).prinfo();
            assert_eq!(prinfo & CHECK_REFERENCE != 0, kind != 3);
        }
    }
}
