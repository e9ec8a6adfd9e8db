//! The verbs that look at a device and those that erase one, from outside.
//!
//! Whatever is destructive is tried without a serial number, with a wrong one, and with the right one; a refusal
//! leaves every byte of an image as it was. Prompts are answered through a pseudo-terminal.
#![cfg(feature = "program")]

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;
use tempfile::TempDir;

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_udirect"));
    command.args(args).env_remove("UDIRECT_LOG").stdin(Stdio::null());
    command
}

fn udirect(args: &[&str]) -> Output {
    program(args).output().expect("the program was built")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the program writes UTF-8")
}

/// Runs the program on something that must end with `code` and one line, and returns what it says after its name.
#[track_caller]
fn ends_with(code: i32, args: &[&str]) -> String {
    let output = udirect(args);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
    assert_eq!(text(&output.stdout), "", "{args:?}");
    assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
    said.trim_end().strip_prefix("udirect: ").expect("the line has the program's name").to_owned()
}

#[track_caller]
fn refusal(args: &[&str]) -> String {
    ends_with(2, args)
}

#[track_caller]
fn success(args: &[&str]) -> String {
    let output = udirect(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout).to_owned()
}

#[track_caller]
fn json(args: &[&str]) -> Value {
    let all = [args, &["-o", "json"]].concat();
    serde_json::from_str(&success(&all)).expect("it is JSON")
}

/// Makes an image of 1 MiB of sevens, and returns its path and its address.
fn image(place: &TempDir) -> (String, String) {
    let path = place.path().join("disk.img");
    fs::write(&path, vec![7; 1 << 20]).expect("the place is writable");
    let path = path.to_str().expect("the path is UTF-8").to_owned();
    let address = format!("file:{path}");
    (path, address)
}

fn place() -> TempDir {
    tempfile::tempdir().expect("there is a place for temporary files")
}

fn is_all(path: impl AsRef<Path>, byte: u8) -> bool {
    fs::read(path).expect("the image is there").iter().all(|found| *found == byte)
}

// What looks.

#[test]
fn the_health_of_a_fresh_device_reads_as_from_nvme_cli() {
    let expected = "\
Smart Log for NVME device:mem:1MiB namespace-id:ffffffff
critical_warning\t\t\t: 0
temperature\t\t\t\t: 27 °C (300 K, 80 °F)
available_spare\t\t\t\t: 100%
available_spare_threshold\t\t: 10%
percentage_used\t\t\t\t: 0%
endurance group critical warning summary: 0
Data Units Read\t\t\t\t: 0 (0.00 B)
Data Units Written\t\t\t: 0 (0.00 B)
host_read_commands\t\t\t: 0
host_write_commands\t\t\t: 0
controller_busy_time\t\t\t: 0
power_cycles\t\t\t\t: 1
power_on_hours\t\t\t\t: 0
unsafe_shutdowns\t\t\t: 0
media_errors\t\t\t\t: 0
num_err_log_entries\t\t\t: 0
Warning Temperature Time\t\t: 0
Critical Composite Temperature Time\t: 0
Thermal Management T1 Trans Count\t: 0
Thermal Management T2 Trans Count\t: 0
Thermal Management T1 Total Time\t: 0
Thermal Management T2 Total Time\t: 0
";
    assert_eq!(success(&["smart", "mem:1MiB"]), expected);
    let health = json(&["smart", "mem:1MiB"]);
    assert_eq!((&health["temperature"], &health["spare_thresh"]), (&300.into(), &10.into()));
}

#[test]
fn the_error_log_of_a_fresh_device_is_as_long_as_it_keeps_and_empty() {
    let log = success(&["error-log", "mem:1MiB"]);
    assert!(log.starts_with("Error Log Entries for device:mem:1MiB entries:64\n"), "{log}");
    assert_eq!(log.matches("error_count\t: 0\n").count(), 64);
    assert_eq!(success(&["error-log", "mem:1MiB", "-e", "2"]).matches("error_count").count(), 2);
    let log = json(&["error-log", "mem:1MiB", "--log-entries=70"]);
    assert_eq!(log["errors"].as_array().expect("it is one").len(), 64);
    assert_eq!(log["errors"][0]["parm_error_location"], 0);
    assert!(refusal(&["error-log", "mem:1MiB", "-e", "0"]).contains("--log-entries"));
}

