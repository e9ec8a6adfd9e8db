//! How the program ends when it does not succeed: an exit code and one line.
//!
//! [`Exit`] lists the codes, [`EXIT_CODES`] says them in the help. A [`Failure`] pairs one with a
//! chain of causes; it is made where it is known whether the request or the device was at fault.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Error;

use crate::bench::runner::RunError;
use crate::block::{BlockError, ErrorKind};
use crate::open::OpenError;
use crate::volume::StoreError;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    /// Everything was done.
    Success = 0,
    /// An I/O failed or data did not verify; a store is damaged or full.
    Failed = 1,
    /// The request was wrong and nothing was started.
    Usage = 2,
    /// The device failed.
    Device = 3,
}

/// The exit codes in the words of the help.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0  success
  1  an I/O failed or data did not verify; a store is damaged or full
  2  the request was wrong and nothing was started
  3  the device failed, or the result could not be written";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why the program does not succeed.
#[derive(Debug)]
pub(super) struct Failure {
    /// How it ends.
    pub(super) exit: Exit,
    error: Error,
}

impl Failure {
    /// Blames the I/O or its data.
    pub(super) fn io(error: impl Into<Error>) -> Self {
        Self { exit: Exit::Failed, error: error.into() }
    }

    /// Blames the request.
    pub(super) fn usage(error: impl Into<Error>) -> Self {
        Self { exit: Exit::Usage, error: error.into() }
    }

    /// Blames the device.
    pub(super) fn device(error: impl Into<Error>) -> Self {
        Self { exit: Exit::Device, error: error.into() }
    }

    /// Blames the device at `address`.
    pub(super) fn of_device(address: &str, error: BlockError) -> Self {
        Self::device(Error::from(error).context(address.to_owned()))
    }

    /// Says whose fault an error of the store at `address` is.
    pub(super) fn of_store(address: &str, error: StoreError) -> Self {
        let exit = exit_of(&error);
        let error = match error {
            StoreError::NotAStore { .. } => {
                let hint = format!("{error} (`udirect store format` makes one)");
                anyhow::anyhow!("{address}: {hint}")
            }
            error => Error::from(error).context(address.to_owned()),
        };
        Self { exit, error }
    }

    /// Returns the chain of causes in one line.
    ///
    /// A cause that the one above has already quoted is not said twice.
    pub(super) fn line(&self) -> String {
        let mut line = String::new();
        for cause in self.error.chain().map(|cause| in_one_line(&cause.to_string())) {
            if !line.ends_with(&cause) {
                line += if line.is_empty() { "" } else { ": " };
                line += &cause;
            }
        }
        line
    }
}

fn exit_of(error: &StoreError) -> Exit {
    match (error, error.kind()) {
        (
            StoreError::Device { .. }
            | StoreError::Timeout { .. }
            | StoreError::ReadOnly
            | StoreError::Poisoned { .. }
            | StoreError::NotYet,
            _,
        ) => Exit::Device,
        (_, ErrorKind::Corrupt | ErrorKind::NoSpace) => Exit::Failed,
        _ => Exit::Usage,
    }
}

fn in_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        if error.is_usage() { Self::usage(error) } else { Self::device(error) }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Store { address, source } => Self::of_store(&address, source),
            error if error.is_usage() => Self::usage(error),
            error => Self::device(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn causes_are_chained_in_one_line() {
        let error = anyhow!("no such\nfile").context("job a.fio");
        assert_eq!(Failure::usage(error).line(), "job a.fio: no such file");
    }

    #[test]
    fn a_cause_that_was_quoted_is_not_repeated() {
        let error = anyhow!("no such file").context("a.fio: no such file");
        assert_eq!(Failure::usage(error).line(), "a.fio: no such file");
    }

    #[test]
    fn what_is_wrong_with_a_store_is_told_from_what_was_asked_of_it() {
        let line = |error| Failure::of_store("mem:1GiB", error).line();
        let exit = |error| Failure::of_store("mem:1GiB", error).exit;
        let none = || StoreError::NotAStore { what: "all zeroes".into() };
        let said = "mem:1GiB: not a store: all zeroes (`udirect store format` makes one)";
        assert_eq!(line(none()), said);
        assert_eq!(exit(none()), Exit::Usage);
        assert_eq!(exit(StoreError::NoName("a".into())), Exit::Usage);
        assert_eq!(exit(StoreError::NoSpace { what: "units".into() }), Exit::Failed);
        assert_eq!(exit(StoreError::JournalGap { missing: 1, found: 2 }), Exit::Failed);
        assert_eq!(exit(StoreError::ReadOnly), Exit::Device);
    }

    #[test]
    fn the_help_lists_every_exit_code() {
        for exit in [Exit::Success, Exit::Failed, Exit::Usage, Exit::Device] {
            assert!(EXIT_CODES.contains(&format!("\n  {}  ", exit as u8)), "{exit:?}");
        }
    }
}
