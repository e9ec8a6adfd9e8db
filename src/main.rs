//! The `udirect` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    udirect::cli::main()
}