#[test]
fn every_feature_is_shown_with_its_default_and_what_can_be_done_with_it() {
    let features = success(&["features", "mem:1MiB?queues=8"]);
    let queues = "\
get-feature:0x07 (Number of Queues), Current value:0x00070007
\tNumber of IO Completion Queues Allocated (NCQA): 8
\tNumber of IO Submission Queues Allocated (NSQA): 8
get-feature:0x07 (Number of Queues), Default value:0x00070007
get-feature:0x07 (Number of Queues), Saved value:0x00070007
get-feature:0x07 (Number of Queues), Supported capabilities value:0x00000004
  Feature is changeable
";
    assert!(features.contains(queues), "{features}");
    assert_eq!(features.matches("Current value").count(), 12, "eleven, and both thresholds");
    let without = success(&["features", "mem:1MiB?vwc=0"]);
    assert_eq!(without.matches("Current value").count(), 11, "no write cache");

    let features = json(&["features", "mem:1MiB"]);
    assert_eq!(features["feature: 0x04"]["Current"], "0x00000157");
    let threshold = &features["Feature: 0x04"]["Temperature Threshold (TMPTH)"];
    assert_eq!(threshold, "70 °C (343 K, 158 °F)");
    let under = &features["Feature: 0x04 cdw11:0x00100000"];
    assert_eq!(under["Temperature Threshold (TMPTH)"], "-273 °C (0 K, -459 °F)");
    assert_eq!(features["Feature: 0x01"]["High Priority Weight (HPW)"], 1);
}

// What erases, and what keeps it from that.

const FORMAT: &str = "format erases namespace 1";
const BLOCK_ERASE: &str =
    "block erase erases the only namespace of the subsystem and cannot be stopped";

#[test]
fn nothing_is_erased_without_the_serial_number() {
    let place = place();
    let (path, address) = image(&place);
    let add = "add --serial=UD0001 if it is the one that is meant";
    assert_eq!(refusal(&["format", &address]), format!("{address}: {FORMAT}, {add}"));
    let sanitize = ["sanitize", &address, "--sanact=block-erase"];
    assert_eq!(refusal(&sanitize), format!("{address}: {BLOCK_ERASE}, {add}"));
    for wrong in ["UD0002", "ud0001", "", "yes"] {
        let serial = format!("--serial={wrong}");
        let said = format!(
            "{wrong:?} is not the serial number of {address}, which is \"UD0001\": nothing was done"
        );
        assert_eq!(refusal(&["format", &address, &serial]), said);
        assert_eq!(refusal(&[&sanitize[..], &[&serial]].concat()), said);
    }
    assert!(is_all(&path, 7));
}

#[test]
fn a_refusal_leaves_no_new_image() {
    let place = place();
    let path = place.path().join("new.img");
    let address = format!("file:{}?size=1MiB", path.display());
    refusal(&["format", &address]);
    refusal(&["sanitize", &address, "-a", "overwrite"]);
    assert!(!path.exists());
}

#[test]
fn a_format_erases_and_cuts_anew() {
    let place = place();
    let (path, address) = image(&place);
    let args = ["format", &address, "--lba=512", "--serial=UD0001"];
    let expected = "\
Success formatting namespace:1
nsid    : 1
lbaf    : 0
lba     : 512
ms      : 0
pi      : 0
nsze    : 2048
";
    assert_eq!(success(&args), expected);
    assert!(is_all(&path, 0));
    let format = json(&["format", "mem:1MiB", "--lbaf=4", "--ses=1", "--serial=UD0001"]);
    assert_eq!((&format["lba"], &format["nsze"]), (&8192.into(), &128.into()));
    let format = json(&["format", "mem:1MiB?lba=512", "--serial", "UD0001"]);
    assert_eq!(format["lbaf"], 0, "the format in use");
}

