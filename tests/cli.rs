//! The program from outside: exit codes, one line for each mistake, and what goes to which stream.
//!
//! A mistake is answered by one line on stderr that names it, exit code 2 and an empty stdout. What is
//! measured goes to stdout and nothing else does. Devices here are memory and files of a temporary
//! directory.
#![cfg(feature = "program")]

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use udirect::bench::option::options;

/// Prepares the program with an environment that says nothing.
fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_udirect"));
    command.args(args).env_remove("UDIRECT_LOG").stdin(Stdio::null());
    command
}

/// Runs the program to its end.
fn udirect(args: &[&str]) -> Output {
    program(args).output().expect("the program was built")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the program writes UTF-8")
}

/// Runs the program on something that it must refuse, and returns what it says after its name.
#[track_caller]
fn refusal(args: &[&str]) -> String {
    let output = udirect(args);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
    assert_eq!(text(&output.stdout), "", "{args:?}");
    assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
    said.trim_end().strip_prefix("udirect: ").expect("the line has the program's name").to_owned()
}

/// Runs the program on something that it must refuse in words that hold all of `parts`.
#[track_caller]
fn refused_for(args: &[&str], parts: &[&str]) {
    let said = refusal(args);
    assert!(parts.iter().all(|part| said.contains(part)), "{args:?}: {said}");
}

/// Runs the program on something that it must do, and returns its stdout.
#[track_caller]
fn success(args: &[&str]) -> String {
    let output = udirect(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
    text(&output.stdout).to_owned()
}

fn place() -> TempDir {
    tempfile::tempdir().expect("there is a place for temporary files")
}

/// Writes a file into `place` and returns its path.
fn file(place: &Path, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = place.join(name);
    fs::write(&path, content).expect("the place is writable");
    path.to_str().expect("the path is UTF-8").to_owned()
}

/// The flags of a run that is over at once.
const SHORT: [&str; 3] = ["--rw=randread", "--number_ios=64", "--iodepth=4"];

fn short_run<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["bench"], more, &SHORT].concat()
}

// What is refused before a device is opened.

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_key() {
    let place = place();
    let path = file(place.path(), "typo.fio", "[a]\nfilename=mem:64MiB\niodpeth=4\n");
    let expected = format!("{path}:3: unknown option \"iodpeth\": did you mean \"iodepth\"?");
    assert_eq!(refusal(&["bench", &path]), expected);
}

#[test]
fn an_unknown_flag_is_named_with_the_nearest_flag() {
    let expected = "unknown flag \"--iodpeth\": did you mean \"--iodepth\"?";
    assert_eq!(refusal(&["bench", "--iodpeth=4"]), expected);
}

#[test]
fn an_unknown_verb_is_named_with_the_nearest_verb() {
    assert_eq!(refusal(&["identfy"]), "unknown verb \"identfy\": did you mean \"identify\"?");
    assert!(refusal(&[]).starts_with("a verb is needed"));
}

#[test]
fn a_wrong_value_is_named_with_its_key() {
    refused_for(&["bench", "mem:64MiB", "--iodepth=0"], &["iodepth=0"]);
    refused_for(&["bench", "mem:64MiB", "--bs=four"], &["bs=four"]);
    refused_for(&["bench", "--output-format=xml"], &["xml", "json+"]);
}

#[test]
fn a_job_file_that_is_not_there_is_named() {
    refused_for(&["bench", "no/such.fio"], &["no/such.fio: "]);
    refused_for(&["bench", "sda"], &["\"sda\"", "neither an address"]);
}

#[test]
fn a_result_that_cannot_be_written_is_refused_before_the_run() {
    let args = short_run(&["mem:64MiB", "--output=no/such/result"]);
    refused_for(&args, &["--output=no/such/result"]);
}

#[test]
fn a_filter_that_is_none_is_refused() {
    let output = program(&["list"]).env("UDIRECT_LOG", "a=b=c").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).starts_with("udirect: UDIRECT_LOG=a=b=c: "));
}

