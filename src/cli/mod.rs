//! The `udirect` program: what a person types, and what comes back.
//!
//! ```text
//!   argv -> args (what was typed) -> plan (what it means here) -> runner, open
//!              |                        |                             |
//!              +------- Failure <-------+-----------------------------+-> stdout: the result
//!                          |
//!                        stderr: one line, exit code
//! ```
//!
//! Key types are `args::Args` and `failure::Failure`. Everything that can be checked without a
//! device is checked before one is opened; stdout carries results and nothing else.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod doctor;
mod emulate;
mod error_log;
mod failure;
mod features;
mod fields;
mod format;
mod identify;
mod list;
mod logging;
mod manual;
mod output;
mod plan;
mod progress;
mod sanitize;
mod serial;
mod setup;
mod signals;
mod smart;
mod store;
mod usage;

use std::process::ExitCode;

use args::{Args, Verb};
use failure::{Exit, Failure};

/// Runs the program on the arguments of this process.
pub fn main() -> ExitCode {
    match args::parse(std::env::args_os()).and_then(|args| run(&args)) {
        Ok(()) => Exit::Success.into(),
        Err(failure) => {
            output::tell(&failure.line());
            failure.exit.into()
        }
    }
}

fn run(args: &Args) -> Result<(), Failure> {
    logging::start(args.verbose)?;
    match &args.verb {
        Verb::Show(text) => output::print(text.as_bytes()),
        Verb::Bench(bench) => bench::run(bench),
        Verb::List { addresses, style } => list::run(addresses, *style),
        Verb::Identify { address, subject, style } => identify::run(address, *subject, *style),
        Verb::Smart { address, style } => smart::run(address, *style),
        Verb::ErrorLog { address, most, style } => error_log::run(address, *most, *style),
        Verb::Features { address, style } => features::run(address, *style),
        Verb::Format(args) => format::run(args),
        Verb::Sanitize(args) => sanitize::run(args),
        Verb::SanitizeLog { address, style } => sanitize::run_log(address, *style),
        Verb::Store(args) => store::run(args),
        Verb::Doctor { addresses, style } => doctor::run(addresses, *style),
        Verb::Setup(args) => setup::run(args),
        Verb::Emulate { address, folder } => emulate::run(address, folder),
        Verb::Completions(shell) => output::print(&manual::completions(*shell)),
        Verb::Man => output::print(&manual::page()?),
    }
}
