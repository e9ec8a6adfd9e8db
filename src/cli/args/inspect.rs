//! The part of the command line behind the verbs that look at a device, and those that erase one.
#![forbid(unsafe_code)]

use clap::builder::PossibleValue;
use clap::{Arg, ArgMatches, Command, ValueEnum, value_parser};

use super::{Style, Verb, one, read_style, style, switch, verb};
use crate::open::parse_size;
use crate::spec::erase::SanitizeAction;

/// What was typed after `format`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::cli) struct FormatArgs {
    /// Where the namespace is.
    pub(in crate::cli) address: String,
    /// The index of the format.
    pub(in crate::cli) lbaf: Option<u8>,
    /// The size of its blocks.
    pub(in crate::cli) lba: Option<u64>,
    /// The metadata of a block, where a size was given.
    pub(in crate::cli) ms: u16,
    /// The type of protection information.
    pub(in crate::cli) pi: u8,
    /// Whether it comes first in the metadata.
    pub(in crate::cli) pil: bool,
    /// Whether metadata follows the data.
    pub(in crate::cli) mset: bool,
    /// How to erase what was there.
    pub(in crate::cli) ses: u8,
    /// The serial number typed back.
    pub(in crate::cli) serial: Option<String>,
    /// How long it may take.
    pub(in crate::cli) timeout_ms: u64,
    /// How the result is shown.
    pub(in crate::cli) style: Style,
}

/// What was typed after `sanitize`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::cli) struct SanitizeArgs {
    /// Where a namespace of the subsystem is.
    pub(in crate::cli) address: String,
    /// What to do.
    pub(in crate::cli) action: SanitizeAction,
    /// Whether a failure may be left behind.
    pub(in crate::cli) ause: bool,
    /// Passes of an overwrite.
    pub(in crate::cli) owpass: Option<u8>,
    /// Whether each pass inverts the pattern.
    pub(in crate::cli) oipbp: bool,
    /// What an overwrite writes.
    pub(in crate::cli) ovrpat: Option<u32>,
    /// Whether nothing is deallocated afterwards.
    pub(in crate::cli) no_dealloc: bool,
    /// The serial number typed back.
    pub(in crate::cli) serial: Option<String>,
    /// How long it may make no progress.
    pub(in crate::cli) timeout_ms: u64,
    /// How the result is shown.
    pub(in crate::cli) style: Style,
}

/// How long is waited if nothing else is said: ten minutes, as nvme-cli does.
const TIMEOUT_MS: &str = "600000";

/// Returns the definitions.
pub(super) fn commands() -> [Command; 6] {
    [smart(), error_log(), features(), format(), sanitize(), sanitize_log()]
}

fn on_device(name: &'static str, about: &'static str) -> Command {
    verb(name, about)
        .arg(Arg::new("address").value_name("ADDRESS").help("device").required(true))
        .arg(style())
}

fn smart() -> Command {
    on_device("smart", "Show the health of a device, as nvme smart-log does")
}

fn error_log() -> Command {
    let entries = number("log-entries", "N", "entries at most (default: all that are kept)");
    on_device("error-log", "Show the last commands that failed, as nvme error-log does")
        .arg(entries.short('e').value_parser(value_parser!(u32).range(1..)))
}

fn features() -> Command {
    on_device("features", "Show every feature of a controller, as nvme get-feature -H does")
}

fn sanitize_log() -> Command {
    on_device("sanitize-log", "Show how far a sanitize is, as nvme sanitize-log does")
}

fn format() -> Command {
    let small = |most: i64| value_parser!(u8).range(0..=most);
    on_device("format", "Erase a namespace and cut it into blocks anew (Format NVM)")
        .arg(number("lbaf", "N", "index of the format").short('l').value_parser(small(63)))
        .arg(
            number("lba", "SIZE", "size of a block, as 512 or 4k, instead of --lbaf")
                .alias("block-size")
                .short('b')
                .value_parser(parse_size)
                .conflicts_with("lbaf"),
        )
        .arg(
            number("ms", "BYTES", "metadata of a block, with --lba (default: 0)")
                .value_parser(value_parser!(u16))
                .requires("lba"),
        )
        .arg(number("mset", "0|1", "1: metadata follows the data").value_parser(small(1)))
        .arg(number("pi", "0..3", "type of protection").short('i').value_parser(small(3)))
        .arg(
            number("pil", "0|1", "1: protection comes first in the metadata")
                .short('p')
                .value_parser(small(1)),
        )
        .arg(
            number("ses", "0..2", "1: erase user data, 2: erase the key")
                .short('s')
                .value_parser(small(2)),
        )
        .arg(serial())
        .arg(timeout("milliseconds that it may take"))
}

