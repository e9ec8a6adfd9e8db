//! From an address to a device: `mem:`, `null:`, `file:`, `pcie:`, `vfio-user:`, `spdk:`.
//!
//! An address is a scheme, a target and options: `mem:64MiB?lba=512&thread`. The first three schemes are namespaces of
//! the embedded software controller, driven by the real driver; `pcie:` is a controller behind vfio-pci and `vfio-user:` one
//! in another process (a file each, `driven` is what they share); `spdk:` is a block device of SPDK's.
#![forbid(unsafe_code)]

mod driven;
mod pcie;
mod spdk;
mod vfio_user;

use core::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::block::{BlockDevice, BlockError, ErrorKind};
use crate::dma::{Domain, DomainOptions};
use crate::nvme::{self, Controller, MetadataUse};
use crate::soft::{
    self, Execution, MediaOptions, MetadataOptions, NamespaceOptions, ProtectionOptions, SoftError,
};
use crate::transport::vfio::VfioError;
use crate::transport::vfio_user::VfioUserError;
use crate::units::{LbaSize, NamespaceId};

/// A device that was opened.
pub struct Opened {
    /// The namespace.
    pub device: Arc<dyn BlockDevice>,
    /// The controller that it belongs to, where our driver drives one.
    controller: Option<Arc<Controller>>,
    /// Its number there.
    pub namespace: NamespaceId,
    /// The image that opening it has made.
    made: Option<PathBuf>,
}

impl Opened {
    /// Returns the controller of the device, to ask it what no block device is asked.
    ///
    /// # Errors
    ///
    /// `NoController` where somebody else drives it.
    pub fn controller(&self) -> Result<&Arc<Controller>, OpenError> {
        let address = || self.device.info().address.clone();
        self.controller.as_ref().ok_or_else(|| OpenError::NoController { address: address() })
    }

