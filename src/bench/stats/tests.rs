use super::*;

fn histogram(values: &[u64]) -> LatencyHistogram {
    let mut histogram = LatencyHistogram::new();
    values.iter().for_each(|value| histogram.record(*value));
    histogram
}

#[test]
fn an_empty_distribution_is_zero_everywhere() {
    let empty = LatencyHistogram::new();
    assert_eq!((empty.count(), empty.min(), empty.max()), (0, 0, 0));
    assert_eq!((empty.mean(), empty.stddev(), empty.percentile(99.0)), (0.0, 0.0, 0));
    assert_eq!(empty.bins().count(), 0);
}

#[test]
fn extremes_and_moments_are_exact() {
    let three = histogram(&[1_000_003, 2_000_003, 6_000_003]);
    assert_eq!((three.min(), three.max()), (1_000_003, 6_000_003));
    assert_eq!(three.mean(), 3_000_003.0);
    assert!((three.stddev() - 7e12_f64.sqrt()).abs() < 1.0, "{}", three.stddev());
}

#[test]
fn percentiles_are_within_a_thousandth() {
    let mut even = LatencyHistogram::new();
    (1..=100_000).for_each(|value| even.record(value * 10));
    for percent in [1.0, 50.0, 99.0, 99.9, 100.0] {
        let (found, exact) = (even.percentile(percent) as f64, percent * 10_000.0);
        assert!((found / exact - 1.0).abs() <= 0.001, "{percent}: {found}");
    }
}

#[test]
fn latencies_beyond_an_hour_count_as_an_hour() {
    let long = histogram(&[u64::MAX, 0]);
    assert_eq!((long.min(), long.max(), long.count()), (0, LATENCY_NS_MAX, 2));
}

#[test]
fn recording_n_times_is_recording_n_times() {
    let mut at_once = LatencyHistogram::new();
    at_once.record_n(500, 3);
    at_once.record_n(900, 0);
    let one_by_one = histogram(&[500, 500, 500]);
    assert_eq!(at_once.bins().collect::<Vec<_>>(), [(500, 3)]);
    assert_eq!(at_once.mean(), one_by_one.mean());
    assert_eq!(at_once.max(), 500);
}

#[test]
fn a_merge_is_the_distribution_of_all_samples() {
    let mut left = histogram(&[10, 20, 30]);
    left.merge(&histogram(&[5, 4000]));
    left.merge(&LatencyHistogram::new());
    let all = histogram(&[10, 20, 30, 5, 4000]);
    assert_eq!(left.bins().collect::<Vec<_>>(), all.bins().collect::<Vec<_>>());
    assert_eq!((left.min(), left.max()), (5, 4000));
    assert_eq!((left.mean(), left.stddev()), (all.mean(), all.stddev()));
}

#[test]
fn a_cleared_distribution_begins_anew() {
    let mut cleared = histogram(&[10]);
    cleared.clear();
    cleared.record(7);
    assert_eq!((cleared.count(), cleared.min(), cleared.max()), (1, 7, 7));
}

#[test]
fn intervals_give_rates_with_their_spread() {
    let mut stats = DirectionStats::default();
    for ios in [100, 300] {
        (0..ios).for_each(|_| stats.complete(4096, 10, 20));
        stats.sample(Duration::from_millis(500));
    }
    assert_eq!((stats.iops.min(), stats.iops.max(), stats.iops.mean()), (200.0, 600.0, 400.0));
    assert!((stats.iops.stddev() - 80_000_f64.sqrt()).abs() < 1e-9);
    assert_eq!((stats.bw.min(), stats.bw.count()), (800.0, 2));
    assert_eq!(stats.lat.max(), 30);
}

#[test]
fn an_interval_of_no_time_is_no_sample() {
    let mut stats = DirectionStats::default();
    stats.sample(Duration::ZERO);
    assert_eq!(stats.bw.count(), 0);
}

#[test]
fn workers_side_by_side_add_their_rates() {
    let mut stats = DirectionStats::default();
    stats.complete(512, 1, 1);
    stats.sample(Duration::from_secs(1));
    stats.corrected = Some(histogram(&[9]));
    let mut sum = DirectionStats::default();
    sum.merge(&stats);
    sum.merge(&stats);
    assert_eq!((sum.ios, sum.bytes, sum.iops.mean(), sum.iops.count()), (2, 1024, 2.0, 2));
    assert_eq!(sum.corrected.unwrap().count(), 2);
}

#[test]
fn depths_and_batches_fall_into_the_classes_of_fio() {
    let mut depth = DepthCounters::default();
    let classes = [(1, 0), (2, 1), (3, 1), (4, 2), (31, 4), (32, 5), (63, 5), (64, 6), (9999, 6)];
    for (in_flight, class) in classes {
        let before = depth.level[class];
        depth.mark_depth(in_flight, 1);
        assert_eq!(depth.level[class], before + 1, "{in_flight}");
    }
    let classes = [
        (0, 0),
        (1, 1),
        (4, 1),
        (5, 2),
        (8, 2),
        (9, 3),
        (16, 3),
        (32, 4),
        (33, 5),
        (64, 5),
        (65, 6),
    ];
    for (ios, class) in classes {
        assert_eq!(batch_class(ios), class, "{ios}");
    }
}

#[test]
fn only_directions_under_a_rate_are_corrected() {
    let stats = WorkerStats::new(PerDirection { read: true, write: false, trim: false });
    assert!(stats.directions.read.corrected.is_some());
    assert!(stats.directions.write.corrected.is_none());
}

#[test]
fn the_ramp_leaves_nothing_behind() {
    let mut stats = WorkerStats::new(PerDirection { read: true, write: true, trim: true });
    stats.directions.read.complete(4096, 1, 2);
    stats.depth.mark_depth(4, 1);
    stats.queue.polls = 3;
    stats.sync.record(5);
    stats.sample(Duration::from_millis(500), PerDirection::from_fn(|_| true));
    stats.clear();
    assert_eq!((stats.directions.read.ios, stats.directions.read.lat.count()), (0, 0));
    assert_eq!((stats.directions.read.bw.count(), stats.sync.count()), (0, 0));
    assert_eq!((stats.depth, stats.queue), (DepthCounters::default(), QueueCounters::default()));
}
