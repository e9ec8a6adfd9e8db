//! `udirect setup`: drives from the kernel to this program and back, and hugepages.
//!
//! ```text
//!   args, environment -> choice (which drives) -> refusals (nothing was touched) -> act (each step, said)
//! ```
//!
//! The invariant: a disk in use is never touched, and all that are named are taken or none. Everything that is changed
//! goes through [`act::Act`], which says so; a dry run says the same and changes nothing.
#![forbid(unsafe_code)]

mod act;
mod bind;
mod choice;
mod pages;
mod status;
#[cfg(test)]
mod tests;

use anyhow::anyhow;

use super::args::{SetupArgs, SetupVerb};
use super::failure::Failure;
use super::output::{print, tell};
use crate::host::Host;
use act::{Act, Machine};
use choice::Environment;

/// Does what was asked for.
pub(super) fn run(args: &SetupArgs) -> Result<(), Failure> {
    let host = Host::default();
    let environment = Environment::read(|name| std::env::var(name).ok())?;
    if let SetupVerb::Status { style } = &args.verb {
        return status::show(&host, *style);
    }
    let mut act = Act::new(&host, &Machine, args.dry_run);
    let done = change(&mut act, &environment, &args.verb);
    // What was changed is said also when a later step failed.
    let said: String = act.said().iter().map(|line| format!("{line}\n")).collect();
    print(said.as_bytes())?;
    act.notes().iter().for_each(|note| tell(note));
    done
}

fn change(act: &mut Act<'_>, environment: &Environment, verb: &SetupVerb) -> Result<(), Failure> {
    let asks_only =
        matches!(verb, SetupVerb::Hugepages { .. }) && pages::wishes(environment, verb)?.is_empty();
    if !act.host().is_root() && !act.is_dry() && !asks_only {
        return Err(Failure::usage(anyhow!(
            "setup changes the machine and this is user {}: run it as root (sudo), or with --dry-run",
            act.host().user
        )));
    }
    match verb {
        SetupVerb::Bind { addresses, user, force } => {
            let wish = bind::Wish { addresses, user: user.as_deref(), force: *force };
            bind::bind(act, environment, &wish)?;
        }
        SetupVerb::Unbind { addresses } => bind::unbind(act, environment, addresses)?,
        SetupVerb::Hugepages { .. } if asks_only => pages::show(act),
        _ => return pages::reserve(act, &pages::wishes(environment, verb)?),
    }
    if act.said().is_empty() {
        act.say("nothing to change");
    }
    Ok(())
}
