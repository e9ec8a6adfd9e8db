//! The one table of options, behind job files and command-line flags alike.
//!
//! An [`OptionSpec`] ties a key to its reader, its help and its metavariable; [`options`] is the
//! table and [`JobBuilder::set`] the only way in. Values are read by `value.rs` and end in a
//! [`Job`]. Every key of the table is fio's and means what fio means; any other is an
//! [`OptionError`] with the nearest name.
#![forbid(unsafe_code)]

use core::fmt;
use std::path::PathBuf;

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

const fn option(
    name: &'static str,
    aliases: &'static [&'static str],
    metavar: &'static str,
    help: &'static str,
    set: Setter,
) -> OptionSpec {
    OptionSpec { name, aliases, metavar, help, action: Action::Set(set) }
}

const fn flag(name: &'static str, help: &'static str, set: Setter) -> OptionSpec {
    option(name, &[], "", help, set)
}

/// An option of the kernel path. It takes any value; an empty metavariable lets it stand without
/// one.
const fn accept(name: &'static str, why: &'static str) -> OptionSpec {
    OptionSpec { name, aliases: &[], metavar: "", help: why, action: Action::Accept(why) }
}

/// Returns the table of options, in the order in which a help text lists them.
pub fn options() -> &'static [OptionSpec] {
    OPTIONS
}

/// Returns the option that answers to `key`.
pub fn find(key: &str) -> Option<&'static OptionSpec> {
    OPTIONS.iter().find(|spec| spec.answers_to(key))
}

