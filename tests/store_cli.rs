//! `udirect store` from outside: every verb, and every way in which what was typed or what is there can be wrong.
//!
//! Stores are images of a temporary directory. What is refused leaves no image, no file and no object behind.
#![cfg(feature = "program")]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// A directory with a store in it.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self::without_store();
        place.success(&["format", "file:disk.img?size=16MiB"]);
        place
    }

    fn without_store() -> Self {
        Self { folder: tempfile::tempdir().expect("there is a place for temporary files") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).expect("the place is writable");
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect("the file is there")
    }

    /// Changes bytes of the image.
    fn change(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut image = self.read("disk.img");
        change(&mut image);
        self.write("disk.img", image);
    }

    fn command(&self, args: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_udirect"));
        command.arg("store").args(args).env_remove("UDIRECT_LOG").stdin(Stdio::null());
        command.current_dir(self.folder.path());
        command
    }

    fn run(&self, args: &[impl AsRef<OsStr>]) -> Output {
        self.command(args).output().expect("the program was built")
    }

    /// Runs what must be done, and returns stdout.
    #[track_caller]
    fn success(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "", "{args:?}");
        text(&output.stdout).to_owned()
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.success(&[args, &["-o", "json"]].concat())).expect("it is JSON")
    }

    /// Runs what must fail in one line that holds all of `parts`, and returns stdout.
    #[track_caller]
    fn fails(
        &self,
        code: i32,
        args: &[impl AsRef<OsStr> + core::fmt::Debug],
        parts: &[&str],
    ) -> String {
        let output = self.run(args);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{args:?}: {said}");
        assert!(parts.iter().all(|part| said.contains(part)), "{args:?}: {said}");
        text(&output.stdout).to_owned()
    }

    #[track_caller]
    fn refused(&self, args: &[&str], parts: &[&str]) {
        assert_eq!(self.fails(2, args, parts), "", "{args:?}");
    }

    fn names(&self) -> Vec<String> {
        self.success(&["ls", DISK]).lines().map(str::to_owned).collect()
    }
}

const DISK: &str = "file:disk.img";

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the program writes UTF-8")
}

/// Bytes that are not those of the block before.
fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(len as u64).fill(&mut bytes);
    bytes
}

// What is done.

/// The tour of the README, word for word.
#[test]
fn the_tour_of_the_readme_runs() {
    let readme =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let blocks = readme.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let tour = blocks.into_iter().find(|block| block.starts_with("udirect store format"));
    let tour = tour.expect("the README has a tour");
    let place = Place::without_store();
    place.write("README.md", &readme);
    let bin = Path::new(env!("CARGO_BIN_EXE_udirect")).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let mut shell = Command::new("sh");
    shell.args(["-ec", tour]).current_dir(place.folder.path()).env("PATH", path);
    let output = shell.env_remove("UDIRECT_LOG").output().unwrap();
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}");
    for part in ["uuid", " readme\n", "fragmentation", "sound: "] {
        assert!(out.contains(part), "{part}: {out}");
    }
    assert_eq!(place.read("copy.md"), readme.as_bytes());
}

#[test]
fn bytes_come_back_whatever_their_number() {
    let place = Place::new();
    for len in [0, 1, 511, 4096, 5000, 1 << 20, (1 << 20) + 1, 3_333_333] {
        let bytes = noise(len);
        place.write("in", &bytes);
        place.success(&["put", DISK, "in", "a", "--replace"]);
        place.success(&["get", DISK, "a", "out", "--force"]);
        assert!(place.read("out") == bytes, "{len} bytes");
        let stat = place.json(&["stat", DISK, "a"]);
        assert_eq!(stat["size_bytes"], len);
        assert_eq!(stat["allocated_bytes"], len.next_multiple_of(4096));
        assert!(place.success(&["check", DISK]).starts_with("sound: "));
    }
    assert_eq!(place.names(), ["a"]);
}

#[test]
fn standard_input_and_output_are_a_dash() {
    let place = Place::new();
    for len in [0, 100, 2_500_000] {
        let bytes = noise(len);
        place.write("in", &bytes);
        let mut put = place.command(&["put", DISK, "-", "a", "--replace"]);
        let input = fs::File::open(place.path("in")).unwrap();
        assert!(put.stdin(input).status().unwrap().success());
        assert!(place.run(&["get", DISK, "a", "-"]).stdout == bytes);
        assert!(place.run(&["cat", DISK, "a"]).stdout == bytes);
        let stat = place.json(&["stat", DISK, "a"]);
        assert_eq!(stat["allocated_bytes"], len.next_multiple_of(4096), "nothing is left over");
    }
}

