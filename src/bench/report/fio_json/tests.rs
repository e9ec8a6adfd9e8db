use super::*;
use crate::bench::report::tests::sample_result;

/// Lists every key with the type of its value, in order, as `/jobs/0/read/iops float`.
fn key_tree(value: &Value, path: &str, tree: &mut Vec<String>) {
    let kind = match value {
        Value::Object(_) => "object",
        Value::Array(_) => "array",
        Value::String(_) => "string",
        Value::Number(number) if number.to_string().contains('.') => "float",
        Value::Number(_) => "integer",
        Value::Bool(_) | Value::Null => "other",
    };
    if !path.is_empty() {
        tree.push(format!("{path} {kind}"));
    }
    match value {
        // Their keys are data.
        Value::Object(_) if path.ends_with("options") || path.ends_with("bins") => {}
        Value::Object(_) if path.ends_with("percentile") => {}
        Value::Object(object) => {
            object.iter().for_each(|(key, value)| key_tree(value, &format!("{path}/{key}"), tree));
        }
        Value::Array(items) => {
            let numbered = items.iter().enumerate();
            numbered.for_each(|(index, item)| key_tree(item, &format!("{path}/{index}"), tree));
        }
        _ => {}
    }
}

/// The expected list was taken from what fio 3.33 printed with `--output-format=json+` for a random
/// mix with flushes; it holds the types too, since a reader in a typed language trips over an
/// integer 0.
#[test]
fn keys_and_types_are_those_of_fio_in_its_order() {
    let mut tree = Vec::new();
    key_tree(&document(&sample_result(), Bins::Include), "", &mut tree);
    tree.retain(|line| !line.contains("/udirect") && !line.starts_with("/disk_util"));
    // fio's objects of a job repeat its own path in the list; the job itself is ours to skip.
    tree.retain(|line| line != "/jobs/0 object");
    let expected: Vec<&str> = include_str!("keys.expected").lines().collect();
    assert_eq!(tree, expected);
}

#[test]
fn plain_json_has_percentiles_and_no_bins() {
    let document = document(&sample_result(), Bins::Omit);
    let clat = &document["jobs"][0]["read"]["clat_ns"];
    assert_eq!(clat["percentile"]["99.900000"], 10_000);
    assert_eq!(clat["percentile"]["50.000000"], 5_003);
    assert!(clat.get("bins").is_none());
}

#[test]
fn bins_add_up_to_the_number_of_ios() {
    let document = document(&sample_result(), Bins::Include);
    let bins = document["jobs"][0]["read"]["clat_ns"]["bins"].as_object().unwrap();
    assert_eq!(bins.values().filter_map(Value::as_u64).sum::<u64>(), 1000);
}

#[test]
fn a_direction_without_io_has_no_percentiles() {
    let document = document(&sample_result(), Bins::Include);
    let clat = &document["jobs"][0]["trim"]["clat_ns"];
    assert!(clat.get("percentile").is_none() && clat.get("bins").is_none());
}

#[test]
fn rates_are_in_the_units_of_fio() {
    let document = document(&sample_result(), Bins::Omit);
    let read = &document["jobs"][0]["read"];
    assert_eq!((&read["bw_bytes"], &read["bw"]), (&json!(4_096_000), &json!(4_000)));
    assert_eq!(read["iops"].to_string(), "1000.000000");
    assert_eq!(read["bw_agg"].to_string(), "100.000000");
    assert_eq!((&read["runtime"], &read["io_kbytes"]), (&json!(1000), &json!(4000)));
}

#[test]
fn every_io_is_in_one_class_of_latency() {
    let document = document(&sample_result(), Bins::Omit);
    let class = |unit: &str, label: &str| document["jobs"][0][unit][label].to_string();
    // 10 to 10,000 ns for the reads, 2.5 ms for the writes; 99 reads are below 1 us.
    assert_eq!(class("latency_ms", "4"), "33.333333");
    assert_eq!(class("latency_us", "2"), "6.666667");
    let classes = ["latency_ns", "latency_us", "latency_ms"].map(|unit| {
        let shares = document["jobs"][0][unit].as_object().unwrap().values();
        shares.filter_map(Value::as_f64).sum::<f64>()
    });
    assert!((classes.iter().sum::<f64>() - 100.0).abs() < 0.001, "{classes:?}");
}

#[test]
fn the_ends_of_classes_belong_to_the_next() {
    let mut classes = LatencyClasses::default();
    for nanos in [0, 1, 2, 999, 1_000, 999_999, 1_000_000, 1_999_999_999, 2_000_000_000] {
        classes.count(nanos, 1);
    }
    assert_eq!(classes.nanos, [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(classes.micros, [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(classes.millis, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
}

#[test]
fn what_fio_cannot_say_stands_under_our_name() {
    let document = document(&sample_result(), Bins::Omit);
    let own = &document["jobs"][0]["udirect"];
    assert_eq!(own["queue"]["polls"], 1000);
    assert_eq!(own["error_count"], 2);
    assert_eq!(own["corrected_lat_ns"]["write"]["N"], 500);
    assert!(own["corrected_lat_ns"].get("read").is_none());
    assert_eq!(document["jobs"][0]["error"], 61);
}

#[test]
fn times_are_written_as_ctime_does() {
    assert_eq!(utc_time(0), "Thu Jan  1 00:00:00 1970");
    assert_eq!(utc_time(951_782_400), "Tue Feb 29 00:00:00 2000");
    assert_eq!(utc_time(1_795_456_009), "Mon Nov 23 17:46:49 2026");
    assert_eq!(utc_time(4_107_542_399), "Sun Feb 28 23:59:59 2100");
}

#[test]
fn what_is_no_number_is_written_as_zero() {
    assert_eq!(float(f64::NAN).to_string(), "0.000000");
    assert_eq!(float(f64::INFINITY).to_string(), "0.000000");
}
