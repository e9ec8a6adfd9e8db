//! A naive host: it writes queues by hand, through a transport, one word at a time.
//!
//! [`Host`] brings a controller up and runs one command at a time; [`Queue`] is a pair of rings. Numbers are
//! written out here on purpose: what the tests send is read from the standard, not from `spec`.
#![forbid(unsafe_code)]

use core::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::dma::{Access, Attachment, Domain, DomainOptions, PagePolicy, Ring, Window};
use crate::soft::{Controller, Execution, MediaOptions, NamespaceOptions, Options};
use crate::transport::{Doorbell, Pump, Transport};
use crate::units::{LbaSize, QueueId};

pub(super) const CC: u32 = 0x14;
pub(super) const CSTS: u32 = 0x1c;
pub(super) const AQA: u32 = 0x24;
pub(super) const ASQ: u32 = 0x28;
pub(super) const ACQ: u32 = 0x30;
/// Enabled, with entry sizes of 64 and 16 bytes.
pub(super) const CC_ENABLE: u32 = 1 | 6 << 16 | 4 << 20;

/// A command, word by word: dword 0 without the id, namespace, data pointer, dwords 10 to 15.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Sqe {
    pub(super) opcode: u8,
    pub(super) flags: u8,
    pub(super) nsid: u32,
    pub(super) mptr: u64,
    pub(super) dptr: [u64; 2],
    pub(super) cdw: [u32; 6],
}

impl Sqe {
    pub(super) fn new(opcode: u8, nsid: u32) -> Self {
        Self { opcode, nsid, ..Self::default() }
    }

    pub(super) fn prp(mut self, prp1: u64, prp2: u64) -> Self {
        self.dptr = [prp1, prp2];
        self
    }

    pub(super) fn cdw<const N: usize>(mut self, words: [u32; N]) -> Self {
        self.cdw[..N].copy_from_slice(&words);
        self
    }

    /// A command on `count` blocks from `lba`.
    pub(super) fn blocks(self, lba: u64, count: u32) -> Self {
        self.cdw([lba as u32, (lba >> 32) as u32, count - 1])
    }

    fn words(&self, cid: u16) -> [u64; 8] {
        let first = u64::from(self.opcode) | u64::from(self.flags) << 8 | u64::from(cid) << 16;
        let pair = |i: usize| u64::from(self.cdw[i]) | u64::from(self.cdw[i + 1]) << 32;
        let nsid = u64::from(self.nsid) << 32;
        [first | nsid, 0, self.mptr, self.dptr[0], self.dptr[1], pair(0), pair(2), pair(4)]
    }
}

/// A completion, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cqe {
    pub(super) dw0: u32,
    pub(super) sq_head: u16,
    pub(super) sq_id: u16,
    pub(super) cid: u16,
    /// Type and code: 0 is success.
    pub(super) status: u16,
}

pub(super) struct Queue {
    pub(super) sq: Ring<8>,
    pub(super) sq_tail: u32,
    pub(super) sq_bell: Doorbell,
    pub(super) cq: Ring<2>,
    pub(super) cq_head: u32,
    pub(super) cq_bell: Doorbell,
    pub(super) windows: (Window, Window),
    phase: bool,
    next_cid: u16,
    pump: Option<Box<dyn Pump>>,
}

impl Queue {
    fn new(host: &Host, id: u16, sq_entries: u32, cq_entries: u32) -> Self {
        let sq = host.domain.window(sq_entries as usize * 64, 4096, Access::DeviceReads).unwrap();
        let cq = host.domain.window(cq_entries as usize * 16, 4096, Access::DeviceWrites).unwrap();
        let bell = |index: u32| {
            let stride = 4 << (host.transport.read64(0) >> 32 & 0xf);
            host.transport.doorbell(0x1000 + index * stride).unwrap()
        };
        Self {
            sq: Ring::over(sq.bytes().clone(), sq_entries).unwrap(),
            sq_tail: 0,
            sq_bell: bell(2 * u32::from(id)),
            cq: Ring::over(cq.bytes().clone(), cq_entries).unwrap(),
            cq_head: 0,
            cq_bell: bell(2 * u32::from(id) + 1),
            windows: (sq, cq),
            phase: true,
            next_cid: 0,
            pump: host.transport.pump(QueueId(id)),
        }
    }

    /// Writes an entry; nothing is announced.
    pub(super) fn push(&mut self, sqe: Sqe) -> u16 {
        let cid = self.next_cid;
        self.next_cid = self.next_cid.wrapping_add(1);
        self.sq.store(self.sq_tail, sqe.words(cid));
        self.sq_tail = (self.sq_tail + 1) % self.sq.entries();
        cid
    }

    /// Writes the same entry several times.
    pub(super) fn push_all(&mut self, sqe: Sqe, count: usize) {
        for _ in 0..count {
            self.push(sqe);
        }
    }

    pub(super) fn ring(&self) {
        self.sq_bell.ring(self.sq_tail);
    }

    /// Gives the controller a turn, if it needs one.
    pub(super) fn turn(&mut self) {
        if let Some(pump) = &mut self.pump {
            pump.pump();
        }
    }

