//! fio's JSON and JSON+, key for key, so that whatever reads fio's output reads ours.
//!
//! [`document`] builds the tree that `fio --output-format=json` prints (version 3.33), [`write()`]
//! prints it. Floats carry six decimals as fio's do: a reader tells them from integers by the
//! point. What fio has no key for stands under `udirect`, beside the jobs and inside each.
#![forbid(unsafe_code)]

use std::io::{self, Write};

use serde_json::{Map, Number, Value, json};

use crate::bench::{
    job::Direction,
    result::{DirectionResult, JobResult, LatencySummary, RunResult, Spread},
};

/// The version of fio whose keys these are. Readers split it at the dash and compare.
const FIO_VERSION: &str = "fio-3.33";

/// Whether the buckets of `clat_ns` are written: the difference between JSON and JSON+.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bins {
    /// JSON.
    Omit,
    /// JSON+.
    Include,
}

/// Writes the document, indented by two as fio's is.
pub fn write(result: &RunResult, bins: Bins, out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, &document(result, bins))?;
    writeln!(out)
}

/// Builds the document.
pub fn document(result: &RunResult, bins: Bins) -> Value {
    let mut top = Map::new();
    top.insert("fio version".into(), FIO_VERSION.into());
    top.insert("timestamp".into(), (result.timestamp_ms / 1000).into());
    top.insert("timestamp_ms".into(), result.timestamp_ms.into());
    top.insert("time".into(), utc_time(result.timestamp_ms / 1000).into());
    if !result.global_options.is_empty() {
        top.insert("global options".into(), options(&result.global_options));
    }
    let jobs = result.jobs.iter().map(|job| job_object(job, result, bins)).collect();
    top.insert("jobs".into(), Value::Array(jobs));
    top.insert("disk_util".into(), json!([]));
    top.insert("udirect".into(), own_keys(result));
    Value::Object(top)
}

/// What the run knows beyond fio's keys.
fn own_keys(result: &RunResult) -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "environment": result.environment,
        "warnings": result.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn options(written: &[(String, String)]) -> Value {
    written.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect()
}

fn job_object(job: &JobResult, result: &RunResult, bins: Bins) -> Value {
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| object.insert(key.to_owned(), value);
    put("jobname", job.name.as_str().into());
    put("groupid", job.group_id.into());
    put("error", job.first_errno.into());
    put("eta", 0.into());
    put("elapsed", job.elapsed_ms.div_ceil(1000).into());
    put("job options", options(&job.options));
    for (direction, own) in job.directions.iter() {
        put(direction.name(), direction_object(own, share_of_group(job, direction, result), bins));
    }
    put("sync", json!({ "total_ios": job.sync.count, "lat_ns": latency(&job.sync, Some(bins)) }));
    put("job_runtime", job.runtime_ms.into());
    put("usr_cpu", float(job.usr_cpu_percent));
    put("sys_cpu", float(job.sys_cpu_percent));
    put("ctx", job.context_switches.into());
    put("majf", job.major_faults.into());
    put("minf", job.minor_faults.into());
    put("iodepth_level", shares(&DEPTH_LABELS, &job.depth.level));
    put("iodepth_submit", shares(&BATCH_LABELS, &job.depth.submit));
    put("iodepth_complete", shares(&BATCH_LABELS, &job.depth.complete));
    let classes = latency_classes(job);
    put("latency_ns", shares_of(&NANO_LABELS, &classes.nanos, job.ios()));
    put("latency_us", shares_of(&NANO_LABELS, &classes.micros, job.ios()));
    put("latency_ms", shares_of(&MILLI_LABELS, &classes.millis, job.ios()));
    put("latency_depth", job.iodepth.into());
    put("latency_target", 0.into());
    put("latency_percentile", float(100.0));
    put("latency_window", 0.into());
    put("udirect", own_job_keys(job));
    Value::Object(object)
}

/// What a job knows beyond fio's keys: the polled path, and latency corrected for coordinated
/// omission.
fn own_job_keys(job: &JobResult) -> Value {
    let mut own = json!({
        "workers": job.workers,
        "error_count": job.error_count,
        "first_error": job.first_error,
        "queue": job.queue,
    });
    for (direction, result) in job.directions.iter() {
        if let Some(corrected) = &result.corrected {
            own["corrected_lat_ns"][direction.name()] = latency(corrected, Some(Bins::Omit));
        }
    }
    own
}

fn direction_object(own: &DirectionResult, percent_of_group: f64, bins: Bins) -> Value {
    let Spread { min, max, mean, stddev, samples } = own.bw_kib;
    json!({
        "io_bytes": own.bytes,
        "io_kbytes": own.bytes >> 10,
        "bw_bytes": own.bytes_per_s as u64,
        "bw": (own.bytes_per_s / 1024.0) as u64,
        "iops": float(own.iops),
        "runtime": own.runtime_ms,
        "total_ios": own.ios,
        "short_ios": own.short,
        "drop_ios": 0,
        "slat_ns": latency(&own.slat, None),
        "clat_ns": latency(&own.clat, Some(bins)),
        "lat_ns": latency(&own.lat, None),
        "bw_min": min as u64,
        "bw_max": max as u64,
        "bw_agg": float(percent_of_group),
        "bw_mean": float(mean),
        "bw_dev": float(stddev),
        "bw_samples": samples,
        "iops_min": own.iops_samples.min as u64,
        "iops_max": own.iops_samples.max as u64,
        "iops_mean": float(own.iops_samples.mean),
        "iops_stddev": float(own.iops_samples.stddev),
        "iops_samples": own.iops_samples.samples,
    })
}