static OPTIONS: &[OptionSpec] = &[
    // What and where.
    option(
        "name",
        &[],
        "NAME",
        "name of the job in reports (default: that of its section)",
        |job, v| {
            job.name = v.to_owned();
            Ok(())
        },
    ),
    option(
        "filename",
        &[],
        "ADDRESS",
        "device: a udirect address or an SPDK transport id",
        |job, v| {
            job.filename = v.to_owned();
            Ok(())
        },
    ),
    option(
        "rw",
        &["readwrite"],
        "WORKLOAD",
        "read, write, rw, trim, or randread, randwrite, randrw, randtrim (default read)",
        |job, v| value::workload(v).map(|rw| job.rw = rw),
    ),
    option(
        "bs",
        &["blocksize"],
        "BYTES[,BYTES][,BYTES]",
        "block size in bytes for reads, writes, trims (default 4k)",
        |job, v| value::per_direction(v, &mut job.bs, value::block_size),
    ),
    option(
        "bssplit",
        &[],
        "BYTES/PERCENT:...[,...]",
        "mix of block sizes, as in 4k/60:64k/40; replaces bs (default none)",
        |job, v| value::per_direction(v, &mut job.bs, value::block_split),
    ),
    option(
        "bsrange",
        &["blocksize_range"],
        "MIN-MAX",
        "not supported: use bssplit, which names the sizes",
        |_, _| Err(ValueError::NotSupported("a range of block sizes")),
    ),
    option(
        "size",
        &[],
        "BYTES|PERCENT%",
        "region per worker in bytes or percent (default: the rest of the device)",
        |job, v| value::size(v).map(|size| job.size = Some(size).filter(|size| !size.is_zero())),
    ),
    option(
        "offset",
        &[],
        "BYTES|PERCENT%",
        "start of the region in bytes or percent (default 0)",
        |job, v| value::size(v).map(|offset| job.offset = offset),
    ),
    option(
        "offset_increment",
        &[],
        "BYTES|PERCENT%",
        "distance in bytes or percent from the region of one worker to the next (default 0)",
        |job, v| value::size(v).map(|step| job.offset_increment = step),
    ),
    option(
        "io_size",
        &["io_limit"],
        "BYTES|PERCENT%",
        "bytes to transfer per worker (default: size)",
        |job, v| value::size(v).map(|size| job.io_size = Some(size).filter(|size| !size.is_zero())),
    ),
    option(
        "number_ios",
        &[],
        "COUNT",
        "I/Os after which a worker stops (default: no limit)",
        |job, v| {
            value::integer(v, 0, u64::MAX)
                .map(|count| job.number_ios = Some(count).filter(|n| *n > 0))
        },
    ),
    // How much at once.
    option("iodepth", &[], "COUNT", "I/Os in flight per worker (default 1)", |job, v| {
        value::count(v, 1).map(|depth| job.iodepth = depth)
    }),
    option(
        "iodepth_batch",
        &["iodepth_batch_submit"],
        "COUNT",
        "I/Os submitted per doorbell; 0 is iodepth (default 1)",
        |job, v| value::count(v, 0).map(|batch| job.iodepth_batch = batch),
    ),
    option(
        "iodepth_batch_complete_max",
        &[],
        "COUNT",
        "completions taken per poll; 0 is 1 (default 0)",
        |job, v| value::count(v, 0).map(|batch| job.iodepth_batch_complete_max = batch),
    ),
    option(
        "numjobs",
        &[],
        "COUNT",
        "workers that do this job side by side (default 1)",
        |job, v| value::count(v, 1).map(|count| job.numjobs = count),
    ),
    option(
        "cpus_allowed",
        &[],
        "LIST",
        "CPUs to bind workers to, as in 0,5,8-15 (default: any)",
        |job, v| value::cpus(v).map(|cpus| job.cpus_allowed = Some(cpus)),
    ),
    // How long.
    option(
        "runtime",
        &["timeout"],
        "TIME",
        "time limit in seconds (default: until all data is moved)",
        |job, v| {
            value::seconds(v).map(|time| job.runtime = Some(time).filter(|time| !time.is_zero()))
        },
    ),
    flag("time_based", "start over until runtime has passed (default 0)", |job, v| {
        value::boolean(v).map(|on| job.time_based = on)
    }),
    option("ramp_time", &[], "TIME", "seconds of load before measuring (default 0)", |job, v| {
        value::seconds(v).map(|time| job.ramp_time = time)
    }),
    option("startdelay", &[], "TIME", "seconds before the job starts (default 0)", |job, v| {
        value::seconds(v).map(|time| job.startdelay = time)
    }),
    option("loops", &[], "COUNT", "times the whole job is done (default 1)", |job, v| {
        value::count(v, 1).map(|loops| job.loops = loops)
    }),
    // In which order.
    option("rwmixread", &[], "PERCENT", "reads in percent of a mix (default 50)", |job, v| {
        value::percent(v).map(|reads| job.rwmixread = reads)
    }),
    option("rwmixwrite", &[], "PERCENT", "writes in percent of a mix (default 50)", |job, v| {
        value::percent(v).map(|writes| job.rwmixread = 100 - writes)
    }),
    option(
        "random_distribution",
        &[],
        "NAME[:NUMBER]",
        "random, zipf:THETA or pareto:H (default random)",
        |job, v| value::distribution(v).map(|distribution| job.random_distribution = distribution),
    ),
    flag(
        "norandommap",
        "draw random blocks with repetition, not once per pass (default 0)",
        |job, v| value::boolean(v).map(|on| job.norandommap = on),
    ),
    option(
        "randseed",
        &[],
        "SEED",
        "seed of everything random (default: a fixed one)",
        |job, v| value::integer(v, 0, u64::MAX).map(|seed| job.randseed = seed),
    ),
    flag("randrepeat", "same random sequence in every run (default 1)", |job, v| {
        value::boolean(v).map(|on| job.randrepeat = on)
    }),
    // How fast.
    option(
        "rate",
        &[],
        "BYTES[,BYTES][,BYTES]",
        "limit in bytes per second per worker (default none)",
        |job, v| value::per_direction(v, &mut job.rate, |v| value::bytes(v).map(limit)),
    ),
    option(
        "rate_iops",
        &[],
        "COUNT[,COUNT][,COUNT]",
        "limit in I/Os per second per worker (default none)",
        |job, v| value::per_direction(v, &mut job.rate_iops, |v| value::bytes(v).map(limit)),
    ),
    option("thinktime", &[], "TIME", "pause between I/Os in microseconds (default 0)", |job, v| {
        value::microseconds(v).map(|time| job.thinktime = time)
    }),
    option("thinktime_blocks", &[], "COUNT", "I/Os between two pauses (default 1)", |job, v| {
        value::count(v, 1).map(|blocks| job.thinktime_blocks = blocks)
    }),
    // Whether it is right and durable.
    option(
        "verify",
        &[],
        "METHOD",
        "check written data: crc32c, or 0 for not at all (default 0)",
        |job, v| value::verify(v).map(|verify| job.verify = verify),
    ),
    flag("do_verify", "read back what a verified job wrote (default 1)", |job, v| {
        value::boolean(v).map(|on| job.do_verify = on)
    }),
    flag("verify_fatal", "end the job at the first bad block (default 0)", |job, v| {
        value::boolean(v).map(|on| job.verify_fatal = on)
    }),
    option(
        "fsync",
        &["fdatasync"],
        "COUNT",
        "flush after every so many writes; 0 is never (default 0)",
        |job, v| value::count(v, 0).map(|writes| job.fsync = writes),
    ),
    flag("end_fsync", "flush at the end of the job (default 0)", |job, v| {
        value::boolean(v).map(|on| job.end_fsync = on)
    }),
    // How it is reported.
    option(
        "percentile_list",
        &[],
        "PERCENT:...",
        "latency percentiles to report (default 1:5:10:20:...:99:99.5:99.9:99.95:99.99)",
        |job, v| value::percentiles(v).map(|list| job.percentile_list = list),
    ),
    OptionSpec {
        aliases: &["wait_for_previous"],
        ..flag(
            "stonewall",
            "wait for all earlier jobs; begins a reporting group (default 0)",
            |job, v| value::boolean(v).map(|on| job.stonewall = on),
        )
    },
    flag("group_reporting", "report the workers of a group as one (default 0)", |job, v| {
        value::boolean(v).map(|on| job.group_reporting = on)
    }),
    flag("new_group", "begin a reporting group (default 0)", |job, v| {
        value::boolean(v).map(|on| job.new_group = on)
    }),
    // What only the kernel path knows.
    accept("ioengine", "the device's address chooses the path"),
    accept("direct", "there is no page cache on this path"),
    accept("buffered", "there is no page cache on this path"),
    accept("invalidate", "there is no page cache on this path"),
    accept("pre_read", "there is no page cache on this path"),
    accept("fadvise_hint", "there is no page cache on this path"),
    accept("thread", "workers are always threads"),
    accept("hipri", "completions are always polled"),
    accept("sqthread_poll", "completions are always polled"),
    accept("sqthread_poll_cpu", "completions are always polled"),
    accept("iodepth_batch_complete", "completions are polled and never waited for"),
    accept("iodepth_batch_complete_min", "completions are polled and never waited for"),
    accept("fixedbufs", "buffers are always registered for DMA"),
    accept("registerfiles", "there are no file descriptors on this path"),
    accept("nonvectored", "there are no vectors of one on this path"),
    accept("mem", "buffers always come from the DMA pool"),
    accept("iomem", "buffers always come from the DMA pool"),
    accept("hugepage-size", "the DMA pool chooses its pages"),
    accept("ioscheduler", "there is no I/O scheduler on this path"),
    accept("fallocate", "a device has no files to lay out"),
    accept("create_on_open", "a device has no files to lay out"),
    accept("create_serialize", "a device has no files to lay out"),
    accept("create_fsync", "a device has no files to lay out"),
    accept("overwrite", "a device has no files to lay out"),
    accept("unlink", "a device has no files to remove"),
    accept("clocksource", "the clock is always CLOCK_MONOTONIC"),
    accept("random_generator", "the generator is always the same one"),
    accept("refill_buffers", "the contents of buffers do not concern an NVMe queue"),
    accept("scramble_buffers", "the contents of buffers do not concern an NVMe queue"),
    accept("zero_buffers", "the contents of buffers do not concern an NVMe queue"),
    accept("description", "it is a comment"),
    accept("disk_util", "the kernel's disk statistics do not see this path"),
    accept("clat_percentiles", "completion latency percentiles are always reported"),
];

