//! A record as nvme-cli shows it: a key and a value to a line, or one JSON object.
//!
//! [`Field`] pairs a key with a [`Value`] that knows both its spellings. `identify.rs` lists the
//! fields of a structure once; text and JSON cannot differ in what they show.
#![forbid(unsafe_code)]

use core::fmt;

use serde_json::{Map, json};

use crate::bench::human::{Amount, Percent};

/// One line of a record.
pub(super) struct Field {
    key: &'static str,
    value: Value,
}

/// A value and how it is spelt.
pub(super) enum Value {
    /// A number, in decimal.
    Number(u128),
    /// Flags or an identifier: hexadecimal for people, a number in JSON.
    Hex(u128),
    /// The three bytes of an OUI: six digits for people, a number in JSON.
    Oui(u32),
    /// An amount of data: exact and as people read it, a number in JSON.
    Bytes(u64),
    /// A share, as a percentage for people, from 0 to 1 in JSON.
    Share(f64),
    /// Text.
    Text(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // As C's `%#x` has it, which leaves zero bare.
            Self::Number(number) | Self::Hex(number @ 0) => write!(f, "{number}"),
            Self::Hex(number) => write!(f, "{number:#x}"),
            Self::Oui(number) => write!(f, "{number:06x}"),
            Self::Bytes(bytes) if *bytes < 1024 => write!(f, "{bytes}"),
            Self::Bytes(bytes) => write!(f, "{bytes} ({})", Amount(*bytes)),
            Self::Share(share) => write!(f, "{}", Percent(share * 100.0)),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl Value {
    fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Number(number) | Self::Hex(number) => json!(number),
            Self::Oui(number) => json!(number),
            Self::Bytes(bytes) => json!(bytes),
            Self::Share(share) => json!(share),
            Self::Text(text) => json!(text),
        }
    }
}

/// Makes a field with a number.
pub(super) fn number(key: &'static str, number: impl Into<u128>) -> Field {
    Field { key, value: Value::Number(number.into()) }
}

/// Makes a field with flags or an identifier.
pub(super) fn hex(key: &'static str, number: impl Into<u128>) -> Field {
    Field { key, value: Value::Hex(number.into()) }
}

/// Makes a field with an OUI, whose least byte travels first.
pub(super) fn oui(key: &'static str, [low, middle, high]: [u8; 3]) -> Field {
    Field { key, value: Value::Oui(u32::from_be_bytes([0, high, middle, low])) }
}

/// Makes a field with an amount of data.
pub(super) fn bytes(key: &'static str, bytes: u64) -> Field {
    Field { key, value: Value::Bytes(bytes) }
}

/// Makes a field with a share from 0 to 1.
pub(super) fn share(key: &'static str, share: f64) -> Field {
    Field { key, value: Value::Share(share) }
}

/// Makes a field with text.
pub(super) fn text(key: &'static str, text: impl Into<String>) -> Field {
    Field { key, value: Value::Text(text.into()) }
}

/// Writes a line for each field, keys padded to `width`.
pub(super) fn lines(fields: &[Field], width: usize) -> String {
    let line = |Field { key, value }: &Field| format!("{key:<width$}: {value}\n");
    fields.iter().map(line).collect()
}

/// Makes an object of the fields.
pub(super) fn object(fields: &[Field]) -> Map<String, serde_json::Value> {
    fields.iter().map(|field| (field.key.to_owned(), field.value.to_json())).collect()
}

/// Writes JSON as it is printed.
pub(super) fn pretty(value: &serde_json::Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> [Field; 4] {
        [
            hex("vid", 0x1b36_u16),
            hex("oaes", 0_u32),
            oui("ieee", [0x00, 0x54, 0x52]),
            text("sn", "S1"),
        ]
    }

    #[test]
    fn people_read_hexadecimal_with_a_bare_zero() {
        let expected = "vid       : 0x1b36\noaes      : 0\nieee      : 525400\nsn        : S1\n";
        assert_eq!(lines(&sample(), 10), expected);
    }

    #[test]
    fn programs_read_numbers() {
        let object = serde_json::Value::from(object(&sample()));
        assert_eq!(object, json!({"vid": 6966, "oaes": 0, "ieee": 5_395_456, "sn": "S1"}));
    }

    #[test]
    fn amounts_are_exact_and_readable() {
        let fields = [bytes("size", 5000), bytes("free", 7), share("full", 0.25)];
        assert_eq!(lines(&fields, 4), "size: 5000 (4.88 KiB)\nfree: 7\nfull: 25.0 %\n");
        let object = serde_json::Value::from(object(&fields));
        assert_eq!(object, json!({"size": 5000, "free": 7, "full": 0.25}));
    }

    #[test]
    fn numbers_of_128_bits_lose_nothing() {
        let fields = [number("tnvmcap", u128::MAX)];
        let text = serde_json::Value::from(object(&fields)).to_string();
        assert_eq!(text, r#"{"tnvmcap":340282366920938463463374607431768211455}"#);
    }
}
