//! What can go wrong with a block device: a cause with its numbers, the device's own words, a source.
//!
//! [`BlockError`] is one pointer wide, since a result travels with every completion. Callers match on
//! [`ErrorKind`]; people read the text. It converts into [`std::io::Error`] with the errno that a
//! user of the kernel's block layer would have seen.
#![forbid(unsafe_code)]

use core::fmt;
use std::borrow::Cow;
use std::error::Error;
use std::io;
use std::time::Duration;

use crate::units::{BlockCount, FileBlock, Lba};

/// A small, stable classification for control flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Blocks that the device does not have.
    OutOfRange,
    /// An address or a length that is not a multiple of what the device needs.
    Misaligned,
    /// The request contradicts itself or its buffers.
    Invalid,
    /// The medium could not be read or written.
    Media,
    /// Compare found other data.
    Miscompare,
    /// No answer within the deadline.
    Timeout,
    /// Nobody knows whether it was done.
    Uncertain,
    /// The device has been removed or has stopped answering.
    DeviceGone,
    /// No space left.
    NoSpace,
    /// There is nothing of that name or number.
    NotFound,
    /// There is something of that name already.
    Exists,
    /// Data that fails its own checks.
    Corrupt,
    /// Data that its protection information does not fit.
    Protection,
    /// The device does not offer the operation.
    Unsupported,
    /// An earlier failure made the queue or device unusable until it is reopened.
    Poisoned,
    /// Somebody else holds what is needed.
    Busy,
    /// The device broke the rules of its own protocol.
    Protocol,
    /// The device reported a failure that fits none of the others.
    Device,
}

