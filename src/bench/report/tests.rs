use core::time::Duration;

use super::*;
use crate::bench::{
    job::{Job, Workload},
    result::{DeviceInfo, Environment, JobResult, QueueCounters, RESULT_VERSION, Warning},
    stats::{LatencyHistogram, WorkerStats},
};

/// A second of 1000 reads and 500 writes of 4 KiB with flushes, by two workers.
pub(super) fn sample_result() -> RunResult {
    let job = Job {
        name: "mix".into(),
        filename: "mem:1G".into(),
        rw: Workload::RandRw,
        iodepth: 32,
        percentile_list: vec![50.0, 99.0, 99.9],
        written: vec![("rw".into(), "randrw".into()), ("group_reporting".into(), String::new())],
        ..Job::default()
    };
    let mut job = JobResult::new(&job, 0, 2, &sample_stats(), Duration::from_secs(1));
    job.first_error = Some("media error at LBA 0x10".into());
    job.first_errno = 61;
    (job.elapsed_ms, job.usr_cpu_percent, job.sys_cpu_percent) = (1500, 98.5, 0.25);
    (job.context_switches, job.minor_faults) = (3, 9);
    RunResult {
        version: RESULT_VERSION,
        timestamp_ms: 1_795_456_009_414,
        environment: sample_environment(),
        global_options: vec![("bs".into(), "4k".into())],
        jobs: vec![job],
        warnings: vec![Warning::ShortRun { job: "mix".into(), runtime_ms: 1000 }],
    }
}

fn sample_stats() -> WorkerStats {
    let mut stats = WorkerStats::default();
    for io in 1..=1000 {
        stats.directions.read.complete(4096, 500, io * 10);
    }
    (0..500).for_each(|_| stats.directions.write.complete(4096, 600, 2_500_000));
    stats.sample(Duration::from_secs(1), crate::bench::job::PerDirection::from_fn(|_| true));
    stats.directions.write.errors = 2;
    let mut corrected = LatencyHistogram::new();
    corrected.record_n(7_000_000, 500);
    stats.directions.write.corrected = Some(corrected);
    stats.sync.record_n(1_000, 10);
    stats.depth.mark_depth(32, 1400);
    stats.depth.mark_depth(5, 100);
    stats.depth.mark_submit(32);
    stats.depth.mark_complete(32);
    stats.queue = QueueCounters {
        polls: 1000,
        idle_polls: 953,
        completions: 1500,
        submissions: 1500,
        sq_doorbells: 47,
        cq_doorbells: 48,
        queue_full: 1,
        splits: 0,
        merges: 0,
        bounces: 0,
    };
    stats
}

fn sample_environment() -> Environment {
    let device = DeviceInfo {
        address: "mem:1G".into(),
        model: "udirect memory".into(),
        serial: "0001".into(),
        firmware: "1.0".into(),
        lba_bytes: 512,
        capacity_bytes: 1 << 30,
    };
    Environment {
        cpu_model: "A Processor".into(),
        kernel: "6.1.0".into(),
        cores: 2,
        devices: vec![device],
        seed: 1,
    }
}

#[test]
fn every_format_has_a_name_and_writes_something() {
    for (name, format) in Format::NAMES {
        assert_eq!(Format::from_name(name), Some(format));
        let mut text = Vec::new();
        format.write(&sample_result(), &mut text).unwrap();
        assert!(text.ends_with(b"\n"), "{name}");
    }
    assert_eq!(Format::from_name("terse"), None);
}
