//! The domain: one address space for all devices, and the arenas in it.
#![forbid(unsafe_code)]

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memmap2::MmapMut;

use super::arena::{Access, Arena};
use super::buf::DmaBuf;
use super::iova::{self, IovaLimits};
use super::window::Window;
use super::{DmaError, PAGE_BYTES, PageKind, PagePolicy};
use crate::units::Iova;

/// Something that has to know of every arena: a device behind an IOMMU, or a controller in software.
pub trait Mapper: Send + Sync {
    /// Returns its name, for errors.
    fn name(&self) -> String;

    /// Returns the device addresses that it can use.
    fn limits(&self) -> IovaLimits;

    /// Makes an arena reachable at its address, with its rights.
    ///
    /// # Errors
    ///
    /// The kernel's or the peer's.
    fn map(&self, arena: &Arc<Arena>) -> io::Result<()>;

    /// Makes an arena unreachable again. The device has been stopped or has let go of the memory.
    fn unmap(&self, arena: &Arena);
}

/// What a domain is made of.
#[derive(Clone, Copy, Debug, Default)]
pub struct DomainOptions {
    /// Which pages arenas are made of.
    pub pages: PagePolicy,
}

/// All memory that devices can reach: one address space, the arenas in it, the devices that map them.
pub struct Domain {
    options: DomainOptions,
    state: Mutex<State>,
}

struct State {
    arenas: Vec<Arc<Arena>>,
    mappers: Vec<(u64, Arc<dyn Mapper>)>,
    next_attachment: u64,
}

/// The least that an arena grows by: one hugepage.
const ARENA_BYTES_MIN: u64 = 2 << 20;

impl Domain {
    /// Makes a domain without memory or devices.
    pub fn new(options: DomainOptions) -> Arc<Self> {
        let state = State { arenas: Vec::new(), mappers: Vec::new(), next_attachment: 0 };
        Arc::new(Self { options, state: Mutex::new(state) })
    }

    /// Lets a device reach the domain's memory, what there is now and what comes later.
    ///
    /// # Errors
    ///
    /// `OutOfReach` or `Attach`; nothing stays mapped then.
    pub fn attach(self: &Arc<Self>, mapper: Arc<dyn Mapper>) -> Result<Attachment, DmaError> {
        let mut state = self.lock();
        let limits = mapper.limits();
        if let Some(arena) = state.arenas.iter().find(|a| !limits.hold(a.iova(), a.len())) {
            let (iova, len) = (arena.iova().0, arena.len());
            return Err(DmaError::OutOfReach { iova, len, device: mapper.name() });
        }
        map_all(&*mapper, &state.arenas)?;
        iova::shared().narrow(&limits);
        let id = state.next_attachment;
        state.next_attachment += 1;
        state.mappers.push((id, mapper));
        Ok(Attachment { domain: Arc::clone(self), id })
    }

    /// Takes shared memory, zeroed, `align` (a power of two) apart for the device too.
    ///
    /// # Errors
    ///
    /// When there is no memory, no address or a device cannot map it.
    pub fn window(&self, len: usize, align: usize, access: Access) -> Result<Window, DmaError> {
        check("length of a window", len as u64, 1, 1 << 40)?;
        check("alignment of a window", align as u64, 1, ARENA_BYTES_MIN)?;
        assert!(align.is_power_of_two(), "alignment {align}");
        let mut state = self.lock();
        let ours = |arena: &&Arc<Arena>| arena.access() == access && !arena.is_registered();
        let old = state.arenas.iter().filter(ours);
        if let Some(window) = old.into_iter().find_map(|arena| arena.carve(len, align)) {
            return Ok(window);
        }
        let arena = self.grow(&mut state, len as u64, access)?;
        Ok(arena.carve(len, align).expect("a new arena holds what it was made for"))
    }

