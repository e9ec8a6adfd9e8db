//! Options by name, behind job files and command-line flags alike.
//!
//! An [`OptionSpec`] ties a key to its reader, its help and its metavariable; [`options`] is the
//! table and [`JobBuilder::set`] the only way in. Values are read by `value.rs` and end in a
//! [`Job`]. Every key of the table is fio's and means what fio means; any other is an
//! [`OptionError`] with the nearest name.
#![forbid(unsafe_code)]

mod table;

use core::fmt;
use std::path::PathBuf;

use self::table::{NOT_SUPPORTED, OPTIONS};
use super::{
    job::Job,
    value::{self, ValueError},
};

/// What is wrong with an option, or with several together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// The table has no such key.
    #[error("unknown option {key:?}{}", did_you_mean(*.nearest))]
    Unknown {
        /// The key as written.
        key: String,
        /// The known key that differs least, if one is near.
        nearest: Option<&'static str>,
    },
    /// fio has the option, this program does not.
    #[error("fio's option {key:?} is not supported")]
    NotSupported {
        /// The key as written.
        key: String,
    },
    /// The value does not fit the key.
    #[error("{key}={value}: {reason}")]
    Value {
        /// The key as written.
        key: String,
        /// The value as written.
        value: String,
        /// What would be right.
        reason: ValueError,
    },
    /// Options contradict each other, or the device.
    #[error("{0}")]
    Conflict(String),
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(": did you mean {name:?}?"))
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// Something about an option that is worth telling and stops nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Where the option was written; `None` for the command line.
    pub place: Option<Place>,
    /// What there is to know.
    pub text: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{place}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

type Setter = fn(&mut Job, &str) -> Result<(), ValueError>;

/// What an option does with its value.
#[derive(Clone, Copy, Debug)]
enum Action {
    /// Sets a field of the job.
    Set(Setter),
    /// Nothing: the option concerns a path that is not taken here, and this says why.
    Accept(&'static str),
}

/// One option: a key of a job file, and a flag of the command line.
#[derive(Clone, Copy, Debug)]
pub struct OptionSpec {
    /// fio's name.
    pub name: &'static str,
    /// fio's other names.
    pub aliases: &'static [&'static str],
    /// The value in a help text; empty for a boolean, which needs none.
    pub metavar: &'static str,
    /// One line: what it does, the unit, the default.
    pub help: &'static str,
    action: Action,
}

impl OptionSpec {
    /// Says whether the option may stand without a value.
    pub const fn is_flag(&self) -> bool {
        self.metavar.is_empty()
    }

    /// Says whether the option is only accepted for the sake of fio's job files.
    pub const fn is_ignored(&self) -> bool {
        matches!(self.action, Action::Accept(_))
    }

    /// Says whether `key` is a name of the option.
    pub fn answers_to(&self, key: &str) -> bool {
        self.name == key || self.aliases.contains(&key)
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        core::iter::once(self.name).chain(self.aliases.iter().copied())
    }
}

/// Returns the table of options, in the order in which a help text lists them.
pub fn options() -> &'static [OptionSpec] {
    OPTIONS
}

/// Returns the option that answers to `key`.
pub fn find(key: &str) -> Option<&'static OptionSpec> {
    OPTIONS.iter().find(|spec| spec.answers_to(key))
}

/// A job in the making: what has been set so far, and what there is to say about it.
#[derive(Clone, Debug, Default)]
pub struct JobBuilder {
    job: Job,
    notes: Vec<Note>,
}

impl JobBuilder {
    /// Starts from the defaults.
    pub fn new(name: &str) -> Self {
        Self::default().section(name)
    }

    /// Starts a job from what is set here, as a section starts from `[global]`.
    ///
    /// What this one has written and noted stays with it.
    pub fn section(&self, name: &str) -> Self {
        let job = Job { name: name.to_owned(), written: Vec::new(), ..self.job.clone() };
        Self { job, notes: Vec::new() }
    }

    /// Sets one option; an empty value stands for a key without one.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), OptionError> {
        let spec = find(key).ok_or_else(|| unknown(key))?;
        let value = value.trim();
        match spec.action {
            Action::Set(set) => self.apply(set, key, value)?,
            Action::Accept(why) => self.note(format!("{key} is ignored: {why}")),
        }
        self.write_down(key, value);
        Ok(())
    }

    /// Returns the finished job, or what is wrong with its options together.
    pub fn build(&self) -> Result<Job, OptionError> {
        self.job.validate()?;
        Ok(self.job.clone())
    }

    /// Returns the name of the job.
    pub fn name(&self) -> &str {
        &self.job.name
    }

    /// Returns the options set, as written; of a key set twice the last value.
    pub fn written(&self) -> &[(String, String)] {
        &self.job.written
    }

    /// Takes the notes made since the last call.
    pub fn take_notes(&mut self) -> Vec<Note> {
        core::mem::take(&mut self.notes)
    }

    fn apply(&mut self, set: Setter, key: &str, value: &str) -> Result<(), OptionError> {
        set(&mut self.job, value).map_err(|reason| OptionError::Value {
            key: key.to_owned(),
            value: value.to_owned(),
            reason,
        })?;
        if TAKES_SIZES.contains(&key) && value::has_decimal_suffix(value) {
            self.note(format!("{key}={value}: fio reads KiB as 1000 bytes, write k for 1024"));
        }
        Ok(())
    }

    fn note(&mut self, text: String) {
        self.notes.push(Note { place: None, text });
    }

    fn write_down(&mut self, key: &str, value: &str) {
        let written = &mut self.job.written;
        match written.iter_mut().find(|(known, _)| known == key) {
            Some((_, earlier)) => value.clone_into(earlier),
            None => written.push((key.to_owned(), value.to_owned())),
        }
    }
}

/// The keys whose values carry units of data, where a power of ten may surprise.
const TAKES_SIZES: [&str; 9] = [
    "bs",
    "blocksize",
    "bssplit",
    "size",
    "offset",
    "offset_increment",
    "io_size",
    "io_limit",
    "rate",
];

fn unknown(key: &str) -> OptionError {
    if NOT_SUPPORTED.split_whitespace().any(|name| name == key) {
        return OptionError::NotSupported { key: key.to_owned() };
    }
    OptionError::Unknown { key: key.to_owned(), nearest: nearest(key) }
}

/// Returns the known key with the smallest edit distance, if at most a third of the letters differ.
fn nearest(key: &str) -> Option<&'static str> {
    let names = OPTIONS.iter().flat_map(OptionSpec::names);
    let (distance, name) =
        names.map(|name| (edit_distance(key, name), name)).min_by_key(|d| d.0)?;
    (distance <= key.chars().count().div_ceil(3)).then_some(name)
}

/// Returns how many insertions, deletions, replacements and swaps of neighbours turn `a` into `b`.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = cheapest_edit(&rows, &a, &b, i, j);
        }
    }
    rows[a.len()][b.len()]
}

fn cheapest_edit(rows: &[Vec<usize>], a: &[char], b: &[char], i: usize, j: usize) -> usize {
    if i == 0 || j == 0 {
        return i + j;
    }
    let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
    let cheapest = replace.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
    if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
        return cheapest.min(rows[i - 2][j - 2] + 1);
    }
    cheapest
}

#[cfg(test)]
mod tests;