    /// Closes a device that was not used after all, and takes an image away that opening it has made.
    pub fn discard(self) {
        let made = self.made.clone();
        drop(self);
        if let Some(path) = made {
            // An empty image that stays does no harm.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Opens the device at an address.
///
/// ```
/// let opened = udirect::open::open("mem:64MiB?lba=512")?;
/// assert_eq!(opened.device.geometry().blocks.0, 131_072);
/// # Ok::<(), udirect::open::OpenError>(())
/// ```
///
/// # Errors
///
/// See [`OpenError`]; nothing stays open or locked then.
pub fn open(address: &str) -> Result<Opened, OpenError> {
    match address.split_once(':') {
        Some(("pcie", rest)) => pcie::open(address, rest),
        Some(("vfio-user", rest)) => vfio_user::open(address, rest),
        Some(("spdk", rest)) => spdk::open(address, rest),
        _ => open_embedded(address),
    }
}

/// Returns what the embedded controller at an address is made of, for those who offer it to others and do not drive it.
///
/// ```
/// let options = udirect::open::embedded("mem:64MiB?queues=8")?;
/// assert_eq!(options.max_queues, 8);
/// assert!(udirect::open::embedded("mem:64MiB?ns=1").is_err());
/// # Ok::<(), udirect::open::OpenError>(())
/// ```
///
/// # Errors
///
/// When it is no address of an embedded controller, or says something to the driver.
pub fn embedded(address: &str) -> Result<soft::Options, OpenError> {
    let problem = |problem| OpenError::Address { address: address.into(), problem };
    if let Some((scheme @ ("pcie" | "vfio-user"), _)) = address.split_once(':') {
        return Err(problem(format!("{scheme}: is no embedded controller: name mem: file: null:")));
    }
    let (_, query) = address.split_once('?').unwrap_or((address, ""));
    let said = driven::pairs(query).find(|(key, _)| DRIVER_KEYS.contains(key));
    if let Some((key, _)) = said {
        return Err(problem(format!("{key}= is for whoever drives the controller")));
    }
    Address::parse(address).map(|parsed| parsed.options)
}

fn open_embedded(address: &str) -> Result<Opened, OpenError> {
    let parsed = Address::parse(address)?;
    let failed = |source| OpenError::Device { address: address.into(), source };
    let made = parsed.image().filter(|path| !path.exists());
    let controller = soft::Controller::new(parsed.options)
        .map_err(|source| OpenError::Embedded { address: address.into(), source })?;
    let domain = Domain::new(DomainOptions::default());
    let transport = controller.transport();
    let controller = nvme::connect(&transport, &domain, parsed.driver).map_err(failed)?;
    let namespace = parsed.namespace;
    let device = Arc::new(controller.namespace(namespace, address).map_err(failed)?);
    Ok(Opened { device, controller: Some(controller), namespace, made })
}

/// Splits the name of an object, `ADDRESS!OBJECT`, into the address of its device and its name there; without a `!` it
/// is all address.
///
/// ```
/// use udirect::open::split_object;
///
/// assert_eq!(split_object("file:disk.img?lba=512!log"), ("file:disk.img?lba=512", Some("log")));
/// assert_eq!(split_object("mem:1GiB"), ("mem:1GiB", None));
/// ```
pub fn split_object(text: &str) -> (&str, Option<&str>) {
    // The first: names may hold another one.
    text.split_once('!').map_or((text, None), |(address, object)| (address, Some(object)))
}

/// Returns the forms of addresses, with a line about each.
pub fn schemes() -> &'static [(&'static str, &'static str)] {
    &[
        ("mem:SIZE[?OPTIONS]", "memory behind the embedded controller; gone afterwards"),
        ("file:PATH[?size=SIZE&OPTIONS]", "a sparse file behind the embedded controller"),
        ("null:[SIZE][?OPTIONS]", "answers at once and moves no data; 1TiB by default"),
        ("pcie:DOMAIN:BUS:DEVICE.FUNCTION[/NAMESPACE][?OPTIONS]", "a drive behind vfio-pci"),
        (
            "vfio-user:PATH[?ns=NAMESPACE&OPTIONS]",
            "a controller in another process, behind its socket",
        ),
        ("spdk:NAME[?malloc=SIZE|null=SIZE&OPTIONS]", "a block device of an installed SPDK"),
        ("spdk:trtype:TYPE traddr:ADDRESS [...]", "a controller that SPDK's driver attaches to"),
    ]
}

/// Why an address could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The address does not say what it should.
    #[error("{address}: {problem}")]
    Address {
        /// The address.
        address: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The embedded controller cannot be made as asked.
    #[error("{address}")]
    Embedded {
        /// The address.
        address: String,
        /// Why.
        source: SoftError,
    },
    /// What was asked for is a controller's to answer, and none is in our hands.
    #[error(
        "{address}: it is not our driver that drives this device, so there is no controller to ask"
    )]
    NoController {
        /// The address.
        address: String,
    },
    /// The controller cannot be reached.
    #[error(transparent)]
    Vfio(VfioError),
    /// The target in another process cannot be reached.
    #[error(transparent)]
    VfioUser(VfioUserError),
    /// The device failed, or is not as asked.
    #[error("{address}")]
    Device {
        /// The address.
        address: String,
        /// How.
        source: BlockError,
    },
}

impl OpenError {
    /// Says whether the request was wrong, and not the device: what was asked of it can never be.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Address { .. } | Self::Embedded { .. } | Self::NoController { .. } => true,
            Self::Vfio(error) => !matches!(error, VfioError::Kernel { .. }),
            Self::VfioUser(error) => error.is_usage(),
            // What was asked for is not there; or there is too little memory for it.
            Self::Device { source, .. } => matches!(
                source.kind(),
                ErrorKind::NotFound
                    | ErrorKind::Invalid
                    | ErrorKind::Unsupported
                    | ErrorKind::NoSpace
            ),
        }
    }
}

/// The capacity of `null:` when none is given: 1 TiB.
const NULL_BYTES: u64 = 1 << 40;

