//! What the library traces, on stderr: warnings, or as much as was asked for.
//!
//! `UDIRECT_LOG` holds a filter of `tracing-subscriber` and prevails over `-v`. Lines have no time:
//! whoever collects them adds one.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal};

use anyhow::Context;
use tracing_subscriber::{EnvFilter, fmt};

use super::failure::Failure;

/// The environment variable that holds a filter.
const FILTER: &str = "UDIRECT_LOG";

/// Starts to write what is traced.
pub(super) fn start(verbose: u8) -> Result<(), Failure> {
    fmt()
        .with_env_filter(filter(verbose)?)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
    Ok(())
}

fn filter(verbose: u8) -> Result<EnvFilter, Failure> {
    let asked = std::env::var(FILTER).unwrap_or_default();
    let directives = if asked.is_empty() { level(verbose) } else { &asked };
    EnvFilter::try_new(directives)
        .with_context(|| format!("{FILTER}={directives}"))
        .map_err(Failure::usage)
}

const fn level(verbose: u8) -> &'static str {
    match verbose {
        // That there are no hugepages is one of the result's own warnings; a refusal stays one line.
        0 => "warn,udirect::dma=error",
        1 => "info",
        2 => "debug",
        _ => "trace",
    }
}
