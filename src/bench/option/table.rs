//! The table itself: every key of fio that is known here, and what it does.
//!
//! [`OPTIONS`] lists in the order of a help text what is acted upon and what is accepted with a
//! note; [`NOT_SUPPORTED`] names the rest of fio's options. `option.rs` looks them up. A key stands
//! in one of the two, once.
#![forbid(unsafe_code)]

use super::{Action, OptionSpec, Setter};
use crate::bench::value::{self, ValueError};

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

/// fio takes a rate of 0 as none.
fn limit(rate: u64) -> Option<u64> {
    Some(rate).filter(|rate| *rate > 0)
}

/// Why fio's time series are not written.
const NO_LOGS: &str = "no logs are written, json+ holds the distribution of latencies";

pub(super) static OPTIONS: &[OptionSpec] = &[
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
        "device: a udirect address or an SPDK transport id; ADDRESS!OBJECT is an object of a store",
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
        "I/Os submitted per doorbell at most; 0 is iodepth, up to 32 (default 0)",
        |job, v| value::count(v, 0).map(|batch| job.iodepth_batch = batch),
    ),
    option(
        "iodepth_batch_complete_max",
        &[],
        "COUNT",
        "completions taken per poll at most; 0 is iodepth, up to 32 (default 0)",
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
    accept("clocksource", "the runner chooses the clock"),
    accept("random_generator", "the generator is always the same one"),
    accept("refill_buffers", "the runner chooses what buffers hold"),
    accept("scramble_buffers", "the runner chooses what buffers hold"),
    accept("zero_buffers", "the runner chooses what buffers hold"),
    accept("gtod_reduce", "latencies are always measured"),
    accept("disable_lat", "latencies are always measured"),
    accept("disable_clat", "latencies are always measured"),
    accept("disable_slat", "latencies are always measured"),
    accept("disable_bw_measurement", "bandwidth is always measured"),
    accept("bwavgtime", "rates are sampled every 500 ms"),
    accept("iopsavgtime", "rates are sampled every 500 ms"),
    accept("write_bw_log", NO_LOGS),
    accept("write_lat_log", NO_LOGS),
    accept("write_iops_log", NO_LOGS),
    accept("write_hist_log", NO_LOGS),
    accept("log_avg_msec", NO_LOGS),
    accept("log_hist_msec", NO_LOGS),
    accept("log_hist_coarseness", NO_LOGS),
    accept("log_max_value", NO_LOGS),
    accept("log_offset", NO_LOGS),
    accept("log_prio", NO_LOGS),
    accept("log_unix_epoch", NO_LOGS),
    accept("log_entries", NO_LOGS),
    accept("log_compression", NO_LOGS),
    accept("log_store_compressed", NO_LOGS),
    accept("per_job_logs", NO_LOGS),
    accept("allow_file_create", "a device has no files to lay out"),
    accept("description", "it is a comment"),
    accept("disk_util", "the kernel's disk statistics do not see this path"),
    accept("clat_percentiles", "completion latency percentiles are always reported"),
];

/// fio's options that ask for something this program does not do. Ignoring them would falsify a
/// result.
pub(super) const NOT_SUPPORTED: &str = "\
    allow_mounted_write allrandrepeat atomic ba block_error_percentiles blockalign \
    bs_is_seq_rand bs_unaligned buffer_compress_chunk buffer_compress_percentage buffer_pattern \
    cgroup cgroup_nodelete cgroup_weight continue_on_error cpumask cpus_allowed_policy \
    create_only dedupe_global dedupe_mode dedupe_percentage dedupe_working_set_percentage \
    directory error_dump exec_postrun exec_prerun exit_what exitall exitall_on_error \
    experimental_verify file_append file_service_type filename_format filesize fill_device flow \
    flow_id flow_sleep fsync_on_close gid gtod_cpu ignore_error ignore_zone_limits \
    io_submit_mode iodepth_low job_max_open_zones kb_base lat_percentiles latency_percentile \
    latency_run latency_target latency_window lockfile lockmem log_alternate_epoch \
    log_alternate_epoch_clock_id log_compression_cpus max_latency max_open_zones \
    merge_blktrace_file merge_blktrace_iters merge_blktrace_scalars nice nrfiles numa_cpu_nodes \
    numa_mem_policy offset_align opendir openfiles percentage_random prio prioclass profile \
    rate_cycle rate_ignore_thinktime rate_iops_min rate_min rate_process read_beyond_wp \
    read_iolog read_iolog_chunked replay_align replay_no_stall replay_redirect replay_scale \
    replay_skip replay_time_scale rw_sequencer serialize_overlap significant_figures \
    slat_percentiles stats steadystate steadystate_duration steadystate_ramp_time sync \
    sync_file_range thinktime_blocks_type thinktime_iotime thinktime_spin trim_backlog \
    trim_backlog_batch trim_percentage trim_verify_zero uid unified_rw_reporting unique_filename \
    unit_base unlink_each_loop verify_async verify_backlog verify_backlog_batch verify_dump \
    verify_interval verify_offset verify_only verify_pattern verify_state_load verify_state_save \
    wait_for write_barrier write_hint write_iolog zone_reset_frequency zone_reset_threshold \
    zonecapacity zonemode zonerange zonesize zoneskip";
