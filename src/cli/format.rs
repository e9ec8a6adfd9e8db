//! `udirect format`: Format NVM, after everything was checked and the serial number was typed back.
//!
//! What Identify rules out is refused before anything is touched; the rest is the device's to take or to refuse.
#![forbid(unsafe_code)]

use core::time::Duration;

use anyhow::anyhow;
use serde_json::Value as Json;

use super::args::{FormatArgs, Style};
use super::failure::Failure;
use super::fields::{Field, lines, number, object, pretty};
use super::identify::namespace_of;
use super::output::print;
use super::serial::{Deed, confirm};
use crate::nvme::Controller;
use crate::open::{Opened, open};
use crate::spec::erase::{FormatDword10, SecureErase};
use crate::spec::identify::{IdentifyController, IdentifyNamespace, LbaFormat};
use crate::units::NamespaceId;

/// Formats the namespace at the address.
pub(super) fn run(args: &FormatArgs) -> Result<(), Failure> {
    let opened = open(&args.address)?;
    match formatted(args, &opened) {
        Ok(bytes) => print(&bytes),
        Err(failure) => {
            opened.discard();
            Err(failure)
        }
    }
}

fn formatted(args: &FormatArgs, opened: &Opened) -> Result<Vec<u8>, Failure> {
    let refuse = |what: String| Failure::usage(anyhow!("{}: {what}", args.address));
    let (controller, nsid) = (opened.controller()?, opened.namespace);
    check_controller(controller.identify(), args).map_err(refuse)?;
    let index = choose(args, &*namespace_of(opened)?).map_err(refuse)?;
    let what = concerned(controller, nsid, args);
    let typed = args.serial.as_deref();
    confirm(opened, &Deed { address: &args.address, what, typed })?;

    let how = FormatDword10::new()
        .with_format_index(index)
        .with_mset(args.mset)
        .with_pi(args.pi)
        .with_pil(args.pil)
        .with_ses(args.ses);
    let patience = Duration::from_millis(args.timeout_ms);
    controller
        .format(nsid, how, patience)
        .map_err(|error| Failure::of_device(&args.address, error))?;
    let fields = summary(opened, &*namespace_of(opened)?);
    Ok(match args.style {
        Style::Normal => {
            format!("Success formatting namespace:{:x}\n{}", nsid.0, lines(&fields, 8)).into_bytes()
        }
        Style::Json => pretty(&Json::from(object(&fields))),
    })
}

/// Refuses what the controller says that it cannot do.
fn check_controller(id: &IdentifyController, args: &FormatArgs) -> Result<(), String> {
    if !id.oacs().format() {
        return Err(format!("the controller has no Format NVM (OACS {:#x})", id.oacs.get()));
    }
    if SecureErase(args.ses) == SecureErase::CRYPTOGRAPHIC && !id.fna().crypto_erase() {
        return Err(format!("--ses=2: the controller has no crypto erase (FNA {:#x})", id.fna));
    }
    Ok(())
}

/// Returns the index of the format that was asked for; that of the one in use, if none was.
fn choose(args: &FormatArgs, id: &IdentifyNamespace) -> Result<u8, String> {
    let formats = formats(id);
    let index = match (args.lbaf, args.lba) {
        (Some(index), _) => formats.iter().position(|(at, _)| *at == index),
        (None, Some(size)) => best(&formats, size, args.ms),
        (None, None) => {
            let in_use = id.format_index();
            formats.iter().position(|(at, _)| usize::from(*at) == in_use)
        }
    };
    let asked = match (args.lbaf, args.lba) {
        (Some(index), _) => format!("--lbaf={index}"),
        (None, Some(size)) => format!("--lba={size} --ms={}", args.ms),
        (None, None) => "the format in use".to_owned(),
    };
    let found = index.map(|index| formats[index].0);
    found.ok_or_else(|| format!("{asked} is not on offer, which is {}", listed(&formats)))
}

/// Lists the formats that there are, with their index; LBADS 0 is none.
fn formats(id: &IdentifyNamespace) -> Vec<(u8, LbaFormat)> {
    let count = usize::from(id.nlbaf) + usize::from(id.nulbaf) + 1;
    let all = (0..).zip(id.lbaf.iter().copied()).take(count);
    all.filter(|(_, format)| format.lbads != 0).collect()
}

