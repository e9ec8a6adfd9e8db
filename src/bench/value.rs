//! Readers of option values in fio's notation: sizes, times, percentages, lists.
//!
//! Each takes the text behind the `=` and returns the value or a [`ValueError`] that says what
//! would have been right. `option.rs` ties them to keys. They know nothing of jobs, and never
//! guess: where fio stops reading at the first odd character, these refuse.
#![forbid(unsafe_code)]

use core::time::Duration;

use super::job::{
    BlockShare, BlockSizes, Direction, Distribution, PerDirection, Size, Verify, Workload,
};

/// What is wrong with the value of an option.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// It holds no number where one is due.
    #[error("not a whole number")]
    NotANumber,
    /// The number is followed by something else than a unit of size.
    #[error("unknown unit {0:?}, use k, m, g, t or p")]
    SizeUnit(String),
    /// The number is followed by something else than a unit of time.
    #[error("unknown unit {0:?}, use us, ms, s, m, h or d")]
    TimeUnit(String),
    /// The number is outside of what the option takes.
    #[error("outside {min} to {max}")]
    Range {
        /// The smallest value.
        min: u64,
        /// The largest value.
        max: u64,
    },
    /// The value does not fit 64 bits.
    #[error("does not fit 64 bits")]
    TooLarge,
    /// It is none of a fixed set.
    #[error("not one of {0}")]
    Choice(&'static str),
    /// fio knows it, this program does not.
    #[error("{0} is not supported")]
    NotSupported(&'static str),
    /// The form is wrong.
    #[error("expected {0}")]
    Form(&'static str),
}

type Read<T> = Result<T, ValueError>;

/// Reads a whole number from `min` to `max`, decimal or `0x`; suffixes multiply, as in
/// `number_ios=1m`.
pub(super) fn integer(text: &str, min: u64, max: u64) -> Read<u64> {
    let number = bytes(text)?;
    if number < min || number > max {
        return Err(ValueError::Range { min, max });
    }
    Ok(number)
}

/// Reads a whole number from `min` to the largest `u32`.
pub(super) fn count(text: &str, min: u32) -> Read<u32> {
    let number = integer(text, min.into(), u32::MAX.into())?;
    Ok(u32::try_from(number).expect("the range was just checked"))
}

/// Reads a percentage from 0 to 100, with or without the sign.
pub(super) fn percent(text: &str) -> Read<u8> {
    let digits = text.strip_suffix('%').unwrap_or(text);
    let number = integer(digits, 0, 100)?;
    Ok(u8::try_from(number).expect("the range was just checked"))
}

/// Reads a boolean; a key without a value is true.
pub(super) fn boolean(text: &str) -> Read<bool> {
    match text {
        "" | "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(ValueError::Choice("0, 1")),
    }
}

/// Reads a number of bytes with fio's suffixes under its default `kb_base=1024`.
pub(super) fn bytes(text: &str) -> Read<u64> {
    let (number, suffix) = split_number(text)?;
    let factor = size_factor(suffix).ok_or_else(|| ValueError::SizeUnit(suffix.to_owned()))?;
    number.checked_mul(factor).ok_or(ValueError::TooLarge)
}

/// Says whether the text ends in `kib` or the like, which fio takes as a power of *ten*.
///
/// The inversion is documented: with `kb_base=1024` prefixes keep the meaning that they had before
/// IEC 80000-13, and the IEC ones fill the other role.
pub(super) fn has_decimal_suffix(text: &str) -> bool {
    let parts = text.split([',', ':', '/']);
    parts.filter_map(|part| split_number(part).ok()).any(|(_, suffix)| {
        let suffix = suffix.to_ascii_lowercase();
        suffix.ends_with("ib") && size_factor(&suffix).is_some()
    })
}

fn size_factor(suffix: &str) -> Option<u64> {
    let suffix = suffix.to_ascii_lowercase();
    let Some(prefix) = suffix.chars().next() else { return Some(1) };
    if suffix == "b" {
        return Some(1);
    }
    let power = u32::try_from("kmgtp".find(prefix)?).expect("five prefixes") + 1;
    match &suffix[1..] {
        "" | "b" | "i" => Some(1024_u64.pow(power)),
        "ib" => Some(1000_u64.pow(power)),
        _ => None,
    }
}

/// Splits `0x10k` or `10k` into the number and what follows it.
fn split_number(text: &str) -> Read<(u64, &str)> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None => (text, 10),
    };
    let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    if end == 0 || digits[end..].starts_with('.') {
        return Err(ValueError::NotANumber);
    }
    let number = u64::from_str_radix(&digits[..end], radix).map_err(|_| ValueError::TooLarge)?;
    Ok((number, &digits[end..]))
}