/// What happened, with the numbers.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// The range does not lie within the device.
    #[error("blocks {lba}+{blocks} do not lie within the device's {capacity} blocks")]
    OutOfRange {
        /// First block asked for.
        lba: Lba,
        /// Blocks asked for.
        blocks: BlockCount,
        /// Blocks that there are.
        capacity: BlockCount,
    },
    /// A number is not a multiple of what it has to be.
    #[error("{what} {value} is not a multiple of {alignment}")]
    Misaligned {
        /// What was measured, in words.
        what: &'static str,
        /// The number.
        value: u64,
        /// What it should be a multiple of.
        alignment: u64,
    },
    /// The request contradicts itself.
    #[error("{what}: {value} is outside {least}..={most}")]
    Invalid {
        /// What was measured, in words.
        what: &'static str,
        /// The number.
        value: u64,
        /// The least that is allowed.
        least: u64,
        /// The most that is allowed.
        most: u64,
    },
    /// Two segments of a read lie over each other in memory.
    #[error("segments {first} and {second} of a read share {bytes} bytes of memory")]
    Overlap {
        /// The index of one.
        first: u32,
        /// The index of the other.
        second: u32,
        /// How many bytes they share.
        bytes: u64,
    },
    /// Whoever maps the blocks of a file gave an answer that breaks the contract.
    #[error(
        "asked for {asked} blocks from file block {at}, the map answered {blocks} from {lba}: {problem}"
    )]
    Mapping {
        /// The first block of the file that was asked about.
        at: FileBlock,
        /// How many blocks were asked about.
        asked: BlockCount,
        /// The first device block of the answer.
        lba: Lba,
        /// The length of the answer.
        blocks: BlockCount,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The request was given up before it was done: nothing of it was published.
    #[error("given up with {bytes} bytes from {offset} on unpublished: {what}")]
    Abandoned {
        /// Where the request began, in bytes.
        offset: u64,
        /// How long it was.
        bytes: u64,
        /// Why.
        what: &'static str,
    },
    /// The buffer's mapping does not let the device do what the request needs.
    #[error("the buffer at {iova:#x} is mapped so that the device may not {verb} it")]
    Rights {
        /// Where the buffer lies for the device.
        iova: u64,
        /// `read` or `write`.
        verb: &'static str,
    },
    /// The medium failed.
    #[error("the medium failed at block {lba}, within {blocks} blocks")]
    Media {
        /// First block of the command that failed.
        lba: Lba,
        /// Blocks of that command.
        blocks: BlockCount,
    },
    /// Compare found a difference.
    #[error("blocks {lba}+{blocks} do not hold what they were compared with")]
    Miscompare {
        /// First block of the command.
        lba: Lba,
        /// Blocks of that command.
        blocks: BlockCount,
    },
    /// A deadline passed.
    #[error("{what} did not finish within {} ms", after.as_millis())]
    Timeout {
        /// What was waited for.
        what: Cow<'static, str>,
        /// How long.
        after: Duration,
    },
    /// The device was reset while it may have been at it.
    #[error("whether {what} was done is not known: the device was reset ({why})")]
    Uncertain {
        /// What was under way.
        what: Cow<'static, str>,
        /// Why the device was reset.
        why: Cow<'static, str>,
    },
    /// The device is not there any more.
    #[error("the device is gone: {what}")]
    DeviceGone {
        /// What showed it.
        what: Cow<'static, str>,
    },
    /// There is no space.
    #[error("no space: {what}")]
    NoSpace {
        /// What ran out, with numbers.
        what: Cow<'static, str>,
    },
    /// There is nothing of that name or number.
    #[error("not found: {what}")]
    NotFound {
        /// What was looked for.
        what: Cow<'static, str>,
    },
    /// There is something of that name already.
    #[error("exists: {what}")]
    Exists {
        /// What is there.
        what: Cow<'static, str>,
    },
    /// Data fails its own checks.
    #[error("corrupt: {what}")]
    Corrupt {
        /// What does not add up.
        what: Cow<'static, str>,
    },
    /// A block and its protection information do not fit, found after it was read.
    #[error(
        "block {lba} failed the check of its {check}: {expected:#x} was expected, {found:#x} found"
    )]
    Protection {
        /// The block.
        lba: Lba,
        /// `guard`, `application tag` or `reference tag`.
        check: &'static str,
        /// What it should be.
        expected: u32,
        /// What it is.
        found: u32,
    },
    /// A block and its protection information do not fit, found by the device.
    #[error("a block failed the device's check of its {check}, within {blocks} blocks from {lba}")]
    Unprotected {
        /// First block of the command.
        lba: Lba,
        /// Blocks of that command.
        blocks: BlockCount,
        /// `guard`, `application tag` or `reference tag`.
        check: &'static str,
    },
    /// The device is formatted so that it cannot be used as it was asked to be.
    #[error("{what}")]
    Format {
        /// What it is and what to do about it.
        what: Cow<'static, str>,
    },
    /// The device does not offer it.
    #[error("the device does not support {what}")]
    Unsupported {
        /// What was asked for.
        what: Cow<'static, str>,
    },
    /// An earlier failure ended this queue.
    #[error("unusable after an earlier failure ({what}): close and reopen the device")]
    Poisoned {
        /// The earlier failure.
        what: Cow<'static, str>,
    },
    /// Somebody else holds it.
    #[error("in use: {what}")]
    Busy {
        /// What is held, and by whom where that is known.
        what: Cow<'static, str>,
    },
    /// The device broke its protocol.
    #[error("protocol violation: {what}")]
    Protocol {
        /// The rule, with the numbers.
        what: Cow<'static, str>,
    },
    /// The device reported a failure.
    #[error("the device failed {what}")]
    Device {
        /// The operation.
        what: Cow<'static, str>,
    },
}

impl Cause {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::OutOfRange { .. } => ErrorKind::OutOfRange,
            Self::Misaligned { .. } => ErrorKind::Misaligned,
            Self::Invalid { .. } | Self::Rights { .. } | Self::Overlap { .. } => ErrorKind::Invalid,
            Self::Media { .. } => ErrorKind::Media,
            Self::Miscompare { .. } => ErrorKind::Miscompare,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Uncertain { .. } => ErrorKind::Uncertain,
            Self::DeviceGone { .. } => ErrorKind::DeviceGone,
            Self::NoSpace { .. } => ErrorKind::NoSpace,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Exists { .. } => ErrorKind::Exists,
            Self::Corrupt { .. } | Self::Mapping { .. } => ErrorKind::Corrupt,
            Self::Protection { .. } | Self::Unprotected { .. } => ErrorKind::Protection,
            Self::Unsupported { .. } | Self::Format { .. } => ErrorKind::Unsupported,
            Self::Poisoned { .. } | Self::Abandoned { .. } => ErrorKind::Poisoned,
            Self::Busy { .. } => ErrorKind::Busy,
            Self::Protocol { .. } => ErrorKind::Protocol,
            Self::Device { .. } => ErrorKind::Device,
        }
    }
}