    /// Takes one buffer outside any pool, page-aligned.
    ///
    /// # Errors
    ///
    /// As [`Domain::window`].
    pub fn buffer(&self, len: usize, access: Access) -> Result<DmaBuf, DmaError> {
        check("length of a buffer", len as u64, 1, u64::from(u32::MAX))?;
        let window = self.window(len, PAGE_BYTES, access)?;
        Ok(DmaBuf::alone(window))
    }

    /// Makes a buffer of memory that the caller mapped: a cache, or memory shared with another process. It is
    /// not copied or cleared; devices reach it until the buffer drops, which also unmaps it.
    ///
    /// # Errors
    ///
    /// `Invalid` if it is not made of whole pages or is longer than 32 bits can say, and as
    /// [`Domain::window`].
    pub fn register(self: &Arc<Self>, map: MmapMut, access: Access) -> Result<DmaBuf, DmaError> {
        check("length of registered memory", map.len() as u64, 1, u64::from(u32::MAX))?;
        let mut arena = Arena::register(map, access, Arc::downgrade(self))?;
        let mut state = self.lock();
        arena.place(iova::shared().take(arena.len(), ARENA_BYTES_MIN)?);
        let arena = self.adopt(&mut state, arena)?;
        Ok(DmaBuf::alone(arena.whole()))
    }

    /// Returns how many bytes are mapped, and how many of them are handed out.
    pub fn usage(&self) -> (u64, u64) {
        let state = self.lock();
        let mapped: u64 = state.arenas.iter().map(|arena| arena.len()).sum();
        let free: u64 = state.arenas.iter().map(|arena| arena.free_bytes()).sum();
        (mapped, mapped - free)
    }

    /// Returns the kind of page of the first arena, or `None` before there is one.
    pub fn page_kind(&self) -> Option<PageKind> {
        self.lock().arenas.first().map(|arena| arena.page_kind())
    }

    fn grow(&self, state: &mut State, len: u64, access: Access) -> Result<Arc<Arena>, DmaError> {
        let len = len.next_multiple_of(ARENA_BYTES_MIN);
        let mut arena = Arena::map(len, self.options.pages, access)?;
        let align = arena.page_kind().bytes().max(ARENA_BYTES_MIN);
        arena.place(iova::shared().take(arena.len(), align)?);
        self.adopt(state, arena)
    }

    /// Lets every device reach an arena that has its place.
    fn adopt(&self, state: &mut State, arena: Arena) -> Result<Arc<Arena>, DmaError> {
        let arena = Arc::new(arena);
        tell_all(&state.mappers, &arena)?;
        tracing::debug!(?arena, "new arena");
        state.arenas.push(Arc::clone(&arena));
        Ok(arena)
    }

    /// Makes a registered arena unreachable that has come home.
    pub(super) fn forget(&self, arena: &Arc<Arena>) {
        let mut state = self.lock();
        let Some(at) = state.arenas.iter().position(|other| Arc::ptr_eq(other, arena)) else {
            return;
        };
        state.arenas.swap_remove(at);
        state.mappers.iter().for_each(|(_, mapper)| mapper.unmap(arena));
    }

    fn detach(&self, id: u64) {
        let mut state = self.lock();
        let Some(at) = state.mappers.iter().position(|(other, _)| *other == id) else {
            return;
        };
        let (_, mapper) = state.mappers.swap_remove(at);
        state.arenas.iter().for_each(|arena| mapper.unmap(arena));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked under this lock left whole values behind: every step above ends in one push.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Domain {
    /// Takes two windows, of an arena each, the second at the address where the first one ends.
    ///
    /// Both places are taken as one, since other threads take addresses at the same time.
    pub(crate) fn adjacent_windows(&self, access: Access) -> [Window; 2] {
        let mut state = self.lock();
        let first = iova::shared().take(2 * ARENA_BYTES_MIN, ARENA_BYTES_MIN).unwrap();
        [0, 1].map(|index| {
            let mut arena = Arena::map(ARENA_BYTES_MIN, self.options.pages, access).unwrap();
            arena.place(first.checked_add(index * ARENA_BYTES_MIN).unwrap());
            let arena = self.adopt(&mut state, arena).unwrap();
            arena.carve(ARENA_BYTES_MIN as usize, PAGE_BYTES).unwrap()
        })
    }
}

impl core::fmt::Debug for Domain {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let (mapped, used) = self.usage();
        f.debug_struct("Domain").field("mapped", &mapped).field("used", &used).finish()
    }
}

/// A device's hold on a domain; dropping it unmaps everything from the device.
///
/// The owner drops it only after the device has been disabled or reset.
pub struct Attachment {
    domain: Arc<Domain>,
    id: u64,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.domain.detach(self.id);
    }
}

