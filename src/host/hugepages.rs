//! Hugepages: what each node has, and whether more could be had now.
#![forbid(unsafe_code)]

use super::Host;

/// The size that is used unless another is asked for.
pub const PAGE_KIB: u64 = 2048;

/// How many pages of 2 MiB are enough for a drive with deep queues: 128 MiB.
pub const WANTED: u64 = 64;

/// The order of a free block that holds a page of 2 MiB, in pages of 4 KiB.
const ORDER: usize = 9;

/// The hugepages of one size on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// The node.
    pub node: u32,
    /// The size of a page.
    pub page_kib: u64,
    /// How many there are.
    pub total: u64,
    /// How many of them nobody uses.
    pub free: u64,
}

/// Memory of one node that nobody uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// All of it, in units of 2 MiB.
    pub units: u64,
    /// How many hugepages of 2 MiB can be made of it without moving anything.
    pub pages: u64,
}

/// Returns the pools of all nodes, by node and size.
pub fn pools(host: &Host) -> Vec<Pool> {
    let mut pools: Vec<Pool> = nodes(host)
        .into_iter()
        .flat_map(|node| of_folder(host, node, &format!("{}/hugepages", folder(node))))
        .collect();
    if pools.is_empty() {
        // A kernel without NUMA knows no nodes.
        pools = of_folder(host, 0, "sys/kernel/mm/hugepages");
    }
    pools.sort_by_key(|pool| (pool.node, pool.page_kib));
    pools
}

/// Returns the nodes of the machine.
pub fn nodes(host: &Host) -> Vec<u32> {
    let names = host.names("sys/devices/system/node");
    let mut nodes: Vec<u32> =
        names.iter().filter_map(|name| name.strip_prefix("node")?.parse().ok()).collect();
    nodes.sort_unstable();
    nodes
}

fn folder(node: u32) -> String {
    format!("sys/devices/system/node/node{node}")
}

fn of_folder(host: &Host, node: u32, folder: &str) -> Vec<Pool> {
    let read = |name: String| {
        let page_kib = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let total = host.number(format!("{folder}/{name}/nr_hugepages"))?;
        let free = host.number(format!("{folder}/{name}/free_hugepages"))?;
        Some(Pool { node, page_kib, total, free })
    };
    host.names(folder).into_iter().filter_map(read).collect()
}

/// Returns the file that says how many pages of 2 MiB a node has, or the machine as a whole.
pub fn count_file(node: Option<u32>) -> String {
    let folder = node.map_or("sys/kernel/mm".into(), folder);
    format!("{folder}/hugepages/hugepages-{PAGE_KIB}kB/nr_hugepages")
}

/// Returns what a node has free, by the free lists of the kernel; `None` where they cannot be read.
pub fn room(host: &Host, node: u32) -> Option<Room> {
    let lists = host.text("proc/buddyinfo")?;
    let prefix = format!("Node {node},");
    let (mut small, mut pages) = (0, 0);
    for line in lists.lines().filter_map(|line| line.strip_prefix(&prefix)) {
        // ` zone   Normal   24390  27731 …`: blocks of 1, 2, 4 … pages.
        let counts = line.split_whitespace().skip(2).map(|count| count.parse().unwrap_or(0));
        for (order, count) in counts.enumerate() {
            let count: u64 = count;
            if order >= ORDER {
                pages += count << (order - ORDER);
            } else {
                small += count << order;
            }
        }
    }
    Some(Room { units: pages + (small >> ORDER), pages })
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    #[test]
    fn pools_are_read_by_node_and_size() {
        let fake = Fake::new();
        fake.hugepages(1, 2048, 8, 5);
        fake.hugepages(0, 1_048_576, 1, 1);
        fake.hugepages(0, 2048, 64, 60);
        let row = |pool: Pool| (pool.node, pool.page_kib, pool.total, pool.free);
        let pools: Vec<_> = pools(&fake.host()).into_iter().map(row).collect();
        assert_eq!(pools, [(0, 2048, 64, 60), (0, 1_048_576, 1, 1), (1, 2048, 8, 5)]);
    }

    #[test]
    fn a_kernel_without_nodes_has_one_pool_for_all() {
        let fake = Fake::new();
        fake.file("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "7");
        fake.file("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "6");
        let pool = Pool { node: 0, page_kib: 2048, total: 7, free: 6 };
        assert_eq!(pools(&fake.host()), [pool]);
    }

    #[test]
    fn free_memory_in_small_pieces_makes_no_page() {
        let fake = Fake::new();
        fake.file(
            "proc/buddyinfo",
            "Node 0, zone    DMA32  1024 0 0 0 0 0 0 0 0 1 3\nNode 0, zone   Normal  0 0 0 0 0 0 0 0 4 0 0\n\
             Node 1, zone   Normal  5120 0 0 0 0 0 0 0 0 0 0\n",
        );
        assert_eq!(room(&fake.host(), 0), Some(Room { units: 2 + 2 + 7, pages: 7 }));
        assert_eq!(room(&fake.host(), 1), Some(Room { units: 10, pages: 0 }));
    }
}
