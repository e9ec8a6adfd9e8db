//! The part of the command line behind `doctor` and `setup`.
#![forbid(unsafe_code)]

use clap::{Arg, ArgMatches, Command, value_parser};

use super::{Style, one, read_style, strings, style, switch, verb};

/// What was typed after `setup`.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cli) struct SetupArgs {
    /// Whether to say only what would be changed.
    pub(in crate::cli) dry_run: bool,
    /// What to do.
    pub(in crate::cli) verb: SetupVerb,
}

/// What to do with the machine.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cli) enum SetupVerb {
    /// Takes drives from the kernel.
    Bind { addresses: Vec<String>, user: Option<String>, force: bool },
    /// Gives them back.
    Unbind { addresses: Vec<String> },
    /// Shows who has what.
    Status { style: Style },
    /// Reserves hugepages.
    Hugepages { pages: Option<u64>, node: Option<String> },
}

const DOCTOR_EXIT_CODES: &str = "\
Exit codes:
  0  every drive that was named would open; without a name, the report was made
  2  a drive that was named would not open; nothing was touched
  3  the report could not be written";

const SETUP_EXIT_CODES: &str = "\
Exit codes:
  0  it is as asked for, whether anything had to be changed or not
  1  fewer hugepages could be had than asked for
  2  refused, and nothing was touched
  3  the kernel refused a step; what had been changed before is listed";

const ENVIRONMENT: &str = "\
Environment, as SPDK's setup.sh has it:
  PCI_ALLOWED      addresses that may be bound, with blanks between; those to bind if none is named; none is none
  PCI_BLOCKED      addresses that are never touched, even if allowed
  DRIVER_OVERRIDE  the driver to bind to, in place of vfio-pci
  TARGET_USER      the user who gets the drive, as --user
  NRHUGE           how many hugepages there should be
  HUGENODE         on which nodes: 0,1 (NRHUGE on each) or nodes_hp[0]=1024,nodes_hp[1]=512";

/// Returns the definition of `doctor`.
pub(super) fn doctor() -> Command {
    verb("doctor", "Say what stands between this program and NVMe drives, with the fix for each")
        .arg(addresses("drives to look at, as 0000:04:00.0 (default: all)"))
        .arg(style())
        .after_help(DOCTOR_EXIT_CODES)
}

/// Returns the definition of `setup`.
pub(super) fn setup() -> Command {
    verb("setup", "Give drives to this program and back to the kernel; reserve hugepages")
        .subcommand_required(true)
        .after_help(format!("{ENVIRONMENT}\n\n{SETUP_EXIT_CODES}"))
        .subcommands([bind(), unbind(), status(), hugepages()])
}

fn inner(name: &'static str, about: &'static str) -> Command {
    verb(name, about).after_help(format!("{ENVIRONMENT}\n\n{SETUP_EXIT_CODES}"))
}

fn addresses(help: &'static str) -> Arg {
    Arg::new("address").value_name("ADDRESS").help(help).num_args(0..)
}

fn dry_run() -> Arg {
    switch("dry-run", "say what would be changed, and change nothing").short('n')
}

fn bind() -> Command {
    let user = Arg::new("user")
        .long("user")
        .value_name("USER")
        .help("who may use the drives without root, by name or number");
    inner("bind", "Take drives from the kernel: all that are named, or none. Never a disk in use")
        .arg(addresses("drives to take, as 0000:04:00.0"))
        .arg(user)
        .arg(switch(
            "force",
            "even with a partition table or file system, or if it is no NVMe drive",
        ))
        .arg(dry_run())
}

fn unbind() -> Command {
    inner("unbind", "Give drives back to the kernel's driver")
        .arg(addresses("drives to give back"))
        .arg(dry_run())
}

fn status() -> Command {
    inner("status", "Show drives with their drivers, and hugepages").arg(style())
}

fn hugepages() -> Command {
    let pages = Arg::new("pages")
        .value_name("N")
        .help("how many of 2 MiB there should be at least; 0 gives back those that nobody uses")
        .value_parser(value_parser!(u64));
    let node = Arg::new("node").long("node").value_name("NODES").help("as HUGENODE");
    inner("hugepages", "Reserve hugepages, or show them").args([pages, node]).arg(dry_run())
}

/// Reads what was typed after `setup`.
pub(super) fn read(given: &ArgMatches) -> SetupArgs {
    let (name, given) = given.subcommand().expect("a verb is required");
    let addresses = || strings(given, "address");
    let verb = match name {
        "bind" => SetupVerb::Bind {
            addresses: addresses(),
            user: one(given, "user"),
            force: given.get_flag("force"),
        },
        "unbind" => SetupVerb::Unbind { addresses: addresses() },
        "hugepages" => {
            SetupVerb::Hugepages { pages: one(given, "pages"), node: one(given, "node") }
        }
        _ => SetupVerb::Status { style: read_style(given) },
    };
    SetupArgs { dry_run: name != "status" && given.get_flag("dry-run"), verb }
}
