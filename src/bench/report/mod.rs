//! The faces of a result: a table for people, fio's JSON and CSV for programs.
//!
//! Each module has one function that writes a [`RunResult`] to any
//! [`Write`]; [`Format`] names them for the command line. Nothing is measured or decided here:
//! what a face shows, the record holds.
#![forbid(unsafe_code)]

pub mod csv;
pub mod fio_json;
pub mod human;

use std::io::{self, Write};

use super::result::RunResult;

/// A way to write a result: fio's `output-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// A table for people.
    #[default]
    Normal,
    /// fio's JSON.
    Json,
    /// fio's JSON with every latency bucket.
    JsonPlus,
    /// One row for each job and direction.
    Csv,
}

impl Format {
    /// Every format with its name on the command line.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("normal", Self::Normal),
        ("json", Self::Json),
        ("json+", Self::JsonPlus),
        ("csv", Self::Csv),
    ];

    /// Returns the format of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, format)| *format)
    }

    /// Writes `result` in this format.
    pub fn write(self, result: &RunResult, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Normal => human::write(result, out),
            Self::Json => fio_json::write(result, fio_json::Bins::Omit, out),
            Self::JsonPlus => fio_json::write(result, fio_json::Bins::Include, out),
            Self::Csv => csv::write(result, out),
        }
    }
}

#[cfg(test)]
mod tests;