    /// Takes the next completion, if it is there, and does not say so to the controller.
    pub(super) fn peek(&mut self) -> Option<Cqe> {
        let second = self.cq.entry(self.cq_head)[1].load(Ordering::Acquire);
        if (second >> 48 & 1 == 1) != self.phase {
            return None;
        }
        let first = self.cq.entry(self.cq_head)[0].load(Ordering::Relaxed);
        self.cq_head += 1;
        if self.cq_head == self.cq.entries() {
            (self.cq_head, self.phase) = (0, !self.phase);
        }
        Some(Cqe {
            dw0: first as u32,
            sq_head: second as u16,
            sq_id: (second >> 16) as u16,
            cid: (second >> 32) as u16,
            status: (second >> 49) as u16 & 0x7ff,
        })
    }

    /// Takes the next completion and frees its place.
    pub(super) fn poll(&mut self) -> Option<Cqe> {
        self.turn();
        let cqe = self.peek()?;
        self.cq_bell.ring(self.cq_head);
        Some(cqe)
    }

    /// Runs one command to its end.
    pub(super) fn run(&mut self, sqe: Sqe) -> Cqe {
        let cid = self.push(sqe);
        self.ring();
        let cqe = self.wait();
        assert_eq!(cqe.cid, cid);
        cqe
    }

    /// Waits for a completion, for as long as the controller's own thread may take.
    pub(super) fn wait(&mut self) -> Cqe {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(cqe) = self.poll() {
                return cqe;
            }
            assert!(Instant::now() < deadline, "no completion");
            std::thread::yield_now();
        }
    }
}

/// A host with a controller that is up.
pub(super) struct Host {
    pub(super) controller: Arc<Controller>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) domain: Arc<Domain>,
    pub(super) attachment: Option<Attachment>,
}

/// Options for tests: one namespace of 1 MiB in memory, 512-byte blocks.
pub(super) fn small() -> Options {
    let media = MediaOptions::Ram { bytes: 1 << 20 };
    let namespaces =
        vec![NamespaceOptions { lba_size: LbaSize::B512, media, ..NamespaceOptions::default() }];
    Options { namespaces, ..Options::default() }
}

impl Host {
    /// Makes a controller that is mapped and disabled.
    pub(super) fn disabled(options: Options) -> Self {
        let controller = Controller::new(options).unwrap();
        let transport = controller.transport();
        let domain = Domain::new(DomainOptions { pages: PagePolicy::Ordinary });
        let attachment = domain.attach(Arc::clone(&transport) as _).unwrap();
        Self { controller, transport, domain, attachment: Some(attachment) }
    }

    /// Makes a controller and brings it up, with 32 entries in each admin queue.
    pub(super) fn up(options: Options) -> (Self, Queue) {
        let host = Self::disabled(options);
        let admin = host.enable();
        (host, admin)
    }

    pub(super) fn enable(&self) -> Queue {
        let admin = Queue::new(self, 0, 32, 32);
        self.transport.write32(AQA, 31 | 31 << 16);
        self.transport.write64(ASQ, admin.windows.0.iova().0);
        self.transport.write64(ACQ, admin.windows.1.iova().0);
        self.transport.write32(CC, CC_ENABLE);
        assert_eq!(self.transport.read32(CSTS), 1, "ready");
        admin
    }

    /// Makes the memory of a queue pair that the controller has not heard of.
    pub(super) fn bare_queue(&self, id: u16, entries: u32) -> Queue {
        Queue::new(self, id, entries, entries)
    }

    /// Makes an I/O queue pair.
    pub(super) fn queue(&self, admin: &mut Queue, id: u16, entries: u32) -> Queue {
        let queue = self.bare_queue(id, entries);
        assert_eq!(admin.run(create_cq(id, entries, queue.windows.1.iova().0)).status, 0);
        assert_eq!(admin.run(create_sq(id, entries, queue.windows.0.iova().0, id)).status, 0);
        queue
    }

    /// A controller with one I/O queue pair of 16 entries.
    pub(super) fn with_queue(options: Options) -> (Self, Queue, Queue) {
        let (host, mut admin) = Self::up(options);
        let queue = host.queue(&mut admin, 1, 16);
        (host, admin, queue)
    }

    pub(super) fn memory(&self, len: usize) -> Window {
        self.domain.window(len, 4096, Access::Both).unwrap()
    }
}

pub(super) fn create_cq(id: u16, entries: u32, iova: u64) -> Sqe {
    Sqe::new(0x05, 0).prp(iova, 0).cdw([u32::from(id) | (entries - 1) << 16, 1])
}

pub(super) fn create_sq(id: u16, entries: u32, iova: u64, cq: u16) -> Sqe {
    let words = [u32::from(id) | (entries - 1) << 16, 1 | u32::from(cq) << 16];
    Sqe::new(0x01, 0).prp(iova, 0).cdw(words)
}

pub(super) fn fill(window: &Window, seed: u8) -> Vec<u8> {
    let bytes: Vec<u8> = (0..window.len()).map(|i| (i * 31 + i / 512 * 7) as u8 ^ seed).collect();
    window.span().write_from(&bytes);
    bytes
}

pub(super) fn bytes(window: &Window) -> Vec<u8> {
    let mut bytes = vec![0; window.len()];
    window.span().read_into(&mut bytes);
    bytes
}

pub(super) fn threaded() -> Options {
    Options { execution: Execution::Thread, ..small() }
}
