//! Which failures pass: statuses after which the same command, sent again, may succeed.
//!
//! The table names every one. A status that is not in it says something about the command, the medium or the
//! namespace that will be as true the next time; what the device could try again on the medium it has.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::spec::completion::StatusField;
use crate::spec::status::Status;

/// Statuses that pass.
const PASSING: [Status; 10] = [
    Status::INTERNAL_ERROR,
    // Nobody asks for this but us, when the command is overdue.
    Status::ABORT_REQUESTED,
    Status::INTERRUPTED,
    Status::TRANSIENT_TRANSPORT_ERROR,
    Status::NAMESPACE_NOT_READY,
    Status::FORMAT_IN_PROGRESS,
    Status::INTERNAL_PATH_ERROR,
    Status::ANA_TRANSITION,
    Status::CONTROLLER_PATHING_ERROR,
    Status::ABORTED_BY_HOST,
];

/// The unit of CRDT1 to CRDT3.
const DELAY_UNIT: Duration = Duration::from_millis(100);

/// Returns how long to wait before the command is sent again, or `None` if that is of no use.
///
/// `delays` are CRDT1 to CRDT3; CRD counts them from 1, and 0 is no delay (Base Figure 92).
pub(super) fn delay(field: StatusField, delays: [u16; 3]) -> Option<Duration> {
    if field.dnr() || !PASSING.contains(&field.code()) {
        return None;
    }
    Some(match field.crd() {
        0 => Duration::ZERO,
        crd => DELAY_UNIT * u32::from(delays[usize::from(crd) - 1]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SPDK's driver takes CRDT[CRD] of three, which is one too far, and with a CRD of 3 reads what is behind them.
    /// Here every status field is decided, and each CRD waits its own delay.
    #[test]
    fn all_16384_status_fields_are_decided() {
        let delays = [1, 20, 300];
        let (mut decided, mut passing) = (0, 0);
        for (sct, sc) in (0..8).flat_map(|sct| (0..=255).map(move |sc| (sct, sc))) {
            let generic = sct == 0 && matches!(sc, 0x06 | 0x07 | 0x21 | 0x22 | 0x82 | 0x84);
            let path = sct == 3 && matches!(sc, 0x00 | 0x03 | 0x60 | 0x71);
            for (dnr, crd) in
                [false, true].into_iter().flat_map(|dnr| (0..4).map(move |crd| (dnr, crd)))
            {
                let field =
                    StatusField::new().with_sct(sct).with_sc(sc).with_dnr(dnr).with_crd(crd);
                let millis = [0, 100, 2000, 30_000][usize::from(crd)];
                let expected = ((generic || path) && !dnr).then_some(Duration::from_millis(millis));
                assert_eq!(delay(field, delays), expected, "{field:?}");
                decided += 1;
                passing += u32::from(expected.is_some());
            }
        }
        assert_eq!((decided, passing), (16_384, 40));
    }
}