/// An address, taken apart and checked.
struct Address {
    options: soft::Options,
    namespace: NamespaceId,
    driver: nvme::Options,
}

impl Address {
    fn parse(text: &str) -> Result<Self, OpenError> {
        Self::try_parse(text)
            .map_err(|problem| OpenError::Address { address: text.into(), problem })
    }

    /// Returns where the image of `file:` is.
    fn image(&self) -> Option<PathBuf> {
        self.options.namespaces.iter().find_map(|namespace| match &namespace.media {
            MediaOptions::File { path, .. } => Some(path.clone()),
            _ => None,
        })
    }

    fn try_parse(text: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = text.split_once(':') else {
            return Err(format!("an address begins with a scheme: {}", scheme_names()));
        };
        let (target, query) = rest.split_once('?').unwrap_or((rest, ""));
        let pairs: Vec<(&str, &str)> = driven::pairs(query).collect();
        let media = media(scheme, target, &pairs)?;
        let mut built = Built::new(media);
        for (key, value) in &pairs {
            built.set(key, value)?;
        }
        built.finish()
    }
}

fn media(scheme: &str, target: &str, pairs: &[(&str, &str)]) -> Result<MediaOptions, String> {
    let size = pairs.iter().find(|(key, _)| *key == "size").map(|(_, value)| *value);
    if size.is_some() && scheme != "file" {
        return Err(format!("size= is for file:, write {scheme}:SIZE"));
    }
    match scheme {
        "mem" if target.is_empty() => Err("mem: needs a size, as in mem:1GiB".into()),
        "mem" => Ok(MediaOptions::Ram { bytes: parse_size(target)? }),
        "null" if target.is_empty() => Ok(MediaOptions::Null { bytes: NULL_BYTES }),
        "null" => Ok(MediaOptions::Null { bytes: parse_size(target)? }),
        "file" if target.is_empty() => Err("file: needs a path, as in file:/tmp/disk.img".into()),
        "file" => {
            let bytes = size.map(parse_size).transpose()?;
            Ok(MediaOptions::File { path: PathBuf::from(target), bytes })
        }
        other => Err(format!("unknown scheme {other}:, known are {}", scheme_names())),
    }
}

fn scheme_names() -> String {
    let mut names: Vec<&str> = schemes()
        .iter()
        .map(|(form, _)| &form[..=form.find(':').expect("every form has a scheme")])
        .collect();
    names.dedup();
    names.join(" ")
}

/// A controller in the making.
struct Built {
    options: soft::Options,
    namespace: NamespaceOptions,
    count: u32,
    number: u32,
    driver: nvme::Options,
    /// What blocks have beside them: bytes, inline or not, the type of protection, at the first bytes or not.
    ms: u16,
    mset: bool,
    pi: u8,
    pil: bool,
}

/// The keys that an address may have.
const KEYS: &str = "size lba ns namespaces mdts noiob awupf sgl shadow queues entries thread vwc max_transfer \
     ms mset pi pil metadata apptag resets resends";

/// Those of them that say something to the driver, and nothing to the controller.
const DRIVER_KEYS: [&str; 4] = ["ns", "max_transfer", "metadata", "apptag"];

