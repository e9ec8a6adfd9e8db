//! `setup hugepages`: how many there should be, and on which nodes.
#![forbid(unsafe_code)]

use anyhow::anyhow;

use super::super::args::SetupVerb;
use super::super::failure::Failure;
use super::act::Act;
use super::choice::Environment;
use super::status::pool_line;
use crate::host::hugepages::{count_file, nodes, pools};

/// How many pages of 2 MiB there should be, on a node or on the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageWish {
    pub(super) node: Option<u32>,
    pub(super) pages: u64,
}

/// Returns what is wished; nothing is a wish to look.
pub(super) fn wishes(
    environment: &Environment,
    verb: &SetupVerb,
) -> Result<Vec<PageWish>, Failure> {
    let SetupVerb::Hugepages { pages, node } = verb else { return Ok(Vec::new()) };
    let pages = pages.or(environment.pages);
    let Some(nodes) = node.as_deref().or(environment.nodes.as_deref()) else {
        return Ok(pages.map(|pages| PageWish { node: None, pages }).into_iter().collect());
    };
    nodes.split(',').map(|part| wish_of(part.trim(), pages)).collect()
}

/// Reads `1`, which gets the common number, or `nodes_hp[1]=512`.
fn wish_of(part: &str, pages: Option<u64>) -> Result<PageWish, Failure> {
    let read = || match part.strip_prefix("nodes_hp[") {
        Some(rest) => {
            let (node, pages) = rest.split_once("]=")?;
            Some(PageWish { node: Some(node.parse().ok()?), pages: pages.parse().ok()? })
        }
        None => Some(PageWish { node: Some(part.parse().ok()?), pages: pages? }),
    };
    read().ok_or_else(|| {
        Failure::usage(anyhow!(
            "node {part:?}: write 0,1 with a number of pages, or nodes_hp[0]=1024,nodes_hp[1]=512"
        ))
    })
}

/// Shows what there is.
pub(super) fn show(act: &mut Act<'_>) {
    for pool in pools(act.host()) {
        act.say(&pool_line(&pool));
    }
}

/// Sees to it that there are as many as wished. As setup.sh does, it takes none away; a wish for none gives back
/// those that nobody uses.
pub(super) fn reserve(act: &mut Act<'_>, wishes: &[PageWish]) -> Result<(), Failure> {
    let known = nodes(act.host());
    for wish in wishes {
        if act.host().number(count_file(wish.node)).is_none() {
            let which = wish.node.map_or("the machine".into(), |node| format!("node {node}"));
            return Err(Failure::usage(anyhow!(
                "{which} has no hugepages of 2 MiB to reserve: nodes are {known:?}"
            )));
        }
    }
    let mut short = Vec::new();
    for wish in wishes {
        let now = reserve_one(act, *wish)?;
        if now < wish.pages {
            short.push(format!("{now} of {}{}", wish.pages, on_node(wish.node)));
        }
    }
    if act.said().is_empty() {
        act.say("nothing to change");
    }
    if short.is_empty() {
        return Ok(());
    }
    Err(Failure::io(anyhow!(
        "only {} hugepages of 2 MiB could be had: memory is full or fragmented (hugepages=N on the kernel command \
         line takes them at boot)",
        short.join(", ")
    )))
}

fn on_node(node: Option<u32>) -> String {
    node.map_or(String::new(), |node| format!(" on node {node}"))
}

/// Returns how many there are then.
fn reserve_one(act: &mut Act<'_>, PageWish { node, pages }: PageWish) -> Result<u64, Failure> {
    let file = count_file(node);
    let read = |act: &Act<'_>| act.host().number(&file).unwrap_or(0);
    let before = read(act);
    if before == pages || (before > pages && pages > 0) {
        return Ok(before);
    }
    act.write(&file, &pages.to_string())?;
    let mut now = if act.is_dry() { pages } else { read(act) };
    if now < pages {
        // Free memory may lie in pieces: the kernel moves them together, and then there may be more.
        act.write("proc/sys/vm/compact_memory", "1")?;
        act.write(&file, &pages.to_string())?;
        now = read(act);
    }
    if now != before {
        act.say_changed(&format!("hugepages of 2 MiB{}: {before} -> {now}", on_node(node)));
    }
    Ok(now)
}