/// Returns the share in percent that the job's sampled bandwidth has in its group's, fio's
/// `bw_agg`.
fn share_of_group(job: &JobResult, direction: Direction, result: &RunResult) -> f64 {
    let group = result.jobs.iter().filter(|other| other.group_id == job.group_id);
    let mean = |job: &JobResult| job.directions.get(direction).bw_kib.mean;
    let whole: f64 = group.map(mean).sum();
    if whole > 0.0 { mean(job) * 100.0 / whole } else { 0.0 }
}

/// Builds a latency object; percentiles stand only where fio prints them, and only if there is a
/// latency.
fn latency(summary: &LatencySummary, percentiles: Option<Bins>) -> Value {
    let mut object = json!({
        "min": summary.min_ns,
        "max": summary.max_ns,
        "mean": float(summary.mean_ns),
        "stddev": float(summary.stddev_ns),
        "N": summary.count,
    });
    if percentiles.is_some() && summary.count > 0 {
        let keyed = summary.percentiles_ns.iter();
        object["percentile"] =
            keyed.map(|(percent, nanos)| (format!("{percent:.6}"), Value::from(*nanos))).collect();
    }
    if percentiles == Some(Bins::Include) && summary.count > 0 {
        let keyed = summary.bins_ns.iter();
        object["bins"] =
            keyed.map(|(nanos, count)| (nanos.to_string(), Value::from(*count))).collect();
    }
    object
}

const DEPTH_LABELS: [&str; 7] = ["1", "2", "4", "8", "16", "32", ">=64"];
const BATCH_LABELS: [&str; 7] = ["0", "4", "8", "16", "32", "64", ">=64"];
const NANO_LABELS: [&str; 10] = ["2", "4", "10", "20", "50", "100", "250", "500", "750", "1000"];
const MILLI_LABELS: [&str; 12] =
    ["2", "4", "10", "20", "50", "100", "250", "500", "750", "1000", "2000", ">=2000"];

/// Where each class of latency ends: below so many nanoseconds, microseconds or milliseconds.
const CLASS_ENDS: [u64; 10] = [2, 4, 10, 20, 50, 100, 250, 500, 750, 1000];

/// Completion latencies of all directions in fio's classes, each I/O in one of them.
#[derive(Default)]
struct LatencyClasses {
    nanos: [u64; 10],
    micros: [u64; 10],
    millis: [u64; 12],
}

impl LatencyClasses {
    fn count(&mut self, nanos: u64, ios: u64) {
        let class = |value: u64| CLASS_ENDS.iter().position(|end| value < *end);
        if let Some(class) = class(nanos) {
            self.nanos[class] += ios;
        } else if let Some(class) = class(nanos / 1_000) {
            self.micros[class] += ios;
        } else {
            let millis = nanos / 1_000_000;
            let beyond = 10 + usize::from(millis >= 2000);
            self.millis[class(millis).unwrap_or(beyond)] += ios;
        }
    }
}

fn latency_classes(job: &JobResult) -> LatencyClasses {
    let mut classes = LatencyClasses::default();
    let bins = job.directions.iter().flat_map(|(_, direction)| &direction.clat.bins_ns);
    bins.for_each(|(nanos, ios)| classes.count(*nanos, *ios));
    classes
}

fn shares(labels: &[&str], counts: &[u64]) -> Value {
    shares_of(labels, counts, counts.iter().sum())
}

fn shares_of(labels: &[&str], counts: &[u64], whole: u64) -> Value {
    let percent = |count: u64| float(count as f64 * 100.0 / whole.max(1) as f64);
    let labelled = labels.iter().zip(counts);
    labelled.map(|(label, count)| ((*label).to_owned(), percent(*count))).collect()
}

/// Writes a float as fio does; JSON has no infinity, and a rate over no time is none.
fn float(value: f64) -> Value {
    let value = if value.is_finite() { value } else { 0.0 };
    let number: Number =
        format!("{value:.6}").parse().expect("digits and a point are a JSON number");
    Value::Number(number)
}

/// Writes seconds since 1970 as `ctime` does: `Thu Jan  1 00:00:00 1970`, in UTC.
fn utc_time(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let (weekday, month) = (DAYS[(days % 7) as usize], MONTHS[month]);
    format!("{weekday} {month} {day:2} {hour:02}:{minute:02}:{second:02} {year}")
}

/// Returns year, month from 0 and day from 1, for days since 1970.
fn civil_date(days: u64) -> (u64, usize, u64) {
    let (mut year, mut left) = (1970, days);
    while left >= 365 + leap_day(year) {
        left -= 365 + leap_day(year);
        year += 1;
    }
    let lengths = [31, 28 + leap_day(year), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while left >= lengths[month] {
        left -= lengths[month];
        month += 1;
    }
    (year, month, left + 1)
}

fn leap_day(year: u64) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    u64::from(leap)
}

#[cfg(test)]
mod tests;
