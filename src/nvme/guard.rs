//! Tuples of protection information as the driver makes and checks them.
//!
//! A tuple is eight bytes, most significant first: guard, application tag, reference tag (NVM 5.2.1.1). The guard
//! is the CRC of T10-DIF over the data of a block and the metadata before the tuple, computed here eight bytes at
//! a time.
#![forbid(unsafe_code)]

/// Bytes of a tuple with a guard of 16 bits.
pub(super) const TUPLE_BYTES: usize = 8;

/// The generator polynomial, without its highest term.
const POLYNOMIAL: u16 = 0x8bb7;

/// Bytes that one step takes in.
const STRIDE: usize = 8;

/// `TABLES[n][b]` is the CRC of byte `b` with `n` zero bytes after it.
static TABLES: [[u16; 256]; STRIDE] = {
    let mut tables = [[0; 256]; STRIDE];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc << 1) ^ ((crc >> 15) * POLYNOMIAL);
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut zeroes = 1;
    while zeroes < STRIDE {
        let mut byte = 0;
        while byte < 256 {
            let crc = tables[zeroes - 1][byte];
            tables[zeroes][byte] = crc << 8 ^ tables[0][(crc >> 8) as usize];
            byte += 1;
        }
        zeroes += 1;
    }
    tables
};

/// Continues a guard over more bytes; it begins with 0.
pub(super) fn guard(mut crc: u16, bytes: &[u8]) -> u16 {
    let (strides, rest) = bytes.as_chunks::<STRIDE>();
    for stride in strides {
        let [high, low] = crc.to_be_bytes();
        let first =
            TABLES[7][usize::from(stride[0] ^ high)] ^ TABLES[6][usize::from(stride[1] ^ low)];
        let others = stride[2..].iter().zip(TABLES[..6].iter().rev());
        crc = others.fold(first, |crc, (byte, table)| crc ^ table[usize::from(*byte)]);
    }
    rest.iter().fold(crc, |crc, byte| crc << 8 ^ TABLES[0][usize::from((crc >> 8) as u8 ^ byte)])
}

/// One tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tuple {
    pub(super) guard: u16,
    pub(super) application: u16,
    pub(super) reference: u32,
}

impl Tuple {
    /// Returns the tuple as it lies in metadata.
    pub(super) fn to_bytes(self) -> [u8; TUPLE_BYTES] {
        let high = u64::from(self.guard) << 48 | u64::from(self.application) << 32;
        (high | u64::from(self.reference)).to_be_bytes()
    }

    /// Reads a tuple.
    pub(super) fn from_bytes(bytes: [u8; TUPLE_BYTES]) -> Self {
        let word = u64::from_be_bytes(bytes);
        let (guard, application) = ((word >> 48) as u16, (word >> 32) as u16);
        Self { guard, application, reference: word as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    /// Long division of the bits, as the polynomial is defined.
    fn by_division(bytes: &[u8]) -> u16 {
        let bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 != 0));
        bits.fold(0, |crc, bit| {
            let carry = (crc & 0x8000 != 0) != bit;
            if carry { crc << 1 ^ POLYNOMIAL } else { crc << 1 }
        })
    }

    #[test]
    fn guards_are_the_crc_of_t10_dif_whatever_the_cuts() {
        assert_eq!(guard(0, b"123456789"), 0xd0db, "the check value of the catalogues");
        let mut seed = Seed::from_env("guards");
        for _ in 0..500 {
            let bytes: Vec<u8> = (0..seed.below(600)).map(|_| seed.below(256) as u8).collect();
            let cut = seed.below(bytes.len() as u64 + 1) as usize;
            let expected = by_division(&bytes);
            assert_eq!(guard(0, &bytes), expected);
            assert_eq!(guard(guard(0, &bytes[..cut]), &bytes[cut..]), expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_tuple_is_big_endian() {
        let tuple = Tuple { guard: 0x0102, application: 0x0304, reference: 0x0506_0708 };
        assert_eq!(tuple.to_bytes(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(Tuple::from_bytes(tuple.to_bytes()), tuple);
    }
}
