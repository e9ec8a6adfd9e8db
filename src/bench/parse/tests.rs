use super::super::job::{Size, Workload};
use super::*;
use std::time::Duration;

fn jobs(text: &str) -> Vec<Job> {
    parse_str("x.fio", text).unwrap().jobs
}

fn only(options: &str) -> Job {
    jobs(&format!("[a]\n{options}")).remove(0)
}

fn error(text: &str) -> String {
    parse_str("config/x.fio", text).unwrap_err().to_string()
}

#[test]
fn a_section_is_a_job_and_its_options_are_the_fields() {
    let job = only("filename=mem:1G\nrw=randread\nbs = 8k\niodepth=32\nruntime=10s\ntime_based");
    assert_eq!((job.name.as_str(), job.filename.as_str()), ("a", "mem:1G"));
    assert_eq!((job.rw, job.iodepth, job.time_based), (Workload::RandRead, 32, true));
    assert_eq!(job.bs.read.only(), Some(8192));
    assert_eq!(job.runtime, Some(Duration::from_secs(10)));
}

#[test]
fn filenames_keep_their_blanks_and_equal_signs() {
    let job = only("filename=trtype=PCIe traddr=0000.04.00.0 ns=1");
    assert_eq!(job.filename, "trtype=PCIe traddr=0000.04.00.0 ns=1");
}

#[test]
fn global_options_hold_for_the_sections_behind_them() {
    let file =
        parse_str("x.fio", "[global]\nbs=4k\nrw=write\n[a]\n[global]\nbs=8k\n[b]\nrw=read\n");
    let file = file.unwrap();
    let summary: Vec<_> = file.jobs.iter().map(|job| (job.bs.read.min(), job.rw)).collect();
    assert_eq!(summary, [(4096, Workload::Write), (8192, Workload::Read)]);
    assert_eq!(file.global, [("bs".into(), "8k".into()), ("rw".into(), "write".into())]);
    assert_eq!(file.jobs[1].written, [("rw".into(), "read".into())]);
}

#[test]
fn comments_begin_with_a_semicolon_or_a_hash() {
    let text = "; one\n# two\n\n[a] ; three\nbs=8k # four\n;bs=16k\n";
    assert_eq!(jobs(text)[0].bs.read.only(), Some(8192));
}

#[test]
fn lines_may_end_as_on_windows() {
    assert_eq!(jobs("[a]\r\nbs=8k\r\n")[0].bs.read.only(), Some(8192));
}

#[test]
fn a_name_inside_the_section_replaces_that_of_the_section() {
    assert_eq!(only("name=b").name, "b");
}

#[test]
fn sizes_and_offsets_may_be_percentages() {
    let job = only("size=50%\noffset=1m\nio_size=2g\noffset_increment=10%");
    assert_eq!((job.size, job.offset), (Some(Size::Percent(50)), Size::Bytes(1 << 20)));
    assert_eq!(job.io_size, Some(Size::Bytes(2 << 30)));
    assert_eq!(job.offset_increment, Size::Percent(10));
}

#[test]
fn zero_stands_for_no_limit() {
    let job = only("size=0\nruntime=0\nrate=0\nnumber_ios=0");
    assert_eq!((job.size, job.runtime, job.number_ios), (None, None, None));
    assert_eq!(job.rate.read, None);
}

#[test]
fn rates_and_block_mixes_are_per_direction() {
    let job = only("rate_iops=1000,2000\nbssplit=4k/60:64k/40,8k");
    assert_eq!((job.rate_iops.read, job.rate_iops.trim), (Some(1000), Some(2000)));
    assert_eq!((job.bs.read.max(), job.bs.write.only()), (65536, Some(8192)));
}

#[test]
fn think_time_is_in_microseconds() {
    assert_eq!(only("thinktime=20").thinktime, Duration::from_micros(20));
}

fn with_environment(text: &str) -> Result<JobFile, JobFileError> {
    let environment: Environment = |name| (name == "DEPTH").then(|| "7".to_owned());
    Parser { environment, ..Parser::default() }.parse_str("config/x.fio", text)
}

#[test]
fn variables_of_the_environment_are_expanded() {
    let file = with_environment("[a]\niodepth=1${DEPTH}\nfilename=/dev/${DEPTH}/${DEPTH}").unwrap();
    assert_eq!((file.jobs[0].iodepth, file.jobs[0].filename.as_str()), (17, "/dev/7/7"));
}

#[test]
fn a_variable_that_is_not_set_is_named() {
    let error = with_environment("[a]\niodepth=${WIDTH}").unwrap_err();
    assert_eq!(error.to_string(), "config/x.fio:2: environment variable \"WIDTH\" is not set");
    let error = with_environment("[a]\niodepth=${DEPTH").unwrap_err();
    assert_eq!(error.to_string(), "config/x.fio:2: \"${\" without \"}\"");
}

#[test]
fn keys_of_the_kernel_path_are_noted_with_their_line() {
    let file = parse_str("config/x.fio", "[a]\nioengine=libaio\nbs=4KiB\n").unwrap();
    let notes: Vec<_> = file.notes.iter().map(Note::to_string).collect();
    assert_eq!(
        notes,
        [
            "config/x.fio:2: ioengine is ignored: the device's address chooses the path",
            "config/x.fio:3: bs=4KiB: fio reads KiB as 1000 bytes, write k for 1024",
        ]
    );
}

