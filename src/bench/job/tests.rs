use super::*;

fn message(job: &Job) -> String {
    job.validate().unwrap_err().to_string()
}

fn split(parts: &[(u32, f64)]) -> BlockSizes {
    let share = |&(bytes, percent): &(u32, f64)| BlockShare { bytes, percent };
    BlockSizes::split(parts.iter().map(share).collect()).unwrap()
}

#[test]
fn the_defaults_are_valid_and_those_of_fio() {
    let job = Job::default();
    job.validate().unwrap();
    assert_eq!((job.rw, job.iodepth, job.numjobs, job.rwmixread), (Workload::Read, 1, 1, 50));
    assert_eq!(job.bs.read.only(), Some(4096));
    assert_eq!(job.percentile_list.len(), 17);
    assert_eq!((job.submit_batch(), job.complete_batch()), (1, 1));
}

#[test]
fn counts_of_zero_are_refused() {
    assert_eq!(message(&Job { iodepth: 0, ..Job::default() }), "iodepth must be at least 1");
    assert_eq!(message(&Job { numjobs: 0, ..Job::default() }), "numjobs must be at least 1");
    assert_eq!(message(&Job { loops: 0, ..Job::default() }), "loops must be at least 1");
}

#[test]
fn more_reads_than_all_are_refused() {
    let job = Job { rwmixread: 101, ..Job::default() };
    assert_eq!(message(&job), "rwmixread=101 exceeds 100 percent");
}

#[test]
fn blocks_of_zero_bytes_are_refused() {
    let mut job = Job::default();
    job.bs.write = BlockSizes::fixed(0);
    assert_eq!(message(&job), "the block size of write must be at least 1 byte");
}

#[test]
fn shares_that_do_not_add_up_are_refused() {
    let mut job = Job::default();
    job.bs.read = split(&[(4096, 60.0), (8192, 50.0)]);
    assert_eq!(message(&job), "bssplit percentages of read add up to 110, not to 100");
    job.bs.read = split(&[(4096, 100.0 / 3.0), (8192, 100.0 / 3.0), (512, 100.0 / 3.0)]);
    job.validate().unwrap();
}

#[test]
fn time_based_jobs_need_a_time() {
    let job = Job { time_based: true, ..Job::default() };
    assert_eq!(message(&job), "time_based needs a runtime above 0");
}

#[test]
fn two_limits_for_one_direction_are_refused() {
    let mut job = Job::default();
    job.rate.write = Some(1);
    job.rate_iops.read = Some(1);
    job.validate().unwrap();
    job.rate_iops.write = Some(1);
    assert_eq!(message(&job), "rate and rate_iops both limit write: give one");
}

#[test]
fn verify_needs_blocks_that_hold_data_and_do_not_overlap() {
    let mut job = Job { verify: Verify::Crc32c, rw: Workload::RandTrim, ..Job::default() };
    assert_eq!(message(&job), "verify cannot check randtrim: trimmed blocks hold no data");
    job.rw = Workload::RandWrite;
    job.validate().unwrap();
    job.bs.read = BlockSizes::fixed(8192);
    job.validate().unwrap();
    job.bs.write = split(&[(4096, 50.0), (8192, 50.0)]);
    let overlap = "verify needs one block size: blocks of several sizes would overlap";
    assert_eq!(message(&job), overlap);
    job.rw = Workload::Write;
    assert_eq!(message(&job), overlap);
}

#[test]
fn batches_are_bounded_by_the_depth() {
    let job = |iodepth, iodepth_batch, iodepth_batch_complete_max| Job {
        iodepth,
        iodepth_batch,
        iodepth_batch_complete_max,
        ..Job::default()
    };
    assert_eq!(job(16, 0, 0).submit_batch(), 16);
    assert_eq!(job(128, 0, 0).submit_batch(), DEFAULT_BATCH);
    assert_eq!(job(128, 0, 0).complete_batch(), DEFAULT_BATCH);
    assert_eq!(job(32, 64, 0).submit_batch(), 32);
    assert_eq!(job(32, 8, 64).complete_batch(), 32);
    assert_eq!(job(32, 8, 16).complete_batch(), 16);
}

const MIB: u64 = 1 << 20;

fn region(job: &Job, worker: u32) -> Result<Region, String> {
    job.region(worker, 100 * MIB, LbaSize::B512).map_err(|error| error.to_string())
}

#[test]
fn a_size_that_ends_inside_a_block_is_refused() {
    let job = Job { size: Some(Size::Bytes(5000)), ..Job::default() };
    let refused = "size 5000 is no multiple of the LBA size, 512 B";
    assert_eq!(region(&job, 0), Err(refused.to_owned()));
}

#[test]
fn a_region_is_the_rest_of_the_device_unless_a_size_is_given() {
    let mut job = Job { offset: Size::Bytes(MIB), ..Job::default() };
    assert_eq!(region(&job, 0), Ok(Region { start: MIB, bytes: 99 * MIB }));
    job.size = Some(Size::Percent(50));
    assert_eq!(region(&job, 0), Ok(Region { start: MIB, bytes: 50 * MIB }));
}

#[test]
fn percentages_round_down_to_a_block() {
    let mut job = Job { offset: Size::Percent(33), ..Job::default() };
    job.bs.read = BlockSizes::fixed(1 << 20);
    assert_eq!(region(&job, 0).map(|region| region.start), Ok(33 * MIB));
    let odd = job.region(0, 1_000_001, LbaSize::B512).map(|_| ()).unwrap_err();
    assert_eq!(odd.to_string(), "a region of 1000001 bytes has no room for a block of 1048576");
}

#[test]
fn each_worker_begins_one_increment_further() {
    let increment = Size::Bytes(10 * MIB);
    let job = Job {
        offset: Size::Bytes(MIB),
        offset_increment: increment,
        size: Some(increment),
        ..Job::default()
    };
    assert_eq!(region(&job, 2), Ok(Region { start: 21 * MIB, bytes: 10 * MIB }));
    assert_eq!(
        region(&job, 9),
        Err("size 10485760 exceeds the 9437184 bytes between offset 95420416 and the end of the \
             device"
            .into())
    );
    assert_eq!(
        region(&job, 10),
        Err("offset 105906176 is beyond the 104857600 bytes of the device".into())
    );
}

#[test]
fn offsets_past_64_bits_are_refused() {
    let job = Job { offset_increment: Size::Bytes(u64::MAX), ..Job::default() };
    assert!(region(&job, 2).is_err());
}

#[test]
fn a_pass_covers_each_block_once_only_with_one_block_size() {
    let mut job = Job { rw: Workload::RandRead, ..Job::default() };
    assert!(job.covers_each_block_once());
    job.bs.write = BlockSizes::fixed(8192);
    assert!(job.covers_each_block_once(), "no write will be issued");
    job.rw = Workload::RandRw;
    assert!(!job.covers_each_block_once());
}

#[test]
fn groups_begin_at_stonewall_and_new_group() {
    let plain = Job::default();
    let wall = Job { stonewall: true, ..Job::default() };
    let group = Job { new_group: true, ..Job::default() };
    let jobs = [wall.clone(), plain.clone(), wall, plain, group];
    assert_eq!(group_ids(&jobs), [0, 0, 1, 1, 2]);
}
