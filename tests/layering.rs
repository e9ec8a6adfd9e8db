//! Holds the shape of the house: which room names which, where `unsafe` may stand, how long a file is.
//!
//! Reads the sources as text. [`Source`] takes a file apart into code and comments, [`arrows`] finds the
//! rooms that its paths lead to, [`unproven`] the `unsafe` that nobody argues for. [`HOUSE`] is the table
//! that they are held against. The second half of the file feeds made-up sources to the same functions,
//! so that a checker that sees nothing fails too.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Every room and the rooms that it may name, from the ground up: arrows point to earlier rows only.
const HOUSE: &[(&str, &[&str])] = &[
    // Distinct integers. They know nobody.
    ("units", &[]),
    // Repeatable randomness, for tests and faults; see `EVERYBODY`.
    ("seed", &[]),
    // NVMe as written: layouts without verbs, so that driver and controller can share them.
    ("spec", &["units"]),
    // What sysfs says of PCI functions. Nothing is touched.
    ("pci", &[]),
    // Memory is memory, whatever runs over it.
    ("dma", &["units"]),
    // Reaches a controller without knowing what its registers mean.
    ("transport", &["dma", "pci", "units"]),
    // What the machine is like, as its files say. It changes nothing.
    ("host", &["pci", "transport"]),
    // The waist. It must not learn that NVMe exists: every backend is an equal behind it.
    ("block", &["dma", "units"]),
    // The software controller answers to the standard, not to our driver: it never names `nvme`.
    ("soft", &["dma", "spec", "transport", "units"]),
    // The driver. It never names `soft`: it cannot tell which controller it drives.
    ("nvme", &["block", "dma", "spec", "transport", "units"]),
    // Other backends of the waist.
    ("uring", &["block", "dma", "units"]),
    ("spdk", &["block", "dma", "units"]),
    // The pipeline and the store meet in `volume` only; `block::MapBlocks` is all they share.
    ("extent", &["block", "dma", "units"]),
    ("dio", &["block", "dma", "units"]),
    ("volume", &["block", "dio", "dma", "extent", "units"]),
    // One address to one device: the only room that knows every backend.
    ("open", &["block", "dma", "nvme", "pci", "soft", "spdk", "transport", "units", "uring"]),
    // Drives whatever is behind the waist; what it runs on comes from `open`.
    ("bench", &["block", "dma", "open", "units", "volume"]),
    ("daemon", &["bench", "block", "dma", "nvme", "open", "spec", "units", "volume"]),
    // What a person types. It prints identify data and logs, and so knows the controller.
    (
        "cli",
        &[
            "bench",
            "block",
            "daemon",
            "dma",
            "host",
            "nvme",
            "open",
            "pci",
            "soft",
            "spec",
            "transport",
            "units",
            "volume",
        ],
    ),
    // What a C program calls.
    ("capi", &["block", "dma", "open", "units", "volume"]),
    // The program: it hands over to `cli`.
    (
        "main",
        &["bench", "block", "cli", "daemon", "dma", "nvme", "open", "spec", "units", "volume"],
    ),
];

/// Rooms that every other may name without saying so in its row: they know nothing of the house.
const EVERYBODY: &[&str] = &["seed"];

/// Rooms that may hold `unsafe`; each has its paragraph in `docs/unsafe.md`.
const DOORS: &[&str] = &["dma", "transport", "spdk", "capi"];

/// The crate's root declares the rooms, and so names them all.
const ROOF: &str = "lib";

/// The most lines of one file.
const LINES_MAX: usize = 1000;

#[test]
fn arrows_point_down() {
    let files = source_files("src");
    assert!(files.len() > 50, "the sources were found: {} files", files.len());
    none_of(files.iter().flat_map(arrows));
}

#[test]
fn unsafe_stays_behind_the_doors() {
    none_of(undeclared(&source_files("src")));
}

#[test]
fn every_unsafe_has_its_argument() {
    none_of(all_files().iter().flat_map(unproven));
}

#[test]
fn no_source_file_is_longer_than_1000_lines() {
    none_of(all_files().iter().filter_map(too_long));
}