#[test]
fn other_shapes_of_device_and_store_work_as_well() {
    for (query, unit) in [("&lba=512", "512"), ("&lba=4096", "64k"), ("&vwc=0", "1MiB")] {
        let place = Place::without_store();
        let address = format!("file:disk.img?size=32MiB{query}");
        place.success(&["format", &address, "--unit", unit, "--journal=128k", "--checkpoint=1M"]);
        let address = address.replace("size=32MiB&", "");
        let bytes = noise(1_234_567);
        place.write("in", &bytes);
        place.success(&["put", &address, "in"]);
        assert!(place.run(&["cat", &address, "in"]).stdout == bytes, "{query}");
        place.success(&["check", &address]);
    }
}

#[test]
fn objects_are_listed_shown_and_located() {
    let place = Place::new();
    place.write("zebra", noise(10_000));
    place.write("ant", noise(4096));
    place.success(&["put", DISK, "zebra"]);
    place.success(&["put", DISK, "ant"]);
    assert_eq!(place.names(), ["ant", "zebra"]);
    let long = place.success(&["ls", "-l", DISK]);
    let first = long.lines().nth(1).expect("a line for each object");
    assert!(first.ends_with(" ant") && first.contains(" 4096 "), "{long}");
    let list = place.json(&["ls", DISK]);
    assert_eq!(list["objects"][1]["name"], "zebra");
    assert_eq!(list["objects"][1]["size_bytes"], 10_000);
    let stat = place.success(&["stat", DISK, "zebra"]);
    assert!(stat.starts_with("name      : zebra\n") && stat.contains("10000 (9.77 KiB)"), "{stat}");
    let map = place.json(&["map", DISK, "zebra"]);
    let extents = map["extents"].as_array().unwrap();
    let total: u64 = extents.iter().map(|extent| extent["length_bytes"].as_u64().unwrap()).sum();
    assert_eq!((total, &extents[0]["written"]), (12_288, &Value::from(true)));
    let at = extents[0]["device_bytes"].as_u64().unwrap() as usize;
    assert!(place.read("disk.img")[at..at + 4096] == noise(10_000)[..4096], "the map is true");
    assert!(place.success(&["map", DISK, "zebra"]).contains(" written"));
    let df = place.json(&["df", DISK]);
    assert_eq!((&df["objects"], &df["used_bytes"]), (&2.into(), &16_384.into()));
    let sum = df["used_bytes"].as_u64().unwrap() + df["free_bytes"].as_u64().unwrap();
    assert_eq!(sum, df["data_bytes"].as_u64().unwrap());
    assert_eq!(place.json(&["check", DISK])["sound"], true);
}

#[test]
fn what_only_looks_changes_nothing() {
    let place = Place::new();
    place.write("a", noise(5000));
    place.success(&["put", DISK, "a"]);
    let before = place.read("disk.img");
    for args in [&["ls", DISK][..], &["df", DISK], &["check", DISK], &["stat", DISK, "a"]] {
        place.success(args);
    }
    place.success(&["map", DISK, "a"]);
    assert_eq!(place.run(&["cat", DISK, "a"]).stdout, noise(5000));
    place.success(&["get", DISK, "a", "out"]);
    assert!(place.read("disk.img") == before);
}

#[test]
fn objects_are_renamed_replaced_and_removed() {
    let place = Place::new();
    place.write("a", "of a");
    place.write("b", "of b");
    place.success(&["put", DISK, "a"]);
    place.success(&["put", DISK, "b"]);
    place.refused(&["mv", DISK, "a", "b"], &["\"b\" exists", "--replace"]);
    place.refused(&["put", DISK, "a", "b"], &["\"b\" exists", "--replace"]);
    place.success(&["mv", DISK, "a", "c"]);
    assert_eq!(place.names(), ["b", "c"]);
    place.success(&["mv", DISK, "c", "b", "--replace"]);
    assert_eq!(place.run(&["cat", DISK, "b"]).stdout, b"of a");
    place.success(&["put", DISK, "b", "b", "--replace"]);
    assert_eq!(place.run(&["cat", DISK, "b"]).stdout, b"of b");
    place.success(&["put", DISK, "a"]);
    place.refused(&["rm", DISK, "a", "z"], &["no object \"z\""]);
    assert_eq!(place.names(), ["a", "b"], "all that are named, or none");
    place.success(&["rm", DISK, "a", "b", "a"]);
    assert_eq!(place.names(), [""; 0]);
    assert_eq!(place.json(&["df", DISK])["used_bytes"], 0);
}

