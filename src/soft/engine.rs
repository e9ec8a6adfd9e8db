//! The core of a controller: everything that commands need, shared by the queues' pumps and the thread.
//!
//! [`Core`] has the namespaces, the IOMMU, the doorbells and a [`Slot`] for each completion queue. It outlives
//! the `controller` that owns it for as long as a pump is held. `group` does the work of one slot.
//! Invariant (lock order): registers, then the admin group, then the admin state, then one I/O group
//! or all of them in rising order, then the sanitize, then the leaves (events, error log, spoilt blocks, disks).
#![forbid(unsafe_code)]

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::admin::Admin;
use super::counters::DeviceCounters;
use super::events::{Event, Events};
use super::group::Group;
use super::interrupts::Interrupts;
use super::iommu::{Iommu, Purpose};
use super::logs::ErrorLog;
use super::namespace::Namespace;
use super::options::{Options, SoftError};
use super::queue::{CompletionQueue, Index, SubmissionQueue};
use super::registers::AdminQueues;
use super::sanitize::Sanitize;
use super::shadow::ShadowPages;
use crate::dma::{Arena, PAGE_BYTES, Ring, SharedBytes};
use crate::spec::registers::doorbell_offset;
use crate::spec::registers::offset::DOORBELLS;
use crate::spec::status::Status;
use crate::units::{Iova, QueueId};

/// What [`Core::group_of`] says of a submission queue that does not exist.
const NO_GROUP: u32 = u32::MAX;

/// A place for one group. Two of them never share a cache line, nor the pair that is fetched together.
#[repr(align(128))]
#[derive(Default)]
struct Slot {
    group: Mutex<Option<Box<Group>>>,
}

/// Everything that commands need.
pub(super) struct Core {
    pub(super) options: Options,
    pub(super) namespaces: Box<[Namespace]>,
    pub(super) iommu: Iommu,
    /// The most bytes of one command.
    pub(super) transfer_max: u64,
    /// Whether a look ahead is worth it: some medium is memory.
    pub(super) prefetches: bool,
    /// Whether commands always take the detour: somebody may decide about them, a disk may lose its power, or blocks have
    /// metadata.
    always_detours: bool,
    /// Whether they take it now: also while a sanitize keeps I/O out.
    detours: AtomicBool,
    /// Groups by the id of their completion queue.
    slots: Box<[Slot]>,
    /// The group of each submission queue, or [`NO_GROUP`].
    group_of: Box<[AtomicU32]>,
    /// One past the highest group since the last reset, so that a thread need not look at empty slots.
    groups_end: AtomicU32,
    /// The register space from the first doorbell on.
    pub(super) doorbells: SharedBytes,
    /// The file behind them, where they can be shared: offsets in it are those of registers.
    pub(super) doorbells_file: Option<File>,
    pub(super) interrupts: Interrupts,
    /// Set with `fatal`, and at a shutdown: no queue is served.
    stopped: AtomicBool,
    fatal: AtomicBool,
    /// Set for good: nobody is there.
    vanished: AtomicBool,
    write_through: AtomicBool,
    pub(super) entries_sized: AtomicBool,
    pub(super) events: Events,
    admin: Mutex<Admin>,
    shadow: Mutex<Option<ShadowPages>>,
    errors: Mutex<ErrorLog>,
    sanitize: Mutex<Sanitize>,
    refuses_io: AtomicBool,
    /// Whether the host waits as it is asked to (ACRE).
    heeds_delays: AtomicBool,
    /// Counts of groups that are gone.
    retired: Mutex<DeviceCounters>,
}

