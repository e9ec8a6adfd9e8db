//! Ctrl-C and SIGTERM: the first asks for the end, the second is the end.
#![forbid(unsafe_code)]

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::low_level::pipe;

/// Returns a pipe that the first signal writes to; another one ends the process at once.
///
/// # Errors
///
/// Whatever the kernel says to a new handler, or to one more pipe.
pub(super) fn stop_pipe() -> io::Result<UnixStream> {
    // Before the pipe: the first signal finds the flag clear and passes.
    let _ = stop_flag()?;
    let (reads, writes) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM] {
        pipe::register(signal, writes.try_clone()?)?;
    }
    Ok(reads)
}

/// Returns a flag that the first signal sets; another one ends the process at once.
///
/// # Errors
///
/// Whatever the kernel says to a new handler.
pub(super) fn stop_flag() -> io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // Handlers run in this order: the first signal finds the flag clear and passes.
        flag::register_conditional_default(signal, Arc::clone(&stop))?;
        flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}