#[test]
fn a_name_may_hold_whatever_is_text() {
    let place = Place::new();
    place.write("in", "x");
    for name in ["größe", "a/b", "a!b", "#7", "a\nb"] {
        place.success(&["put", DISK, "in", name]);
        assert_eq!(place.run(&["cat", DISK, name]).stdout, b"x");
    }
    assert!(place.names().contains(&"a\\nb".to_owned()), "a line for each object");
    // The number stands where no name does.
    let number = place.json(&["stat", DISK, "größe"])["id"].to_string();
    let by_number = place.json(&["stat", DISK, &format!("#{number}")]);
    assert_eq!(by_number["name"], "größe");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let place = Place::new();
    place.write("a", noise(4 << 20));
    place.success(&["put", DISK, "a"]);
    for args in [&["cat", DISK, "a"][..], &["get", DISK, "a", "-"], &["ls", DISK]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = place.command(args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "");
    }
}

#[test]
fn help_manual_and_completions_name_every_verb() {
    let program = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_udirect")).args(args).output().unwrap();
        text(&output.stdout).to_owned()
    };
    let (help, manual) = (program(&["store", "--help"]), program(&["man"]));
    let bash = program(&["completions", "bash"]);
    for verb in ["format", "ls", "put", "get", "cat", "rm", "mv", "stat", "df", "map", "check"] {
        assert!(help.contains(&format!("\n  {verb} ")), "{verb}: {help}");
        assert!(manual.contains(&format!("STORE {}", verb.to_uppercase())), "{verb}");
        assert!(bash.contains(verb), "{verb}");
        assert!(program(&["store", verb, "--help"]).contains("0  success"), "{verb}");
    }
}

// What is wrong with what was typed.

#[test]
fn a_verb_that_is_none_is_named() {
    let place = Place::without_store();
    place.refused(&["lss", DISK], &["unknown verb \"lss\"", "\"ls\""]);
    place.refused(&[], &["a verb is needed, as in `udirect store ls`"]);
    place.refused(&["ls"], &["missing <ADDRESS>"]);
    place.refused(&["cat", DISK], &["missing <NAME>"]);
    place.refused(&["put", DISK, "-"], &["needs a NAME"]);
}

#[test]
fn a_name_that_no_object_can_have_is_refused_before_the_device_is_opened() {
    let place = Place::without_store();
    place.write("in", "x");
    let long = "n".repeat(256);
    for (name, problem) in [("", "at least one byte"), (&*long, "at most 255 bytes")] {
        for args in [
            &["cat", "mem:none", name][..],
            &["put", "mem:none", "in", name],
            &["mv", "mem:none", "in", name],
            &["rm", "mem:none", "in", name],
        ] {
            place.refused(args, &[problem]);
        }
    }
    let bytes = OsStr::from_bytes(b"caf\xe9").to_owned();
    let args: [OsString; 3] = ["stat".into(), "mem:none".into(), bytes];
    place.fails(2, &args, &["a name is UTF-8"]);
}

#[test]
fn a_size_that_cannot_be_is_refused_and_leaves_no_image() {
    let place = Place::without_store();
    let new = "file:new.img?size=16MiB";
    for (flag, parts) in [
        ("--unit=3000", &["--unit=3000", "power of two"][..]),
        ("--unit=2MiB", &["--unit=2097152"]),
        ("--unit=512", &["--unit=512", "less than a block"]),
        ("--unit=many", &["many", "not a size"]),
        ("--journal=1k", &["journal", "1024"]),
        ("--journal=16MiB", &["the device is 16777216"]),
        ("--checkpoint=8MiB", &["the device is 16777216"]),
    ] {
        place.refused(&["format", new, flag], parts);
        assert!(!place.path("new.img").exists(), "{flag}");
    }
    place.refused(&["format", "file:new.img?size=64k"], &["the device is 65536"]);
    place.fails(3, &["format", "null:"], &["does not keep what is written"]);
    assert!(!place.path("new.img").exists());
}

// What is wrong with what is there.