impl Core {
    pub(super) fn new(options: Options) -> Result<Self, SoftError> {
        let namespaces =
            options.namespaces.iter().map(Namespace::open).collect::<Result<Box<[_]>, _>>()?;
        let queues = usize::from(options.max_queues) + 1;
        let (doorbells, doorbells_file) = doorbell_space(&options)?;
        let always_detours = options.interposer.is_some()
            || namespaces.iter().any(|one| one.disk().is_some() || one.metadata().is_some());
        Ok(Self {
            transfer_max: options.mdts.map_or(u64::MAX, u64::from),
            prefetches: namespaces.iter().any(|namespace| namespace.media().is_ram()),
            always_detours,
            detours: AtomicBool::new(always_detours),
            namespaces,
            iommu: Iommu::default(),
            slots: (0..queues).map(|_| Slot::default()).collect(),
            group_of: (0..queues).map(|_| AtomicU32::new(NO_GROUP)).collect(),
            groups_end: AtomicU32::new(0),
            doorbells,
            doorbells_file,
            interrupts: Interrupts::default(),
            stopped: AtomicBool::new(false),
            fatal: AtomicBool::new(false),
            vanished: AtomicBool::new(false),
            write_through: AtomicBool::new(!options.volatile_write_cache),
            entries_sized: AtomicBool::new(false),
            events: Events::default(),
            admin: Mutex::new(Admin::new(&options)),
            shadow: Mutex::default(),
            errors: Mutex::default(),
            sanitize: Mutex::default(),
            refuses_io: AtomicBool::new(false),
            heeds_delays: AtomicBool::new(false),
            retired: Mutex::default(),
            options,
        })
    }

    // The hot side.

    /// Serves the group of one submission queue.
    #[inline]
    pub(super) fn serve_queue(&self, queue: QueueId) -> usize {
        let of = self.group_of.get(usize::from(queue.0));
        match of.map_or(NO_GROUP, |of| of.load(Ordering::Acquire)) {
            NO_GROUP => self.look_for_stray_rings(queue.0..=queue.0),
            group => self.serve_group(group as u16),
        }
    }

    #[inline]
    fn serve_group(&self, id: u16) -> usize {
        if self.stopped.load(Ordering::Acquire) {
            return 0;
        }
        self.group(id).as_deref_mut().map_or(0, |group| self.turn(id, group))
    }

    #[inline]
    fn turn(&self, id: u16, group: &mut Group) -> usize {
        if id == QueueId::ADMIN.0 { self.admin().serve(self, group) } else { group.serve(self) }
    }

    /// Says whether commands take the detour. It changes only while every queue is held.
    #[inline]
    pub(super) fn detours(&self) -> bool {
        self.detours.load(Ordering::Relaxed)
    }

    /// Returns the namespace with an id.
    #[inline]
    pub(super) fn namespace(&self, nsid: u32) -> Result<&Namespace, Status> {
        // Id 0 wraps to a place that is never there.
        let found = self.namespaces.get((nsid as usize).wrapping_sub(1));
        found.ok_or(Status::INVALID_NAMESPACE)
    }

    /// Asks for the memory that a command will read, from its words 0 and 5.
    #[inline]
    pub(super) fn prefetch(&self, (first, slba): (u64, u64)) {
        if let Ok(namespace) = self.namespace((first >> 32) as u32)
            && let Ok(range) = namespace.range(slba, 1)
        {
            namespace.media().prefetch(range.offset, range.len);
        }
    }

    /// Says whether a write has to be durable before it completes.
    #[inline]
    pub(super) fn writes_through(&self) -> bool {
        self.write_through.load(Ordering::Relaxed)
    }

    // Queues.

    /// Serves every queue once, and raises the interrupts of those that got completions.
    pub(super) fn serve_all(&self) -> usize {
        let groups = self.groups_end.load(Ordering::Acquire);
        (0..groups as u16).map(|id| self.serve_and_interrupt(id)).sum()
    }

    /// Serves a group for a host that may wait for interrupts; one that gives turns itself looks anyway.
    fn serve_and_interrupt(&self, id: u16) -> usize {
        if self.stopped.load(Ordering::Acquire) {
            return 0;
        }
        let mut slot = self.group(id);
        let Some(group) = slot.as_deref_mut() else { return 0 };
        let served = self.turn(id, group);
        if let Some(vector) = group.cq.interrupt() {
            self.interrupts.raise(vector);
        }
        served
    }