impl Built {
    fn new(media: MediaOptions) -> Self {
        let options = soft::Options::default();
        let driver = nvme::Options { queues: options.max_queues, ..nvme::Options::default() };
        let namespace = NamespaceOptions { media, ..NamespaceOptions::default() };
        let (ms, mset, pi, pil) = (0, false, 0, false);
        Self { options, namespace, count: 1, number: 1, driver, ms, mset, pi, pil }
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let options = &mut self.options;
        match key {
            "size" => {}
            "lba" => {
                let size = LbaSize::from_bytes(parse_size(value)?);
                self.namespace.lba_size =
                    size.ok_or(format!("lba={value} is not a power of two from 512 to 65536"))?;
            }
            "ns" => self.number = number(key, value, 1, 1024)?,
            "namespaces" => self.count = number(key, value, 1, 1024)?,
            "mdts" => options.mdts = mdts(value)?,
            "noiob" => options.noiob = number(key, value, 0, 65_535)?,
            "awupf" => options.awupf_blocks = number(key, value, 1, 65_536)?,
            "sgl" => options.sgl = boolean(key, value)?,
            "shadow" => options.shadow_doorbells = boolean(key, value)?,
            "vwc" => options.volatile_write_cache = boolean(key, value)?,
            "entries" => options.max_queue_entries = number(key, value, 2, 65_536)?,
            "queues" => {
                let count = number(key, value, 1, 4096)?;
                options.max_queues = u16::try_from(count).expect("the bound is small");
                self.driver.queues = options.max_queues;
            }
            "ms" => self.ms = small(key, value, 4096)?,
            "mset" => self.mset = boolean(key, value)?,
            "pi" => self.pi = small(key, value, 3)?,
            "pil" => self.pil = boolean(key, value)?,
            "metadata" => self.driver.metadata = metadata_use(value)?,
            "apptag" => self.driver.application_tag = application_tag(value)?,
            "resets" => self.driver.resets_max = small(key, value, 1000)?,
            "resends" => self.driver.resends_max = small(key, value, 100)?,
            "max_transfer" => self.driver.transfer_max = Some(parse_size(value)?),
            "thread" => {
                let thread = boolean(key, value)?;
                options.execution = if thread { Execution::Thread } else { Execution::Inline };
            }
            other => return Err(format!("unknown option {other}, known are {KEYS}")),
        }
        Ok(())
    }

    /// Returns what blocks have beside them.
    fn metadata(&self) -> Result<Option<MetadataOptions>, String> {
        let Self { ms, mset, pi, pil, .. } = *self;
        if ms == 0 && (pi != 0 || mset || pil) {
            return Err("pi=, mset= and pil= are about metadata: add ms=8".into());
        }
        if pi != 0 && ms < 8 {
            return Err(format!("pi={pi} takes 8 bytes of metadata, and ms={ms}"));
        }
        let protection = (pi != 0).then_some(ProtectionOptions { kind: pi, first: pil });
        Ok((ms != 0).then_some(MetadataOptions { bytes: ms, inline: mset, protection }))
    }

    fn finish(mut self) -> Result<Address, String> {
        let (number, count) = (self.number, self.count);
        if number > count {
            return Err(format!(
                "ns={number} and there are {count} (namespaces={number} makes more)"
            ));
        }
        if count > 1 && matches!(self.namespace.media, MediaOptions::File { .. }) {
            return Err(format!("namespaces={count} of one file: a file holds one"));
        }
        // The driver keeps commands to a page at least, and a block cannot be cut.
        let least = u64::from(self.namespace.lba_size.bytes()).max(4096);
        if let Some(most) = self.driver.transfer_max.filter(|most| *most < least) {
            return Err(format!(
                "max_transfer={most} is below {least}, a page and a block at least"
            ));
        }
        // Shadow doorbells live in one page, so that the stride decides how many queues there may be.
        if self.options.shadow_doorbells {
            self.options.doorbell_stride = 0;
        }
        self.namespace.metadata = self.metadata()?;
        self.options.namespaces = vec![self.namespace; count as usize];
        let namespace = NamespaceId(number);
        Ok(Address { options: self.options, namespace, driver: self.driver })
    }
}

/// Reads a number from 0 to a small one.
fn small<N: TryFrom<u32>>(key: &str, value: &str, most: u32) -> Result<N, String> {
    let parsed = number(key, value, 0, most)?;
    N::try_from(parsed).map_err(|_| format!("{key}={value} is not a number from 0 to {most}"))
}

/// Reads an application tag. All ones would turn every check off.
fn application_tag(value: &str) -> Result<u16, String> {
    small("apptag", value, 0xfffe)
}

fn metadata_use(value: &str) -> Result<MetadataUse, String> {
    match value {
        "device" => Ok(MetadataUse::Device),
        "check" => Ok(MetadataUse::Check),
        "ignore" => Ok(MetadataUse::Ignore),
        _ => Err(format!("metadata={value} is none of device, check, ignore")),
    }
}

