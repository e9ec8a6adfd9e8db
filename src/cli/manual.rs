//! What is generated from the definition of the command line: completions and the manual page.
//!
//! One page holds all verbs, so that `udirect man | man -l -` answers everything; clap's own layout
//! is one page for each. Verbs of a verb, as those of `store`, have sections of their own.
#![forbid(unsafe_code)]

use std::io::{self, Write};

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use super::args::command;
use super::failure::{EXIT_CODES, Failure};

/// Returns the completions for `shell`.
pub(super) fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "udirect", &mut script);
    script
}

/// Returns the manual page as roff.
pub(super) fn page() -> Result<Vec<u8>, Failure> {
    let mut page = Vec::new();
    // A vector takes everything, so this never fails.
    write_page(&mut page).map_err(Failure::device)?;
    Ok(page)
}

fn write_page(page: &mut Vec<u8>) -> io::Result<()> {
    let mut definition = command().disable_help_subcommand(true);
    definition.build();
    let man = Man::new(definition.clone());
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    for verb in definition.get_subcommands() {
        write_verb(verb, page)?;
    }
    write_exit_codes(page)
}

/// Writes the page of a verb as a section of the whole: its sections become subsections.
fn write_verb(verb: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    if verb.has_subcommands() {
        return verb.get_subcommands().try_for_each(|inner| write_verb(inner, page));
    }
    let man = Man::new(verb.clone());
    let mut own = Vec::new();
    man.render_options_section(&mut own)?;
    let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
    let usage = verb.clone().render_usage().to_string().replace("Usage: ", "");
    let name = verb.get_display_name().unwrap_or_else(|| verb.get_name());
    let name = name.trim_start_matches("udirect-").replace('-', " ").to_uppercase();
    writeln!(page, ".SH \"{name}\"\n{about}:\n.PP\n.B {usage}")?;
    write!(page, "{}", String::from_utf8_lossy(&own).replace(".SH ", ".SS "))
}

fn write_exit_codes(page: &mut Vec<u8>) -> io::Result<()> {
    writeln!(page, ".SH \"EXIT STATUS\"")?;
    for line in EXIT_CODES.lines().skip(1) {
        let (code, meaning) = line.trim().split_once("  ").unwrap_or((line, ""));
        writeln!(page, ".TP\n{code}\n{meaning}")?;
    }
    Ok(())
}