/// Returns where the fastest format is that has blocks of `size` bytes with `ms` bytes of metadata.
fn best(formats: &[(u8, LbaFormat)], size: u64, ms: u16) -> Option<usize> {
    let fits = |format: &LbaFormat| {
        format.ms.get() == ms && 1_u64.checked_shl(format.lbads.into()) == Some(size)
    };
    let fitting = formats.iter().enumerate().filter(|(_, (_, format))| fits(format));
    fitting.min_by_key(|(_, (_, format))| format.rp & 0b11).map(|(at, _)| at)
}

fn listed(formats: &[(u8, LbaFormat)]) -> String {
    let one = |(index, format): &(u8, LbaFormat)| {
        let bytes = 1_u64.checked_shl(format.lbads.into()).unwrap_or(0);
        format!("{index}: {bytes}+{}", format.ms.get())
    };
    formats.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Says what will be erased: a controller may format all namespaces or none.
fn concerned(controller: &Controller, nsid: NamespaceId, args: &FormatArgs) -> String {
    let (fna, count) = (controller.identify().fna(), controller.namespaces().len());
    let all = fna.format_all() || SecureErase(args.ses) != SecureErase::NONE && fna.erase_all();
    if all && count > 1 {
        return format!("format erases all {count} namespaces of the controller");
    }
    format!("format erases namespace {nsid}")
}

fn summary(opened: &Opened, id: &IdentifyNamespace) -> Vec<Field> {
    let format = id.lba_format();
    vec![
        number("nsid", opened.namespace.0),
        number("lbaf", id.format_index() as u32),
        number("lba", 1_u64.checked_shl(format.lbads.into()).unwrap_or(0)),
        number("ms", format.ms),
        number("pi", id.dps().kind()),
        number("nsze", id.nsze),
    ]
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    fn namespace() -> IdentifyNamespace {
        let mut id = IdentifyNamespace::new_zeroed();
        id.nlbaf = 4;
        id.flbas = 1;
        for (place, (ms, lbads, rp)) in
            id.lbaf.iter_mut().zip([(0, 9, 2), (8, 9, 0), (0, 12, 1), (0, 12, 0), (0, 0, 0)])
        {
            *place = LbaFormat { ms: ms.into(), lbads, rp };
        }
        id
    }

    fn chosen(lbaf: Option<u8>, lba: Option<u64>, ms: u16) -> Result<u8, String> {
        choose(&FormatArgs { lbaf, lba, ms, ..FormatArgs::default() }, &namespace())
    }

    #[test]
    fn a_format_is_chosen_by_index_by_size_or_stays() {
        assert_eq!(chosen(Some(2), None, 0), Ok(2));
        assert_eq!(chosen(None, Some(512), 0), Ok(0));
        assert_eq!(chosen(None, Some(512), 8), Ok(1));
        assert_eq!(chosen(None, Some(4096), 0), Ok(3), "the faster of two");
        assert_eq!(chosen(None, None, 0), Ok(1), "the one in use");
    }

    #[test]
    fn a_format_that_is_not_there_is_refused_with_those_that_are() {
        let there = "is not on offer, which is 0: 512+0, 1: 512+8, 2: 4096+0, 3: 4096+0";
        assert_eq!(chosen(Some(4), None, 0), Err(format!("--lbaf=4 {there}")));
        assert_eq!(chosen(Some(63), None, 0), Err(format!("--lbaf=63 {there}")));
        assert_eq!(chosen(None, Some(1024), 0), Err(format!("--lba=1024 --ms=0 {there}")));
        assert_eq!(chosen(None, Some(4096), 8), Err(format!("--lba=4096 --ms=8 {there}")));
    }

    #[test]
    fn a_controller_that_cannot_is_refused_with_its_own_words() {
        let mut id = IdentifyController::new_zeroed();
        let crypto = FormatArgs { ses: 2, ..FormatArgs::default() };
        let said = check_controller(&id, &crypto).expect_err("it has no format");
        assert_eq!(said, "the controller has no Format NVM (OACS 0x0)");
        id.oacs = 2.into();
        let said = check_controller(&id, &crypto).expect_err("it has no keys");
        assert_eq!(said, "--ses=2: the controller has no crypto erase (FNA 0x0)");
        assert_eq!(check_controller(&id, &FormatArgs::default()), Ok(()));
    }
}
