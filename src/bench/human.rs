//! Quantities as people read them: three significant digits and a unit.
//!
//! [`Bandwidth`], [`Iops`], [`Nanos`], [`Amount`] and [`Percent`] wrap a number and print it; the
//! human report and the progress line use them. Data has binary units, everything else decimal
//! ones. Files for programs never pass through here.
#![forbid(unsafe_code)]

use core::fmt;

/// Bytes per second: `12.3 MiB/s`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bandwidth(pub f64);

/// I/Os per second: `1.40 M IOPS`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Iops(pub f64);

/// A latency in nanoseconds: `12.3 µs`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nanos(pub f64);

/// An amount of data in bytes: `1.50 GiB`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Amount(pub u64);

/// A share in percent: `12.3 %`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Percent(pub f64);

const BINARY: [&str; 6] = ["", "Ki", "Mi", "Gi", "Ti", "Pi"];
const DECIMAL: [&str; 5] = ["", "k", "M", "G", "T"];
const TIME: [&str; 4] = ["ns", "µs", "ms", "s"];

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, prefix) = scale(self.0, 1024.0, &BINARY);
        f.pad(&format!("{number} {prefix}B/s"))
    }
}

impl fmt::Display for Iops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, prefix) = scale(self.0, 1000.0, &DECIMAL);
        let space = if prefix.is_empty() { "" } else { " " };
        f.pad(&format!("{number} {prefix}{space}IOPS"))
    }
}

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, unit) = scale(self.0, 1000.0, &TIME);
        f.pad(&format!("{number} {unit}"))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, prefix) = scale(self.0 as f64, 1024.0, &BINARY);
        f.pad(&format!("{number} {prefix}B"))
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{} %", three_digits(self.0)))
    }
}

/// Divides by `base` until three digits in front of the point suffice, as far as units reach.
fn scale<'a>(value: f64, base: f64, units: &[&'a str]) -> (String, &'a str) {
    let mut value = value;
    let mut index = 0;
    while value.abs() >= 999.5 && index + 1 < units.len() {
        value /= base;
        index += 1;
    }
    let whole = index == 0 && value.fract() == 0.0;
    (if whole { format!("{value}") } else { three_digits(value) }, units[index])
}

/// Writes three significant digits.
fn three_digits(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 99.95 || value == 0.0 {
        format!("{value:.0}")
    } else if magnitude >= 9.995 {
        format!("{value:.1}")
    } else if magnitude >= 0.995 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_unit_are_printed() {
        assert_eq!(Bandwidth(12.3 * 1024.0 * 1024.0).to_string(), "12.3 MiB/s");
        assert_eq!(Iops(1_400_000.0).to_string(), "1.40 M IOPS");
        assert_eq!(Iops(950.0).to_string(), "950 IOPS");
        assert_eq!(Nanos(12_345.0).to_string(), "12.3 µs");
        assert_eq!(Nanos(2.5e9).to_string(), "2.50 s");
        assert_eq!(Amount(3 << 29).to_string(), "1.50 GiB");
        assert_eq!(Percent(0.031).to_string(), "0.031 %");
        assert_eq!(Percent(0.0).to_string(), "0 %");
    }

    #[test]
    fn only_the_smallest_unit_is_written_whole() {
        assert_eq!(Nanos(7.0).to_string(), "7 ns");
        assert_eq!(Nanos(7_000.0).to_string(), "7.00 µs");
    }

    #[test]
    fn rounding_carries_into_the_next_unit() {
        assert_eq!(Iops(999_600.0).to_string(), "1.00 M IOPS");
        assert_eq!(Nanos(999.4).to_string(), "999 ns");
        assert_eq!(Bandwidth(1023.0).to_string(), "1.00 KiB/s");
    }

    #[test]
    fn the_largest_unit_takes_all_the_rest() {
        assert_eq!(Nanos(7.2e12).to_string(), "7200 s");
    }

    #[test]
    fn padding_aligns_columns() {
        assert_eq!(format!("{:>10}|", Nanos(5.0)), "      5 ns|");
    }
}