#[test]
fn what_is_there_is_destroyed_only_by_force() {
    let place = Place::new();
    place.write("a", "x");
    place.success(&["put", DISK, "a"]);
    let before = place.read("disk.img");
    place.refused(&["format", DISK], &["store ", "with 1 objects", "--force"]);
    assert!(place.read("disk.img") == before);
    place.success(&["format", DISK, "--force"]);
    assert_eq!(place.names(), [""; 0]);
    let mut foreign = vec![0; 16 << 20];
    foreign[1080..1082].copy_from_slice(b"\x53\xef");
    place.write("disk.img", &foreign);
    place.refused(&["format", DISK], &["a filesystem (ext2", "--force"]);
    assert!(place.read("disk.img") == foreign);
    place.success(&["format", DISK, "--force"]);
    place.success(&["check", DISK]);
}

#[test]
fn a_device_without_a_store_is_told_how_to_get_one() {
    let place = Place::without_store();
    place.write("a", "x");
    let new = "file:new.img?size=16MiB";
    for args in [
        &["ls", new][..],
        &["df", new],
        &["put", new, "a"],
        &["get", new, "a", "out"],
        &["cat", new, "a"],
        &["rm", new, "a"],
        &["mv", new, "a", "b"],
        &["stat", new, "a"],
        &["map", new, "a"],
    ] {
        place.refused(args, &["not a store", "udirect store format"]);
        assert!(!place.path("new.img").exists(), "{args:?}");
    }
    let found = place.fails(1, &["check", new], &["1 finding"]);
    assert!(found.starts_with("not-a-store: "), "{found}");
    assert!(!place.path("new.img").exists() && !place.path("out").exists());
    place.refused(&["ls", "mem:16MiB"], &["mem:16MiB: not a store"]);
    place.refused(&["ls", "floppy:"], &["unknown scheme floppy:"]);
}

#[test]
fn damage_is_named_and_nothing_is_changed() {
    let place = Place::new();
    place.write("a", noise(5000));
    place.success(&["put", DISK, "a"]);
    place.change(|image| image[300] ^= 1);
    let found = place.fails(1, &["check", DISK], &["1 finding"]);
    assert!(found.starts_with("superblock-damaged: "), "{found}");
    let output = place.run(&["cat", DISK, "a"]);
    assert_eq!((output.status.code(), output.stdout), (Some(0), noise(5000)));
    // The other copies as well.
    place.change(|image| (1..4).for_each(|copy| image[(copy << 16) + 300] ^= 1));
    let before = place.read("disk.img");
    place.fails(1, &["ls", DISK], &["superblock", "damaged"]);
    place.fails(1, &["put", DISK, "a", "b"], &["superblock", "damaged"]);
    let found = place.run(&["check", DISK, "-o", "json"]);
    let report: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!((found.status.code(), &report["sound"]), (Some(1), &false.into()));
    assert_eq!(report["findings"][0]["name"], "superblocks-lost");
    place.refused(&["format", DISK], &["a store that cannot be opened", "--force"]);
    assert!(place.read("disk.img") == before);
}

#[test]
fn an_object_that_is_not_there_is_named() {
    let place = Place::new();
    for args in [
        &["cat", DISK, "a"][..],
        &["get", DISK, "a", "out"],
        &["rm", DISK, "a"],
        &["mv", DISK, "a", "b"],
        &["stat", DISK, "a"],
        &["map", DISK, "a"],
    ] {
        place.refused(args, &["file:disk.img: no object \"a\""]);
    }
    place.refused(&["cat", DISK, "#5"], &["no object \"#5\""]);
    assert!(!place.path("out").exists());
}

#[test]
fn a_store_that_is_full_keeps_what_it_has_and_nothing_of_what_did_not_fit() {
    let place = Place::new();
    place.write("small", noise(5000));
    place.success(&["put", DISK, "small", "a"]);
    place.write("large", vec![1; 17 << 20]);
    for name in ["a", "b"] {
        let args = ["put", DISK, "large", name, "--replace"];
        assert_eq!(place.fails(1, &args, &["no space"]), "");
        // Of a stream nobody knows the length.
        let mut put = place.command(&["put", DISK, "-", name, "--replace"]);
        let output = put.stdin(fs::File::open(place.path("large")).unwrap()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("no space"), "{}", text(&output.stderr));
    }
    assert_eq!(place.names(), ["a"]);
    assert_eq!(place.json(&["df", DISK])["used_bytes"], 8192);
    assert_eq!(place.run(&["cat", DISK, "a"]).stdout, noise(5000));
    place.success(&["check", DISK]);
}

