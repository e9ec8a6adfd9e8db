//! What was typed wrong, in one line.
//!
//! [`explain`] reads the context of a [`clap::Error`] and writes it as the rest of the program
//! writes: lower case, no full stop, the nearest name last. What it has no words for it takes from
//! clap, without line breaks.
#![forbid(unsafe_code)]

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::bench::option::{JobBuilder, OptionError};

/// Returns the error as one line.
pub(super) fn explain(error: &clap::Error) -> String {
    match error.kind() {
        ErrorKind::UnknownArgument => unknown_flag(error),
        ErrorKind::InvalidSubcommand => unknown_verb(error),
        ErrorKind::MissingRequiredArgument => missing(error),
        ErrorKind::MissingSubcommand => missing_verb(error),
        _ => first_paragraph(&error.render().to_string()),
    }
}

fn unknown_flag(error: &clap::Error) -> String {
    let flag = text(error, ContextKind::InvalidArg);
    if let Some(refusal) = not_supported(&flag) {
        return refusal;
    }
    let nearest = text(error, ContextKind::SuggestedArg);
    if flag.starts_with('-') {
        return format!("unknown flag {flag:?}{}", did_you_mean(&nearest));
    }
    format!("unexpected argument {flag:?}")
}

/// Says so if fio has the option and this program does not.
fn not_supported(flag: &str) -> Option<String> {
    let key = flag.strip_prefix("--")?;
    match JobBuilder::default().set(key, "") {
        Err(error @ OptionError::NotSupported { .. }) => Some(error.to_string()),
        _ => None,
    }
}

fn unknown_verb(error: &clap::Error) -> String {
    let verb = text(error, ContextKind::InvalidSubcommand);
    let nearest = text(error, ContextKind::SuggestedSubcommand);
    format!("unknown verb {verb:?}{}", did_you_mean(&nearest))
}

fn missing_verb(error: &clap::Error) -> String {
    // The context has the verbs so far.
    let so_far = text(error, ContextKind::InvalidSubcommand);
    let next = match so_far.rsplit(' ').next() {
        Some("store") => "ls",
        Some("setup") => "status",
        _ => "bench",
    };
    format!("a verb is needed, as in `{so_far} {next}`: see `{so_far} --help`")
}

fn did_you_mean(nearest: &str) -> String {
    if nearest.is_empty() { String::new() } else { format!(": did you mean {nearest:?}?") }
}

fn missing(error: &clap::Error) -> String {
    format!("missing {}", text(error, ContextKind::InvalidArg))
}

/// Returns that part of the error's context; of several suggestions the nearest.
fn text(error: &clap::Error, kind: ContextKind) -> String {
    match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) if kind == ContextKind::InvalidArg => texts.join(" "),
        Some(ContextValue::Strings(texts)) => texts.last().cloned().unwrap_or_default(),
        _ => String::new(),
    }
}

/// Returns what clap says before it explains the usage.
fn first_paragraph(rendered: &str) -> String {
    let paragraph = rendered.split("\n\n").next().unwrap_or(rendered);
    let words = paragraph.strip_prefix("error: ").unwrap_or(paragraph).split_whitespace();
    words.collect::<Vec<_>>().join(" ")
}
