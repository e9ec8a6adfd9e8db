//! The command line as it is typed: one definition for parsing, help, completions and the manual.
//!
//! [`command`] is the definition, [`parse`] turns arguments into [`Args`]. The flags of `bench` are
//! the table of [`options`]: a key of a job file and its flag cannot differ. Nothing is decided here;
//! `plan.rs` gives the arguments their meaning.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use clap_complete::Shell;

use super::failure::{EXIT_CODES, Failure};
use super::usage;
use crate::bench::option::{OptionSpec, options};
use crate::bench::report::Format;
use crate::bench::runner::Route;

mod inspect;
mod machine;
mod store;

pub(super) use inspect::{FormatArgs, SanitizeArgs};
pub(super) use machine::{SetupArgs, SetupVerb};
pub(super) use store::{StoreArgs, StoreVerb};

/// What was typed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Args {
    /// How often `-v` was given.
    pub(super) verbose: u8,
    /// What to do.
    pub(super) verb: Verb,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verb {
    /// Shows a text: help or version.
    Show(String),
    /// Runs jobs.
    Bench(BenchArgs),
    /// Lists devices.
    List {
        /// Where they are.
        addresses: Vec<String>,
        /// How they are listed.
        style: Style,
    },
    /// Shows what Identify returns.
    Identify {
        /// Where the device is.
        address: String,
        /// Of what.
        subject: Subject,
        /// How it is shown.
        style: Style,
    },
    /// Shows the health of a device.
    Smart {
        /// Where it is.
        address: String,
        /// How it is shown.
        style: Style,
    },
    /// Shows the commands that failed.
    ErrorLog {
        /// Where the device is.
        address: String,
        /// How many at most.
        most: Option<u32>,
        /// How they are shown.
        style: Style,
    },
    /// Shows the features of a controller.
    Features {
        /// Where the device is.
        address: String,
        /// How they are shown.
        style: Style,
    },
    /// Formats a namespace.
    Format(FormatArgs),
    /// Sanitizes a subsystem.
    Sanitize(SanitizeArgs),
    /// Shows how far a sanitize is.
    SanitizeLog {
        /// Where the device is.
        address: String,
        /// How it is shown.
        style: Style,
    },
    /// Works on objects.
    Store(StoreArgs),
    /// Says what stands between the program and a drive.
    Doctor {
        /// The drives; none is all of them.
        addresses: Vec<String>,
        /// How it is shown.
        style: Style,
    },
    /// Gives drives to the program and back to the kernel.
    Setup(SetupArgs),
    /// Offers the embedded controller to other processes.
    Emulate {
        /// What it is made of.
        address: String,
        /// Where the socket is to be.
        folder: PathBuf,
    },
    /// Writes completions for a shell.
    Completions(Shell),
    /// Writes the manual page.
    Man,
}

/// What was typed after `bench`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct BenchArgs {
    /// Addresses and job files.
    pub(super) targets: Vec<String>,
    /// Keys of jobs and their values, in the order in which they were given.
    pub(super) options: Vec<(String, String)>,
    /// How the result is written.
    pub(super) format: Format,
    /// Where it is written, if not to stdout.
    pub(super) output: Option<PathBuf>,
    /// Whether there may be more workers than cores.
    pub(super) oversubscribe: bool,
    /// Which way I/O takes.
    pub(super) route: Route,
    /// Whether to say only what went wrong.
    pub(super) quiet: bool,
}

/// How a record is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Style {
    /// For people.
    #[default]
    Normal,
    /// For programs.
    Json,
}

/// What is identified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// The controller.
    Controller,
    /// The namespace.
    Namespace,
}

/// Parses the arguments, the program's name first.
pub(super) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Args, Failure> {
    match command().try_get_matches_from(args) {
        Ok(matches) => Ok(read(&matches)),
        Err(error) if is_answer(error.kind()) => {
            let verb = Verb::Show(error.render().to_string());
            Ok(Args { verbose: 0, verb })
        }
        Err(error) => Err(Failure::usage(anyhow::Error::msg(usage::explain(&error)))),
    }
}

/// clap reports help and version as errors.
fn is_answer(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
}

/// Returns the definition of the command line.
pub(super) fn command() -> Command {
    Command::new("udirect")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Direct I/O for NVMe from userspace")
        .subcommand_required(true)
        .arg(verbose())
        .after_help(EXIT_CODES)
        .subcommands([bench(), list(), identify()])
        .subcommands(inspect::commands())
        .subcommands([store::command(), machine::doctor(), machine::setup(), emulate()])
        .subcommands([completions(), man()])
}

fn verb(name: &'static str, about: &'static str) -> Command {
    Command::new(name).about(about).after_help(EXIT_CODES)
}

fn verbose() -> Arg {
    switch("verbose", "say more: -v info, -vv debug, -vvv trace; UDIRECT_LOG takes a filter")
        .short('v')
        .action(ArgAction::Count)
        .global(true)
}

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).help(help).action(ArgAction::SetTrue)
}

fn bench() -> Command {
    let target = Arg::new("target")
        .value_name("ADDRESS|JOB.fio")
        .help("device, object as ADDRESS!OBJECT, or fio job files (default: a short job on memory)")
        .num_args(0..);
    let format = Arg::new("output-format")
        .long("output-format")
        .value_name("FORMAT")
        .help("how the result is written")
        .value_parser(PossibleValuesParser::new(Format::NAMES.map(|(name, _)| name)))
        .default_value("normal");
    let output = Arg::new("output")
        .long("output")
        .value_name("FILE")
        .help("where the result is written (default: standard output)")
        .value_parser(value_parser!(PathBuf));
    verb("bench", "Measure a device: fio job files, or the same keys as flags")
        .arg(target)
        .args([format, output])
        .arg(switch("oversubscribe", "allow more workers than cores"))
        .arg(switch("quiet", "no progress and no notes").short('q'))
        .arg(switch("raw-queue", "past the direct-I/O pipeline, straight to the queues"))
        .arg(
            switch("merge", "let neighbouring I/Os of one batch share a command")
                .conflicts_with("raw-queue"),
        )
        .args(options().iter().map(flag))
}

