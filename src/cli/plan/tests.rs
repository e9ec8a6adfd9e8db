use std::fs;

use super::super::failure::Exit;
use super::*;
use crate::bench::job::{BlockSizes, Workload};

fn args(targets: &[&str], options: &[(&str, &str)]) -> BenchArgs {
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    BenchArgs {
        targets: targets.iter().map(ToString::to_string).collect(),
        options: options.iter().map(own).collect(),
        ..BenchArgs::default()
    }
}

fn jobs(targets: &[&str], options: &[(&str, &str)]) -> Vec<Job> {
    decide(&args(targets, options)).unwrap().plan.jobs
}

fn complaint(targets: &[&str], options: &[(&str, &str)]) -> String {
    let failure = decide(&args(targets, options)).unwrap_err();
    assert_eq!(failure.exit, Exit::Usage);
    failure.line()
}

/// Writes a job file and returns its directory and path.
fn job_file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.fio");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (dir, path)
}

#[test]
fn nothing_is_the_quick_job_on_memory() {
    let jobs = jobs(&[], &[]);
    assert!(jobs.iter().all(|job| is_memory(&job.filename)));
    let workloads: Vec<_> = jobs.iter().map(|job| job.rw).collect();
    assert_eq!(workloads, [Workload::Write, Workload::RandRead, Workload::RandWrite]);
}

#[test]
fn a_drive_that_is_only_named_is_not_written_to() {
    for address in ["pcie:0000:04:00.0", "file:/tmp/disk", "trtype=PCIe traddr=0000.04.00.0"] {
        let Decision { plan, notes } = decide(&args(&[address], &[])).unwrap();
        let workloads: Vec<_> = plan.jobs.iter().map(|job| job.rw).collect();
        assert_eq!(workloads, [Workload::RandRead], "{address}");
        assert_eq!(plan.jobs[0].filename, address);
        assert!(notes[0].contains(address), "{notes:?}");
    }
    assert_eq!(jobs(&["null:1G"], &[]).len(), 3);
}

#[test]
fn flags_without_a_file_are_one_job() {
    let jobs = jobs(&["mem:2G"], &[("rw", "randwrite"), ("bs", "8k")]);
    assert_eq!(jobs.len(), 1);
    assert_eq!((jobs[0].name.as_str(), jobs[0].filename.as_str()), ("bench", "mem:2G"));
    assert_eq!((jobs[0].rw, jobs[0].bs.write.only()), (Workload::RandWrite, Some(8192)));
    let named = decide(&args(&[], &[("name", "mine")])).unwrap().plan.jobs;
    assert_eq!((named[0].name.as_str(), named[0].filename.as_str()), ("mine", DEFAULT_DEVICE));
}

#[test]
fn flags_and_the_address_prevail_over_a_file() {
    let (_dir, path) = job_file("[global]\nfilename=mem:1M\nbs=4k\n[a]\niodepth=2\n[b]\nbs=16k\n");
    let jobs = jobs(&[&path, "mem:2G"], &[("bs", "8k")]);
    assert_eq!(jobs.len(), 2);
    for job in &jobs {
        assert_eq!((job.filename.as_str(), &job.bs.read), ("mem:2G", &BlockSizes::fixed(8192)));
    }
    assert_eq!((jobs[0].iodepth, jobs[1].iodepth), (2, 1));
}

#[test]
fn a_job_without_a_device_is_refused_by_name() {
    let (_dir, path) = job_file("[lonely]\nbs=4k\n");
    let expected = "job \"lonely\" has no device: give an ADDRESS or filename=";
    assert_eq!(complaint(&[&path], &[]), expected);
}

#[test]
fn a_wrong_flag_is_not_blamed_on_the_file() {
    let (_dir, path) = job_file("[a]\nfilename=mem:1M\n");
    let said = complaint(&[&path], &[("iodepth", "0")]);
    assert!(said.starts_with("command line: iodepth=0: "), "{said}");
}

#[test]
fn contradictions_about_the_device_are_refused() {
    let two = "two addresses, mem:1G and mem:2G: one at a time";
    assert_eq!(complaint(&["mem:1G", "mem:2G"], &[]), two);
    let both = "both mem:1G and --filename name the device";
    assert_eq!(complaint(&["mem:1G"], &[("filename", "mem:2G")]), both);
    let neither = "\"sda\" is neither an address, as in mem:1GiB, nor a job file";
    assert_eq!(complaint(&["sda"], &[]), neither);
}

#[test]
fn several_names_need_a_file() {
    let said = complaint(&[], &[("name", "a"), ("name", "b")]);
    assert_eq!(said, "--name is given twice: several jobs need a job file");
}

#[test]
fn notes_about_ignored_options_name_their_place() {
    let (_dir, path) = job_file("[a]\nfilename=mem:1M\nioengine=libaio\n");
    let notes = decide(&args(&[&path], &[("direct", "1")])).unwrap().notes;
    assert!(
        notes[0].ends_with("a.fio:3: ioengine is ignored: the device's address chooses the path")
    );
    assert_eq!(notes[1], "direct is ignored: there is no page cache on this path");
}