#[test]
fn a_signal_ends_a_copy_and_nothing_of_it_stays() {
    let place = Place::new();
    let mut put = place.command(&["put", DISK, "-", "a"]);
    let mut put = put.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = put.stdin.take().unwrap();
    // More than a pipe holds: when all of it is written, the program is reading and catches signals.
    input.write_all(&noise(3 << 20)).unwrap();
    kill_process(Pid::from_child(&put), Signal::INT).unwrap();
    drop(input);
    let output = put.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("ended by a signal"));
    assert_eq!(place.names(), [""; 0]);
    assert_eq!(place.json(&["df", DISK])["used_bytes"], 0);
}

#[test]
fn files_that_are_missing_or_in_the_way_are_named() {
    let place = Place::new();
    place.refused(&["put", DISK, "missing"], &["missing: No such file"]);
    place.refused(&["put", DISK, "."], &["is a directory"]);
    place.write("a", "x");
    place.success(&["put", DISK, "a"]);
    place.write("out", "older");
    place.refused(&["get", DISK, "a", "out"], &["out exists", "--force"]);
    assert_eq!(place.read("out"), b"older");
    place.refused(&["get", DISK, "b", "out", "--force"], &["no object \"b\""]);
    assert_eq!(place.read("out"), b"older", "nothing is cut off for an object that is not there");
    place.refused(&["get", DISK, "a", "no/such/out"], &["no/such/out"]);
    place.success(&["get", DISK, "a", "out", "--force"]);
    assert_eq!(place.read("out"), b"x");
}

#[test]
fn an_image_that_cannot_be_written_is_refused() {
    let place = Place::new();
    // The kernel keeps even root from writing to this one.
    let read_only = "file:/sys/kernel/fscaps";
    place.refused(&["ls", read_only], &["/sys/kernel/fscaps"]);
    place.refused(&["format", read_only, "--force"], &["/sys/kernel/fscaps"]);
    place.refused(&["ls", "file:missing.img"], &["missing.img"]);
}

#[test]
fn an_image_that_somebody_has_open_is_refused() {
    let place = Place::new();
    let held = fs::File::open(place.path("disk.img")).unwrap();
    held.lock().unwrap();
    place.refused(&["ls", DISK], &["locked"]);
}

// Objects as what is measured.

/// Runs jobs on an object, and returns the first.
fn measured(place: &Place, filename: &str, more: &[&str]) -> Value {
    let output = bench(place, filename, more);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    document["jobs"][0].clone()
}

fn bench(place: &Place, filename: &str, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_udirect"));
    command.args(["bench", "--output-format=json", &format!("--filename={filename}")]).args(more);
    command
        .env_remove("UDIRECT_LOG")
        .current_dir(place.folder.path())
        .output()
        .expect("it was built")
}

#[track_caller]
fn bench_refused(place: &Place, filename: &str, more: &[&str], parts: &[&str]) {
    let output = bench(place, filename, more);
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{said}");
    assert!(parts.iter().all(|part| said.contains(part)), "{said}");
}

#[test]
fn an_object_that_is_missing_or_short_is_laid_out_first() {
    let place = Place::new();
    let log = "file:disk.img!log";
    let output = bench(&place, log, &["--size=2M", "--rw=randread", "--number_ios=64"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("laying out object \"log\" (2 MiB)"));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["jobs"][0]["job options"]["filename"], log);
    let extents = place.json(&["map", DISK, "log"])["extents"].clone();
    let extents = extents.as_array().unwrap();
    assert!(extents.iter().all(|extent| extent["written"] == true), "{extents:?}");
    // Longer, and the same again.
    for said in ["laying out object \"log\" (1 MiB)", ""] {
        let output = bench(&place, log, &["--size=3M", "--rw=read", "--number_ios=8"]);
        assert!(
            text(&output.stderr).contains(said)
                && (said.is_empty() != text(&output.stderr).contains("laying"))
        );
        assert_eq!(place.json(&["stat", DISK, "log"])["size_bytes"], 3 << 20);
    }
    // Its own size is the default, and what reads only changes nothing.
    let before = place.read("disk.img");
    let job = measured(&place, log, &["--rw=read", "--bs=64k"]);
    assert_eq!(job["read"]["io_bytes"], 3 << 20);
    assert!(place.read("disk.img") == before);
    assert!(place.success(&["check", DISK]).starts_with("sound: "));
}

