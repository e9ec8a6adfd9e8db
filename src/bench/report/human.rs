//! The table that people read: a line per fact, aligned, three digits and a unit.
//!
//! [`write()`] takes a [`RunResult`] and goes job by job: rates, latencies, percentiles, depth,
//! CPU, and how the polled path was used; warnings come last, where they are seen. Lines about
//! things that did not happen are left out.
#![forbid(unsafe_code)]

use std::io::{self, Write};

use crate::bench::{
    human::{Amount, Bandwidth, Iops, Nanos, Percent},
    job::Direction,
    result::{DirectionResult, Environment, JobResult, LatencySummary, QueueCounters, RunResult},
};

/// Writes the table.
pub fn write(result: &RunResult, out: &mut dyn Write) -> io::Result<()> {
    environment(&result.environment, out)?;
    for job in &result.jobs {
        writeln!(out)?;
        write_job(job, out)?;
    }
    for warning in &result.warnings {
        writeln!(out, "\nwarning: {warning}")?;
    }
    Ok(())
}

fn environment(environment: &Environment, out: &mut dyn Write) -> io::Result<()> {
    let Environment { cpu_model, kernel, cores, devices, .. } = environment;
    writeln!(out, "{cpu_model}, {cores} cores, Linux {kernel}")?;
    for device in devices {
        let capacity = Amount(device.capacity_bytes);
        let words = [device.model.as_str(), &device.serial, &device.firmware].map(str::trim);
        let known: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
        let (address, lba) = (&device.address, device.lba_bytes);
        writeln!(out, "{address}: {} ({capacity}, LBA {lba} B)", known.join(" "))?;
    }
    Ok(())
}

fn write_job(job: &JobResult, out: &mut dyn Write) -> io::Result<()> {
    title(job, out)?;
    for (direction, own) in job.active() {
        write_direction(direction, own, out)?;
    }
    if job.sync.count > 0 {
        writeln!(out, "  flush  {} flushes", job.sync.count)?;
        latency("lat", &job.sync, out)?;
    }
    depth(job, out)?;
    cpu(job, out)?;
    if job.queue.polls > 0 {
        polled_path(&job.queue, out)?;
    }
    errors(job, out)
}

fn title(job: &JobResult, out: &mut dyn Write) -> io::Result<()> {
    let JobResult { name, rw, iodepth, workers, group_id, .. } = job;
    let time = Nanos(job.runtime_ms as f64 * 1e6);
    writeln!(out, "{name}: {rw}, iodepth {iodepth}, workers {workers}, group {group_id}, {time}")
}

fn write_direction(
    direction: Direction,
    own: &DirectionResult,
    out: &mut dyn Write,
) -> io::Result<()> {
    let (iops, bandwidth, amount) = (Iops(own.iops), Bandwidth(own.bytes_per_s), Amount(own.bytes));
    let name = direction.name();
    writeln!(out, "  {name:<6} {iops:>12} {bandwidth:>12}   {amount} in {} I/Os", own.ios)?;
    latency("clat", &own.clat, out)?;
    percentiles(&own.clat, out)?;
    latency("slat", &own.slat, out)?;
    latency("lat", &own.lat, out)?;
    if let Some(corrected) = &own.corrected {
        latency("corrected", corrected, out)?;
        percentiles(corrected, out)?;
    }
    Ok(())
}

fn latency(name: &str, latency: &LatencySummary, out: &mut dyn Write) -> io::Result<()> {
    if latency.count == 0 {
        return Ok(());
    }
    let (min, max) = (Nanos(latency.min_ns as f64), Nanos(latency.max_ns as f64));
    let (mean, stddev) = (Nanos(latency.mean_ns), Nanos(latency.stddev_ns));
    writeln!(out, "    {name:<9} min {min:>8}  avg {mean:>8}  max {max:>8}  stdev {stddev:>8}")
}

/// How many percentiles stand in one line.
const PERCENTILES_PER_LINE: usize = 6;

fn percentiles(latency: &LatencySummary, out: &mut dyn Write) -> io::Result<()> {
    for line in latency.percentiles_ns.chunks(PERCENTILES_PER_LINE) {
        let entry = |(percent, nanos): &(f64, u64)| {
            format!(" {:>6} {:>8}", format!("p{percent}"), Nanos(*nanos as f64))
        };
        writeln!(out, "             {}", line.iter().map(entry).collect::<String>())?;
    }
    Ok(())
}

const DEPTHS: [&str; 7] = ["1", "2", "4", "8", "16", "32", "64 and more"];

/// Names the depths that occurred and the share of I/Os that found them.
fn depth(job: &JobResult, out: &mut dyn Write) -> io::Result<()> {
    let whole: u64 = job.depth.level.iter().sum();
    if whole == 0 {
        return Ok(());
    }
    let share = |count: u64| Percent(count as f64 * 100.0 / whole as f64);
    let found = DEPTHS.iter().zip(job.depth.level).filter(|(_, count)| *count > 0);
    let found: Vec<String> =
        found.map(|(depth, count)| format!("{depth}: {}", share(count))).collect();
    writeln!(out, "  in flight    {}", found.join(", "))
}

fn cpu(job: &JobResult, out: &mut dyn Write) -> io::Result<()> {
    let (user, system) = (Percent(job.usr_cpu_percent), Percent(job.sys_cpu_percent));
    let (switches, faults) = (job.context_switches, job.minor_faults + job.major_faults);
    writeln!(
        out,
        "  cpu          user {user}, system {system}, {switches} context switches, {faults} page faults"
    )
}

fn polled_path(queue: &QueueCounters, out: &mut dyn Write) -> io::Result<()> {
    let QueueCounters { polls, queue_full, splits, merges, bounces, .. } = *queue;
    let (per_poll, idle) = (queue.completions_per_poll(), queue.idle_percent());
    let (sq, cq) = (queue.sq_doorbells_per_io(), queue.cq_doorbells_per_io());
    writeln!(
        out,
        "  polled path: polls {polls} ({idle:.0} % idle), {per_poll:.1} completions per poll"
    )?;
    writeln!(out, "               {sq:.3} SQ and {cq:.3} CQ doorbells per I/O")?;
    writeln!(
        out,
        "               queue full {queue_full}, splits {splits}, merges {merges}, bounces {bounces}"
    )
}

fn errors(job: &JobResult, out: &mut dyn Write) -> io::Result<()> {
    if job.error_count == 0 {
        return Ok(());
    }
    let first = job.first_error.as_deref().unwrap_or("unknown");
    writeln!(out, "  errors       {}, the first: {first}", job.error_count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::sample_result;

    fn text(result: &RunResult) -> String {
        let mut text = Vec::new();
        write(result, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn the_table_is_as_printed_here() {
        let expected = include_str!("human.expected");
        assert_eq!(text(&sample_result()), expected);
    }

    #[test]
    fn what_did_not_happen_has_no_line() {
        let mut result = sample_result();
        result.jobs[0] =
            JobResult { name: "idle".into(), rw: "read".into(), ..JobResult::default() };
        let text = text(&result);
        for word in ["flush", "polled path", "in flight", "clat", "errors"] {
            assert!(!text.contains(word), "{word}: {text}");
        }
    }
}
