//! `udirect sanitize` and `udirect sanitize-log`: erases a whole subsystem, and tells how far that is.
//!
//! The command only starts it: the device goes on by itself, also if nobody watches. Here it is watched to its
//! end, with a bar on a terminal, and the status page is the result. It is given up when the device has made no
//! progress for as long as `--timeout` says.
#![forbid(unsafe_code)]

use core::time::Duration;
use std::time::Instant;

use anyhow::anyhow;
use serde_json::{Map, Value as Json, json};

use super::args::{SanitizeArgs, Style};
use super::failure::Failure;
use super::fields::pretty;
use super::output::print;
use super::progress::ShareLine;
use super::serial::{Deed, confirm};
use crate::block::BlockError;
use crate::nvme::Controller;
use crate::open::{Opened, open};
use crate::spec::erase::{
    SanitizeAction, SanitizeCapabilities, SanitizeDword10, SanitizeOutcome, SanitizeStatus,
    SanitizeStatusLog,
};

/// Sanitizes the subsystem of the device at the address.
pub(super) fn run(args: &SanitizeArgs) -> Result<(), Failure> {
    check_options(args)?;
    let opened = open(&args.address)?;
    match sanitized(args, &opened) {
        Ok(log) => show(&args.address, &log, args.style),
        Err(failure) => {
            opened.discard();
            Err(failure)
        }
    }
}

/// Shows the status page of the device at `address`.
pub(super) fn run_log(address: &str, style: Style) -> Result<(), Failure> {
    let opened = open(address)?;
    check_any(address, opened.controller()?.identify().sanicap())?;
    let log = opened.controller()?.sanitize_status();
    show(address, &log.map_err(|error| Failure::of_device(address, error))?, style)
}

fn sanitized(args: &SanitizeArgs, opened: &Opened) -> Result<SanitizeStatusLog, Failure> {
    let SanitizeArgs { address, action, .. } = args;
    let controller = opened.controller()?;
    check(args, controller.identify().sanicap())?;
    let typed = args.serial.as_deref();
    confirm(opened, &Deed { address, what: consequence(*action, controller), typed })?;

    let overwrites = *action == SanitizeAction::OVERWRITE;
    let how = SanitizeDword10::new()
        .with_sanact(action.0)
        .with_ause(args.ause)
        .with_owpass(args.owpass.filter(|_| overwrites).unwrap_or(u8::from(overwrites)) & 0xf)
        .with_oipbp(args.oipbp)
        .with_ndas(args.no_dealloc);
    let blame = |error: BlockError| Failure::of_device(address, error);
    controller.sanitize(how, args.ovrpat.unwrap_or(0)).map_err(blame)?;
    let log = watch(controller, *action, Duration::from_millis(args.timeout_ms)).map_err(blame)?;
    match log.sstat().state() {
        SanitizeOutcome::RUNNING => Err(Failure::device(anyhow!(
            "{address}: {action} made no progress for {} ms at {:.1} %, and goes on: \
             `udirect sanitize-log` tells how far it is",
            args.timeout_ms,
            log.fraction() * 100.0
        ))),
        SanitizeOutcome::FAILED if *action != SanitizeAction::EXIT_FAILURE => {
            Err(Failure::device(anyhow!("{address}: {action} failed: {}", way_out(args))))
        }
        _ => Ok(log),
    }
}

/// Says how a failure can be left behind.
fn way_out(args: &SanitizeArgs) -> &'static str {
    if args.ause {
        "sanitize again, or leave the failure with --sanact=exit-failure"
    } else {
        "nothing can be read or written until a sanitize succeeds"
    }
}

/// Refuses options that only another action has.
fn check_options(args: &SanitizeArgs) -> Result<(), Failure> {
    let action = args.action;
    let overwrites = action == SanitizeAction::OVERWRITE;
    let leaves = action == SanitizeAction::EXIT_FAILURE;
    let misplaced = [
        (args.owpass.is_some() && !overwrites, "--owpass"),
        (args.oipbp && !overwrites, "--oipbp"),
        (args.ovrpat.is_some() && !overwrites, "--ovrpat"),
        (args.ause && leaves, "--ause"),
        (args.no_dealloc && leaves, "--no-dealloc"),
    ];
    match misplaced.iter().find(|(is_there, _)| *is_there) {
        Some((_, name)) => Err(Failure::usage(anyhow!("{name} means nothing to {action}"))),
        None => Ok(()),
    }
}

/// Refuses a device that cannot sanitize at all.
fn check_any(address: &str, can: SanitizeCapabilities) -> Result<(), Failure> {
    if can.offers(SanitizeAction::EXIT_FAILURE) {
        return Ok(());
    }
    let bits = can.into_bits();
    Err(Failure::usage(anyhow!("{address}: the controller has no sanitize (SANICAP {bits:#x})")))
}