/// Maps every arena for one device, or none.
fn map_all(mapper: &dyn Mapper, arenas: &[Arc<Arena>]) -> Result<(), DmaError> {
    for (done, arena) in arenas.iter().enumerate() {
        if let Err(source) = mapper.map(arena) {
            arenas[..done].iter().for_each(|arena| mapper.unmap(arena));
            return Err(refused(mapper, arena.iova(), arena.len(), source));
        }
    }
    Ok(())
}

/// Maps one arena for every device, or for none.
fn tell_all(mappers: &[(u64, Arc<dyn Mapper>)], arena: &Arc<Arena>) -> Result<(), DmaError> {
    for (done, (_, mapper)) in mappers.iter().enumerate() {
        if let Err(source) = mapper.map(arena) {
            mappers[..done].iter().for_each(|(_, mapper)| mapper.unmap(arena));
            return Err(refused(&**mapper, arena.iova(), arena.len(), source));
        }
    }
    Ok(())
}

fn refused(mapper: &dyn Mapper, iova: Iova, len: u64, source: io::Error) -> DmaError {
    DmaError::Attach { iova: iova.0, len, device: mapper.name(), source }
}

fn check(what: &'static str, value: u64, least: u64, most: u64) -> Result<(), DmaError> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(DmaError::Invalid { what, value, least, most })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts mappings and refuses the n-th.
    struct Counting {
        mapped: AtomicUsize,
        refuse_at: usize,
        limits: IovaLimits,
    }

    impl Counting {
        fn new(refuse_at: usize, bits: u32) -> Arc<Self> {
            let limits = IovaLimits::bits(bits);
            Arc::new(Self { mapped: AtomicUsize::new(0), refuse_at, limits })
        }
    }

    impl Mapper for Counting {
        fn name(&self) -> String {
            "counting".into()
        }
        fn limits(&self) -> IovaLimits {
            self.limits.clone()
        }
        fn map(&self, _: &Arc<Arena>) -> io::Result<()> {
            if self.mapped.load(Ordering::Relaxed) == self.refuse_at {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.mapped.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        fn unmap(&self, _: &Arena) {
            self.mapped.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn ordinary() -> Arc<Domain> {
        Domain::new(DomainOptions { pages: PagePolicy::Ordinary })
    }

    #[test]
    fn each_device_maps_each_arena_once() {
        let domain = ordinary();
        let first = domain.window(4096, 4096, Access::DeviceReads).unwrap();
        let mapper = Counting::new(usize::MAX, 64);
        let attachment = domain.attach(Arc::clone(&mapper) as _).unwrap();
        assert_eq!(mapper.mapped.load(Ordering::Relaxed), 1);
        let second = domain.window(4096, 4096, Access::DeviceReads).unwrap();
        assert_eq!(mapper.mapped.load(Ordering::Relaxed), 1, "the same arena serves again");
        let third = domain.window(4096, 4096, Access::DeviceWrites).unwrap();
        assert_eq!(mapper.mapped.load(Ordering::Relaxed), 2, "another right is another arena");
        assert_ne!(first.iova(), second.iova());
        assert_ne!(first.iova(), third.iova());
        drop(attachment);
        assert_eq!(mapper.mapped.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_device_that_cannot_map_leaves_nothing_behind() {
        let domain = ordinary();
        let (good, bad) = (Counting::new(usize::MAX, 64), Counting::new(0, 64));
        let _first = domain.attach(Arc::clone(&good) as _).unwrap();
        let _second = domain.attach(Arc::clone(&bad) as _).unwrap();
        let error = domain.window(4096, 4096, Access::Both).unwrap_err();
        assert!(matches!(error, DmaError::Attach { .. }), "{error}");
        assert_eq!(good.mapped.load(Ordering::Relaxed), 0);
        assert_eq!(domain.usage(), (0, 0));
    }

    #[test]
    fn a_device_with_fewer_address_bits_is_refused_or_honoured() {
        let domain = ordinary();
        let _window = domain.window(4096, 4096, Access::Both).unwrap();
        let narrow = Counting::new(usize::MAX, 32);
        let error = domain.attach(narrow).err().map(|error| error.to_string()).unwrap();
        assert!(error.contains("out of reach of counting"), "{error}");
    }

    /// Free 2 MiB hugepages, as the kernel counts them.
    fn free_hugepages() -> u64 {
        let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    #[test]
    fn hugepages_serve_where_there_are_any() {
        if free_hugepages() < 8 {
            eprintln!("skipped: hugepage arenas: fewer than 8 hugepages of 2 MiB are free");
            return;
        }
        let policy = PagePolicy::Require(PageKind::Huge2MiB);
        let domain = Domain::new(DomainOptions { pages: policy });
        let mut buffer = match domain.buffer(3 << 20, Access::Both) {
            Ok(buffer) => buffer,
            Err(DmaError::NoHugepages { .. }) if free_hugepages() < 8 => {
                eprintln!("skipped: hugepage arenas: others have taken the hugepages meanwhile");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        buffer.fill(7);
        assert_eq!(domain.page_kind(), Some(PageKind::Huge2MiB));
        assert!(buffer.iova().0.is_multiple_of(4096));
        assert_eq!(domain.usage(), (4 << 20, 3 << 20));
        drop(buffer);
        assert_eq!(domain.usage().1, 0);
    }

    #[test]
    fn registered_memory_keeps_its_bytes_and_is_unmapped_with_its_buffer() {
        let domain = ordinary();
        let mapper = Counting::new(usize::MAX, 64);
        let _attachment = domain.attach(Arc::clone(&mapper) as _).unwrap();
        let mut map = MmapMut::map_anon(8192).unwrap();
        map[5000] = 9;
        let buffer = domain.register(map, Access::Both).unwrap();
        assert_eq!((buffer.len(), buffer[5000]), (8192, 9));
        assert_eq!(mapper.mapped.load(Ordering::Relaxed), 1);
        let window = domain.window(4096, 4096, Access::Both).unwrap();
        assert_eq!(mapper.mapped.load(Ordering::Relaxed), 2, "it serves nobody else");
        drop(buffer);
        assert_eq!(mapper.mapped.load(Ordering::Relaxed), 1);
        assert_eq!(domain.usage().1, 4096);
        drop(window);
    }

    #[test]
    fn registered_memory_is_made_of_whole_pages() {
        let map = MmapMut::map_anon(5000).unwrap();
        let error = ordinary().register(map, Access::Both).unwrap_err().to_string();
        assert!(error.contains("whole pages") && error.contains("5000"), "{error}");
    }

    #[test]
    fn windows_go_home() {
        let domain = ordinary();
        let window = domain.window(10_000, 4096, Access::Both).unwrap();
        let share = window.clone();
        drop(window);
        assert_eq!(domain.usage().1, 10_000);
        drop(share);
        assert_eq!(domain.usage().1, 0);
    }

    #[test]
    fn windows_are_zeroed_even_when_used_before() {
        let domain = ordinary();
        let window = domain.window(4096, 4096, Access::Both).unwrap();
        window.span().fill(0xff);
        let place = window.iova();
        drop(window);
        let window = domain.window(4096, 4096, Access::Both).unwrap();
        assert_eq!(window.iova(), place);
        let mut bytes = [1; 4096];
        window.span().read_into(&mut bytes);
        assert_eq!(bytes, [0; 4096]);
    }
}