// The machine itself. These look at whatever machine they run on, and change nothing.

#[test]
fn the_doctor_reports_on_any_machine() {
    let said = success(&["doctor"]);
    for area in ["iommu", "vfio-pci", "vfio_iommu_type1", "hugepages", "memlock"] {
        assert!(said.contains(area), "{said}");
    }
    let json: Value = serde_json::from_str(&success(&["doctor", "-o", "json"])).unwrap();
    assert!(json["iommu"]["on"].is_boolean() && json["devices"].is_array(), "{json}");
    assert!(json["findings"].as_array().is_some_and(|findings| findings.len() > 3), "{json}");
}

#[test]
fn a_drive_that_would_not_open_is_named_after_the_report() {
    let output = udirect(&["doctor", "pcie:fffe:ff:1f.7/1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stdout).contains("it would not open: there is no device at fffe:ff:1f.7"));
    assert!(text(&output.stderr).starts_with("udirect: there is no device at fffe:ff:1f.7; "));
    refused_for(&["doctor", "nvme0"], &["\"nvme0\" is not a PCI address"]);
}

#[test]
fn setup_touches_nothing_that_is_not_there() {
    let none = ["setup", "bind", "--dry-run", "fffe:ff:1f.7"];
    refused_for(&none, &["there is no device at fffe:ff:1f.7"]);
    refused_for(&["setup", "unbind", "-n", "0000:zz:00.0"], &["is not a PCI address"]);
    refused_for(&["setup"], &["as in `udirect setup status`"]);
    let said = success(&["setup", "status"]);
    assert!(said.starts_with("no NVMe controller\n") || said.starts_with("address "), "{said}");
    let json: Value = serde_json::from_str(&success(&["setup", "status", "-o", "json"])).unwrap();
    assert!(json["devices"].is_array() && json["hugepages"].is_array(), "{json}");
}

// What is refused in view of the device.

#[test]
fn an_unknown_scheme_is_named() {
    for verb in ["bench", "identify", "list"] {
        refused_for(&[verb, "floppy:0"], &["floppy:"]);
    }
}

#[test]
fn a_region_that_does_not_fit_the_device_is_refused_with_both_sizes() {
    let args = short_run(&["mem:64MiB", "--size=128M"]);
    refused_for(&args, &["size 134217728", "67108864"]);
    let args = short_run(&["mem:64MiB", "--offset=64M"]);
    refused_for(&args, &["offset 67108864"]);
}

#[test]
fn a_block_that_is_not_a_multiple_of_the_lba_is_refused() {
    refused_for(&short_run(&["mem:64MiB?lba=4096", "--bs=1536"]), &["1536", "4096"]);
    refused_for(&short_run(&["mem:64MiB?lba=512", "--bs=1000"]), &["1000", "512"]);
    refused_for(&short_run(&["mem:64MiB?lba=512", "--offset=100"]), &["100", "512"]);
}

#[test]
fn a_depth_beyond_the_controller_is_refused_with_the_limit() {
    let args = ["bench", "mem:64MiB?entries=64", "--rw=randread", "--number_ios=1", "--iodepth=64"];
    refused_for(&args, &["64", "63"]);
}

#[test]
fn more_workers_than_cores_need_to_be_asked_for() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let numjobs = format!("--numjobs={}", cores + 1);
    let args = short_run(&["mem:64MiB", &numjobs]);
    refused_for(&args, &["--oversubscribe", &(cores + 1).to_string(), &cores.to_string()]);
    success(&[&args[..], &["--oversubscribe"]].concat());
}

#[test]
fn an_image_that_is_too_small_is_refused_with_both_sizes() {
    let place = place();
    let address = format!("file:{}?size=64MiB", file(place.path(), "small.img", [0; 4096]));
    refused_for(&short_run(&[&address]), &[&address, "4096", "67108864"]);
}

#[test]
fn an_image_that_another_process_holds_is_refused() {
    let place = place();
    let path = file(place.path(), "held.img", vec![0; 1 << 20]);
    let held = File::open(&path).unwrap();
    held.lock().unwrap();
    refused_for(&short_run(&[&format!("file:{path}")]), &[&path, "locked"]);
}

#[test]
fn an_image_that_cannot_be_written_is_refused() {
    let place = place();
    let folder = place.path().to_str().unwrap();
    refused_for(&short_run(&[&format!("file:{folder}")]), &[folder]);
    // The kernel keeps even root from writing to this one.
    let read_only = "/sys/kernel/fscaps";
    refused_for(&short_run(&[&format!("file:{read_only}")]), &[read_only]);
}

#[test]
fn a_refused_image_is_left_as_it_was() {
    let place = place();
    let path = file(place.path(), "small.img", "content");
    refusal(&short_run(&[&format!("file:{path}?size=1MiB")]));
    assert_eq!(fs::read_to_string(&path).unwrap(), "content");
}

/// What was refused once used to leave the image behind that opening it had made.
#[test]
fn a_refused_job_leaves_no_new_image() {
    let place = place();
    let path = place.path().join("new.img");
    let address = format!("file:{}?size=8MiB", path.display());
    let args = ["bench", &address, "--rw=read", "--size=100M"];
    refused_for(&args, &["8388608"]);
    assert!(!path.exists());
    let args = ["bench", &address, "--rw=read", "--number_ios=1"];
    success(&args);
    assert!(path.exists(), "what was used stays");
}

#[test]
fn more_memory_than_anybody_has_is_refused() {
    let args = ["bench", "mem:64MiB", "--rw=read", "--bs=64m", "--iodepth=65535"];
    refused_for(&args, &["bs times iodepth"]);
}

// What is done.

#[test]
fn a_run_writes_its_result_to_stdout_and_nothing_else() {
    let output = udirect(&short_run(&["mem:64MiB", "--output-format=json"]));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["jobs"][0]["jobname"], "bench");
    assert_eq!(result["jobs"][0]["read"]["total_ios"], 64);
}