#[test]
fn what_a_format_cannot_be_is_refused_before_anything_is_touched() {
    let place = place();
    let (path, address) = image(&place);
    let there =
        "0: 512+0, 1: 1024+0, 2: 2048+0, 3: 4096+0, 4: 8192+0, 5: 16384+0, 6: 32768+0, 7: 65536+0";
    for (option, said) in [
        ("--lbaf=8", format!("{address}: --lbaf=8 is not on offer, which is {there}")),
        ("--lba=520", format!("{address}: --lba=520 --ms=0 is not on offer, which is {there}")),
        ("--ses=2", format!("{address}: --ses=2: the controller has no crypto erase (FNA 0x0)")),
    ] {
        assert_eq!(refusal(&["format", &address, "--serial=UD0001", option]), said);
    }
    for (options, part) in [
        (&["--lbaf=64"][..], "64"),
        (&["--lbaf=one"], "one"),
        (&["--lba=0"], "a size of 0"),
        (&["--lba=512", "--lbaf=0"], "--lbaf"),
        (&["--ms=8"], "--lba"),
        (&["--pi=4"], "4"),
        (&["--pil=2"], "2"),
        (&["--mset=2"], "2"),
        (&["--ses=3"], "3"),
        (&["--timeout=0"], "--timeout"),
        (&["--force"], "--force"),
    ] {
        let args = [&["format", &address, "--serial=UD0001"], options].concat();
        let said = refusal(&args);
        assert!(said.contains(part), "{args:?}: {said}");
    }
    assert!(refusal(&["format"]).contains("<ADDRESS>"));
    assert!(refusal(&["format", "floppy:0", "--serial=UD0001"]).contains("floppy:"));
    assert!(is_all(&path, 7));
}

#[test]
fn a_format_that_the_device_refuses_is_its_failure() {
    let place = place();
    let (path, address) = image(&place);
    for option in ["--pi=1", "--mset=1"] {
        let said = ends_with(3, &["format", &address, "--serial=UD0001", option]);
        assert!(
            said.contains("Format NVM") && said.contains("Invalid Format (0x1/0x0a)"),
            "{said}"
        );
    }
    assert!(is_all(&path, 7));
}

#[test]
fn a_sanitize_is_watched_to_its_end_and_its_status_is_the_result() {
    let place = place();
    let (path, address) = image(&place);
    let status = success(&["sanitize", &address, "-a", "block-erase", "--serial=UD0001"]);
    let expected = "\
Sanitize Progress                      (SPROG) :  65535
Sanitize Status                        (SSTAT) :  0x1
  [2:0] : Sanitize Operation Status  : 0x1\tMost Recent Sanitize Command Completed Successfully.
";
    assert!(status.starts_with(expected), "{status}");
    assert!(is_all(&path, 0));

    let overwrite =
        ["sanitize", &address, "--sanact=start-overwrite", "--ovrpat=0x5a5a5a5a", "--owpass=2"];
    let status = json(&[&overwrite[..], &["--serial=UD0001"]].concat());
    let status = &status[&address];
    let done = "(1) Most Recent Sanitize Command Completed Successfully.";
    assert_eq!(status["sstat"]["status"], done);
    assert_eq!(status["sstat"]["no_cmplted_passes"], 2);
    assert_eq!(status["cdw10_info"], 3 | 2 << 4);
    assert!(is_all(&path, 0x5a));
}

#[test]
fn one_pass_is_enough_unless_more_are_asked_for() {
    let status = json(&["sanitize", "mem:1MiB", "-a", "3", "--serial=UD0001"]);
    assert_eq!(status["mem:1MiB"]["sstat"]["no_cmplted_passes"], 1);
    let all = ["sanitize", "mem:1MiB", "-a", "3", "--owpass=16", "--serial=UD0001"];
    assert_eq!(json(&all)["mem:1MiB"]["sstat"]["no_cmplted_passes"], 16);
}

#[test]
fn what_a_sanitize_cannot_be_is_refused_before_anything_is_touched() {
    let place = place();
    let (path, address) = image(&place);
    let args = |options: &[&'static str]| {
        let typed = ["sanitize".to_owned(), address.clone(), "--serial=UD0001".to_owned()];
        let options = options.iter().map(|option| (*option).to_owned());
        typed.into_iter().chain(options).collect::<Vec<_>>()
    };
    for (options, part) in [
        (
            &["--sanact=crypto-erase"][..],
            "the controller has no crypto erase, only block-erase, overwrite",
        ),
        (&[], "--sanact"),
        (&["--sanact=shred"], "shred"),
        (&["-a", "block-erase", "--owpass=3"], "--owpass means nothing to block erase"),
        (&["-a", "block-erase", "--oipbp"], "--oipbp means nothing to block erase"),
        (&["-a", "block-erase", "--ovrpat=1"], "--ovrpat means nothing to block erase"),
        (&["-a", "exit-failure", "--ause"], "--ause means nothing to exit failure mode"),
        (&["-a", "exit-failure", "-d"], "--no-dealloc means nothing to exit failure mode"),
        (&["-a", "overwrite", "--owpass=0"], "--owpass"),
        (&["-a", "overwrite", "--owpass=17"], "17"),
        (&["-a", "overwrite", "--ovrpat=0x100000000"], "is not a dword"),
        (&["-a", "overwrite", "--ovrpat=five"], "\"five\" is not a dword"),
    ] {
        let args = args(options);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let said = refusal(&args);
        assert!(said.contains(part), "{args:?}: {said}");
    }
    assert!(is_all(&path, 7));
}

