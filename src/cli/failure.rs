//! How the program ends when it does not succeed: an exit code and one line.
//!
//! [`Exit`] lists the codes, [`EXIT_CODES`] says them in the help. A [`Failure`] pairs one with a
//! chain of causes; it is made where it is known whether the request or the device was at fault.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Error;

use crate::bench::runner::RunError;
use crate::open::OpenError;

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    /// Everything was done.
    Success = 0,
    /// An I/O failed or data did not verify.
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
  1  an I/O failed or data did not verify
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
        if error.is_usage() { Self::usage(error) } else { Self::device(error) }
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
    fn the_help_lists_every_exit_code() {
        for exit in [Exit::Success, Exit::Failed, Exit::Usage, Exit::Device] {
            assert!(EXIT_CODES.contains(&format!("\n  {}  ", exit as u8)), "{exit:?}");
        }
    }
}