    /// Serves every queue once, after a look at the doorbells that belong to none.
    pub(super) fn serve_and_patrol(&self) -> usize {
        self.look_for_stray_rings(0..=self.options.max_queues);
        self.serve_all()
    }

    /// Locks the group of a completion queue; there is a slot for every id on offer.
    #[inline]
    pub(super) fn group(&self, id: u16) -> MutexGuard<'_, Option<Box<Group>>> {
        lock(&self.slots[usize::from(id)].group)
    }

    /// Returns the group of a submission queue.
    pub(super) fn group_of(&self, queue: u16) -> Option<u16> {
        let group = self.group_of.get(usize::from(queue))?.load(Ordering::Acquire);
        u16::try_from(group).ok()
    }

    /// Returns the I/O groups that exist.
    pub(super) fn io_groups(&self) -> Vec<MutexGuard<'_, Option<Box<Group>>>> {
        let all = self.slots.iter().skip(1).map(|slot| lock(&slot.group));
        all.filter(|group| group.is_some()).collect()
    }

    /// Makes a completion queue, or returns `None` if its memory is not the device's to write.
    /// `vector` is the interrupt that it raises.
    pub(super) fn make_completion_queue(
        &self,
        id: u16,
        entries: u32,
        iova: u64,
        vector: Option<u16>,
    ) -> Option<()> {
        let share = self.iommu.share(Iova(iova), entries as usize * 16, Purpose::ToHost)?;
        let head = self.doorbell(id, true)?;
        let queue = CompletionQueue::new(id, iova, Ring::over(share, entries)?, head, vector);
        *self.group(id) = Some(Group::new(queue));
        self.groups_end.fetch_max(u32::from(id) + 1, Ordering::AcqRel);
        Some(())
    }

    /// Makes a submission queue, or returns `None` if its memory is not the device's to read.
    pub(super) fn make_submission_queue(
        &self,
        group: &mut Group,
        id: u16,
        entries: u32,
        iova: u64,
    ) -> Option<()> {
        let share = self.iommu.share(Iova(iova), entries as usize * 64, Purpose::FromHost)?;
        let tail = self.doorbell(id, false)?;
        group.sqs.push(SubmissionQueue::new(id, iova, Ring::over(share, entries)?, tail));
        self.group_of[usize::from(id)].store(group.cq.id.into(), Ordering::Release);
        Some(())
    }

    /// Forgets a submission queue of a group.
    pub(super) fn drop_submission_queue(&self, group: &mut Group, id: u16) {
        self.group_of[usize::from(id)].store(NO_GROUP, Ordering::Release);
        group.sqs.retain(|queue| queue.id != id);
    }

    /// Forgets a group and keeps its counts.
    pub(super) fn drop_group(&self, slot: &mut Option<Box<Group>>) {
        let Some(group) = slot.take() else { return };
        for queue in &group.sqs {
            self.group_of[usize::from(queue.id)].store(NO_GROUP, Ordering::Release);
        }
        lock(&self.retired).add(&group.counters());
    }

    pub(super) fn make_admin_queues(&self, queues: AdminQueues) -> Option<()> {
        let ((sqes, sq), (cqes, cq)) = (queues.submission, queues.completion);
        self.make_completion_queue(QueueId::ADMIN.0, cqes, cq, Some(0))?;
        let mut group = self.group(QueueId::ADMIN.0);
        self.make_submission_queue(group.as_deref_mut()?, QueueId::ADMIN.0, sqes, sq)
    }

    // Doorbells.

    /// Takes a doorbell over, shadowed if the host has asked for that.
    fn doorbell(&self, id: u16, completion: bool) -> Option<Index> {
        let mut doorbell = Index::new(self.doorbell_register(id, completion)?);
        if let (Some(shadow), true) = (&*lock(&self.shadow), id != QueueId::ADMIN.0) {
            shadow.apply(id, completion, &mut doorbell);
        }
        Some(doorbell)
    }

    /// Reads the doorbells of I/O queues from memory from now on.
    pub(super) fn shadow_doorbells(&self, values: u64, events: u64) -> Result<u32, Status> {
        let shadow = ShadowPages::new(self, values, events)?;
        *lock(&self.shadow) = Some(shadow.clone());
        for group in self.io_groups().iter_mut().filter_map(|group| group.as_deref_mut()) {
            shadow.apply(group.cq.id, true, group.cq.doorbell());
            for queue in &mut group.sqs {
                shadow.apply(queue.id, false, queue.doorbell());
            }
        }
        Ok(0)
    }

    /// Returns a doorbell register.
    pub(super) fn doorbell_register(&self, id: u16, completion: bool) -> Option<SharedBytes> {
        let offset = doorbell_offset(QueueId(id), completion, self.options.doorbell_stride);
        self.doorbells.part(self.doorbell_place(offset)?, size_of::<u32>())
    }

    /// Returns where in the doorbells a register offset lies, if one lies there.
    pub(super) fn doorbell_place(&self, offset: u32) -> Option<usize> {
        let at = usize::try_from(offset).ok()?.checked_sub(PAGE_BYTES)?;
        let (stride, count) = (4 << self.options.doorbell_stride, 2 * self.slots.len());
        (at.is_multiple_of(stride) && at / stride < count).then_some(at)
    }

    /// Reports a doorbell that announces what cannot be; nothing is served then.
    #[cold]
    pub(super) fn bad_doorbell(&self, queue: u16, value: u32) -> (u32, u32) {
        tracing::warn!(queue, value, "the host rang with a value that cannot be");
        self.raise(Event::InvalidDoorbellValue);
        (0, u32::MAX)
    }

    /// Reports rings of queues that do not exist.
    #[cold]
    fn look_for_stray_rings(&self, queues: std::ops::RangeInclusive<u16>) -> usize {
        let registers = self.doorbells.span();
        for queue in queues.filter(|queue| self.group_of(*queue).is_none()) {
            let at = usize::from(queue) * (8 << self.options.doorbell_stride);
            if usize::from(queue) < self.slots.len() && registers.load32(at, Ordering::Acquire) != 0
            {
                registers.store32(at, 0, Ordering::Relaxed);
                tracing::warn!(queue, "the host rang for a queue that does not exist");
                self.raise(Event::InvalidDoorbellRegister);
            }
        }
        0
    }

    // Control.

    /// Lets something happen that hosts are told of.
    #[cold]
    pub(super) fn raise(&self, event: Event) {
        self.events.raise(event);
    }

    /// Stops with CSTS.CFS.
    #[cold]
    pub(super) fn fail(&self, why: &str) {
        tracing::error!(serial = self.options.serial, "controller fatal status: {why}");
        self.fatal.store(true, Ordering::Release);
        self.stopped.store(true, Ordering::Release);
    }

    /// Is not there any more, as after having been pulled out.
    #[cold]
    pub(super) fn vanish(&self) {
        self.vanished.store(true, Ordering::Release);
        self.fail("it was taken away");
    }

    pub(super) fn has_vanished(&self) -> bool {
        self.vanished.load(Ordering::Acquire)
    }

    pub(super) fn is_fatal(&self) -> bool {
        self.fatal.load(Ordering::Acquire)
    }

    /// Says whether CC says how large queue entries are.
    pub(super) fn entries_are_sized(&self) -> bool {
        self.entries_sized.load(Ordering::Acquire)
    }

    /// Sets whether the host waits before it sends a command again.
    pub(super) fn set_heeds_delays(&self, on: bool) {
        self.heeds_delays.store(on, Ordering::Relaxed);
    }

    /// Returns which delay is asked for with a failure that passes: 0 is none.
    pub(super) fn retry_delay(&self) -> u8 {
        let asks = self.options.retry_delays[0] != 0;
        (asks && self.heeds_delays.load(Ordering::Relaxed)).into()
    }

    /// Sets whether writes go through to the medium.
    pub(super) fn set_write_through(&self, on: bool) {
        self.write_through.store(on, Ordering::Relaxed);
    }

    /// Locks the error log and what else the SMART log is made of.
    pub(super) fn errors(&self) -> MutexGuard<'_, ErrorLog> {
        lock(&self.errors)
    }

    /// Locks the sanitize that goes on, or the last.
    pub(super) fn sanitize(&self) -> MutexGuard<'_, Sanitize> {
        lock(&self.sanitize)
    }

    /// Keeps I/O out, or lets it in again. The caller holds every queue, or lets in only.
    pub(super) fn refuse_io(&self, on: bool) {
        self.refuses_io.store(on, Ordering::Release);
        self.detours.store(on || self.always_detours, Ordering::Release);
    }

    /// Says whether a sanitize keeps I/O out.
    pub(super) fn refuses_io(&self) -> bool {
        self.refuses_io.load(Ordering::Acquire)
    }

    pub(super) fn admin(&self) -> MutexGuard<'_, Admin> {
        lock(&self.admin)
    }

    /// Stops serving queues, and waits until none is being served.
    pub(super) fn halt(&self) {
        self.stopped.store(true, Ordering::Release);
        self.slots.iter().for_each(|slot| drop(lock(&slot.group)));
    }

    /// Lets go of every queue and starts over.
    pub(super) fn reset(&self) {
        self.halt();
        self.slots.iter().for_each(|slot| self.drop_group(&mut lock(&slot.group)));
        *self.admin() = Admin::new(&self.options);
        self.groups_end.store(0, Ordering::Release);
        *lock(&self.shadow) = None;
        self.events.clear();
        self.set_heeds_delays(false);
        self.set_write_through(!self.options.volatile_write_cache);
        self.fatal.store(false, Ordering::Release);
        self.stopped.store(false, Ordering::Release);
    }

    /// Forgets an arena. Nothing of it is touched any more when this returns.
    pub(super) fn unmap(&self, arena: &Arena) {
        self.iommu.unmap(arena);
        let (base, len) = (arena.iova().0, arena.len());
        let shadowed = lock(&self.shadow).as_ref().is_some_and(|pages| pages.lies_in(base, len));
        for slot in &self.slots {
            let mut slot = lock(&slot.group);
            let Some(group) = slot.as_deref_mut() else { continue };
            group.work.dma.tlb.clear();
            let rings = group.sqs.iter().any(|queue| queue.lies_in(base, len));
            if shadowed || rings || group.cq.lies_in(base, len) {
                // After a shutdown a host may take its memory back without a word.
                if !self.stopped.load(Ordering::Acquire) {
                    self.fail("a queue's memory was unmapped");
                }
                self.drop_group(&mut slot);
            }
        }
    }

    /// Adds up what was counted.
    pub(super) fn counters(&self) -> DeviceCounters {
        let mut sum = self.io_counters();
        if let Some(group) = self.group(QueueId::ADMIN.0).as_deref() {
            sum.add(&group.counters());
        }
        sum
    }

    /// Adds up what was counted except by the admin queue, which may be asking.
    pub(super) fn io_counters(&self) -> DeviceCounters {
        let mut sum = lock(&self.retired).clone();
        for group in self.io_groups().iter().filter_map(|group| group.as_deref()) {
            sum.add(&group.counters());
        }
        sum
    }
}

/// Locks, also after a panic elsewhere: every value behind these locks is whole between statements.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Maps the doorbell registers of every queue on offer, in whole pages.
fn doorbell_space(options: &Options) -> Result<(SharedBytes, Option<File>), SoftError> {
    let count = 2 * (usize::from(options.max_queues) + 1);
    let len = (count * (4 << options.doorbell_stride)).next_multiple_of(PAGE_BYTES);
    let memory = |source| SoftError::Memory { bytes: len as u64, source };
    if !options.shared_doorbells {
        return Ok((SharedBytes::anonymous(len).map_err(memory)?, None));
    }
    let (bytes, file) = SharedBytes::shareable(DOORBELLS.into(), len).map_err(memory)?;
    Ok((bytes, Some(file)))
}
