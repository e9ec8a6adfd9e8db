//! What the user may lock: VFIO counts every byte that a device may reach, hugepages too.
#![forbid(unsafe_code)]

use super::Host;
use super::hugepages::{PAGE_KIB, pools};

/// The least locked memory with which a drive is of use: rings, lists and a few hundred buffers of 128 KiB.
pub const MEMLOCK_WANTED_BYTES: u64 = 64 << 20;

/// What a drive takes at least: an arena each for queues, lists and buffers, of one hugepage.
const ARENAS: u64 = 3;
const ARENA_BYTES: u64 = PAGE_KIB << 10;

/// Returns the locked memory without which no drive can be brought up. Ordinary pages count twice: they are locked, and
/// VFIO locks them again.
pub fn memlock_min(host: &Host) -> u64 {
    let small = pools(host).into_iter().filter(|pool| pool.page_kib == PAGE_KIB);
    let free: u64 = small.map(|pool| pool.free).sum();
    let times = if free >= ARENAS { 1 } else { 2 };
    ARENAS * ARENA_BYTES * times
}

/// Returns the limit of locked memory in bytes; `u64::MAX` is none, `None` could not be read.
pub fn memlock(host: &Host) -> Option<u64> {
    let limits = host.text("proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        bytes => bytes.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    #[test]
    fn without_hugepages_twice_as_much_is_needed() {
        let fake = Fake::new();
        assert_eq!(memlock_min(&fake.host()), 12 << 20);
        fake.hugepages(0, 2048, 8, 2);
        assert_eq!(memlock_min(&fake.host()), 12 << 20);
        fake.hugepages(0, 2048, 8, 3);
        assert_eq!(memlock_min(&fake.host()), 6 << 20);
    }

    #[test]
    fn the_soft_limit_counts() {
        let fake = Fake::new();
        assert_eq!(memlock(&fake.host()), None);
        let limits = |soft: &str| {
            let text = format!(
                "Limit  Soft Limit  Hard Limit  Units\nMax locked memory         {soft}   unlimited  bytes\n"
            );
            fake.file("proc/self/limits", &text);
            memlock(&fake.host())
        };
        assert_eq!(limits("8388608"), Some(8 << 20));
        assert_eq!(limits("unlimited"), Some(u64::MAX));
    }
}