#[test]
fn a_result_can_go_to_a_file() {
    let place = place();
    let path = place.path().join("result.csv");
    let output = format!("--output={}", path.display());
    assert_eq!(success(&short_run(&["mem:64MiB", &output, "--output-format=csv"])), "");
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
}

#[test]
fn notes_are_told_unless_the_run_is_quiet() {
    let args = short_run(&["mem:64MiB", "--ioengine=libaio"]);
    let note = "udirect: note: ioengine is ignored";
    assert!(text(&udirect(&args).stderr).contains(note));
    let quiet = udirect(&[&args[..], &["--quiet"]].concat());
    assert!(!text(&quiet.stderr).contains("note: "), "{}", text(&quiet.stderr));
}

/// Runs the program with JSON output and returns the first job.
#[track_caller]
fn measured(args: &[&str]) -> Value {
    let args = [&["bench"], args, &["--output-format=json"]].concat();
    let document: Value = serde_json::from_str(&success(&args)).expect("it is JSON");
    document["jobs"][0].clone()
}

/// What a rate had held back when the time was over was read back without having been written.
#[test]
fn a_rated_run_that_ends_by_time_reads_back_what_it_wrote_and_no_more() {
    let rated = ["--rw=randwrite", "--rate_iops=2k", "--verify=crc32c", "--runtime=200ms"];
    let job = measured(&[&["mem:16MiB", "--time_based"], &rated[..]].concat());
    assert_eq!(job["read"]["total_ios"], job["write"]["total_ios"]);
    assert_eq!(job["error"], 0);
}

/// Reads of a mix meet blocks that nobody has written; only the read-back can check.
#[test]
fn a_mix_with_verification_finds_nothing_wrong_on_a_fresh_device() {
    let job = measured(&["mem:16MiB", "--rw=randrw", "--verify=crc32c", "--size=4M"]);
    assert_eq!(job["error"], 0);
}

