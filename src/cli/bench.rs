//! `udirect bench`: decides, runs, and writes the result.
//!
//! `plan.rs` says what to run and [`runner`] runs it; this is the part around them: the place of the
//! result, the progress line, the signals, the exit code. The result is written even if I/Os failed
//! or a signal ended the run early.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};

use super::args::BenchArgs;
use super::failure::Failure;
use super::output::{print, tell};
use super::plan::{self, Decision};
use super::progress::Line;
use super::signals;
use crate::bench::report::Format;
use crate::bench::result::RunResult;
use crate::bench::runner::{self, Event};
use crate::units::ByteLen;

/// Runs the jobs that the arguments ask for.
pub(super) fn run(args: &BenchArgs) -> Result<(), Failure> {
    let Decision { plan, notes } = plan::decide(args)?;
    let mut place = Place::prepare(args.output.as_deref())?;
    let stop = signals::stop_flag().context("signal handlers").map_err(Failure::device)?;
    let mut notes = if args.quiet { Vec::new() } else { notes };
    let line = Line::on_terminal(args.quiet);
    let ran = runner::run(&plan, &stop, &mut |event| {
        // Not before something runs: a refusal is one line.
        tell_notes(&mut notes);
        match event {
            Event::LayingOut { object, bytes } if !args.quiet => {
                tell(&format!("laying out object {object:?} ({})", ByteLen(bytes)));
            }
            Event::LayingOut { .. } => {}
            Event::Progress(progress) => line.show(progress),
        }
    });
    line.clear();
    let result = ran.inspect_err(|_| place.leave())?;
    tell_notes(&mut notes);
    place.write(&written(&result, args.format)?)?;
    if stop.load(Ordering::Relaxed) && !args.quiet {
        tell("note: the run was ended by a signal; the result is of what ran before it");
    }
    judge(&result)
}

/// Tells the notes that have not been told.
fn tell_notes(notes: &mut Vec<String>) {
    notes.drain(..).for_each(|note| tell(&format!("note: {note}")));
}

/// Where the result goes.
enum Place {
    Stdout,
    File {
        path: PathBuf,
        file: File,
        /// Whether it was not there before.
        new: bool,
    },
}

impl Place {
    /// Makes sure of the place before an hour of measuring depends on it. What is there already stays
    /// until there is something to put in its place.
    fn prepare(path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path else { return Ok(Self::Stdout) };
        let mut options = OpenOptions::new();
        let made = options.write(true).create_new(true).open(path);
        let new = made.is_ok();
        let mut old = || options.create_new(false).create(true).truncate(false).open(path);
        let file = made.or_else(|_| old()).with_context(|| format!("--output={}", path.display()));
        Ok(Self::File { path: path.to_owned(), file: file.map_err(Failure::usage)?, new })
    }

    /// Leaves the place as it was found, since there is no result.
    fn leave(&self) {
        if let Self::File { path, new: true, .. } = self {
            // An empty file that stays does no harm.
            let _ = fs::remove_file(path);
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Stdout => print(bytes),
            Self::File { path, file, .. } => {
                let written = replace(file, bytes);
                written.with_context(|| path.display().to_string()).map_err(Failure::device)
            }
        }
    }
}

fn replace(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    // A pipe or a terminal has no length to set.
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    file.write_all(bytes)
}

fn written(result: &RunResult, format: Format) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    format.write(result, &mut bytes).map_err(Failure::device)?;
    Ok(bytes)
}

/// Fails if an I/O did.
fn judge(result: &RunResult) -> Result<(), Failure> {
    let failed: u64 = result.jobs.iter().map(|job| job.error_count).sum();
    let Some(job) = result.jobs.iter().find(|job| job.error_count > 0) else { return Ok(()) };
    let first = job.first_error.as_deref().unwrap_or("no reason was recorded");
    let noun = if failed == 1 { "I/O" } else { "I/Os" };
    Err(Failure::io(anyhow!("{failed} {noun} failed, the first in job {:?}: {first}", job.name)))
}

#[cfg(test)]
mod tests {
    use super::super::failure::Exit;
    use super::*;
    use crate::bench::result::{Environment, JobResult, RESULT_VERSION};

    fn result(jobs: Vec<JobResult>) -> RunResult {
        RunResult {
            version: RESULT_VERSION,
            timestamp_ms: 0,
            environment: Environment::default(),
            global_options: Vec::new(),
            jobs,
            warnings: Vec::new(),
        }
    }

    #[test]
    fn failed_ios_of_all_jobs_are_one_failure_with_the_first_reason() {
        let clean = JobResult { name: "a".into(), ..JobResult::default() };
        assert!(judge(&result(vec![clean.clone()])).is_ok());
        let bad = JobResult {
            name: "b".into(),
            error_count: 2,
            first_error: Some("media error at LBA 0x10".into()),
            ..JobResult::default()
        };
        let failure = judge(&result(vec![clean, bad.clone(), bad])).unwrap_err();
        assert_eq!(failure.exit, Exit::Failed);
        let line = "4 I/Os failed, the first in job \"b\": media error at LBA 0x10";
        assert_eq!(failure.line(), line);
    }

    #[test]
    fn a_result_that_has_no_place_is_found_out_before_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let failure = Place::prepare(Some(&dir.path().join("no/such"))).err().unwrap();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.line().starts_with("--output="), "{}", failure.line());
    }
}