#[test]
fn what_is_written_to_an_object_verifies_and_flushes() {
    let place = Place::new();
    for filename in ["mem:64MiB!a", "mem:64MiB?lba=512!a", "file:disk.img!a"] {
        let write =
            ["--rw=randwrite", "--size=4M", "--verify=crc32c", "--fsync=100", "--end_fsync=1"];
        let job = measured(&place, filename, &write);
        assert_eq!((&job["error"], &job["write"]["io_bytes"]), (&0.into(), &(4 << 20).into()));
        assert_eq!(job["sync"]["total_ios"], 11);
    }
    let job = measured(&place, "file:disk.img!a", &["--rw=read", "--verify=crc32c"]);
    assert_eq!(job["error"], 0);
    let job = measured(&place, "file:disk.img!a", &["--rw=randtrim", "--size=1M"]);
    assert_eq!(job["trim"]["io_bytes"], 1 << 20);
    assert!(place.success(&["check", DISK]).starts_with("sound: "));
}

#[test]
fn workers_and_jobs_share_one_store() {
    let place = Place::new();
    place.write(
        "two.fio",
        "[global]\nrw=randrw\nsize=1M\noffset_increment=1M\nnumjobs=2\n\
        [a]\nfilename=file:disk.img!a\n[b]\nfilename=file:disk.img!b\n[c]\nstonewall\n\
        filename=file:disk.img!a\n",
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_udirect"));
    command.args(["bench", "two.fio", "--oversubscribe", "--output-format=csv"]);
    let output = command.current_dir(place.folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(place.names(), ["a", "b"]);
    assert_eq!(place.json(&["stat", DISK, "a"])["size_bytes"], 2 << 20);
    assert!(place.success(&["check", DISK]).starts_with("sound: "));
}

/// An object of 5000 bytes has one whole block; the rest is never touched.
#[test]
fn the_end_of_an_object_that_fills_no_block_is_left_alone() {
    let place = Place::new();
    place.write("a", noise(5000));
    place.success(&["put", DISK, "a"]);
    let job = measured(&place, "file:disk.img!a", &["--rw=write"]);
    assert_eq!(job["write"]["io_bytes"], 4096);
    let now = place.run(&["cat", DISK, "a"]).stdout;
    assert!(now[4096..] == noise(5000)[4096..] && now[..4096] != noise(5000)[..4096]);
    // Longer: what was there stays.
    measured(&place, "file:disk.img!a", &["--rw=read", "--size=64k"]);
    let now = place.run(&["cat", DISK, "a"]).stdout;
    assert_eq!(now.len(), 65_536);
    assert!(now[4096..5000] == noise(5000)[4096..]);
    assert!(now[5000..8192].iter().all(|byte| *byte == 0));
}

#[test]
fn what_no_object_can_be_measured_for_is_refused() {
    let place = Place::new();
    let read = ["--rw=read", "--number_ios=1"];
    let with = |more: &'static str| [&read[..], &[more]].concat();
    bench_refused(&place, "file:disk.img!a", &read, &["no object \"a\"", "size="]);
    bench_refused(&place, "file:disk.img!a", &with("--size=50%"), &["no object \"a\"", "size="]);
    bench_refused(&place, "file:disk.img!", &with("--size=1M"), &["at least one byte"]);
    bench_refused(&place, "mem:16MiB!a", &with("--raw-queue"), &["--raw-queue", "mem:16MiB!a"]);
    bench_refused(&place, "file:disk.img!a", &with("--size=5000"), &["5000", "LBA"]);
    assert_eq!(place.names(), [""; 0], "nothing is made for a job that is refused");
    for none in ["file:new.img?size=16MiB!a", "null:!a"] {
        bench_refused(&place, none, &with("--size=1M"), &["not a store", "udirect store format"]);
    }
    assert!(!place.path("new.img").exists());
    let output = bench(&place, "file:disk.img!a", &with("--size=32M"));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no space"), "{}", text(&output.stderr));
    assert_eq!(place.names(), [""; 0], "the object that did not fit is gone");
    place.write(
        "both.fio",
        "[a]\nrw=read\nfilename=file:disk.img\n[b]\nrw=read\nsize=1M\nfilename=file:disk.img!b\n",
    );
    let both = Command::new(env!("CARGO_BIN_EXE_udirect"))
        .args(["bench", "both.fio", "--oversubscribe"])
        .current_dir(place.folder.path())
        .output()
        .unwrap();
    assert_eq!(both.status.code(), Some(2));
    assert!(text(&both.stderr).contains("whole device"), "{}", text(&both.stderr));
}