/// The direction that was drawn and not wanted yet held the other one back.
#[test]
fn both_rates_of_a_mix_are_kept_whatever_the_mix() {
    let rates = ["--rw=randrw", "--rate_iops=3k,1k", "--number_ios=400"];
    let job = measured(&[&["null:", "--iodepth=8"], &rates[..]].concat());
    let (reads, writes) = (&job["read"]["total_ios"], &job["write"]["total_ios"]);
    assert_eq!((reads.as_u64(), writes.as_u64()), (Some(300), Some(100)));
}

#[test]
fn both_ways_move_the_same_bytes_and_neighbours_share_commands_where_they_may() {
    let job = ["mem:64MiB", "--rw=write", "--bs=4k", "--size=4M", "--iodepth=32"];
    let queue = |more: &[&str]| {
        let result = measured(&[&job[..], more].concat());
        let ios = result["write"]["total_ios"].as_u64().unwrap();
        assert_eq!(ios, 1024);
        let queue = result["udirect"]["queue"].clone();
        ["submissions", "merges"].map(|name| queue[name].as_u64().unwrap())
    };
    assert_eq!(queue(&[]), [1024, 0]);
    assert_eq!(queue(&["--raw-queue"]), [1024, 0]);
    let [commands, merges] = queue(&["--merge"]);
    assert_eq!(commands + merges, 1024);
    assert!(merges > 900, "{merges} of 1024 joined a neighbour");
    refused_for(&["bench", "--merge", "--raw-queue"], &["--merge", "--raw-queue"]);
}

#[test]
fn a_refused_run_leaves_an_older_result_alone() {
    let place = place();
    let older = file(place.path(), "result.json", "older");
    refused_for(&["bench", "null:", "--iodepth=70000", &format!("--output={older}")], &["70000"]);
    assert_eq!(fs::read_to_string(&older).expect("it is there"), "older");
    let new = place.path().join("new.json");
    refused_for(
        &["bench", "null:", "--iodepth=70000", &format!("--output={}", new.display())],
        &[],
    );
    assert!(!new.exists(), "a refused run makes no file");
}

#[test]
fn a_flipped_bit_is_named_by_its_block() {
    let place = place();
    let image = place.path().join("image");
    let address = format!("file:{}?size=1MiB&lba=512", image.display());
    let write = ["bench", &address, "--rw=randwrite", "--verify=crc32c", "--do_verify=0"];
    success(&write);
    let mut bytes = fs::read(&image).expect("the image is there");
    bytes[777 * 512 + 100] ^= 1;
    fs::write(&image, bytes).expect("the image is writable");
    let read = udirect(&["bench", &address, "--rw=read", "--verify=crc32c"]);
    assert_eq!(read.status.code(), Some(1));
    assert!(text(&read.stderr).contains("verify: LBA 0x309: CRC32C"), "{}", text(&read.stderr));
}

