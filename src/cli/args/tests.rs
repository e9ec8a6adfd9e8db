use super::*;

fn typed(line: &str) -> Result<Args, Failure> {
    parse(std::iter::once("udirect").chain(line.split_whitespace()).map(OsString::from))
}

fn bench_of(line: &str) -> BenchArgs {
    match typed(line).map(|args| args.verb) {
        Ok(Verb::Bench(bench)) => bench,
        other => panic!("{line}: {other:?}"),
    }
}

fn complaint(line: &str) -> String {
    typed(line).unwrap_err().line()
}

#[test]
fn the_definition_does_not_contradict_itself() {
    command().debug_assert();
}

#[test]
fn every_option_of_a_job_file_is_a_flag_by_all_its_names() {
    for spec in options() {
        for name in std::iter::once(&spec.name).chain(spec.aliases) {
            let bench = bench_of(&format!("bench --{name}=1"));
            assert_eq!(bench.options, [(spec.name.to_owned(), "1".to_owned())], "{name}");
        }
    }
}

#[test]
fn options_keep_the_order_in_which_they_were_typed() {
    let bench =
        bench_of("bench --rwmixwrite=30 --time_based mem:1G --bs 8k --rwmixread=60 --bs=4k");
    let expected =
        [("rwmixwrite", "30"), ("time_based", ""), ("bs", "8k"), ("rwmixread", "60"), ("bs", "4k")];
    assert_eq!(bench.options, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    assert_eq!(bench.targets, ["mem:1G"]);
}

#[test]
fn a_boolean_may_stand_alone_or_have_a_value() {
    let bench = bench_of("bench --time_based=0 --norandommap a.fio --time_based");
    let expected = [("time_based", "0"), ("norandommap", ""), ("time_based", "")];
    assert_eq!(bench.options, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    assert_eq!(bench.targets, ["a.fio"]);
}

#[test]
fn wrong_names_are_answered_with_the_nearest() {
    let answer = "unknown flag \"--iodpeth\": did you mean \"--iodepth\"?";
    assert_eq!(complaint("bench --iodpeth=4"), answer);
    assert_eq!(complaint("bnech"), "unknown verb \"bnech\": did you mean \"bench\"?");
    assert_eq!(complaint("list --xyzzy"), "unknown flag \"--xyzzy\"");
}

#[test]
fn an_option_that_only_fio_has_is_refused_by_name() {
    let answer = "fio's option \"zonemode\" is not supported";
    assert_eq!(complaint("bench --zonemode=zbd"), answer);
}

#[test]
fn every_complaint_is_one_line_without_usage() {
    let lines = [
        "",
        "identify",
        "identify mem:1G mem:2G",
        "bench --output-format=xml",
        "bench --bs",
        "completions",
    ];
    for line in lines {
        let said = complaint(line);
        assert!(!said.contains('\n') && !said.contains("Usage") && !said.is_empty(), "{said}");
    }
    assert_eq!(complaint("identify"), "missing <ADDRESS>");
}

#[test]
fn the_style_is_spelt_as_nvme_cli_spells_it() {
    for line in ["list -o json mem:1G", "list --output-format=json mem:1G"] {
        let verb = Verb::List { addresses: vec!["mem:1G".into()], style: Style::Json };
        assert_eq!(typed(line).unwrap(), Args { verbose: 0, verb });
    }
}

#[test]
fn verbosity_may_be_given_before_or_after_the_verb() {
    assert_eq!(typed("-v list").unwrap().verbose, 1);
    assert_eq!(typed("list -vv").unwrap().verbose, 2);
}