#[test]
fn leaving_a_failure_that_is_not_there_does_nothing() {
    let place = place();
    let (path, address) = image(&place);
    let args = ["sanitize", &address, "--sanact=exit-failure"];
    let said = refusal(&args);
    assert!(said.contains("exit-failure gives up a sanitize that failed, add --serial"), "{said}");
    let status = success(&[&args[..], &["--serial=UD0001"]].concat());
    assert!(status.contains("NVM Subsystem has never been sanitized."), "{status}");
    assert_eq!(status, success(&["sanitize-log", &address]));
    assert!(is_all(&path, 7));
}

#[test]
fn a_sanitize_takes_all_namespaces_and_a_format_one() {
    let said = refusal(&["sanitize", "mem:1MiB?namespaces=3", "-a", "block-erase"]);
    assert!(said.contains("block erase erases all namespaces of the subsystem"), "{said}");
    let said = refusal(&["format", "mem:1MiB?namespaces=3&ns=2"]);
    assert!(said.contains("format erases namespace 2,"), "{said}");
}

// The prompt.

/// Runs the program on a terminal, types `answer` when it asks, and returns exit code, stdout and what it showed.
fn on_terminal(args: &[&str], answer: &str) -> (Option<i32>, String, String) {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("there are terminals");
    grantpt(&terminal).expect("it is ours");
    unlockpt(&terminal).expect("it is ours");
    let name = ptsname(&terminal, Vec::new()).expect("it has a name");
    let name = name.to_str().expect("the name is UTF-8").to_owned();
    let open = || OpenOptions::new().read(true).write(true).open(&name).expect("it is unlocked");
    let mut child = program(args)
        .stdin(open())
        .stderr(open())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program was built");
    let mut shown = String::new();
    let mut terminal = File::from(terminal);
    read_until(&mut terminal, &mut shown, "to go on: ");
    terminal.write_all(answer.as_bytes()).expect("the terminal takes it");
    let deadline = Instant::now() + Duration::from_secs(30);
    while child.try_wait().expect("it is ours").is_none() {
        assert!(Instant::now() < deadline, "it ends: {shown}");
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().expect("it is ours");
    let mut rest = vec![0; 4096];
    // With nobody at the other end the terminal has an error after what was written.
    let len = terminal.read(&mut rest).unwrap_or(0);
    shown += &String::from_utf8_lossy(&rest[..len]);
    (output.status.code(), text(&output.stdout).to_owned(), shown)
}

fn read_until(terminal: &mut File, shown: &mut String, end: &str) {
    let mut bytes = [0; 512];
    while !shown.ends_with(end) {
        let len = terminal.read(&mut bytes).expect("the program asks");
        *shown += &String::from_utf8_lossy(&bytes[..len]);
    }
}

#[test]
fn the_serial_number_may_be_typed_at_a_prompt() {
    let place = place();
    let (path, address) = image(&place);
    let (code, stdout, shown) = on_terminal(&["format", &address], "UD0001\n");
    let asked = format!("{address}: {FORMAT}.\r\nType its serial number, UD0001, to go on: ");
    assert!(shown.starts_with(&asked), "{shown}");
    assert_eq!((code, stdout.lines().next()), (Some(0), Some("Success formatting namespace:1")));
    assert!(is_all(&path, 0));
}

#[test]
fn another_answer_at_the_prompt_does_nothing() {
    let place = place();
    let (path, address) = image(&place);
    // The last is the end of input, with nothing typed.
    for answer in ["yes\n", "\n", "UD0002\n", "\x04"] {
        let args = ["sanitize", &address, "-a", "block-erase"];
        let (code, stdout, shown) = on_terminal(&args, answer);
        assert_eq!((code, &*stdout), (Some(2), ""), "{answer:?}: {shown}");
        assert!(shown.contains("nothing was done"), "{answer:?}: {shown}");
    }
    assert!(is_all(&path, 7));
}
