//! The serial number typed back: nothing is erased before somebody has shown which drive is meant.
//!
//! `--serial` has it, or it is typed at a prompt on a terminal. Everything else is a refusal that says which one to
//! type.
#![forbid(unsafe_code)]

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::anyhow;

use super::failure::Failure;
use crate::open::Opened;

/// What is about to happen to a device.
pub(super) struct Deed<'a> {
    /// Where the device is.
    pub(super) address: &'a str,
    /// What will be done, as in "format erases namespace 1".
    pub(super) what: String,
    /// What `--serial` has.
    pub(super) typed: Option<&'a str>,
}

/// Goes on only if the serial number of the controller was typed.
pub(super) fn confirm(opened: &Opened, deed: &Deed<'_>) -> Result<(), Failure> {
    let serial = opened.controller()?.identify().serial_number();
    decide(deed, serial.trim(), ask)
}

fn decide(
    deed: &Deed<'_>,
    serial: &str,
    ask: impl FnOnce(&str) -> Result<Option<String>, Failure>,
) -> Result<(), Failure> {
    let Deed { address, what, typed } = deed;
    if serial.is_empty() {
        let why = "the controller says no serial number, so nobody can type it";
        return Err(Failure::usage(anyhow!("{address}: {what}, and {why}")));
    }
    let asked = match typed {
        Some(typed) => Some((*typed).to_owned()),
        None => ask(&format!("{address}: {what}.\nType its serial number, {serial}, to go on: "))?,
    };
    match asked.as_deref().map(str::trim) {
        Some(typed) if typed == serial => Ok(()),
        Some(typed) => {
            let other = format!("{typed:?} is not the serial number of {address}");
            Err(Failure::usage(anyhow!("{other}, which is {serial:?}: nothing was done")))
        }
        None => {
            let how = format!("--serial={} if it is the one that is meant", quoted(serial));
            Err(Failure::usage(anyhow!("{address}: {what}, add {how}")))
        }
    }
}

/// Writes a word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/+".contains(c);
    if word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// Asks at a terminal; returns `None` where there is none.
fn ask(question: &str) -> Result<Option<String>, Failure> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Ok(None);
    }
    let mut answer = String::new();
    let asked = write!(io::stderr(), "{question}").and_then(|()| io::stderr().flush());
    let read = asked.and_then(|()| io::stdin().lock().read_line(&mut answer));
    read.map_err(Failure::usage)?;
    Ok(Some(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deed(typed: Option<&str>) -> Deed<'_> {
        Deed { address: "mem:1MiB", what: "format erases namespace 1".into(), typed }
    }

    fn nobody(_: &str) -> Result<Option<String>, Failure> {
        Ok(None)
    }

    fn refusal(result: Result<(), Failure>) -> String {
        result.expect_err("it is refused").line()
    }

    #[test]
    fn the_serial_number_lets_it_happen_and_no_other_does() {
        assert!(decide(&deed(Some("UD1")), "UD1", nobody).is_ok());
        assert!(decide(&deed(Some(" UD1 ")), "UD1", nobody).is_ok());
        for wrong in ["ud1", "UD", "UD12", "", "y", "yes"] {
            let said = refusal(decide(&deed(Some(wrong)), "UD1", nobody));
            let expected = format!(
                "{wrong:?} is not the serial number of mem:1MiB, which is \"UD1\": nothing was done"
            );
            assert_eq!(said, expected);
        }
    }

    #[test]
    fn it_may_be_typed_at_a_terminal() {
        let answer = |text: &'static str| {
            move |question: &str| {
                assert!(question.ends_with("Type its serial number, UD1, to go on: "));
                Ok(Some(text.to_owned()))
            }
        };
        assert!(decide(&deed(None), "UD1", answer("UD1\n")).is_ok());
        refusal(decide(&deed(None), "UD1", answer("\n")));
        refusal(decide(&deed(None), "UD1", answer("")));
    }

    #[test]
    fn without_it_the_refusal_says_what_to_type() {
        let said = refusal(decide(&deed(None), "UD1", nobody));
        let how = "add --serial=UD1 if it is the one that is meant";
        assert_eq!(said, format!("mem:1MiB: format erases namespace 1, {how}"));
        let said = refusal(decide(&deed(None), "it's a b", nobody));
        assert!(said.contains(r"--serial='it'\''s a b'"), "{said}");
    }

    #[test]
    fn a_drive_without_a_number_cannot_be_erased() {
        let said = refusal(decide(&deed(Some("")), "", nobody));
        assert!(said.contains("says no serial number"), "{said}");
    }
}