fn sanitize() -> Command {
    let action = Arg::new("sanact")
        .long("sanact")
        .short('a')
        .value_name("ACTION")
        .help("what to do")
        .required(true)
        .value_parser(value_parser!(Action));
    on_device("sanitize", "Erase everything in the subsystem of a device, for good")
        .arg(action)
        .arg(switch("ause", "a failure may be left behind with exit-failure"))
        .arg(
            number("owpass", "N", "passes of an overwrite (default: 1)")
                .short('n')
                .value_parser(value_parser!(u8).range(1..=16)),
        )
        .arg(switch("oipbp", "each pass of an overwrite inverts the pattern"))
        .arg(
            number("ovrpat", "DWORD", "what an overwrite writes, as 0x5a5a5a5a (default: 0)")
                .value_parser(dword),
        )
        .arg(switch("no-dealloc", "deallocate nothing afterwards").short('d'))
        .arg(serial())
        .arg(timeout("milliseconds without progress after which nobody watches any more"))
}

fn number(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

fn serial() -> Arg {
    number("serial", "SN", "serial number of the controller, typed back")
}

fn timeout(help: &'static str) -> Arg {
    number("timeout", "MS", help)
        .value_parser(value_parser!(u64).range(1..))
        .default_value(TIMEOUT_MS)
}

/// Reads 32 bits in decimal or hexadecimal.
fn dword(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text:?} is not a dword: write 0 to 0xffffffff"))
}

/// An action, spelt as it is typed.
#[derive(Clone, Copy)]
struct Action(SanitizeAction);

impl ValueEnum for Action {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self(SanitizeAction::BLOCK_ERASE),
            Self(SanitizeAction::OVERWRITE),
            Self(SanitizeAction::CRYPTO_ERASE),
            Self(SanitizeAction::EXIT_FAILURE),
        ]
    }

    /// The name, and those that nvme-cli takes.
    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, aliases) = match self.0 {
            SanitizeAction::BLOCK_ERASE => ("block-erase", ["start-block-erase", "2", "0x02"]),
            SanitizeAction::OVERWRITE => ("overwrite", ["start-overwrite", "3", "0x03"]),
            SanitizeAction::CRYPTO_ERASE => ("crypto-erase", ["start-crypto-erase", "4", "0x04"]),
            _ => ("exit-failure", ["exit", "1", "0x01"]),
        };
        Some(PossibleValue::new(name).aliases(aliases))
    }
}

/// Reads what was typed after one of these verbs.
pub(super) fn read(name: &str, given: &ArgMatches) -> Option<Verb> {
    let address = || one(given, "address").expect("the address is required");
    Some(match name {
        "smart" => Verb::Smart { address: address(), style: read_style(given) },
        "features" => Verb::Features { address: address(), style: read_style(given) },
        "sanitize-log" => Verb::SanitizeLog { address: address(), style: read_style(given) },
        "error-log" => {
            let most = one(given, "log-entries");
            Verb::ErrorLog { address: address(), most, style: read_style(given) }
        }
        "format" => Verb::Format(read_format(address(), given)),
        "sanitize" => Verb::Sanitize(read_sanitize(address(), given)),
        _ => return None,
    })
}

fn read_format(address: String, given: &ArgMatches) -> FormatArgs {
    let small = |id: &str| one::<u8>(given, id).unwrap_or(0);
    FormatArgs {
        address,
        lbaf: one(given, "lbaf"),
        lba: one(given, "lba"),
        ms: one(given, "ms").unwrap_or(0),
        pi: small("pi"),
        pil: small("pil") == 1,
        mset: small("mset") == 1,
        ses: small("ses"),
        serial: one(given, "serial"),
        timeout_ms: one(given, "timeout").expect("it has a default"),
        style: read_style(given),
    }
}

fn read_sanitize(address: String, given: &ArgMatches) -> SanitizeArgs {
    SanitizeArgs {
        address,
        action: one::<Action>(given, "sanact").expect("the action is required").0,
        ause: given.get_flag("ause"),
        owpass: one(given, "owpass"),
        oipbp: given.get_flag("oipbp"),
        ovrpat: one(given, "ovrpat"),
        no_dealloc: given.get_flag("no-dealloc"),
        serial: one(given, "serial"),
        timeout_ms: one(given, "timeout").expect("it has a default"),
        style: read_style(given),
    }
}