/// fio's options that ask for something this program does not do. Ignoring them would falsify a
/// result.
static NOT_SUPPORTED: &[&str] = &[
    "allrandrepeat",
    "atomic",
    "ba",
    "blockalign",
    "bs_is_seq_rand",
    "bs_unaligned",
    "buffer_pattern",
    "buffer_compress_percentage",
    "continue_on_error",
    "cpumask",
    "cpus_allowed_policy",
    "dedupe_percentage",
    "directory",
    "exec_prerun",
    "exec_postrun",
    "experimental_verify",
    "file_service_type",
    "filesize",
    "fill_device",
    "flow",
    "gtod_reduce",
    "ignore_error",
    "io_submit_mode",
    "iodepth_low",
    "kb_base",
    "lat_percentiles",
    "latency_percentile",
    "latency_run",
    "latency_target",
    "latency_window",
    "log_avg_msec",
    "max_latency",
    "nrfiles",
    "numa_cpu_nodes",
    "numa_mem_policy",
    "offset_align",
    "opendir",
    "openfiles",
    "percentage_random",
    "rate_cycle",
    "rate_iops_min",
    "rate_min",
    "rate_process",
    "read_iolog",
    "replay_redirect",
    "rw_sequencer",
    "serialize_overlap",
    "slat_percentiles",
    "steadystate",
    "steadystate_duration",
    "steadystate_ramp_time",
    "sync",
    "sync_file_range",
    "thinktime_iotime",
    "thinktime_spin",
    "trim_percentage",
    "unified_rw_reporting",
    "verify_async",
    "verify_backlog",
    "verify_dump",
    "verify_interval",
    "verify_offset",
    "verify_only",
    "verify_pattern",
    "wait_for",
    "write_barrier",
    "write_bw_log",
    "write_hist_log",
    "write_iolog",
    "write_iops_log",
    "write_lat_log",
    "zonemode",
    "zonerange",
    "zonesize",
    "zoneskip",
];

/// fio takes a rate of 0 as none.
fn limit(rate: u64) -> Option<u64> {
    Some(rate).filter(|rate| *rate > 0)
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
    if NOT_SUPPORTED.contains(&key) {
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
