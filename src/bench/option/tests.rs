use super::*;

#[test]
fn no_two_options_share_a_name() {
    let mut names: Vec<_> = OPTIONS.iter().flat_map(OptionSpec::names).collect();
    names.extend(NOT_SUPPORTED.split_whitespace());
    names.sort_unstable();
    let twice: Vec<_> = names.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

#[test]
fn every_option_that_acts_names_its_default_in_one_line() {
    for spec in options().iter().filter(|spec| !spec.is_ignored()) {
        assert!(!spec.help.contains('\n') && spec.help.len() <= 100, "{}", spec.name);
        let says_default = spec.help.contains("default");
        assert!(says_default || ["filename", "bsrange"].contains(&spec.name), "{}", spec.name);
    }
}

#[test]
fn every_option_of_kernel_paths_says_why_it_is_ignored() {
    for spec in options().iter().filter(|spec| spec.is_ignored()) {
        let mut builder = JobBuilder::new("a");
        builder.set(spec.name, "1").unwrap();
        let notes = builder.take_notes();
        assert_eq!(notes.len(), 1);
        assert_eq!(notes[0].to_string(), format!("{} is ignored: {}", spec.name, spec.help));
    }
}

#[test]
fn aliases_set_the_same_field() {
    let mut builder = JobBuilder::new("a");
    builder.set("blocksize", "8k").unwrap();
    builder.set("readwrite", "randrw").unwrap();
    builder.set("rwmixwrite", "30").unwrap();
    let job = builder.build().unwrap();
    assert_eq!(job.bs.write.only(), Some(8192));
    assert_eq!(job.rw.name(), "randrw");
    assert_eq!(job.rwmixread, 70);
}

#[test]
fn what_was_written_is_kept_with_the_last_value_of_a_key() {
    let mut builder = JobBuilder::new("a");
    for (key, value) in [("bs", "4k"), ("time_based", ""), ("bs", "8k"), ("runtime", "1m")] {
        builder.set(key, value).unwrap();
    }
    let written: Vec<_> =
        builder.written().iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(written, ["bs=8k", "time_based=", "runtime=1m"]);
}

#[test]
fn a_refused_option_changes_nothing() {
    let mut builder = JobBuilder::new("a");
    let before = builder.build().unwrap();
    assert!(builder.set("iodepth", "0").is_err());
    assert!(builder.set("bs", "4x").is_err());
    assert_eq!(builder.build().unwrap(), before);
}

#[test]
fn the_nearest_key_is_named_only_if_it_is_near() {
    assert_eq!(nearest("iodepht"), Some("iodepth"));
    assert_eq!(nearest("run_time"), Some("runtime"));
    assert_eq!(nearest("filenam"), Some("filename"));
    assert_eq!(nearest("zzzzzzzz"), None);
}

#[test]
fn an_edit_is_one_letter_or_one_swap() {
    assert_eq!(edit_distance("depth", "depth"), 0);
    assert_eq!(edit_distance("depht", "depth"), 1);
    assert_eq!(edit_distance("dpth", "depth"), 1);
    assert_eq!(edit_distance("", "bs"), 2);
    assert_eq!(edit_distance("kitten", "sitting"), 3);
}

#[test]
fn an_option_of_fio_that_would_change_the_result_is_refused_by_name() {
    let error = JobBuilder::new("a").set("zonemode", "zbd").unwrap_err();
    assert_eq!(error.to_string(), "fio's option \"zonemode\" is not supported");
}
