//! The configuration space of the controller as a PCI function, for hosts that look for one before they drive it.
//!
//! [`ConfigSpace`] is bytes and the bits of them that a host may write. Most of what is written does nothing; a function
//! level reset is told to the session. Invariant: offsets and lengths are checked here, once.
#![forbid(unsafe_code)]

use super::BAR4_BYTES;

/// The length: that of a PCI Express function. The extended part is empty.
pub(super) const CONFIG_BYTES: usize = 4096;

/// Where the capabilities are.
const POWER_MANAGEMENT: usize = 0x40;
const EXPRESS: usize = 0x50;
const MSIX: usize = 0x90;

/// The device control register, and its bit that resets the function (PCI Express 3.0, 7.8.4).
const DEVICE_CONTROL: usize = EXPRESS + 8;
const FUNCTION_LEVEL_RESET: u8 = 1 << 7;

/// Where the pending bits of MSI-X are in BAR 4: behind the table, in a page of their own.
const PENDING: u32 = BAR4_BYTES as u32 / 2;

/// What a write asks for beside being kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Nothing,
    /// A function level reset.
    Reset,
}

/// The configuration space.
pub(super) struct ConfigSpace {
    bytes: Box<[u8; CONFIG_BYTES]>,
    writable: Box<[u8; CONFIG_BYTES]>,
}

impl ConfigSpace {
    /// Makes that of a controller with registers of a length and a number of interrupt vectors.
    pub(super) fn new(register_bytes: u64, vectors: u16) -> Self {
        let (bytes, writable) = (Box::new([0; CONFIG_BYTES]), Box::new([0; CONFIG_BYTES]));
        let mut space = Self { bytes, writable };
        space.header(register_bytes);
        space.power_management();
        space.express();
        space.msix(vectors);
        space
    }

    fn header(&mut self, register_bytes: u64) {
        // That of a controller that QEMU emulates: no vendor of ours has a number, and drivers go by the class.
        self.set16(0x00, 0x1b36);
        self.set16(0x02, 0x0010);
        // Memory, bus master, parity, SERR#, no INTx.
        self.allow(0x04, &[0x46, 0x05]);
        // Status: there are capabilities.
        self.set16(0x06, 1 << 4);
        // Revision 2, an NVM Express I/O controller.
        self.set(0x08, &[0x02, 0x02, 0x08, 0x01]);
        self.allow(0x0c, &[0xff, 0xff]);
        // Memory, 32 bits; the low bits that cannot be written say how long they are.
        self.allow_bar(0, register_bytes);
        self.allow_bar(4, BAR4_BYTES);
        self.set16(0x2c, 0x1af4);
        self.set16(0x2e, 0x1100);
        self.set(0x34, &[POWER_MANAGEMENT as u8]);
        // An interrupt line may be noted. There is no pin: interrupts are MSI-X.
        self.allow(0x3c, &[0xff]);
    }

    fn power_management(&mut self) {
        // Version 3; D3hot keeps what the function knows.
        self.set(POWER_MANAGEMENT, &[0x01, EXPRESS as u8, 0x03, 0x00, 0x08, 0x00]);
        self.allow(POWER_MANAGEMENT + 4, &[0x03]);
    }

    fn express(&mut self) {
        // Version 2, an endpoint.
        self.set(EXPRESS, &[0x10, MSIX as u8, 0x02, 0x00]);
        // Payloads of 128 bytes, errors by role (bit 15), function level reset (bit 28).
        self.set(EXPRESS + 4, &(1_u32 << 15 | 1 << 28).to_le_bytes());
        self.allow(DEVICE_CONTROL, &[0xff, 0x7f]);
        // A link of one lane at 2.5 GT/s, up as it can be.
        self.set(EXPRESS + 0x0c, &0x0000_0011_u32.to_le_bytes());
        self.set16(EXPRESS + 0x12, 0x0011);
        // Completion timeouts can be disabled.
        self.set(EXPRESS + 0x24, &(1_u32 << 4).to_le_bytes());
        self.allow(EXPRESS + 0x28, &[0x1f]);
    }

