//! The part of the command line behind `store`.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::{Style, one, read_style, style, switch, verb};
use crate::open::parse_size;

/// What was typed after `store`.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cli) struct StoreArgs {
    /// Where the store is.
    pub(in crate::cli) address: String,
    /// What to do there.
    pub(in crate::cli) verb: StoreVerb,
}

/// What to do with a store.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cli) enum StoreVerb {
    /// Makes one.
    Format { unit: Option<u64>, journal: Option<u64>, checkpoint: Option<u64>, force: bool },
    /// Lists objects.
    Ls { long: bool, style: Style },
    /// Shows what is known of an object.
    Stat { name: OsString, style: Style },
    /// Shows how full it is.
    Df { style: Style },
    /// Shows where an object's bytes are.
    Map { name: OsString, style: Style },
    /// Looks for what is wrong.
    Check { style: Style },
    /// Copies a file in.
    Put { file: PathBuf, name: Option<OsString>, replace: bool },
    /// Copies an object out.
    Get { name: OsString, file: PathBuf, force: bool },
    /// Writes an object to stdout.
    Cat { name: OsString },
    /// Removes objects.
    Rm { names: Vec<OsString> },
    /// Renames an object.
    Mv { old: OsString, new: OsString, replace: bool },
}

/// What the help says about objects.
const ABOUT_NAMES: &str = "\
A NAME is UTF-8 of 1 to 255 bytes. An object without a name, as a program may make one, is `#` and its
number. Where one word names device and object, as for bench, it is ADDRESS!NAME.";

/// Returns the definition of `store`.
pub(super) fn command() -> Command {
    verb("store", "Keep objects on a device: make a store, copy in and out, look, check")
        .subcommand_required(true)
        .subcommands([
            format(),
            inner("ls", "List objects, by name").arg(long()).arg(style()),
            inner("put", "Copy a file into a new object; durable when it returns").args([
                file("file to copy, - is standard input"),
                optional_name(),
                replace(),
            ]),
            inner("get", "Copy an object into a new file")
                .args([name(), file("file to make, - is standard output")])
                .arg(switch("force", "overwrite a file that is there")),
            inner("cat", "Write an object to standard output").arg(name()),
            inner("rm", "Remove objects: all that are named, or none").arg(names()),
            inner("mv", "Rename an object")
                .args([positional("old", "OLD", "its name"), positional("new", "NEW", "another")])
                .arg(replace()),
            inner("stat", "Show what is known of an object").arg(name()).arg(style()),
            inner("df", "Show how full a store is, and how its free space is cut up").arg(style()),
            inner("map", "Show where on the device the bytes of an object are")
                .arg(name())
                .arg(style()),
            inner("check", "Look for what is wrong, one finding to a line; changes nothing")
                .arg(style()),
        ])
}

fn inner(name: &'static str, about: &'static str) -> Command {
    verb(name, about)
        .before_help(ABOUT_NAMES)
        .arg(Arg::new("address").value_name("ADDRESS").help("device of the store").required(true))
}

fn format() -> Command {
    let size = |name, help| {
        Arg::new(name).long(name).value_name("SIZE").help(help).value_parser(parse_size)
    };
    inner("format", "Make an empty store of a whole device")
        .arg(size("unit", "what space is given out in, a power of two up to 1MiB (default: 4KiB)"))
        .arg(size("journal", "size of the journal (default: a 128th of the device, up to 32MiB)"))
        .arg(size(
            "checkpoint",
            "size of each of two checkpoints, 24 bytes an extent (default: a 128th, up to 1GiB)",
        ))
        .arg(switch("force", "destroy what is on the device"))
}

fn positional(id: &'static str, value_name: &'static str, help: &'static str) -> Arg {
    let parser = value_parser!(OsString);
    Arg::new(id).value_name(value_name).help(help).required(true).value_parser(parser)
}

fn name() -> Arg {
    positional("name", "NAME", "object")
}

fn optional_name() -> Arg {
    positional("name", "NAME", "object to make (default: the file's own name)").required(false)
}

fn names() -> Arg {
    positional("name", "NAME", "objects").num_args(1..)
}

fn file(help: &'static str) -> Arg {
    positional("file", "FILE", help).value_parser(value_parser!(PathBuf))
}

fn replace() -> Arg {
    switch("replace", "take the place of an object that has the name, at once")
}

fn long() -> Arg {
    switch("long", "with number, size, extents and time").short('l')
}

/// Reads what was typed.
pub(super) fn read(given: &ArgMatches) -> StoreArgs {
    let (verb, given) = given.subcommand().expect("a verb is required");
    let address = one(given, "address").expect("the address is required");
    StoreArgs { address, verb: read_verb(verb, given) }
}

fn read_verb(verb: &str, given: &ArgMatches) -> StoreVerb {
    let word = |id: &str| one::<OsString>(given, id).expect("it is required");
    let name = || word("name");
    let file = || one::<PathBuf>(given, "file").expect("it is required");
    match verb {
        "format" => StoreVerb::Format {
            unit: one(given, "unit"),
            journal: one(given, "journal"),
            checkpoint: one(given, "checkpoint"),
            force: given.get_flag("force"),
        },
        "ls" => StoreVerb::Ls { long: given.get_flag("long"), style: read_style(given) },
        "stat" => StoreVerb::Stat { name: name(), style: read_style(given) },
        "df" => StoreVerb::Df { style: read_style(given) },
        "map" => StoreVerb::Map { name: name(), style: read_style(given) },
        "put" => StoreVerb::Put {
            file: file(),
            name: one(given, "name"),
            replace: given.get_flag("replace"),
        },
        "get" => StoreVerb::Get { name: name(), file: file(), force: given.get_flag("force") },
        "cat" => StoreVerb::Cat { name: name() },
        "rm" => {
            let names = given.get_many::<OsString>("name").into_iter().flatten();
            StoreVerb::Rm { names: names.cloned().collect() }
        }
        "mv" => {
            StoreVerb::Mv { old: word("old"), new: word("new"), replace: given.get_flag("replace") }
        }
        _ => StoreVerb::Check { style: read_style(given) },
    }
}