/// Reads a number of bytes, or a percentage from 1 to 100.
pub(super) fn size(text: &str) -> Read<Size> {
    match text.strip_suffix('%') {
        Some(digits) => {
            let number = integer(digits, 1, 100)?;
            Ok(Size::Percent(u8::try_from(number).expect("the range was just checked")))
        }
        None => bytes(text).map(Size::Bytes),
    }
}

/// Reads a time in seconds unless it has a unit.
pub(super) fn seconds(text: &str) -> Read<Duration> {
    time(text, 1_000_000)
}

/// Reads a time in microseconds unless it has a unit.
pub(super) fn microseconds(text: &str) -> Read<Duration> {
    time(text, 1)
}

fn time(text: &str, default_micros: u64) -> Read<Duration> {
    let (number, suffix) = split_number(text)?;
    let factor = match suffix.to_ascii_lowercase().as_str() {
        "" => default_micros,
        "us" | "usec" => 1,
        "ms" | "msec" => 1_000,
        "s" | "sec" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return Err(ValueError::TimeUnit(suffix.to_owned())),
    };
    number.checked_mul(factor).map(Duration::from_micros).ok_or(ValueError::TooLarge)
}

/// Reads `a`, `a,b` or `a,b,c` for reads, writes and trims.
///
/// One value holds for all, the second for writes and trims; a blank one leaves what was there.
pub(super) fn per_direction<T: Clone>(
    text: &str,
    target: &mut PerDirection<T>,
    read: impl Fn(&str) -> Read<T>,
) -> Read<()> {
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    if parts.len() > 3 {
        return Err(ValueError::Form("at most three values: read,write,trim"));
    }
    if parts.iter().all(|part| part.is_empty()) {
        return Err(ValueError::NotANumber);
    }
    for (index, direction) in Direction::ALL.into_iter().enumerate() {
        let part = parts[index.min(parts.len() - 1)];
        if !part.is_empty() {
            *target.get_mut(direction) = read(part)?;
        }
    }
    Ok(())
}

/// Reads one block size.
pub(super) fn block_size(text: &str) -> Read<BlockSizes> {
    if text.contains('-') {
        return Err(ValueError::NotSupported("a range of block sizes"));
    }
    one_block(text).map(BlockSizes::fixed)
}

fn one_block(text: &str) -> Read<u32> {
    count(text, 1)
}

/// Reads `4k/60:64k/40`; sizes without a percentage share what is left.
pub(super) fn block_split(text: &str) -> Read<BlockSizes> {
    let parts: Vec<(u32, Option<u8>)> = text.split(':').map(block_share).collect::<Read<_>>()?;
    let given: u32 = parts.iter().filter_map(|(_, percent)| *percent).map(u32::from).sum();
    let blanks = parts.iter().filter(|(_, percent)| percent.is_none()).count();
    let each = f64::from(100_u32.saturating_sub(given)) / blanks.max(1) as f64;
    let share = |(bytes, percent): (u32, Option<u8>)| BlockShare {
        bytes,
        percent: percent.map_or(each, f64::from),
    };
    BlockSizes::split(parts.into_iter().map(share).collect())
        .ok_or(ValueError::Form("SIZE/PERCENT:SIZE/PERCENT"))
}

fn block_share(text: &str) -> Read<(u32, Option<u8>)> {
    let (bytes, share) = text.split_once('/').unwrap_or((text, ""));
    let share = if share.is_empty() { None } else { Some(percent(share)?) };
    Ok((one_block(bytes)?, share))
}

