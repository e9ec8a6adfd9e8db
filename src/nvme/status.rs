//! From a completion's status to an error of the waist.
#![forbid(unsafe_code)]

use super::limits::Limits;
use crate::block::{BlockError, Cause, DeviceStatus, Operation, Request};
use crate::spec::completion::StatusField;
use crate::spec::status::{self, Status};
use crate::units::{BlockCount, Lba};

/// Returns how a command of `request` ended.
#[inline(always)]
pub(super) fn result(
    field: StatusField,
    request: &Request,
    limits: &Limits,
) -> Result<(), BlockError> {
    if field.is_success() { Ok(()) } else { Err(io_error(field, &request.operation, limits)) }
}

/// Makes the error of an I/O command.
#[cold]
fn io_error(field: StatusField, operation: &Operation, limits: &Limits) -> BlockError {
    let (lba, blocks) = range(operation, limits);
    let cause = match field.code() {
        Status::COMPARE_FAILURE => Cause::Miscompare { lba, blocks },
        Status::GUARD_CHECK_ERROR => Cause::Unprotected { lba, blocks, check: "guard" },
        Status::APPLICATION_TAG_CHECK_ERROR => {
            Cause::Unprotected { lba, blocks, check: "application tag" }
        }
        Status::REFERENCE_TAG_CHECK_ERROR => {
            Cause::Unprotected { lba, blocks, check: "reference tag" }
        }
        code if code.kind == status::MEDIA => Cause::Media { lba, blocks },
        Status::LBA_OUT_OF_RANGE => Cause::OutOfRange { lba, blocks, capacity: limits.capacity },
        Status::CAPACITY_EXCEEDED => Cause::NoSpace { what: operation.name().into() },
        Status::INVALID_OPCODE => Cause::Unsupported { what: operation.name().into() },
        _ => Cause::Device { what: operation.name().into() },
    };
    BlockError::new(cause).with_status(describe(field))
}

/// Makes the error of an admin command.
#[cold]
pub(super) fn admin_error(field: StatusField, what: &'static str) -> BlockError {
    let cause = match field.code() {
        Status::INVALID_OPCODE => Cause::Unsupported { what: what.into() },
        _ => Cause::Device { what: what.into() },
    };
    BlockError::new(cause).with_status(describe(field))
}

fn describe(field: StatusField) -> DeviceStatus {
    let status = field.code();
    DeviceStatus {
        code: u32::from(status.kind) << 8 | u32::from(status.code),
        text: words(status).into(),
        do_not_retry: field.dnr(),
    }
}

/// Says what to do, where the names of the standard do not.
fn words(status: Status) -> String {
    match status {
        Status::ZONE_BOUNDARY_ERROR | Status::ZONE_IS_FULL | Status::ZONE_INVALID_WRITE => format!(
            "{status}; the namespace is zoned, and takes the blocks of a zone once and in order \
             (rw=write, a job for each zone)"
        ),
        _ => status.to_string(),
    }
}

/// Returns the blocks of a request; those that it changes, where it has others.
pub(super) fn range(operation: &Operation, limits: &Limits) -> (Lba, BlockCount) {
    match operation {
        Operation::Read { lba, payload }
        | Operation::Write { lba, payload, .. }
        | Operation::Compare { lba, payload } => {
            (*lba, BlockCount(payload.len() >> limits.lba_size.shift()))
        }
        Operation::Deallocate { lba, blocks }
        | Operation::WriteZeroes { lba, blocks, .. }
        | Operation::Verify { lba, blocks }
        | Operation::WriteUncorrectable { lba, blocks } => (*lba, *blocks),
        Operation::Copy { target, blocks, .. } => (*target, *blocks),
        Operation::Flush => (Lba(0), BlockCount(0)),
    }
}
