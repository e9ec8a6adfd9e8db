//! Reads fio job files: sections, comments, includes, environment.
//!
//! [`parse_file`] and [`parse_str`] return a [`JobFile`]; [`Parser`] adds overrides from the
//! command line. Each line becomes one call of [`JobBuilder::set`]. What is wrong is a
//! [`JobFileError`] that prints as one line and begins with the file and the line it speaks of.
#![forbid(unsafe_code)]

use core::fmt;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    job::Job,
    option::{JobBuilder, Note, OptionError, Place},
};

/// The jobs of a file, in order, and what there is to say about them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JobFile {
    /// The jobs; never two of one section, `numjobs` is left to the runner.
    pub jobs: Vec<Job>,
    /// The options of `[global]` as written, for "global options" in JSON.
    pub global: Vec<(String, String)>,
    /// What is worth telling and stops nothing.
    pub notes: Vec<Note>,
}

/// Why a job file cannot be used.
#[derive(Debug)]
pub struct JobFileError {
    /// Where; line 0 stands for the file as a whole.
    pub place: Place,
    /// What.
    pub problem: Box<Problem>,
}

/// What is wrong at one place of a job file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// An option is wrong.
    #[error("{0}")]
    Option(#[from] OptionError),
    /// The options of a job contradict each other.
    #[error("job {name:?}: {reason}")]
    Job {
        /// The name of the job.
        name: String,
        /// What contradicts what.
        reason: OptionError,
    },
    /// A line begins with `[` and has no `]`, or names nothing.
    #[error("section without a name in brackets")]
    Section,
    /// An option stands before the first section.
    #[error("option {0:?} stands before the first section")]
    NoSection(String),
    /// The file has no job.
    #[error("no job: a file needs a section other than [global]")]
    NoJob,
    /// `${NAME}` names a variable that is not set.
    #[error("environment variable {0:?} is not set")]
    Variable(String),
    /// `${` without `}`.
    #[error("\"${{\" without \"}}\"")]
    OpenBrace,
    /// Files include each other too deeply.
    #[error("includes are nested more than {INCLUDE_DEPTH_MAX} deep")]
    IncludeDepth,
    /// `include` without a file.
    #[error("include needs the name of a file")]
    IncludeNothing,
}

impl fmt::Display for JobFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place.line {
            0 => write!(f, "{}: {}", self.place.file.display(), self.problem),
            _ => write!(f, "{}: {}", self.place, self.problem),
        }
    }
}

impl core::error::Error for JobFileError {}

/// How deep `include` may nest; a cycle ends here.
const INCLUDE_DEPTH_MAX: usize = 16;

/// Reads one job file.
pub fn parse_file(path: &Path) -> Result<JobFile, JobFileError> {
    Parser::default().parse_file(path)
}

/// Reads the text of a job file that messages call `name`.
pub fn parse_str(name: &str, text: &str) -> Result<JobFile, JobFileError> {
    Parser::default().parse_str(name, text)
}

/// Reads several job files as if their jobs stood in one; `[global]` holds within its own file.
pub fn parse_files<P: AsRef<Path>>(paths: &[P]) -> Result<JobFile, JobFileError> {
    Parser::default().parse_files(paths)
}

type Environment = fn(&str) -> Option<String>;

/// A reader of job files, with options that prevail over those of the file.
#[derive(Clone, Debug)]
pub struct Parser {
    overrides: Vec<(String, String)>,
    environment: Environment,
}

impl Default for Parser {
    fn default() -> Self {
        Self { overrides: Vec::new(), environment: |name| std::env::var(name).ok() }
    }
}

impl Parser {
    /// Lets `key` have `value` in every job, whatever the file says.
    #[must_use]
    pub fn with_override(mut self, key: &str, value: &str) -> Self {
        self.overrides.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Reads one job file.
    pub fn parse_file(&self, path: &Path) -> Result<JobFile, JobFileError> {
        let text = read(path)?;
        self.parse(path, &text)
    }

    /// Reads the text of a job file that messages call `name`.
    pub fn parse_str(&self, name: &str, text: &str) -> Result<JobFile, JobFileError> {
        self.parse(Path::new(name), text)
    }

    /// Reads several job files as if their jobs stood in one; `[global]` holds within its own file.
    pub fn parse_files<P: AsRef<Path>>(&self, paths: &[P]) -> Result<JobFile, JobFileError> {
        let mut all = JobFile::default();
        for path in paths {
            let file = self.parse_file(path.as_ref())?;
            all.jobs.extend(file.jobs);
            all.global.extend(file.global);
            all.notes.extend(file.notes);
        }
        Ok(all)
    }

    fn parse(&self, file: &Path, text: &str) -> Result<JobFile, JobFileError> {
        let mut reading = Reading::new(self);
        reading.text(file, text, 0)?;
        reading.end_section()?;
        if reading.found.jobs.is_empty() {
            return Err(at_place(&place(file, 0), Problem::NoJob));
        }
        reading.found.global = reading.global.written().to_vec();
        Ok(reading.found)
    }
}

fn read(path: &Path) -> Result<String, JobFileError> {
    fs::read_to_string(path).map_err(|error| at_place(&place(path, 0), error.into()))
}

fn place(file: &Path, line: usize) -> Place {
    Place { file: file.to_owned(), line }
}

/// The section that options go to.
enum Section {
    None,
    Global,
    Job { builder: Box<JobBuilder>, place: Place },
}

/// The state while files are read.
struct Reading<'a> {
    parser: &'a Parser,
    global: JobBuilder,
    section: Section,
    found: JobFile,
}