/// Reads the name of a workload.
pub(super) fn workload(text: &str) -> Read<Workload> {
    if text.contains(':') {
        return Err(ValueError::NotSupported("an offset modifier behind ':'"));
    }
    let name = if text == "readwrite" { "rw" } else { text };
    let named = Workload::NAMES.iter().find(|(known, _)| *known == name);
    named.map(|(_, workload)| *workload).ok_or(ValueError::Choice(
        "read, write, randread, randwrite, rw, readwrite, randrw, trim, randtrim",
    ))
}

/// fio's exponent where `zipf` comes without one.
const DEFAULT_THETA: f64 = 1.1;
/// fio's share where `pareto` comes without one.
const DEFAULT_PARETO: f64 = 0.2;

/// Reads `random`, `zipf[:THETA]` or `pareto[:H]`.
pub(super) fn distribution(text: &str) -> Read<Distribution> {
    let (name, parameter) = text.split_once(':').unwrap_or((text, ""));
    match name {
        "random" => Ok(Distribution::Random),
        "zipf" => zipf(parameter_or(parameter, DEFAULT_THETA)?),
        "pareto" => pareto(parameter_or(parameter, DEFAULT_PARETO)?),
        "normal" | "zoned" | "zoned_abs" => Err(ValueError::NotSupported("this distribution")),
        _ => Err(ValueError::Choice("random, zipf:THETA, pareto:H")),
    }
}

fn parameter_or(text: &str, default: f64) -> Read<f64> {
    match text {
        "" => Ok(default),
        base if base.contains(':') => Err(ValueError::NotSupported("a base for the distribution")),
        number => real(number),
    }
}

fn zipf(theta: f64) -> Read<Distribution> {
    // fio refuses 1 too, where the closed forms of the distribution divide by zero.
    if theta > 0.0 && theta <= 16.0 && (theta - 1.0).abs() > 1e-9 {
        return Ok(Distribution::Zipf { theta });
    }
    Err(ValueError::Form("a theta above 0, up to 16 and other than 1"))
}

fn pareto(h: f64) -> Read<Distribution> {
    if h > 0.0 && h < 1.0 {
        return Ok(Distribution::Pareto { h });
    }
    Err(ValueError::Form("a share between 0 and 1"))
}

fn real(text: &str) -> Read<f64> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
    number.ok_or(ValueError::Form("a number"))
}

/// Reads the name of a check.
pub(super) fn verify(text: &str) -> Read<Verify> {
    match text {
        "0" | "none" => Ok(Verify::None),
        "crc32c" | "crc32c-intel" => Ok(Verify::Crc32c),
        _ => Err(ValueError::Choice("crc32c, 0")),
    }
}

/// The longest list of percentiles, as in fio.
const PERCENTILES_MAX: usize = 20;

/// Reads `99:99.9`, each above 0 and up to 100; sorts them.
pub(super) fn percentiles(text: &str) -> Read<Vec<f64>> {
    let mut list: Vec<f64> = text.split(':').map(real).collect::<Read<_>>()?;
    if list.len() > PERCENTILES_MAX || list.iter().any(|p| *p <= 0.0 || *p > 100.0) {
        return Err(ValueError::Form("up to 20 numbers above 0 and up to 100, as in 50:99:99.9"));
    }
    list.sort_by(f64::total_cmp);
    Ok(list)
}

/// The most CPUs that a list may name: the kernel's largest `CONFIG_NR_CPUS`.
const CPUS_MAX: u64 = 8192;

/// Reads `0,5,8-15`.
pub(super) fn cpus(text: &str) -> Read<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (cpu(first)?, cpu(last)?);
        if last < first {
            return Err(ValueError::Form("a range that ascends, as in 0,5,8-15"));
        }
        cpus.extend(first..=last);
    }
    Ok(cpus)
}

fn cpu(text: &str) -> Read<usize> {
    let number = integer(text, 0, CPUS_MAX - 1)?;
    Ok(usize::try_from(number).expect("the range was just checked"))
}

#[cfg(test)]
mod tests;