#[test]
fn the_table_itself_points_down() {
    for (at, (room, names)) in HOUSE.iter().enumerate() {
        let is_below = |name: &&str| HOUSE[..at].iter().any(|(other, _)| other == name);
        let lost = names.iter().find(|name| !is_below(name));
        assert_eq!(lost, None, "{room} names a room that is not below it");
    }
}

fn none_of(findings: impl IntoIterator<Item = String>) {
    let findings: Vec<String> = findings.into_iter().collect();
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

/// One source file, taken apart.
struct Source {
    /// Where it is, from the top of the package.
    path: PathBuf,
    /// Code by line: no comments, and nothing inside literals.
    code: Vec<String>,
    /// Comments by line.
    comments: Vec<String>,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let (code, comments) = split(text);
        let lines = |text: &str| text.lines().map(str::to_owned).collect();
        Self { path: path.into(), code: lines(&code), comments: lines(&comments) }
    }

    /// Returns the module path: `src/nvme/ring.rs` is `nvme::ring`; that of a crate's root is empty.
    fn module(&self) -> Vec<String> {
        let inside = self.path.strip_prefix("src").unwrap_or(&self.path).with_extension("");
        let mut parts: Vec<String> =
            inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if matches!(parts.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            parts.pop();
        }
        parts
    }

    /// Returns the room that the file belongs to.
    fn room(&self) -> String {
        let of_root = || self.path.file_stem().expect("a source has a name").to_string_lossy();
        self.module().first().cloned().unwrap_or_else(|| of_root().into_owned())
    }

    /// Returns identifiers and punctuation, each with the index of its line.
    fn tokens(&self) -> Vec<(usize, String)> {
        let mut tokens = Vec::new();
        for (line, code) in self.code.iter().enumerate() {
            let mut rest = code.trim_start();
            while let Some(first) = rest.chars().next() {
                let word = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
                let (token, tail) = rest.split_at(word.max(first.len_utf8()));
                tokens.push((line, token.to_owned()));
                rest = tail.trim_start();
            }
        }
        tokens
    }

    fn forbids_unsafe(&self) -> bool {
        self.code.iter().any(|line| line.trim() == "#![forbid(unsafe_code)]")
    }

    fn says_unsafe(&self) -> bool {
        self.tokens().iter().any(|(_, token)| token == "unsafe")
    }

    fn place(&self, line: usize) -> String {
        format!("{}:{}", self.path.display(), line + 1)
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn all_files() -> Vec<Source> {
    ["src", "tests", "benches", "examples"].into_iter().flat_map(source_files).collect()
}

/// Reads every Rust file under a directory of the package, if there is one.
fn source_files(directory: &str) -> Vec<Source> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut unread = vec![top.join(directory)];
    while let Some(at) = unread.pop() {
        for entry in fs::read_dir(&at).into_iter().flatten() {
            let path = entry.expect("a directory of sources can be read").path();
            if path.is_dir() {
                unread.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source is text");
                let inside = path.strip_prefix(top).expect("it was found under the top");
                found.push(Source::new(&inside.to_string_lossy(), &text));
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Splits a source into code and comments of the same shape: what belongs to the other is a blank.
fn split(text: &str) -> (String, String) {
    let (mut code, mut comments) = (String::new(), String::new());
    let mut rest = text;
    while !rest.is_empty() {
        let (kind, len) = piece(rest, code.chars().next_back().is_some_and(is_word));
        let (piece, tail) = rest.split_at(len);
        let blank: String = piece.chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
        code.push_str(if kind == Kind::Code { piece } else { &blank });
        comments.push_str(if kind == Kind::Comment { piece } else { &blank });
        rest = tail;
    }
    (code, comments)
}

#[derive(PartialEq)]
enum Kind {
    Code,
    Comment,
    Literal,
}

/// Returns what a source begins with, and how many bytes of it; `in_word` if a word goes on here.
fn piece(rest: &str, in_word: bool) -> (Kind, usize) {
    let first = rest.chars().next().expect("there is something left");
    match first {
        '/' if rest.starts_with("//") => (Kind::Comment, rest.find('\n').unwrap_or(rest.len())),
        '/' if rest.starts_with("/*") => (Kind::Comment, block_comment(rest)),
        '"' => (Kind::Literal, quoted(rest, '"')),
        '\'' => character(rest),
        'r' | 'b' | 'c' if !in_word => match raw_string(rest) {
            Some(len) => (Kind::Literal, len),
            None => (Kind::Code, 1),
        },
        _ => (Kind::Code, first.len_utf8()),
    }
}

/// Returns the length of a block comment; they nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        match &rest.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Returns the length of a literal up to its closing quote.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Tells a character literal from a lifetime.
fn character(rest: &str) -> (Kind, usize) {
    let mut chars = rest.chars().skip(1);
    match (chars.next(), chars.next()) {
        (Some('\\'), _) | (Some(_), Some('\'')) => (Kind::Literal, quoted(rest, '\'')),
        _ => (Kind::Code, 1),
    }
}

/// Returns the length of `r"…"`, `r#"…"#`, `br"…"` and their like, if this is one.
fn raw_string(rest: &str) -> Option<usize> {
    let behind = rest.strip_prefix(['b', 'c']).unwrap_or(rest).strip_prefix('r')?;
    let hashes = behind.find(|c| c != '#')?;
    let body = behind[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(rest.len() - body.len() + body.find(&end).map_or(body.len(), |at| at + end.len()))
}

/// Returns the arrows of a file that the table does not allow, as lines for a person.
fn arrows(source: &Source) -> Vec<String> {
    let room = source.room();
    if room == ROOF {
        return Vec::new();
    }
    let Some((_, allowed)) = HOUSE.iter().find(|(name, _)| *name == room) else {
        return vec![format!("{}: the room {room} is not in the table", source.path.display())];
    };
    let may = |name: &str| name == room || allowed.contains(&name) || EVERYBODY.contains(&name);
    let bad = named_rooms(source).into_iter().filter(|(_, name)| !may(name));
    bad.map(|(line, name)| format!("{}: {room} names {name}", source.place(line))).collect()
}

/// Returns every room that a path of the file leads to, once for each line.
fn named_rooms(source: &Source) -> Vec<(usize, String)> {
    let tokens = source.tokens();
    let mut walk = Walk { tokens: &tokens, at: 0, module: source.module(), braces: Vec::new() };
    let mut found = Vec::new();
    while let Some((line, head)) = walk.next_head() {
        let paths = walk.tree(&head);
        let rooms = paths.iter().filter_map(|path| resolve(&walk.module, path));
        found.extend(rooms.map(|room| (line, room)));
    }
    found.sort();
    found.dedup();
    found
}

/// A walk over the tokens of a file that knows which module it is in.
struct Walk<'a> {
    tokens: &'a [(usize, String)],
    at: usize,
    module: Vec<String>,
    /// For each open brace, whether it opened a module.
    braces: Vec<bool>,
}

impl Walk<'_> {
    fn token(&self, ahead: usize) -> &str {
        self.tokens.get(self.at + ahead).map_or("", |(_, token)| token)
    }

    fn is_path_sign(&self, ahead: usize) -> bool {
        self.token(ahead) == ":" && self.token(ahead + 1) == ":"
    }

    /// Steps behind the first word of the next path that can leave the module; returns line and word.
    fn next_head(&mut self) -> Option<(usize, String)> {
        while let Some((line, token)) = self.tokens.get(self.at) {
            match token.as_str() {
                "{" => self.enter(),
                "}" => self.leave(),
                "crate" | "super" | "self" | "udirect" if self.is_path_sign(1) => {
                    self.at += 1;
                    return Some((*line, token.clone()));
                }
                _ => {}
            }
            self.at += 1;
        }
        None
    }

    fn enter(&mut self) {
        let before = |back: usize| self.at.checked_sub(back).map(|at| self.tokens[at].1.as_str());
        let is_module = before(2) == Some("mod");
        if let (true, Some(name)) = (is_module, before(1)) {
            self.module.push(name.to_owned());
        }
        self.braces.push(is_module);
    }

    fn leave(&mut self) {
        if self.braces.pop() == Some(true) {
            self.module.pop();
        }
    }

    /// Reads what follows the word `head`: `::a::b`, `::{a, b::{c, d}}`, `::*`. One path for each leaf.
    fn tree(&mut self, head: &str) -> Vec<Vec<String>> {
        if !self.is_path_sign(0) {
            return vec![vec![head.to_owned()]];
        }
        self.at += 2;
        let tails = if self.token(0) == "{" { self.group() } else { self.branch() };
        let with_head = |tail: Vec<String>| [vec![head.to_owned()], tail].concat();
        tails.into_iter().map(with_head).collect()
    }

    fn branch(&mut self) -> Vec<Vec<String>> {
        let word = self.token(0).to_owned();
        if word != "*" && !word.starts_with(is_word) {
            return vec![Vec::new()];
        }
        self.at += 1;
        self.tree(&word)
    }

    fn group(&mut self) -> Vec<Vec<String>> {
        let mut paths = Vec::new();
        self.at += 1;
        while !matches!(self.token(0), "}" | "") {
            match self.token(0) {
                // A new name for what was just read.
                "as" => self.at += 2,
                "," => self.at += 1,
                word if word == "*" || word.starts_with(is_word) => paths.extend(self.branch()),
                _ => self.at += 1,
            }
        }
        self.at += 1;
        paths
    }
}

/// Returns the room that a path leads to from a module, or `None` if it stays in its own.
fn resolve(module: &[String], path: &[String]) -> Option<String> {
    let mut at = module.to_vec();
    let mut rest = path.iter().map(String::as_str).peekable();
    if let Some(&("crate" | "udirect")) = rest.peek() {
        at.clear();
        rest.next();
    }
    while let Some(step @ ("self" | "super")) = rest.peek().copied() {
        rest.next();
        if step == "super" && at.pop().is_none() {
            return Some("what is above the root".into());
        }
    }
    match (at.is_empty(), rest.next()) {
        (false, _) => None,
        (true, Some("*") | None) => Some("the whole house".into()),
        (true, Some(name)) => Some(name.to_owned()),
    }
}

/// Returns the files that should forbid `unsafe` and do not.
fn undeclared(files: &[Source]) -> Vec<String> {
    let forbids: BTreeMap<Vec<String>, bool> =
        files.iter().map(|file| (file.module(), file.forbids_unsafe())).collect();
    let is_covered = |module: &[String]| {
        (1..=module.len()).any(|depth| forbids.get(&module[..depth]) == Some(&true))
    };
    let mut found = Vec::new();
    for file in files {
        let (module, path) = (file.module(), file.path.display());
        if module.is_empty() {
            // A root opens doors and cannot forbid them; the manifest denies.
            found.extend(file.says_unsafe().then(|| format!("{path}: unsafe in a root")));
        } else if !is_covered(&module) && !needs_unsafe(file, files) {
            found.push(format!("{path}: lacks #![forbid(unsafe_code)]"));
        }
    }
    found
}

/// Says whether a file, or one below it, uses `unsafe` in a room where it may.
fn needs_unsafe(file: &Source, files: &[Source]) -> bool {
    let module = file.module();
    let is_user = |other: &Source| other.module().starts_with(&module) && other.says_unsafe();
    DOORS.contains(&file.room().as_str()) && files.iter().any(is_user)
}

/// Returns every `unsafe` without an argument in front of it.
fn unproven(source: &Source) -> Vec<String> {
    let tokens = source.tokens();
    let mut found = Vec::new();
    for (at, (line, token)) in tokens.iter().enumerate() {
        let ahead = |n: usize| tokens.get(at + n).map_or("", |(_, token)| token);
        let wanted = match (token.as_str(), ahead(1), ahead(2)) {
            // The type of a function promises nothing.
            ("unsafe", "fn", "(") => continue,
            ("unsafe", "fn" | "trait", _) => "# Safety",
            ("unsafe", _, _) => "SAFETY:",
            _ => continue,
        };
        if !is_argued(source, *line, wanted) {
            found.push(format!("{}: unsafe without `{wanted}` before it", source.place(*line)));
        }
    }
    found
}

/// Says whether the comment in front of the statement that `line` belongs to holds `wanted`.
fn is_argued(source: &Source, line: usize, wanted: &str) -> bool {
    let is_comment = |at: usize| !source.comments[at].trim().is_empty();
    let ends_another = |at: usize| {
        let code = source.code[at].trim_end();
        code.is_empty() || code.ends_with([';', '{', '}'])
    };
    let above = (0..line).rev().skip_while(|&at| !is_comment(at) && !ends_another(at));
    above.take_while(|&at| is_comment(at)).any(|at| source.comments[at].contains(wanted))
}

fn too_long(source: &Source) -> Option<String> {
    let (path, lines) = (source.path.display(), source.code.len());
    (lines > LINES_MAX).then(|| format!("{path}: {lines} lines, more than {LINES_MAX}"))
}

/// The checkers see what they are there for.
#[cfg(test)]
mod made_up {
    use super::*;

    fn arrows_of(path: &str, text: &str) -> Vec<String> {
        arrows(&Source::new(path, text))
    }

    fn rooms_of(path: &str, text: &str) -> Vec<String> {
        named_rooms(&Source::new(path, text)).into_iter().map(|(_, room)| room).collect()
    }

    #[test]
    fn soft_that_names_nvme_is_caught_with_its_line() {
        let text = "use crate::spec::command::Command;\n\nuse crate::nvme::Controller;\n";
        assert_eq!(arrows_of("src/soft/io.rs", text), ["src/soft/io.rs:3: soft names nvme"]);
    }

    #[test]
    fn the_waist_is_kept_from_the_standard_however_it_is_spelt() {
        for name in ["nvme", "spec", "transport"] {
            let expected = [format!("src/block/queue.rs:1: block names {name}")];
            let spellings = [
                format!("use crate::{name}::X;"),
                format!("use super::super::{name}::X;"),
                format!("use crate::{{dma::DmaBuf, {name}::{{X, Y as Z}}, units}};"),
                format!("use super::{{super::{name}::X, Request}};"),
                format!("fn f(x: crate::{name}::X) -> u8 {{ 0 }}"),
                format!("pub(in crate::{name}) fn f() {{}}"),
                format!("use ::udirect::{name};"),
                format!("macro_rules! m {{ () => {{ $crate::{name}::x() }} }}"),
            ];
            for text in spellings {
                assert_eq!(arrows_of("src/block/queue.rs", &text), expected, "{text}");
            }
        }
    }

    #[test]
    fn pipeline_and_store_do_not_know_each_other() {
        assert_eq!(arrows_of("src/dio/mod.rs", "use crate::extent::Store;").len(), 1);
        assert_eq!(arrows_of("src/extent/journal.rs", "use crate::dio::Section;").len(), 1);
        let introduces = "use crate::{dio::Section, extent::Store};";
        assert!(arrows_of("src/volume/mod.rs", introduces).is_empty());
    }

    #[test]
    fn tests_inside_a_module_count_and_so_does_their_depth() {
        let cases = [
            ("src/soft/io.rs", "mod t { use super::*; use super::super::super::nvme::X; }"),
            (
                "src/soft/io.rs",
                "#[cfg(test)] mod t { fn f() { {} } use crate::nvme; } use super::x;",
            ),
            ("src/soft.rs", "mod t { mod u { use super::super::*; } } use super::nvme;"),
        ];
        for (path, text) in cases {
            assert_eq!(rooms_of(path, text), ["nvme"], "{text}");
        }
    }

    #[test]
    fn paths_that_stay_in_their_room_are_nobodys_business() {
        let text =
            "use super::ring::Ring; use self::a::B; use super::super::x; pub(super) fn f() {}";
        assert!(rooms_of("src/nvme/queue/hot.rs", text).is_empty());
        assert!(arrows_of("src/nvme/queue.rs", "use crate::nvme::ring::Ring;").is_empty());
    }

    #[test]
    fn comments_and_literals_name_nobody() {
        let text = r###"
            //! See [`crate::nvme`].
            /// And [`X`](crate::nvme::X).
            /* crate::nvme::x /* nested */ crate::nvme::y */
            const A: &str = "crate::nvme";
            const B: &str = r#"crate::nvme "quoted" crate::nvme"#;
            const C: &[u8] = b"\"crate::nvme";
            fn f<'a>(x: &'a str) -> [char; 3] { ['"', '\'', '\\'] }
            use crate::spec::X;
        "###;
        assert_eq!(rooms_of("src/soft/io.rs", text), ["spec"]);
    }

    #[test]
    fn the_program_names_the_library_by_its_name() {
        let text = "fn main() { udirect::soft::x(); tracing::info!(udirect = 1); }";
        assert_eq!(arrows_of("src/main.rs", text), ["src/main.rs:1: main names soft"]);
    }

    #[test]
    fn a_room_that_nobody_entered_in_the_table_is_caught() {
        let new = arrows_of("src/cellar/mod.rs", "");
        assert_eq!(new, ["src/cellar/mod.rs: the room cellar is not in the table"]);
        assert_eq!(arrows_of("src/soft/io.rs", "use crate::cellar::X;").len(), 1);
    }

    #[test]
    fn nobody_names_the_whole_house() {
        for text in ["use crate::*;", "use crate::{self as c};", "use super::super::*;"] {
            let expected = ["src/soft/io.rs:1: soft names the whole house"];
            assert_eq!(arrows_of("src/soft/io.rs", text), expected, "{text}");
        }
        assert_eq!(arrows_of("src/soft.rs", "use super::super::x;").len(), 1);
    }

    #[test]
    fn a_file_outside_the_doors_forbids_or_stands_below_one_that_does() {
        let bare = |path| Source::new(path, "//! #![forbid(unsafe_code)] in words only\n");
        let files = [
            Source::new("src/nvme/mod.rs", "#![forbid(unsafe_code)]\n"),
            bare("src/nvme/ring.rs"),
            bare("src/nvme/ring/tests.rs"),
            bare("src/block/mod.rs"),
            bare("src/units.rs"),
        ];
        let expected = ["src/block/mod.rs", "src/units.rs"];
        let expected = expected.map(|path| format!("{path}: lacks #![forbid(unsafe_code)]"));
        assert_eq!(undeclared(&files), expected);
    }

    #[test]
    fn behind_a_door_only_those_who_need_unsafe_have_it() {
        let block = "fn f() { unsafe { g() } }";
        let files = [
            Source::new("src/lib.rs", "#[expect(unsafe_code)] pub mod dma;"),
            Source::new("src/dma/mod.rs", "mod arena; mod iova;"),
            Source::new("src/dma/arena.rs", block),
            Source::new("src/dma/iova.rs", "fn f() { /* unsafe */ }"),
            Source::new("src/soft/io.rs", block),
            Source::new("src/main.rs", block),
        ];
        let expected = [
            "src/dma/iova.rs: lacks #![forbid(unsafe_code)]",
            "src/soft/io.rs: lacks #![forbid(unsafe_code)]",
            "src/main.rs: unsafe in a root",
        ];
        assert_eq!(undeclared(&files), expected);
    }

    #[test]
    fn unsafe_without_an_argument_is_caught() {
        let cases = [
            "fn f() {\n    unsafe { g() }\n}",
            "fn f() {\n    // because it is fast\n    unsafe { g() }\n}",
            "// SAFETY: of something else.\nlet a = 1;\nlet b = unsafe { g() };",
            "// SAFETY: too far away.\n\nlet b = unsafe { g() };",
            "let s = \"SAFETY: no comment\";\nunsafe impl Send for X {}",
            "/// Does it.\npub unsafe fn f() {}",
        ];
        for text in cases {
            assert_eq!(unproven(&Source::new("src/dma/x.rs", text)).len(), 1, "{text}");
        }
    }

    #[test]
    fn unsafe_with_an_argument_passes() {
        let cases = [
            "// SAFETY: the words are\n// atomics.\nunsafe impl Send for X {}",
            "// SAFETY: it is mapped.\nlet n =\n    unsafe { g() };",
            "// SAFETY: it is mapped.\n#[allow(x)]\nSome(unsafe { g() })",
            "/// Makes it.\n///\n/// # Safety\n///\n/// Of the caller.\npub unsafe fn f() {}",
            "type Call = unsafe fn(u8);",
        ];
        for text in cases {
            let found = unproven(&Source::new("src/dma/x.rs", text));
            assert!(found.is_empty(), "{text}\n{found:?}");
        }
    }

    #[test]
    fn the_thousand_and_first_line_is_one_too_many() {
        let file = |lines: usize| Source::new("src/x.rs", &"//\n".repeat(lines));
        assert_eq!(too_long(&file(1000)), None);
        assert!(too_long(&file(1001)).is_some());
    }
}
