//! Memory: our arenas, told to SPDK, and our addresses, told as SPDK wants them.
//!
//! SPDK knows memory by the addresses of the process, we by those that devices see. [`Memory`] keeps the table of both;
//! [`Translation`] is the copy of it that one queue uses. Invariant: an arena in the table is mapped, since whoever holds
//! the domain keeps it so until `unmap`.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::sys;
use crate::block::Run;
use crate::dma::{Arena, IovaLimits, Mapper, PageKind};

/// Memory that one block device may be given.
pub(super) struct Memory {
    name: String,
    /// Whether SPDK's driver gives addresses to hardware.
    is_pci: bool,
    /// Counts changes of the table.
    changes: AtomicU64,
    regions: Mutex<Vec<Region>>,
}

#[derive(Clone, Copy)]
struct Region {
    iova: u64,
    len: u64,
    host: u64,
    is_registered: bool,
}

impl Memory {
    pub(super) fn new(name: String, is_pci: bool) -> Arc<Self> {
        Arc::new(Self { name, is_pci, changes: AtomicU64::new(1), regions: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Region>> {
        // Whoever panicked under the lock left whole regions.
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mapper for Memory {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn limits(&self) -> IovaLimits {
        IovaLimits::bits(64)
    }

    fn map(&self, arena: &Arc<Arena>) -> io::Result<()> {
        let (host, len) = (arena.host_address(), arena.len());
        let bytes = usize::try_from(len).expect("an arena fits the address space");
        // SAFETY: the arena is mapped at `host` for `len` bytes, and `unmap` comes before it goes.
        let code = unsafe { sys::spdk_mem_register(host as *mut _, bytes) };
        // Nobody but hardware asks for the registration, and older releases take multiples of 2 MiB only.
        let may_do_without = !self.is_pci && arena.page_kind() == PageKind::Ordinary;
        if code != 0 && !may_do_without {
            return Err(io::Error::from_raw_os_error(-code));
        }
        let region = Region { iova: arena.iova().0, len, host, is_registered: code == 0 };
        self.lock().push(region);
        self.changes.fetch_add(1, Ordering::Release);
        Ok(())
    }

    fn unmap(&self, arena: &Arena) {
        let mut regions = self.lock();
        let Some(at) = regions.iter().position(|region| region.iova == arena.iova().0) else {
            return;
        };
        let region = regions.swap_remove(at);
        self.changes.fetch_add(1, Ordering::Release);
        if region.is_registered {
            let bytes = usize::try_from(region.len).expect("an arena fits the address space");
            // SAFETY: exactly this was registered, and no request that names it is in flight: each holds its buffers,
            // and buffers their arena.
            let code = unsafe { sys::spdk_mem_unregister(region.host as *mut _, bytes) };
            if code != 0 {
                tracing::error!(code, address = region.host, "SPDK does not forget memory");
            }
        }
    }
}

/// A queue's copy of the table.
pub(super) struct Translation {
    memory: Arc<Memory>,
    seen: u64,
    regions: Vec<Region>,
    last: usize,
}

impl Translation {
    pub(super) fn new(memory: Arc<Memory>) -> Self {
        Self { memory, seen: 0, regions: Vec::new(), last: 0 }
    }

    /// Returns where the first bytes of a run are in this process, and how many of them lie there; `None` for memory that
    /// the device was not given.
    #[inline]
    pub(super) fn host(&mut self, run: Run) -> Option<(u64, u64)> {
        // An address may have been given to other memory since.
        let is_current = self.memory.changes.load(Ordering::Acquire) == self.seen;
        match self.regions.get(self.last).filter(|_| is_current).and_then(|region| region.find(run))
        {
            found @ Some(_) => found,
            None => self.look(run),
        }
    }

    #[cold]
    fn look(&mut self, run: Run) -> Option<(u64, u64)> {
        let changes = self.memory.changes.load(Ordering::Acquire);
        if self.seen != changes {
            self.regions = self.memory.lock().clone();
            self.seen = changes;
        }
        self.last = self.regions.iter().position(|region| region.find(run).is_some())?;
        self.regions[self.last].find(run)
    }
}

impl Region {
    #[inline]
    fn find(&self, run: Run) -> Option<(u64, u64)> {
        let offset = run.iova.wrapping_sub(self.iova);
        (offset < self.len).then(|| (self.host + offset, run.len.min(self.len - offset)))
    }
}