impl<'a> Reading<'a> {
    fn new(parser: &'a Parser) -> Self {
        let (global, found) = (JobBuilder::default(), JobFile::default());
        Self { parser, global, section: Section::None, found }
    }

    fn text(&mut self, file: &Path, text: &str, depth: usize) -> Result<(), JobFileError> {
        for (index, line) in text.lines().enumerate() {
            self.line(&place(file, index + 1), without_comment(line), depth)?;
        }
        Ok(())
    }

    fn line(&mut self, at: &Place, line: &str, depth: usize) -> Result<(), JobFileError> {
        if line.is_empty() {
            return Ok(());
        }
        if line.starts_with('[') {
            self.end_section()?;
            return self.begin_section(at, line);
        }
        if let Some(file) = included(line) {
            return self.include(at, file, depth);
        }
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        let value = self.expand(value.trim()).map_err(|problem| at_place(at, problem))?;
        self.set(at, key.trim_end(), &value)
    }

    fn begin_section(&mut self, at: &Place, line: &str) -> Result<(), JobFileError> {
        let name = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).map(str::trim);
        self.section = match name {
            None | Some("") => return Err(at_place(at, Problem::Section)),
            Some("global") => Section::Global,
            Some(name) => {
                let builder = Box::new(self.global.section(name));
                Section::Job { builder, place: at.clone() }
            }
        };
        Ok(())
    }

    fn end_section(&mut self) -> Result<(), JobFileError> {
        let Section::Job { mut builder, place } =
            core::mem::replace(&mut self.section, Section::None)
        else {
            return Ok(());
        };
        for (key, value) in &self.parser.overrides {
            builder.set(key, value).map_err(|error| at_place(&place, error.into()))?;
        }
        let job = builder.build().map_err(|reason| {
            let name = builder.name().to_owned();
            at_place(&place, Problem::Job { name, reason })
        })?;
        self.found.jobs.push(job);
        Ok(())
    }

    fn set(&mut self, at: &Place, key: &str, value: &str) -> Result<(), JobFileError> {
        let builder = match &mut self.section {
            Section::None => return Err(at_place(at, Problem::NoSection(key.to_owned()))),
            Section::Global => &mut self.global,
            Section::Job { builder, .. } => builder,
        };
        builder.set(key, value).map_err(|error| at_place(at, error.into()))?;
        let notes = builder.take_notes().into_iter();
        self.found.notes.extend(notes.map(|note| Note { place: Some(at.clone()), ..note }));
        Ok(())
    }

    /// Reads a file in the place of the line; its name is relative to the file that names it.
    fn include(&mut self, at: &Place, file: &str, depth: usize) -> Result<(), JobFileError> {
        if file.is_empty() {
            return Err(at_place(at, Problem::IncludeNothing));
        }
        if depth == INCLUDE_DEPTH_MAX {
            return Err(at_place(at, Problem::IncludeDepth));
        }
        let file = self.expand(file).map_err(|problem| at_place(at, problem))?;
        let path = at.file.parent().map_or_else(|| PathBuf::from(&file), |dir| dir.join(&file));
        let text = read(&path)?;
        self.text(&path, &text, depth + 1)
    }

    /// Puts the values of environment variables in the place of `${NAME}`.
    ///
    /// fio takes a variable that is not set as empty; the value would then be refused for a reason
    /// that hides the cause.
    fn expand(&self, text: &str) -> Result<String, Problem> {
        let mut expanded = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let (name, behind) = after.split_once('}').ok_or(Problem::OpenBrace)?;
            let value = (self.parser.environment)(name);
            expanded.push_str(before);
            expanded.push_str(&value.ok_or_else(|| Problem::Variable(name.to_owned()))?);
            rest = behind;
        }
        expanded.push_str(rest);
        Ok(expanded)
    }
}

fn at_place(at: &Place, problem: Problem) -> JobFileError {
    JobFileError { place: at.clone(), problem: Box::new(problem) }
}

fn without_comment(line: &str) -> &str {
    let end = line.find([';', '#']).unwrap_or(line.len());
    line[..end].trim()
}

/// Returns the file that the line includes.
fn included(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("include")?;
    (rest.is_empty() || rest.starts_with(char::is_whitespace)).then(|| rest.trim())
}

#[cfg(test)]
mod tests;