#[test]
fn overrides_prevail_over_the_file() {
    let parser = Parser::default().with_override("iodepth", "9");
    let file = parser.parse_str("x.fio", "[global]\niodepth=2\n[a]\niodepth=3\n[b]\n").unwrap();
    assert_eq!(file.jobs.iter().map(|job| job.iodepth).collect::<Vec<_>>(), [9, 9]);
}

#[test]
fn every_problem_is_one_line_with_its_place() {
    for (text, expected) in [
        ("[a]\niodepht=1", "config/x.fio:2: unknown option \"iodepht\": did you mean \"iodepth\"?"),
        ("[a]\n\nqwertyuiop=1", "config/x.fio:3: unknown option \"qwertyuiop\""),
        ("[a]\nzonemode=zbd", "config/x.fio:2: fio's option \"zonemode\" is not supported"),
        ("[a]\niodepth=0", "config/x.fio:2: iodepth=0: outside 1 to 4294967295"),
        ("[a]\niodepth=many", "config/x.fio:2: iodepth=many: not a whole number"),
        ("[a]\nbs=0", "config/x.fio:2: bs=0: outside 1 to 4294967295"),
        ("[a]\nbs=4q", "config/x.fio:2: bs=4q: unknown unit \"q\", use k, m, g, t or p"),
        ("[a]\nbs=1k-4k", "config/x.fio:2: bs=1k-4k: a range of block sizes is not supported"),
        (
            "[a]\nbsrange=1k-4k",
            "config/x.fio:2: bsrange=1k-4k: a range of block sizes is not supported",
        ),
        (
            "[a]\nruntime=1x",
            "config/x.fio:2: runtime=1x: unknown unit \"x\", use us, ms, s, m, h or d",
        ),
        ("[a]\nrwmixread=101", "config/x.fio:2: rwmixread=101: outside 0 to 100"),
        ("[a]\ntime_based=yes", "config/x.fio:2: time_based=yes: not one of 0, 1"),
        ("[a]\nverify=md5", "config/x.fio:2: verify=md5: not one of crc32c, 0"),
        (
            "[a]\nrandom_distribution=zipf:1",
            "config/x.fio:2: random_distribution=zipf:1: expected a theta above 0, up to 16 and other \
             than 1",
        ),
        (
            "[a]\nrw=randwirte",
            "config/x.fio:2: rw=randwirte: not one of read, write, randread, randwrite, rw, \
             readwrite, randrw, trim, randtrim",
        ),
        ("bs=4k\n[a]", "config/x.fio:1: option \"bs\" stands before the first section"),
        ("[a\nbs=4k", "config/x.fio:1: section without a name in brackets"),
        ("[]\nbs=4k", "config/x.fio:1: section without a name in brackets"),
        ("[global]\nbs=4k", "config/x.fio: no job: a file needs a section other than [global]"),
        ("", "config/x.fio: no job: a file needs a section other than [global]"),
        (
            "[global]\nbs=4k\n\n[a]\ntime_based",
            "config/x.fio:4: job \"a\": time_based needs a runtime above 0",
        ),
        (
            "[a]\nbssplit=4k/60:64k/50",
            "config/x.fio:1: job \"a\": bssplit percentages of read add up to 110, not to 100",
        ),
        (
            "[a]\nrw=trim\nverify=crc32c",
            "config/x.fio:1: job \"a\": verify cannot check trim: trimmed blocks hold no data",
        ),
        ("[a]\ninclude", "config/x.fio:2: include needs the name of a file"),
    ] {
        assert_eq!(error(text), expected, "{text:?}");
    }
}

fn directory_with(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

#[test]
fn an_included_file_is_read_in_the_place_of_the_line() {
    let files = [
        ("main.fio", "[global]\ninclude common.fio\n[a]\nbs=8k\n"),
        ("common.fio", "rw=randwrite\nbs=16k\n"),
    ];
    let directory = directory_with(&files);
    let file = parse_file(&directory.path().join("main.fio")).unwrap();
    assert_eq!(file.jobs[0].rw, Workload::RandWrite);
    assert_eq!(file.jobs[0].bs.read.only(), Some(8192));
}

#[test]
fn a_problem_in_an_included_file_names_that_file() {
    let directory = directory_with(&[("main.fio", "[a]\ninclude b.fio"), ("b.fio", "\niodepth=x")]);
    let error = parse_file(&directory.path().join("main.fio")).unwrap_err();
    assert_eq!(error.place, place(&directory.path().join("b.fio"), 2));
}

#[test]
fn files_that_include_each_other_are_refused() {
    let directory = directory_with(&[("main.fio", "[a]\ninclude main.fio")]);
    let path = directory.path().join("main.fio");
    let error = parse_file(&path).unwrap_err().to_string();
    assert_eq!(error, format!("{}:2: includes are nested more than 16 deep", path.display()));
}

#[test]
fn a_file_that_is_missing_is_named() {
    let directory = directory_with(&[]);
    let path = directory.path().join("none.fio");
    let error = parse_file(&path).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: No such file", path.display())), "{error}");
}

#[test]
fn several_files_give_their_jobs_in_order_and_keep_their_globals_apart() {
    let directory =
        directory_with(&[("a.fio", "[global]\nbs=8k\n[a]"), ("b.fio", "[b]\niodepth=2")]);
    let paths = [directory.path().join("a.fio"), directory.path().join("b.fio")];
    let file = parse_files(&paths).unwrap();
    let summary: Vec<_> =
        file.jobs.iter().map(|job| (job.name.as_str(), job.bs.read.min())).collect();
    assert_eq!(summary, [("a", 8192), ("b", 4096)]);
}