/// Makes the flag of one option of a job.
fn flag(spec: &'static OptionSpec) -> Arg {
    let flag = Arg::new(spec.name)
        .long(spec.name)
        .aliases(spec.aliases.iter().copied())
        .help(spec.help)
        .help_heading("Job options, as in a job file")
        .hide(spec.is_ignored())
        .action(ArgAction::Append);
    if spec.is_flag() {
        // Only `=` binds a value: what follows `--time_based` may be an address.
        flag.value_name("0|1").num_args(0..=1).require_equals(true).default_missing_value("")
    } else {
        flag.value_name(spec.metavar)
    }
}

fn list() -> Command {
    verb("list", "List devices with their namespaces, as nvme-cli does")
        .arg(Arg::new("address").value_name("ADDRESS").help("devices to list").num_args(0..))
        .arg(style())
}

fn identify() -> Command {
    verb("identify", "Show what a controller or namespace says of itself, as nvme-cli does")
        .arg(Arg::new("address").value_name("ADDRESS").help("device to ask").required(true))
        .arg(switch("namespace", "the namespace, not the controller").short('n'))
        .arg(style())
}

fn emulate() -> Command {
    let folder = Arg::new("listen")
        .long("listen")
        .value_name("FOLDER")
        .help("where the socket `cntrl` is to be; the folder is made if it is missing")
        .required(true)
        .value_parser(value_parser!(PathBuf));
    let address = Arg::new("address")
        .value_name("ADDRESS")
        .help("what the controller is made of: mem: file: null:, with their options")
        .required(true);
    verb("emulate", "Offer the embedded controller to other processes over vfio-user, until Ctrl-C")
        .args([folder, address])
}

fn style() -> Arg {
    Arg::new("style")
        .short('o')
        .long("output-format")
        .value_name("FORMAT")
        .help("how it is shown")
        .value_parser(["normal", "json"])
        .default_value("normal")
}

fn completions() -> Command {
    let shell = Arg::new("shell").value_name("SHELL").help("the shell to complete in");
    verb("completions", "Write completions for a shell to standard output")
        .arg(shell.required(true).value_parser(value_parser!(Shell)))
}

fn man() -> Command {
    verb("man", "Write the manual page to standard output")
}

fn read(matches: &ArgMatches) -> Args {
    let (name, given) = matches.subcommand().expect("a verb is required");
    let verb = match name {
        "bench" => Verb::Bench(read_bench(given)),
        "list" => Verb::List { addresses: strings(given, "address"), style: read_style(given) },
        "identify" => Verb::Identify {
            address: one(given, "address").expect("the address is required"),
            subject: read_subject(given),
            style: read_style(given),
        },
        "store" => Verb::Store(store::read(given)),
        "doctor" => Verb::Doctor { addresses: strings(given, "address"), style: read_style(given) },
        "setup" => Verb::Setup(machine::read(given)),
        "emulate" => Verb::Emulate {
            address: one(given, "address").expect("the address is required"),
            folder: one(given, "listen").expect("the folder is required"),
        },
        "completions" => Verb::Completions(one(given, "shell").expect("the shell is required")),
        name => inspect::read(name, given).unwrap_or(Verb::Man),
    };
    Args { verbose: matches.get_count("verbose"), verb }
}

fn read_bench(given: &ArgMatches) -> BenchArgs {
    let format: String = one(given, "output-format").expect("it has a default");
    BenchArgs {
        targets: strings(given, "target"),
        options: job_options(given),
        format: Format::from_name(&format).expect("only names of formats are possible"),
        output: one(given, "output"),
        oversubscribe: given.get_flag("oversubscribe"),
        route: Route { raw_queue: given.get_flag("raw-queue"), merge: given.get_flag("merge") },
        quiet: given.get_flag("quiet"),
    }
}

/// Returns the options of jobs in the order of the command line, where later ones prevail.
fn job_options(given: &ArgMatches) -> Vec<(String, String)> {
    let mut found: Vec<(usize, &str, String)> = Vec::new();
    for spec in options() {
        let places = given.indices_of(spec.name).into_iter().flatten();
        let values = strings(given, spec.name);
        found.extend(places.zip(values).map(|(place, value)| (place, spec.name, value)));
    }
    found.sort_by_key(|(place, ..)| *place);
    found.into_iter().map(|(_, key, value)| (key.to_owned(), value)).collect()
}

fn read_style(given: &ArgMatches) -> Style {
    match one::<String>(given, "style").as_deref() {
        Some("json") => Style::Json,
        _ => Style::Normal,
    }
}

fn read_subject(given: &ArgMatches) -> Subject {
    if given.get_flag("namespace") { Subject::Namespace } else { Subject::Controller }
}

fn one<T: Clone + Send + Sync + 'static>(given: &ArgMatches, id: &str) -> Option<T> {
    given.get_one::<T>(id).cloned()
}

fn strings(given: &ArgMatches, id: &str) -> Vec<String> {
    given.get_many::<String>(id).into_iter().flatten().cloned().collect()
}

#[cfg(test)]
mod tests;