/// A status as the device put it: its number and its words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceStatus {
    /// The code in the device's own numbering (for NVMe: status code type << 8 | status code).
    pub code: u32,
    /// The code in words.
    pub text: Cow<'static, str>,
    /// Whether the device says that trying again is useless.
    pub do_not_retry: bool,
}

/// An error of a block device.
pub struct BlockError(Box<Inner>);

struct Inner {
    cause: Cause,
    status: Option<DeviceStatus>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

// One pointer, and `Result<(), BlockError>` no more than that: it travels with every completion.
const _: () = assert!(size_of::<Result<(), BlockError>>() == size_of::<usize>());

impl BlockError {
    /// Makes an error of `cause`.
    #[cold]
    pub fn new(cause: Cause) -> Self {
        Self(Box::new(Inner { cause, status: None, source: None }))
    }

    /// Adds the device's own status.
    #[must_use]
    pub fn with_status(mut self, status: DeviceStatus) -> Self {
        self.0.status = Some(status);
        self
    }

    /// Makes another error that says the same, for requests that shared one command. The source, which can
    /// be had but once, stays with the first.
    #[must_use]
    pub fn again(&self) -> Self {
        let Inner { cause, status, .. } = &*self.0;
        Self(Box::new(Inner { cause: cause.clone(), status: status.clone(), source: None }))
    }

    /// Adds the error underneath.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Returns the classification to match on.
    pub fn kind(&self) -> ErrorKind {
        self.0.cause.kind()
    }

    /// Returns what happened, with its numbers.
    pub fn cause(&self) -> &Cause {
        &self.0.cause
    }

    /// Returns the device's own status, where it gave one.
    pub fn status(&self) -> Option<&DeviceStatus> {
        self.0.status.as_ref()
    }

    /// Returns the errno that a user of the kernel's block layer would have seen.
    pub fn errno(&self) -> i32 {
        match self.kind() {
            ErrorKind::OutOfRange | ErrorKind::Misaligned | ErrorKind::Invalid => libc::EINVAL,
            ErrorKind::Media => libc::ENODATA,
            ErrorKind::Miscompare | ErrorKind::Protection => libc::EILSEQ,
            ErrorKind::Timeout => libc::ETIMEDOUT,
            ErrorKind::DeviceGone => libc::ENODEV,
            ErrorKind::NoSpace => libc::ENOSPC,
            ErrorKind::NotFound => libc::ENOENT,
            ErrorKind::Exists => libc::EEXIST,
            ErrorKind::Corrupt => libc::EUCLEAN,
            ErrorKind::Unsupported => libc::EOPNOTSUPP,
            ErrorKind::Poisoned => libc::EROFS,
            ErrorKind::Busy => libc::EBUSY,
            ErrorKind::Protocol => libc::EPROTO,
            ErrorKind::Device | ErrorKind::Uncertain => libc::EIO,
        }
    }
}

impl From<Cause> for BlockError {
    fn from(cause: Cause) -> Self {
        Self::new(cause)
    }
}

impl From<BlockError> for io::Error {
    /// Keeps the errno's kind and the whole text.
    fn from(error: BlockError) -> Self {
        let kind = io::Error::from_raw_os_error(error.errno()).kind();
        io::Error::new(kind, error)
    }
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.cause.fmt(f)?;
        match &self.0.status {
            Some(status) => write!(f, ": {}", status.text),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockError")
            .field("cause", &self.0.cause)
            .field("status", &self.0.status)
            .field("source", &self.0.source)
            .finish()
    }
}

impl Error for BlockError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out_of_range() -> BlockError {
        Cause::OutOfRange { lba: Lba(8), blocks: BlockCount(2), capacity: BlockCount(9) }.into()
    }

    #[test]
    fn text_has_the_numbers_and_the_status() {
        let status =
            DeviceStatus { code: 0x80, text: "LBA Out of Range".into(), do_not_retry: true };
        let error = out_of_range().with_status(status);
        assert_eq!(
            error.to_string(),
            "blocks 0x8+2 do not lie within the device's 9 blocks: LBA Out of Range"
        );
    }

    #[test]
    fn io_error_keeps_the_kernel_s_kind() {
        let error = io::Error::from(out_of_range());
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let gone = BlockError::from(Cause::DeviceGone { what: "CSTS is all ones".into() });
        assert_eq!(gone.errno(), libc::ENODEV);
    }
}
