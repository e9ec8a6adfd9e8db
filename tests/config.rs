//! Every job file in `config/` is one that the program takes.
#![cfg(feature = "program")]

use std::fs;
use std::path::{Path, PathBuf};

use udirect::bench::job::{Job, Verify, Workload};
use udirect::bench::parse::{JobFile, Parser, parse_file};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}

/// Returns the job files, sorted.
fn job_files() -> Vec<PathBuf> {
    let entries = fs::read_dir(folder())
        .expect("the folder is in the package")
        .flatten()
        .map(|entry| entry.path());
    let mut files: Vec<_> =
        entries.filter(|path| path.extension().unwrap_or_default() == "fio").collect();
    files.sort();
    assert!(files.len() >= 5, "{files:?}");
    files
}

fn parsed(name: &str) -> JobFile {
    parse_file(&folder().join(name)).expect("the file parses")
}

#[test]
fn every_file_parses_without_a_note() {
    for path in job_files() {
        let file = parse_file(&path).unwrap();
        assert_eq!(file.notes, [], "{}", path.display());
        assert!(file.jobs.iter().all(|job| job.filename.starts_with("mem:")), "{}", path.display());
    }
}

#[test]
fn every_file_can_be_pointed_at_a_drive() {
    let parser = Parser::default().with_override("filename", "pcie:0000:04:00.0");
    for path in job_files() {
        let jobs = parser.parse_file(&path).unwrap().jobs;
        assert!(jobs.iter().all(|job| job.filename == "pcie:0000:04:00.0"), "{}", path.display());
    }
}

#[test]
fn every_header_shows_the_command_and_warns_of_what_is_destroyed() {
    for path in job_files() {
        let text = fs::read_to_string(&path).unwrap();
        let header: String = text.lines().take_while(|line| line.starts_with('#')).collect();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(header.contains(&format!("udirect bench config/{name} pcie:")), "{name}");
        let destructive = parse_file(&path).unwrap().jobs.iter().any(|job| job.rw.is_destructive());
        assert_eq!(header.contains("DESTROYS"), destructive, "{name}");
    }
}

#[test]
fn the_quick_job_takes_at_most_five_seconds() {
    let time = |job: &Job| job.startdelay + job.ramp_time + job.runtime.unwrap();
    let jobs = parsed("quick.fio").jobs;
    assert!(jobs.iter().map(time).sum::<std::time::Duration>().as_secs() <= 5);
    assert!(jobs[1..].iter().all(|job| job.time_based), "all but the fill");
    assert!(jobs[1..].iter().all(|job| job.stonewall), "they would run side by side");
}

#[test]
fn the_verifying_job_covers_every_block_of_its_region() {
    let job = &parsed("verify.fio").jobs[0];
    assert_eq!((job.verify, job.do_verify, job.rw), (Verify::Crc32c, true, Workload::RandWrite));
    assert!(job.covers_each_block_once());
    assert_eq!(job.runtime, None, "a limit would leave blocks unwritten");
}