/// Refuses what the controller says that it cannot do.
fn check(args: &SanitizeArgs, can: SanitizeCapabilities) -> Result<(), Failure> {
    let SanitizeArgs { address, action, .. } = args;
    check_any(address, can)?;
    if !can.offers(*action) {
        let offered = [
            (SanitizeAction::BLOCK_ERASE, "block-erase"),
            (SanitizeAction::OVERWRITE, "overwrite"),
            (SanitizeAction::CRYPTO_ERASE, "crypto-erase"),
        ];
        let offered = offered.iter().filter(|(action, _)| can.offers(*action));
        let names = offered.map(|(_, name)| *name).collect::<Vec<_>>().join(", ");
        let what = anyhow!("{address}: the controller has no {action}, only {names}");
        return Err(Failure::usage(what));
    }
    if args.no_dealloc && can.no_deallocate_inhibited() {
        let what = anyhow!("{address}: --no-dealloc: the controller always deallocates (NDI)");
        return Err(Failure::usage(what));
    }
    Ok(())
}

/// Says what will happen: a sanitize concerns all namespaces of a subsystem.
fn consequence(action: SanitizeAction, controller: &Controller) -> String {
    if action == SanitizeAction::EXIT_FAILURE {
        return "exit-failure gives up a sanitize that failed".to_owned();
    }
    let count = controller.namespaces().len();
    let of = if count == 1 { "the only namespace" } else { "all namespaces" };
    format!("{action} erases {of} of the subsystem and cannot be stopped")
}

/// The time between two looks, from the first to the longest.
const LOOK_MIN: Duration = Duration::from_millis(1);
const LOOK_MAX: Duration = Duration::from_millis(100);

/// Watches a sanitize until it ends, or has made no progress for `patience`.
fn watch(
    controller: &Controller,
    action: SanitizeAction,
    patience: Duration,
) -> Result<SanitizeStatusLog, BlockError> {
    let bar = ShareLine::of(&action.to_string());
    let (mut last, mut since, mut pause) = (None, Instant::now(), LOOK_MIN);
    loop {
        let log = controller.sanitize_status()?;
        let at = (log.sprog.get(), log.sstat.get());
        if last.replace(at) != Some(at) {
            since = Instant::now();
        }
        let running = log.sstat().state() == SanitizeOutcome::RUNNING;
        if !running || since.elapsed() >= patience {
            return Ok(log);
        }
        bar.show(log.fraction());
        std::thread::sleep(pause);
        pause = LOOK_MAX.min(pause * 2);
    }
}

fn show(address: &str, log: &SanitizeStatusLog, style: Style) -> Result<(), Failure> {
    match style {
        Style::Normal => print(text(log).as_bytes()),
        Style::Json => print(&pretty(&to_json(address, log))),
    }
}

fn text(log: &SanitizeStatusLog) -> String {
    let mut out = format!("Sanitize Progress                      (SPROG) :  {}", log.sprog);
    if log.sstat().state() == SanitizeOutcome::RUNNING {
        out += &format!(" ({:.6}%)", log.fraction() * 100.0);
    }
    let status = hex(log.sstat.get());
    out += &format!("\nSanitize Status                        (SSTAT) :  {status}\n");
    out += &status_text(log.sstat());
    let asked = hex(log.scdw10.get());
    out += &format!("Sanitize Command Dword 10 Information (SCDW10) :  {asked}\n");
    for (name, _, seconds) in times(log) {
        let unknown = seconds == SanitizeStatusLog::TIME_UNKNOWN;
        let note = if unknown { " (No time period reported)" } else { "" };
        out += &format!("Estimated Time For {name:<28}:  {seconds}{note}\n");
    }
    out
}

fn status_text(status: SanitizeStatus) -> String {
    let (code, passes) = (hex(status.outcome()), status.passes());
    let erased = hex(u8::from(status.global_data_erased()));
    let since = if status.global_data_erased() {
        "No user data has been written in the NVM subsystem and no PMR has been enabled in the NVM subsystem"
    } else {
        "User data has been written in the NVM subsystem or PMR has been enabled in the NVM subsystem"
    };
    format!(
        "  [2:0] : Sanitize Operation Status  : {code}\t{}\n\
         \u{20} [7:3] : Overwrite Passes Completed : {passes}\n\
         \u{20} [8:8] : Global Data Erased         : {erased}\t{since}\n",
        outcome(status.state())
    )
}

fn to_json(address: &str, log: &SanitizeStatusLog) -> Json {
    let status = log.sstat();
    let mut all = Map::new();
    all.insert("sprog".into(), json!(log.sprog.get()));
    let state = json!({
        "global_erased": u8::from(status.global_data_erased()),
        "no_cmplted_passes": status.passes(),
        "status": format!("({}) {}", status.outcome(), outcome(status.state())),
    });
    all.insert("sstat".into(), state);
    all.insert("cdw10_info".into(), json!(log.scdw10.get()));
    for (_, key, seconds) in times(log) {
        all.insert(key.into(), json!(seconds));
    }
    json!({ address: all })
}

