//! What a device keeps beside each block, what of it protects the block, and who looks at that.
//!
//! Protection information is that of T10 (DIF): a guard, which is a CRC of the block, an application tag and a
//! reference tag. Nobody above the waist has to know: requests move blocks of the plain size either way.
#![forbid(unsafe_code)]

/// Bytes that a device keeps beside each block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// How many.
    pub bytes: u16,
    /// Where they travel.
    pub place: MetadataPlace,
    /// What of them protects the block, if anything does.
    pub protection: Option<Protection>,
}

/// Where metadata travels when it is transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataPlace {
    /// In a buffer of its own (DIX).
    Separate,
    /// After the data of its block, which makes an extended block (DIF).
    Inline,
}

/// Protection information of each block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// What its reference tag means.
    pub kind: ProtectionKind,
    /// Whether it is in the first bytes of the metadata, or in the last.
    pub first: bool,
    /// Who checks it.
    pub checked: Checked,
}

/// What reference tags mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtectionKind {
    /// The low 32 bits of the block's number.
    Type1,
    /// They rise from one of the writer's choice, which here is that of type 1.
    Type2,
    /// Nothing that a device knows.
    Type3,
}

/// Who checks protection information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// Nobody. The device makes it anew for what is written.
    Nobody,
    /// The device, which makes it and takes it away: what happens between it and memory stays unseen.
    Device,
    /// Both ends: it is made in memory before a write and checked there after a read.
    Both,
}
