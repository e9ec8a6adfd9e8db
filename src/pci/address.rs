//! The address of one PCI function: domain, bus, device, function.
#![forbid(unsafe_code)]

use core::fmt;
use core::str::FromStr;

/// The address of one PCI function, written `0000:04:00.0`.
///
/// ```
/// use udirect::pci::PciAddress;
///
/// let address: PciAddress = "04:00.0".parse()?;
/// assert_eq!(address.to_string(), "0000:04:00.0");
/// # Ok::<(), udirect::pci::NotAnAddress>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// The domain: 16 bits on most machines, 32 behind some bridges (VMD).
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The device, 0 to 31.
    pub device: u8,
    /// The function, 0 to 7.
    pub function: u8,
}

/// A text that is no PCI address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a PCI address: write DOMAIN:BUS:DEVICE.FUNCTION in hexadecimal, as in 0000:04:00.0"
)]
pub struct NotAnAddress(pub String);

impl FromStr for PciAddress {
    type Err = NotAnAddress;

    /// Reads `DDDD:BB:DD.F`, or `BB:DD.F` in domain 0.
    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        parse(text).ok_or_else(|| NotAnAddress(text.into()))
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
    let address = PciAddress {
        domain: hex(domain, 8)?,
        bus: hex(bus, 2)?.try_into().ok()?,
        device: hex(device, 2)?.try_into().ok()?,
        function: hex(function, 1)?.try_into().ok()?,
    };
    (address.device < 32 && address.function < 8).then_some(address)
}

/// Reads 1 to `most` digits. The standard library also takes a sign.
fn hex(text: &str, most: usize) -> Option<u32> {
    let is_short = (1..=most).contains(&text.len());
    let is_hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_short && is_hex).then(|| u32::from_str_radix(text, 16).ok())?
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_one_is_written() {
        for text in ["0000:04:00.0", "04:00.0", "0:4:0.0"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), "0000:04:00.0");
        }
        let vmd: PciAddress = "10000:E1:1f.7".parse().unwrap();
        assert_eq!((vmd.domain, vmd.bus, vmd.device, vmd.function), (0x10000, 0xe1, 0x1f, 7));
        assert_eq!(vmd.to_string(), "10000:e1:1f.7");
    }

    #[test]
    fn what_is_no_address_is_named() {
        for text in
            ["", "nvme0", "04:00", "0000:04:20.0", "0000:04:00.8", "0000:+4:00.0", "0000:104:00.0"]
        {
            let error = text.parse::<PciAddress>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text:?} is not a PCI address: write")), "{error}");
        }
    }
}