/// Lists the estimated times, with their names and their keys.
fn times(log: &SanitizeStatusLog) -> [(&'static str, &'static str, u32); 6] {
    [
        ("Overwrite", "time_over_write", log.eto.get()),
        ("Block Erase", "time_block_erase", log.etbe.get()),
        ("Crypto Erase", "time_crypto_erase", log.etce.get()),
        ("Overwrite (No-Deallocate)", "time_over_write_no_dealloc", log.etond.get()),
        ("Block Erase (No-Deallocate)", "time_block_erase_no_dealloc", log.etbend.get()),
        ("Crypto Erase (No-Deallocate)", "time_crypto_erase_no_dealloc", log.etcend.get()),
    ]
}

fn outcome(state: SanitizeOutcome) -> &'static str {
    match state {
        SanitizeOutcome::NEVER => "NVM Subsystem has never been sanitized.",
        SanitizeOutcome::DONE => "Most Recent Sanitize Command Completed Successfully.",
        SanitizeOutcome::RUNNING => "Sanitize in Progress.",
        SanitizeOutcome::FAILED => "Most Recent Sanitize Command Failed.",
        SanitizeOutcome::DONE_ALLOCATED => {
            "Most Recent Sanitize Command (No-Deallocate After Sanitize) Completed Successfully."
        }
        _ => "Unknown",
    }
}

/// Writes a number as C's `%#x` has it, which leaves zero bare.
fn hex(number: impl Into<u32>) -> String {
    match number.into() {
        0 => "0".to_owned(),
        number => format!("{number:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    fn log() -> SanitizeStatusLog {
        let mut log = SanitizeStatusLog::new_zeroed();
        log.sprog = 0x8000.into();
        log.sstat = (2 | 1 << 3).into();
        log.scdw10 = 3.into();
        log.eto = u32::MAX.into();
        log.etbe = 90.into();
        log
    }

    #[test]
    fn the_status_reads_as_from_nvme_cli() {
        let expected = "\
Sanitize Progress                      (SPROG) :  32768 (50.000000%)
Sanitize Status                        (SSTAT) :  0xa
  [2:0] : Sanitize Operation Status  : 0x2\tSanitize in Progress.
  [7:3] : Overwrite Passes Completed : 1
  [8:8] : Global Data Erased         : 0\tUser data has been written in the NVM subsystem or PMR \
has been enabled in the NVM subsystem
Sanitize Command Dword 10 Information (SCDW10) :  0x3
Estimated Time For Overwrite                   :  4294967295 (No time period reported)
Estimated Time For Block Erase                 :  90
Estimated Time For Crypto Erase                :  0
Estimated Time For Overwrite (No-Deallocate)   :  0
Estimated Time For Block Erase (No-Deallocate) :  0
Estimated Time For Crypto Erase (No-Deallocate):  0
";
        assert_eq!(text(&log()), expected);
    }

    #[test]
    fn the_keys_are_those_of_nvme_cli() {
        let expected = json!({ "mem:1": {
            "sprog": 32768,
            "sstat": {
                "global_erased": 0,
                "no_cmplted_passes": 1,
                "status": "(2) Sanitize in Progress.",
            },
            "cdw10_info": 3,
            "time_over_write": u32::MAX,
            "time_block_erase": 90,
            "time_crypto_erase": 0,
            "time_over_write_no_dealloc": 0,
            "time_block_erase_no_dealloc": 0,
            "time_crypto_erase_no_dealloc": 0,
        }});
        assert_eq!(to_json("mem:1", &log()), expected);
    }

    #[test]
    fn what_the_controller_does_not_offer_is_refused_with_what_it_does() {
        let args = SanitizeArgs { address: "mem:1".into(), no_dealloc: true, ..Default::default() };
        let args = |action| SanitizeArgs { action, ..args.clone() };
        let said = |args: &SanitizeArgs, bits| {
            let can = SanitizeCapabilities::from_bits(bits);
            check(args, can).map_err(|failure| failure.line())
        };
        let crypto = args(SanitizeAction::CRYPTO_ERASE);
        let none = "mem:1: the controller has no sanitize (SANICAP 0x0)";
        assert_eq!(said(&crypto, 0), Err(none.into()));
        let others = "mem:1: the controller has no crypto erase, only block-erase, overwrite";
        assert_eq!(said(&crypto, 0b110), Err(others.into()));
        assert_eq!(said(&crypto, 0b001), Ok(()));
        let always = "mem:1: --no-dealloc: the controller always deallocates (NDI)";
        assert_eq!(said(&crypto, 1 | 1 << 29), Err(always.into()));
    }
}