/// A medium that fails, fails every command for one reason: it is told once, however many there are.
#[test]
fn ios_that_fail_are_counted_and_their_reason_is_told_once() {
    let place = place();
    let path = file(place.path(), "image", vec![0; 1 << 20]);
    let address = format!("file:{path}");
    let late = ["--startdelay=1", "--rw=randread", "--size=1M", "--output-format=json"];
    let args = [&["bench", &address], &late[..]].concat();
    let child = program(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let image = File::options().write(true).open(&path).unwrap();
    while image.try_lock().is_ok() {
        image.unlock().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    image.set_len(0).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(said.contains("256 I/Os failed") && said.contains("Unrecovered Read"), "{said}");
}

#[test]
fn the_verifying_job_file_finds_everything_as_it_was_written() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config/verify.fio");
    let csv = success(&["bench", path, "mem:8MiB", "--size=8M", "--output-format=csv"]);
    assert!(csv.contains("\nverify,0,randwrite,mem:8MiB,32,1,write,2048,0,"), "{csv}");
}

#[test]
fn a_signal_ends_the_run_and_the_result_is_still_written() {
    let args = [
        "bench",
        "mem:64MiB",
        "--rw=randread",
        "--time_based",
        "--runtime=10m",
        "--output-format=json",
    ];
    let child = program(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_worker(&child);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["jobs"][0]["error"], 0);
    assert!(text(&output.stderr).contains("ended by a signal"));
}

/// Waits until the program catches SIGINT and has a worker, as `/proc` shows.
fn wait_for_worker(child: &Child) {
    let path = format!("/proc/{}/status", child.id());
    loop {
        let status = fs::read_to_string(&path).expect("nobody has waited for the program yet");
        assert!(!status.contains("State:\tZ"), "the program ended before it was asked to");
        if catches_interrupt(&status) && threads(&status) > 1 {
            return;
        }
        std::thread::yield_now();
    }
}

/// Says whether the bit of SIGINT is set in the mask of signals that are caught.
fn catches_interrupt(status: &str) -> bool {
    let mask = field(status, "SigCgt:").and_then(|mask| u64::from_str_radix(mask, 16).ok());
    mask.is_some_and(|mask| mask & 1 << (libc::SIGINT - 1) != 0)
}

fn threads(status: &str) -> usize {
    field(status, "Threads:").and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

#[test]
fn a_device_is_listed_and_identified_as_by_nvme_cli() {
    let listed: Value =
        serde_json::from_str(&success(&["list", "mem:64MiB", "-o", "json"])).unwrap();
    let device = &listed["Devices"][0];
    assert_eq!(
        (&device["DevicePath"], &device["PhysicalSize"]),
        (&"mem:64MiB".into(), &67_108_864.into())
    );
    let controller = success(&["identify", "mem:64MiB"]);
    assert!(controller.starts_with("NVME Identify Controller:\nvid       : "), "{controller}");
    let namespace = success(&["identify", "mem:64MiB?lba=4096", "--namespace", "-o", "json"]);
    let namespace: Value = serde_json::from_str(&namespace).unwrap();
    assert_eq!(namespace["nsze"], 16_384);
    let in_use = namespace["flbas"].as_u64().unwrap() as usize & 0xf;
    assert_eq!(namespace["lbafs"][in_use]["ds"], 12);
}

// What is said about the program itself.

#[test]
fn no_device_is_a_header_and_an_explanation() {
    let output = udirect(&["list"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout).lines().count(), 2);
    assert!(text(&output.stdout).starts_with("Node "));
    assert!(text(&output.stderr).contains("mem:SIZE"));
}

#[test]
fn the_help_says_the_exit_codes() {
    for args in [&["--help"][..], &["-h"], &["bench", "--help"], &["help", "identify"]] {
        let help = success(args);
        for line in
            ["0  success", "1  an I/O failed", "2  the request was wrong", "3  the device failed"]
        {
            assert!(help.contains(line), "{args:?}: {help}");
        }
    }
}

#[test]
fn the_version_is_that_of_the_package() {
    assert_eq!(success(&["--version"]), concat!("udirect ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn help_manual_and_completions_name_every_bench_option() {
    // Roff escapes the dash, and a bold word begins with `\fB`.
    let manual = success(&["man"]).replace("\\-", "-").replace("\\fB", " ");
    let help = success(&["bench", "--help"]);
    let bash = success(&["completions", "bash"]);
    for spec in options().iter().filter(|spec| !spec.is_ignored()) {
        let flag = format!("--{}", spec.name);
        for (name, page) in [("manual", &manual), ("help", &help), ("completions", &bash)] {
            let named =
                page.split(|c: char| c.is_whitespace() || c == '\\').any(|word| word == flag);
            assert!(named || page.contains(&format!("{flag}[=")), "{flag} in {name}");
        }
    }
}

#[test]
fn completions_exist_for_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        assert!(success(&["completions", shell]).contains("iodepth"), "{shell}");
    }
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    for args in [&["man"][..], &["--help"], &["list"], &["completions", "zsh"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = program(args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(!text(&output.stderr).contains("pipe"), "{args:?}: {}", text(&output.stderr));
    }
}
