use super::*;

#[test]
fn suffixes_multiply_as_fio_does_with_its_default_kb_base() {
    for (text, number) in [
        ("4096", 4096),
        ("4k", 4096),
        ("4K", 4096),
        ("4kb", 4096),
        ("4Ki", 4096),
        ("4KiB", 4000),
        ("1m", 1 << 20),
        ("1MiB", 1_000_000),
        ("2g", 2 << 30),
        ("3t", 3 << 40),
        ("1p", 1 << 50),
        ("512b", 512),
        ("0x1000", 4096),
        ("0x10k", 16 << 10),
    ] {
        assert_eq!(bytes(text), Ok(number), "{text}");
    }
}

#[test]
fn sizes_that_are_no_numbers_are_refused_with_the_reason() {
    let refusal = |text| bytes(text).unwrap_err().to_string();
    assert_eq!(refusal("four"), "not a whole number");
    assert_eq!(refusal(""), "not a whole number");
    assert_eq!(refusal("1.5m"), "not a whole number");
    assert_eq!(refusal("-1"), "not a whole number");
    assert_eq!(refusal("4q"), "unknown unit \"q\", use k, m, g, t or p");
    assert_eq!(refusal("4kk"), "unknown unit \"kk\", use k, m, g, t or p");
    assert_eq!(refusal("4é"), "unknown unit \"é\", use k, m, g, t or p");
    assert_eq!(refusal("16384p"), "does not fit 64 bits");
    assert_eq!(refusal("99999999999999999999"), "does not fit 64 bits");
}

#[test]
fn only_suffixes_with_ib_are_decimal() {
    assert!(has_decimal_suffix("4KiB"));
    assert!(has_decimal_suffix("4k/50:1MiB/50"));
    assert!(!has_decimal_suffix("4k,8kb"));
    assert!(!has_decimal_suffix("4ki"));
}

#[test]
fn times_are_seconds_unless_they_have_a_unit() {
    for (text, micros) in [
        ("10", 10_000_000),
        ("10s", 10_000_000),
        ("10sec", 10_000_000),
        ("500ms", 500_000),
        ("7us", 7),
        ("2m", 120_000_000),
        ("2M", 120_000_000),
        ("1h", 3_600_000_000),
        ("1d", 86_400_000_000),
    ] {
        assert_eq!(seconds(text), Ok(Duration::from_micros(micros)), "{text}");
    }
    assert_eq!(microseconds("10"), Ok(Duration::from_micros(10)));
    let refusal = seconds("10x").unwrap_err().to_string();
    assert_eq!(refusal, "unknown unit \"x\", use us, ms, s, m, h or d");
    assert_eq!(seconds("300000000000000d"), Err(ValueError::TooLarge));
}

#[test]
fn sizes_may_be_percentages_from_1_to_100() {
    assert_eq!(size("50%"), Ok(Size::Percent(50)));
    assert_eq!(size("1g"), Ok(Size::Bytes(1 << 30)));
    assert_eq!(size("0%"), Err(ValueError::Range { min: 1, max: 100 }));
    assert_eq!(size("101%"), Err(ValueError::Range { min: 1, max: 100 }));
}

fn directions(text: &str) -> Read<[u64; 3]> {
    let mut target = PerDirection { read: 1, write: 1, trim: 1 };
    per_direction(text, &mut target, bytes)?;
    Ok([target.read, target.write, target.trim])
}

#[test]
fn one_value_is_for_all_directions_and_the_second_for_writes_and_trims() {
    assert_eq!(directions("4"), Ok([4, 4, 4]));
    assert_eq!(directions("4,8"), Ok([4, 8, 8]));
    assert_eq!(directions("4,8,16"), Ok([4, 8, 16]));
}

#[test]
fn a_blank_direction_keeps_its_value() {
    assert_eq!(directions(",8"), Ok([1, 8, 8]));
    assert_eq!(directions("4,,16"), Ok([4, 1, 16]));
    assert_eq!(directions("4,"), Ok([4, 1, 1]));
    assert_eq!(directions(""), Err(ValueError::NotANumber));
    assert!(directions("1,2,3,4").is_err());
}

fn shares(text: &str) -> Vec<(u32, f64)> {
    let sizes = block_split(text).unwrap();
    sizes.shares().iter().map(|share| (share.bytes, share.percent)).collect()
}

#[test]
fn blank_percentages_share_what_is_left() {
    assert_eq!(shares("4k/60:64k/40"), [(4096, 60.0), (65536, 40.0)]);
    assert_eq!(shares("4k/50:1k/:32k/"), [(4096, 50.0), (1024, 25.0), (32768, 25.0)]);
    assert_eq!(shares("4k:8k"), [(4096, 50.0), (8192, 50.0)]);
    assert_eq!(shares("4k"), [(4096, 100.0)]);
}

#[test]
fn block_sizes_of_zero_and_ranges_are_refused() {
    assert_eq!(block_size("0"), Err(ValueError::Range { min: 1, max: u32::MAX.into() }));
    assert_eq!(block_size("8g"), Err(ValueError::Range { min: 1, max: u32::MAX.into() }));
    assert_eq!(block_size("1k-4k"), Err(ValueError::NotSupported("a range of block sizes")));
    assert!(block_split("").is_err());
    assert!(block_split("4k/101").is_err());
}

#[test]
fn every_workload_reads_back_from_its_name() {
    for (name, expected) in Workload::NAMES {
        assert_eq!(workload(name), Ok(expected));
        assert_eq!(expected.name(), name);
    }
    assert_eq!(workload("readwrite"), Ok(Workload::ReadWrite));
    assert!(workload("trimwrite").is_err());
    assert!(workload("randread:8").is_err());
}

#[test]
fn distributions_take_their_parameter_or_the_default_of_fio() {
    assert_eq!(distribution("random"), Ok(Distribution::Random));
    assert_eq!(distribution("zipf"), Ok(Distribution::Zipf { theta: 1.1 }));
    assert_eq!(distribution("zipf:0.9"), Ok(Distribution::Zipf { theta: 0.9 }));
    assert_eq!(distribution("pareto:0.3"), Ok(Distribution::Pareto { h: 0.3 }));
    for text in ["zipf:1", "zipf:0", "zipf:nan", "pareto:1.5", "pareto:0", "normal:50", "even"] {
        assert!(distribution(text).is_err(), "{text}");
    }
    assert!(distribution("zipf:1.2:0.25").is_err());
}

#[test]
fn percentiles_are_sorted_and_within_bounds() {
    assert_eq!(percentiles("99.9:50:100"), Ok(vec![50.0, 99.9, 100.0]));
    let too_many = vec!["1"; 21].join(":");
    for text in ["0", "101", "", "50:x", too_many.as_str()] {
        assert!(percentiles(text).is_err(), "{text}");
    }
}

#[test]
fn cpu_lists_hold_numbers_and_ranges() {
    assert_eq!(cpus("0,5,8-10"), Ok(vec![0, 5, 8, 9, 10]));
    for text in ["", "3-1", "a", "0-99999999"] {
        assert!(cpus(text).is_err(), "{text}");
    }
}

#[test]
fn booleans_are_zero_or_one_and_true_without_a_value() {
    assert_eq!(boolean(""), Ok(true));
    assert_eq!(boolean("1"), Ok(true));
    assert_eq!(boolean("0"), Ok(false));
    assert_eq!(boolean("2").unwrap_err().to_string(), "not one of 0, 1");
}
