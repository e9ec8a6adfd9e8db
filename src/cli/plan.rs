//! What the arguments of `bench` mean: the jobs to run, decided before a device is opened.
//!
//! [`decide`] returns a [`Decision`]. Job files come first, flags prevail over them, and an address
//! prevails over `filename`; flags without a file are one job; nothing at all is [`QUICK`]. What
//! destroys data runs only where somebody asked for it, or on memory.
#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::anyhow;

use super::args::BenchArgs;
use super::failure::Failure;
use crate::bench::job::Job;
use crate::bench::option::{JobBuilder, Note};
use crate::bench::parse::{JobFile, Parser};
use crate::bench::runner::Plan;

/// The job that runs if none was asked for.
const QUICK: &str = include_str!("../../config/quick.fio");

/// The device if none was named and no job file is silent about it.
const DEFAULT_DEVICE: &str = "mem:1GiB";

/// The name of a job that was made of flags.
const DEFAULT_NAME: &str = "bench";

/// The jobs to run, and what there is to say about them.
#[derive(Debug)]
pub(super) struct Decision {
    /// What to run.
    pub(super) plan: Plan,
    /// What is worth telling and stops nothing.
    pub(super) notes: Vec<String>,
}

/// Decides what to run.
pub(super) fn decide(args: &BenchArgs) -> Result<Decision, Failure> {
    let targets = Targets::sort(&args.targets)?;
    let given = given_options(&args.options, targets.address)?;
    let file = if !targets.files.is_empty() {
        from_files(&targets.files, &given)?
    } else if args.options.is_empty() {
        quick(targets.address)?
    } else {
        from_options(&given)?
    };
    if let Some(job) = file.jobs.iter().find(|job| job.filename.is_empty()) {
        return wrong(format!("job {:?} has no device: give an ADDRESS or filename=", job.name));
    }
    let plan = Plan {
        jobs: file.jobs,
        global: file.global,
        oversubscribe: args.oversubscribe,
        route: args.route,
    };
    Ok(Decision { plan, notes: file.notes.iter().map(ToString::to_string).collect() })
}

fn wrong<T>(what: String) -> Result<T, Failure> {
    Err(Failure::usage(anyhow::Error::msg(what)))
}

/// The arguments without a flag, by what they are.
#[derive(Debug, Default, PartialEq)]
struct Targets<'a> {
    address: Option<&'a str>,
    files: Vec<&'a str>,
}

impl<'a> Targets<'a> {
    fn sort(targets: &'a [String]) -> Result<Self, Failure> {
        let mut sorted = Self::default();
        for target in targets {
            sorted.add(target)?;
        }
        Ok(sorted)
    }

    fn add(&mut self, target: &'a str) -> Result<(), Failure> {
        if is_address(target) {
            if let Some(first) = self.address.replace(target) {
                return wrong(format!("two addresses, {first} and {target}: one at a time"));
            }
        } else if is_job_file(target) {
            self.files.push(target);
        } else {
            return wrong(format!(
                "{target:?} is neither an address, as in {DEFAULT_DEVICE}, nor a job file"
            ));
        }
        Ok(())
    }
}

/// Says whether the text has a scheme: a word and a colon, or fio's spelling of SPDK's transport id.
fn is_address(target: &str) -> bool {
    let is_word = |word: &str| {
        !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "+-_".contains(c))
    };
    target.split_once(':').is_some_and(|(word, _)| is_word(word)) || target.starts_with("trtype=")
}

fn is_job_file(target: &str) -> bool {
    let path = Path::new(target);
    path.extension().is_some_and(|extension| extension == "fio") || path.is_file()
}

type Given = Vec<(String, String)>;

/// Returns the options that prevail over those of a file, the address among them.
fn given_options(options: &[(String, String)], address: Option<&str>) -> Result<Given, Failure> {
    let written = |wanted: &str| options.iter().filter(|(key, _)| key == wanted).count();
    if written("name") > 1 {
        return wrong("--name is given twice: several jobs need a job file".to_owned());
    }
    if let Some(address) = address
        && written("filename") > 0
    {
        return wrong(format!("both {address} and --filename name the device"));
    }
    let mut given = options.to_vec();
    given.extend(address.map(|address| ("filename".to_owned(), address.to_owned())));
    Ok(given)
}

fn from_files(files: &[&str], given: &Given) -> Result<JobFile, Failure> {
    // First alone: a wrong flag is not the fault of a line in a file.
    let mut flags = builder(given)?;
    let parser = given
        .iter()
        .fold(Parser::default(), |parser, (key, value)| parser.with_override(key, value));
    let mut file = parser.parse_files(files).map_err(Failure::usage)?;
    file.notes.extend(flags.take_notes());
    Ok(file)
}

fn from_options(given: &Given) -> Result<JobFile, Failure> {
    let mut builder = builder(given)?;
    let mut job = builder.build().map_err(Failure::usage)?;
    if job.filename.is_empty() {
        DEFAULT_DEVICE.clone_into(&mut job.filename);
    }
    Ok(JobFile { jobs: vec![job], notes: builder.take_notes(), ..JobFile::default() })
}

fn builder(given: &Given) -> Result<JobBuilder, Failure> {
    let mut builder = JobBuilder::new(DEFAULT_NAME);
    for (key, value) in given {
        let set = builder.set(key, value);
        set.map_err(|error| Failure::usage(anyhow!("command line: {error}")))?;
    }
    Ok(builder)
}

/// Returns the short job; on a device that was only named, the part that reads.
fn quick(address: Option<&str>) -> Result<JobFile, Failure> {
    let mut parser = Parser::default();
    if let Some(address) = address {
        parser = parser.with_override("filename", address);
    }
    let mut file = parser.parse_str("quick.fio", QUICK).map_err(Failure::usage)?;
    if let Some(address) = address.filter(|address| !is_memory(address)) {
        leave_out_destructive(&mut file, address);
    }
    Ok(file)
}

fn leave_out_destructive(file: &mut JobFile, address: &str) {
    let (left_out, kept) = file.jobs.drain(..).partition(|job: &Job| job.rw.is_destructive());
    file.jobs = kept;
    let said = |job: Job| Note {
        place: None,
        text: format!("{} is left out, it would overwrite {address}: ask for it by --rw", job.name),
    };
    file.notes.extend(Vec::into_iter(left_out).map(said));
}

/// Says whether nothing outside this process can be overwritten.
fn is_memory(address: &str) -> bool {
    address.starts_with("mem:") || address.starts_with("null:")
}

#[cfg(test)]
mod tests;
