//! The number that tells one store from every other.
#![forbid(unsafe_code)]

use core::fmt;
use std::str::FromStr;

/// A universally unique identifier, version 4 (RFC 9562, 5.4): random bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// Makes a new one.
    pub fn random() -> Self {
        Self::from_random(fastrand::u128(..))
    }

    /// Makes one of 128 random bits, of which six say that they are random.
    pub fn from_random(bits: u128) -> Self {
        let mut bytes = bits.to_be_bytes();
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl FromStr for Uuid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let parsed = u128::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 32);
        let bits = parsed.ok_or_else(|| format!("{text:?} is not a UUID"))?;
        Ok(Self(bits.to_be_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_reads_as_it_is_written() {
        let uuid = Uuid::from_random(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);
        let text = uuid.to_string();
        assert_eq!(text, "01234567-89ab-4def-8123-456789abcdef");
        assert_eq!(text.parse(), Ok(uuid));
        assert!("0123".parse::<Uuid>().is_err());
    }
}