    fn msix(&mut self, vectors: u16) {
        self.set(MSIX, &[0x11, 0x00]);
        self.set16(MSIX + 2, (vectors - 1) & 0x7ff);
        self.set(MSIX + 4, &4_u32.to_le_bytes());
        self.set(MSIX + 8, &(PENDING | 4).to_le_bytes());
        // Enable, and the mask for all.
        self.allow(MSIX + 3, &[0xc0]);
    }

    /// Reads bytes; `None` if they do not lie within.
    pub(super) fn read(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let at = usize::try_from(offset).ok()?;
        self.bytes.get(at..at.checked_add(len)?)
    }

    /// Writes what may be written of some bytes; `None` if they do not lie within.
    pub(super) fn write(&mut self, offset: u64, from: &[u8]) -> Option<Asked> {
        let at = usize::try_from(offset).ok()?;
        let places = at..at.checked_add(from.len())?;
        let allowed = self.writable.get(places.clone())?;
        for ((byte, allowed), new) in self.bytes[places.clone()].iter_mut().zip(allowed).zip(from) {
            *byte = *byte & !allowed | new & allowed;
        }
        let control = DEVICE_CONTROL + 1;
        let resets = places.contains(&control) && from[control - at] & FUNCTION_LEVEL_RESET != 0;
        Some(if resets { Asked::Reset } else { Asked::Nothing })
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn set16(&mut self, at: usize, value: u16) {
        self.set(at, &value.to_le_bytes());
    }

    fn allow(&mut self, at: usize, bits: &[u8]) {
        self.writable[at..at + bits.len()].copy_from_slice(bits);
    }

    fn allow_bar(&mut self, index: usize, len: u64) {
        let len = u32::try_from(len).expect("registers are shorter than 4 GiB");
        self.allow(0x10 + 4 * index, &(!(len.next_power_of_two() - 1)).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(0x4000, 65)
    }

    fn word(space: &ConfigSpace, at: u64) -> u32 {
        u32::from_le_bytes(space.read(at, 4).unwrap().try_into().unwrap())
    }

    #[test]
    fn a_walk_over_the_capabilities_finds_all_and_ends() {
        let space = space();
        assert_eq!(word(&space, 8) >> 8, 0x01_08_02);
        let mut at = u64::from(space.read(0x34, 1).unwrap()[0]);
        let mut found = Vec::new();
        while at != 0 {
            found.push(space.read(at, 1).unwrap()[0]);
            at = space.read(at + 1, 1).unwrap()[0].into();
        }
        assert_eq!(found, [0x01, 0x10, 0x11]);
        assert_eq!(word(&space, MSIX as u64) >> 16, 64, "vectors, less one");
        assert_eq!(word(&space, 0x100), 0, "no extended capabilities");
    }

    #[test]
    fn a_bar_that_is_written_with_ones_says_how_long_it_is() {
        let mut space = space();
        for (bar, expected) in [(0, 0xffff_c000), (1, 0), (4, !(BAR4_BYTES as u32 - 1)), (5, 0)] {
            let at = 0x10 + 4 * bar;
            assert_eq!(space.write(at, &[0xff; 4]), Some(Asked::Nothing));
            assert_eq!(word(&space, at), expected, "BAR {bar}");
        }
    }

    #[test]
    fn only_what_may_be_written_is() {
        let mut space = space();
        let before = word(&space, 0);
        space.write(0, &[0xff; 8]).unwrap();
        assert_eq!((word(&space, 0), word(&space, 4)), (before, 0x0010_0546));
    }

    #[test]
    fn a_function_level_reset_is_told_and_not_kept() {
        let mut space = space();
        let at = DEVICE_CONTROL as u64;
        assert_eq!(space.write(at, &[0x00, 0x80]), Some(Asked::Reset));
        assert_eq!(space.write(at + 1, &[0x80]), Some(Asked::Reset));
        assert_eq!(space.write(at, &[0x80]), Some(Asked::Nothing));
        assert_eq!(space.read(at, 2), Some([0x80, 0x00].as_slice()));
    }

    #[test]
    fn what_does_not_lie_within_is_refused() {
        let mut space = space();
        assert!(space.read(4092, 4).is_some());
        for (at, len) in [(4093, 4), (4096, 1), (u64::MAX, 1), (0, 5000)] {
            assert_eq!(space.read(at, len), None);
            assert_eq!(space.write(at, &vec![0; len]), None);
        }
    }
}
