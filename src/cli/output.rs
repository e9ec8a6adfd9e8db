//! The two ways out: results to stdout, talk to stderr.
//!
//! A reader of stdout that has seen enough closes the pipe, and that is not an error. What goes to
//! stderr is lost in silence where stderr is closed: there is nobody left to tell.
#![forbid(unsafe_code)]

use std::io::{self, Write};

use anyhow::Context;

use super::failure::Failure;

/// Writes a result to stdout.
pub(super) fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    unless_closed(written).context("standard output").map_err(Failure::device)
}

/// Writes a piece of a result to stdout; says whether anybody is still reading.
pub(super) fn print_piece(bytes: &[u8]) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("standard output").map_err(Failure::device),
    }
}

fn unless_closed(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Says one line on stderr.
pub(super) fn tell(line: &str) {
    let _ = writeln!(io::stderr().lock(), "udirect: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_closed_pipe_is_forgiven() {
        assert!(unless_closed(Err(io::ErrorKind::BrokenPipe.into())).is_ok());
        assert!(unless_closed(Err(io::ErrorKind::StorageFull.into())).is_err());
    }
}