fn mdts(value: &str) -> Result<Option<u32>, String> {
    if value == "none" {
        return Ok(None);
    }
    let bytes = parse_size(value)?;
    u32::try_from(bytes).map(Some).map_err(|_| format!("mdts={value} is 4 GiB or more"))
}

fn number(key: &str, value: &str, least: u32, most: u32) -> Result<u32, String> {
    let parsed = value.parse().ok().filter(|number| (least..=most).contains(number));
    parsed.ok_or_else(|| format!("{key}={value} is not a number from {least} to {most}"))
}

fn boolean(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "" | "1" | "on" | "yes" | "true" => Ok(true),
        "0" | "off" | "no" | "false" => Ok(false),
        _ => Err(format!("{key}={value} is neither 1 nor 0")),
    }
}

/// Reads a size: a number with an optional binary unit, `64MiB`, `8G`, `4096`.
///
/// # Errors
///
/// What is wrong with it, in words.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        "p" | "pib" => 50,
        _ => return Err(format!("{text:?} is not a size: write 4096, 64MiB, 8GiB")),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    match bytes {
        Some(0) => Err(format!("a size of {text} holds nothing")),
        Some(bytes) => Ok(bytes),
        None => Err(format!("{text:?} is not a size below 16 EiB: write 4096, 64MiB, 8GiB")),
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("info", self.device.info())
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(address: &str) -> String {
        open(address).unwrap_err().to_string()
    }

    #[test]
    fn an_address_says_what_the_device_is_like() {
        let opened = open("mem:64MiB?lba=512&mdts=128k&noiob=96&awupf=8&vwc=0").unwrap();
        let geometry = opened.device.geometry();
        assert_eq!(geometry.capacity().0, 64 << 20);
        assert_eq!(geometry.lba_size, LbaSize::B512);
        assert_eq!(geometry.max_transfer.0, 128 << 10);
        assert_eq!(geometry.optimal_boundary.map(|blocks| blocks.0), Some(96));
        assert_eq!(geometry.atomic_write.0, 8);
        assert!(!geometry.volatile_write_cache);
    }

    #[test]
    fn a_namespace_is_chosen_by_its_number() {
        let opened = open("null:1GiB?namespaces=3&ns=2").unwrap();
        assert_eq!(opened.namespace, NamespaceId(2));
        assert_eq!(opened.controller().unwrap().namespaces().len(), 3);
    }

    #[test]
    fn every_mistake_in_an_address_is_named() {
        let cases = [
            ("disk", "an address begins with a scheme: mem: file: null: pcie: vfio-user: spdk:"),
            ("nvme:0", "unknown scheme nvme:, known are mem: file: null: pcie: vfio-user: spdk:"),
            ("mem:", "mem: needs a size, as in mem:1GiB"),
            ("mem:12XB", "\"12XB\" is not a size: write 4096, 64MiB, 8GiB"),
            ("mem:0", "a size of 0 holds nothing"),
            ("mem:1GiB?size=4k", "size= is for file:, write mem:SIZE"),
            ("mem:1GiB?lba=520", "lba=520 is not a power of two from 512 to 65536"),
            ("mem:1GiB?entries=1", "entries=1 is not a number from 2 to 65536"),
            ("mem:1GiB?sgl=maybe", "sgl=maybe is neither 1 nor 0"),
            ("file:/no?namespaces=2", "namespaces=2 of one file: a file holds one"),
            (
                "mem:1GiB?max_transfer=2k",
                "max_transfer=2048 is below 4096, a page and a block at least",
            ),
            ("mem:1GiB?ns=2", "ns=2 and there are 1 (namespaces=2 makes more)"),
        ];
        for (address, expected) in cases {
            assert_eq!(problem(address), format!("{address}: {expected}"));
        }
        assert!(problem("mem:1GiB?depth=4").contains("unknown option depth, known are size lba"));
    }
}
