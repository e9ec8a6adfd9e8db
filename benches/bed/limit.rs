//! The limit of a bench that counts instructions.

use gungraun::prelude::*;
use gungraun::{Callgrind, EventKind};

/// Fails a bench above `per_io` instructions for each of `ios` I/Os.
pub(crate) fn limit(per_io: u64, ios: usize) -> LibraryBenchmarkConfig {
    let limits = [(EventKind::Ir, per_io * ios as u64)];
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(Callgrind::default().hard_limits(limits));
    config
}
