//! CSV: one row for each job and direction, units in the column names.
//!
//! [`write()`] takes a [`RunResult`]; percentile columns are the union of all jobs', empty where a
//! job has none. Fields are quoted by RFC 4180, lines end in a bare line feed. Columns are only
//! ever added, and at the end of their group.
#![forbid(unsafe_code)]

use std::io::{self, Write};

use crate::bench::{
    job::Direction,
    result::{DirectionResult, JobResult, LatencySummary, RunResult},
};

/// Writes the header and the rows.
pub fn write(result: &RunResult, out: &mut dyn Write) -> io::Result<()> {
    let percentiles = all_percentiles(result);
    writeln!(out, "{}", header(&percentiles))?;
    for job in &result.jobs {
        for (direction, own) in job.active() {
            writeln!(out, "{}", row(job, direction, own, &percentiles))?;
        }
    }
    Ok(())
}

const COLUMNS: [&str; 15] = [
    "job",
    "group_id",
    "rw",
    "device",
    "iodepth",
    "workers",
    "direction",
    "ios",
    "errors",
    "short_ios",
    "bytes",
    "runtime_ms",
    "iops",
    "bandwidth_bytes_per_s",
    "polls",
];

fn header(percentiles: &[f64]) -> String {
    let mut columns: Vec<String> = COLUMNS.iter().map(ToString::to_string).collect();
    for latency in ["slat", "clat", "lat"] {
        columns.extend(["min", "mean", "max", "stddev"].map(|of| format!("{latency}_{of}_ns")));
    }
    columns.extend(percentiles.iter().map(|percent| format!("clat_p{percent}_ns")));
    columns.join(",")
}

fn row(
    job: &JobResult,
    direction: Direction,
    own: &DirectionResult,
    percentiles: &[f64],
) -> String {
    let mut fields = vec![
        quoted(&job.name),
        job.group_id.to_string(),
        job.rw.clone(),
        quoted(&job.filename),
        job.iodepth.to_string(),
        job.workers.to_string(),
        direction.to_string(),
        own.ios.to_string(),
        own.errors.to_string(),
        own.short.to_string(),
        own.bytes.to_string(),
        own.runtime_ms.to_string(),
        format!("{:.1}", own.iops),
        format!("{:.0}", own.bytes_per_s),
        job.queue.polls.to_string(),
    ];
    [&own.slat, &own.clat, &own.lat]
        .into_iter()
        .for_each(|latency| fields.extend(moments(latency)));
    fields.extend(percentiles.iter().map(|percent| percentile(&own.clat, *percent)));
    fields.join(",")
}

fn moments(latency: &LatencySummary) -> [String; 4] {
    [
        latency.min_ns.to_string(),
        format!("{:.1}", latency.mean_ns),
        latency.max_ns.to_string(),
        format!("{:.1}", latency.stddev_ns),
    ]
}

fn percentile(latency: &LatencySummary, percent: f64) -> String {
    let found = latency.percentiles_ns.iter().find(|(known, _)| known.total_cmp(&percent).is_eq());
    found.map_or_else(String::new, |(_, nanos)| nanos.to_string())
}

fn all_percentiles(result: &RunResult) -> Vec<f64> {
    let active = result.jobs.iter().flat_map(JobResult::active);
    let listed = active.flat_map(|(_, own)| &own.clat.percentiles_ns);
    let mut all: Vec<f64> = listed.map(|(percent, _)| *percent).collect();
    all.sort_by(f64::total_cmp);
    all.dedup();
    all
}

/// Quotes a field that holds a comma, a quote or a line break.
fn quoted(field: &str) -> String {
    if field.contains([',', '"', '\n', '\r']) {
        return format!("\"{}\"", field.replace('"', "\"\""));
    }
    field.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::sample_result;

    fn table() -> Vec<Vec<String>> {
        let mut text = Vec::new();
        write(&sample_result(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        text.lines().map(|line| line.split(',').map(str::to_owned).collect()).collect()
    }

    #[test]
    fn each_job_and_direction_has_a_row_as_wide_as_the_header() {
        let table = table();
        assert_eq!(table.len(), 3);
        assert!(table.iter().all(|row| row.len() == table[0].len()));
        let directions: Vec<_> = table[1..].iter().map(|row| row[6].as_str()).collect();
        assert_eq!(directions, ["read", "write"]);
    }

    #[test]
    fn every_quantity_names_its_unit_or_is_a_count() {
        let header = &table()[0];
        let column = |name: &str| header.iter().position(|known| known == name).unwrap();
        assert_eq!(table()[1][column("bandwidth_bytes_per_s")], "4096000");
        assert_eq!(table()[1][column("clat_p99.9_ns")], "10000");
        assert_eq!(table()[1][column("lat_max_ns")], "10500");
    }

    #[test]
    fn fields_with_commas_and_quotes_are_quoted() {
        assert_eq!(quoted("plain"), "plain");
        assert_eq!(quoted("a,b"), "\"a,b\"");
        assert_eq!(quoted("say \"x\""), "\"say \"\"x\"\"\"");
    }
}
