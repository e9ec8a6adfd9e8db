//! The controller from outside: what a host sees, word by word.
#![forbid(unsafe_code)]

mod host;

use host::{Host, Sqe, bytes, fill, small};

#[test]
fn what_is_written_is_read_back() {
    let (host, _admin, mut queue) = Host::with_queue(small());
    let (from, to) = (host.memory(4096), host.memory(4096));
    let written = fill(&from, 7);
    assert_eq!(queue.run(Sqe::new(1, 1).prp(from.iova().0, 0).blocks(9, 8)).status, 0);
    assert_eq!(queue.run(Sqe::new(0, 1)).status, 0);
    assert_eq!(queue.run(Sqe::new(2, 1).prp(to.iova().0, 0).blocks(9, 8)).status, 0);
    assert_eq!(bytes(&to), written);
}
