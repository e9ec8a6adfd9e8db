//! A queue: an SPDK thread and a channel to one block device, driven by whoever polls it.
//!
//! ```text
//!   submit  a slot takes the request                      nothing is sent
//!   ring    SPDK is called for each                       with an address of the slot's context
//!   poll    the SPDK thread is polled; `done` is called   which notes the slot
//!           noted slots give their requests back
//! ```
//!
//! Invariants: a slot's memory does not move and is not freed while SPDK has the address of it; the request, with its
//! buffers, stays in the slot until SPDK has called back. What SPDK never gives back is never freed.

use core::cell::RefCell;
use core::ffi::{c_int, c_void};
use core::mem::ManuallyDrop;
use core::ptr::{self, NonNull};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::bdev::{Place, Shared};
use super::environment::no_space;
use super::memory::Translation;
use super::sys;
use crate::block::deadline::{Deadlines, Stamp};
use crate::block::{
    BlockError, Cause, Completion, Counters, DeviceStatus, IoQueue, Operation, Payload,
    QueueOptions, Rejected, Request, Run, runs,
};
use crate::units::{BlockCount, Lba};

/// How long a queue that is dropped waits for what is in flight.
const PATIENCE: Duration = Duration::from_secs(30);

/// A queue to a block device of SPDK's.
pub(super) struct Queue {
    thread: NonNull<sys::spdk_thread>,
    channel: NonNull<sys::spdk_io_channel>,
    slots: Box<[Slot]>,
    /// What SPDK is given the addresses of; shared with nobody but the callback.
    contexts: ManuallyDrop<Box<[Context]>>,
    noted: ManuallyDrop<Box<Noted>>,
    free: Vec<u32>,
    /// Submitted and not sent: `rung` of them, at the front, are to be.
    waiting: VecDeque<u32>,
    rung: usize,
    inflight: usize,
    /// Sent, and not back from SPDK.
    sent: usize,
    translation: Translation,
    deadlines: Deadlines,
    late: Late,
    counters: Counters,
    /// Last, after everything that leans on the device.
    place: Place,
}

// SAFETY: an SPDK thread runs wherever it is polled, one place at a time: all calls take `&mut self`. The pointers lead to
// memory of the queue's own and to SPDK's, which belongs to that thread.
unsafe impl Send for Queue {}

#[derive(Default)]
struct Slot {
    request: Option<Request>,
    /// The memory of a request that has it in pieces.
    pieces: Vec<sys::iovec>,
    tick: Stamp,
    step: Step,
}

/// How far a request is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    /// Its own command.
    #[default]
    Whole,
    /// A write that has to be durable, on a device with a cache: the flush comes after it.
    BeforeFlush,
    /// That flush.
    Flush,
}

/// What is done about requests that take too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Late {
    No,
    /// The device was told to reset: it gives back what it has.
    Reset,
    /// It did not. Nothing new is taken.
    Hopeless,
}

struct Context {
    noted: NonNull<Noted>,
    index: u32,
}

/// What has come back and was not looked at.
struct Noted(RefCell<VecDeque<Note>>);

struct Note {
    index: u32,
    /// NVMe's status code type and status code; success is 0/0.
    status: (c_int, c_int),
    is_success: bool,
}

/// The mark of what belongs to no slot: a reset.
const NOBODY: u32 = u32::MAX;

impl Queue {
    pub(super) fn open(place: Place, options: &QueueOptions) -> Result<Self, BlockError> {
        let depth = options.depth;
        // SAFETY: the environment is up as long as `place` holds the device; the name is ended by 0.
        let thread = unsafe { sys::spdk_thread_create(c"udirect-queue".as_ptr(), ptr::null()) };
        let thread = NonNull::new(thread).ok_or_else(|| no_space("a thread of SPDK"))?;
        let channel = {
            let _here = Here::on(thread);
            // SAFETY: the device is open, and the current SPDK thread is the channel's from now on.
            unsafe { sys::spdk_bdev_get_io_channel(place.shared().descriptor.pointer.as_ptr()) }
        };
        let Some(channel) = NonNull::new(channel) else {
            end(thread);
            return Err(no_space("an I/O channel of SPDK"));
        };
        let noted = Box::new(Noted(RefCell::new(VecDeque::with_capacity(depth as usize + 1))));
        let address = NonNull::from(&*noted);
        let context = |index| Context { noted: address, index };
        let contexts = (0..depth).chain([NOBODY]).map(context).collect();
        let translation = Translation::new(std::sync::Arc::clone(&place.shared().memory));
        Ok(Self {
            thread,
            channel,
            slots: (0..depth).map(|_| Slot::default()).collect(),
            contexts: ManuallyDrop::new(contexts),
            noted: ManuallyDrop::new(noted),
            free: (0..depth).rev().collect(),
            waiting: VecDeque::with_capacity(depth as usize),
            rung: 0,
            inflight: 0,
            sent: 0,
            translation,
            deadlines: Deadlines::new(options.timeout),
            late: Late::No,
            counters: Counters::default(),
            place,
        })
    }

    fn shared(&self) -> &Shared {
        self.place.shared()
    }

    /// Sends what was rung, as far as SPDK takes it.
    fn send_all(&mut self) {
        let _here = Here::on(self.thread);
        while self.rung > 0 {
            let index = self.waiting[0];
            match self.send(index) {
                0 => self.sent += 1,
                // SPDK has no room now; a later poll tries again.
                code if code == -libc::ENOMEM => break,
                code => self.note_refusal(index, code),
            }
            self.waiting.pop_front();
            self.rung -= 1;
        }
    }

    /// Calls SPDK for the request in a slot.
    fn send(&mut self, index: u32) -> c_int {
        let Self { slots, contexts, noted, translation, channel, place, .. } = self;
        let shared = place.shared();
        let (device, channel) = (shared.descriptor.pointer.as_ptr(), channel.as_ptr());
        let slot = &mut slots[index as usize];
        let context = (&raw const contexts[index as usize]).cast_mut().cast::<c_void>();
        let capacity = shared.bounds.capacity.0;
        let request = slot.request.as_ref().expect("a slot that waits has a request");
        macro_rules! call {
            ($function:ident $(, $argument:expr)*) => {
                // SAFETY: the device is open and the channel is of the current SPDK thread (`Here`). Memory is that of the
                // request's buffers, as long as the blocks are (`Shared::check`) and mapped (`Translation`); it stays in
                // the slot, like the list of pieces and the context, until `done` is called.
                unsafe { sys::$function(device, channel, $($argument,)* Some(done), context) }
            };
        }
        let shift = shared.bounds.lba_size.shift();
        let is_cached = shared.abilities.write_cache && shared.abilities.flush;
        if slot.step == Step::Flush {
            return call!(spdk_bdev_flush_blocks, 0, capacity);
        }
        match &request.operation {
            Operation::Read { lba, payload } => {
                let blocks = payload.len() >> shift;
                match describe(payload, &mut slot.pieces, translation) {
                    Memory::One(start) => call!(spdk_bdev_read_blocks, start, lba.0, blocks),
                    Memory::List(list, count) => {
                        call!(spdk_bdev_readv_blocks, list, count, lba.0, blocks)
                    }
                    Memory::Foreign => -libc::EFAULT,
                }
            }
            Operation::Write { lba, payload, fua } => {
                slot.step = if *fua && is_cached { Step::BeforeFlush } else { Step::Whole };
                let blocks = payload.len() >> shift;
                match describe(payload, &mut slot.pieces, translation) {
                    Memory::One(start) => call!(spdk_bdev_write_blocks, start, lba.0, blocks),
                    Memory::List(list, count) => {
                        call!(spdk_bdev_writev_blocks, list, count, lba.0, blocks)
                    }
                    Memory::Foreign => -libc::EFAULT,
                }
            }
            Operation::Compare { lba, payload } => {
                let blocks = payload.len() >> shift;
                match describe_as_list(payload, &mut slot.pieces, translation) {
                    Memory::List(list, count) => {
                        call!(spdk_bdev_comparev_blocks, list, count, lba.0, blocks)
                    }
                    Memory::One(_) | Memory::Foreign => -libc::EFAULT,
                }
            }
            // Nothing that was written is anywhere but on the device.
            Operation::Flush if !shared.abilities.flush => {
                let note = Note { index, status: (0, 0), is_success: true };
                noted.0.borrow_mut().push_back(note);
                0
            }
            Operation::Flush => call!(spdk_bdev_flush_blocks, 0, capacity),
            Operation::Deallocate { lba, blocks } => {
                call!(spdk_bdev_unmap_blocks, lba.0, blocks.0)
            }
            Operation::WriteZeroes { lba, blocks, fua } => {
                slot.step = if *fua && is_cached { Step::BeforeFlush } else { Step::Whole };
                call!(spdk_bdev_write_zeroes_blocks, lba.0, blocks.0)
            }
            Operation::Copy { source, target, blocks } => {
                call!(spdk_bdev_copy_blocks, target.0, source.0, blocks.0)
            }
            // `Shared::check` lets none of the others in.
            _ => -libc::ENOTSUP,
        }
    }

    /// Notes a request as failed that SPDK did not take.
    fn note_refusal(&mut self, index: u32, code: c_int) {
        self.sent += 1;
        let note = Note { index, status: (REFUSED, -code), is_success: false };
        self.noted.0.borrow_mut().push_back(note);
    }

    /// Takes one note, and returns the request that is done by it, if one is.
    fn take(&mut self) -> Option<Option<Completion>> {
        let note = self.noted.0.borrow_mut().pop_front()?;
        self.sent -= 1;
        if note.index == NOBODY {
            return Some(None);
        }
        let slot = &mut self.slots[note.index as usize];
        if note.is_success && slot.step == Step::BeforeFlush {
            slot.step = Step::Flush;
            // In front, since its turn had come.
            self.waiting.push_front(note.index);
            self.rung += 1;
            return Some(None);
        }
        slot.step = Step::Whole;
        let request = slot.request.take().expect("what comes back was sent");
        self.deadlines.stop(slot.tick);
        self.free.push(note.index);
        self.inflight -= 1;
        self.counters.completions += 1;
        let result = if note.is_success { Ok(()) } else { Err(self.error(&request, note.status)) };
        Some(Some(Completion { request, result }))
    }

    #[cold]
    fn error(&self, request: &Request, status: (c_int, c_int)) -> BlockError {
        let shared = self.shared();
        if shared.is_gone() {
            return shared.absence();
        }
        if self.late != Late::No {
            let (what, after) = (request.operation.name().into(), self.deadlines.timeout());
            return Cause::Timeout { what, after }.into();
        }
        let shift = shared.bounds.lba_size.shift();
        let what = request.operation.name().into();
        if status.0 == REFUSED {
            let source = std::io::Error::from_raw_os_error(status.1);
            return BlockError::new(Cause::Device { what }).with_source(source);
        }
        let (lba, blocks) = match &request.operation {
            Operation::Read { lba, payload }
            | Operation::Write { lba, payload, .. }
            | Operation::Compare { lba, payload } => (*lba, BlockCount(payload.len() >> shift)),
            _ => (Lba(0), BlockCount(0)),
        };
        let cause = match status {
            MISCOMPARE => Cause::Miscompare { lba, blocks },
            (MEDIA, _) => Cause::Media { lba, blocks },
            _ => Cause::Device { what },
        };
        let text = format!("status {:#x}/{:#04x}", status.0, status.1).into();
        let code = (status.0 as u32) << 8 | status.1 as u32;
        BlockError::new(cause).with_status(DeviceStatus { code, text, do_not_retry: false })
    }

    /// Has the device give back what it does not finish.
    #[cold]
    fn hurry(&mut self) {
        if self.late != Late::No || !self.shared().abilities.reset {
            if self.late != Late::Hopeless {
                tracing::warn!(
                    "a request to SPDK is overdue, and the device does not give it back"
                );
            }
            self.late = Late::Hopeless;
            return;
        }
        self.late = Late::Reset;
        let device = self.shared().descriptor.pointer.as_ptr();
        let context = &raw const self.contexts[self.slots.len()];
        let _here = Here::on(self.thread);
        // SAFETY: the device is open, the channel is of the current SPDK thread, and the context stays until `done`.
        let code = unsafe {
            sys::spdk_bdev_reset(
                device,
                self.channel.as_ptr(),
                Some(done),
                context.cast_mut().cast(),
            )
        };
        if code == 0 {
            self.sent += 1;
        } else {
            self.late = Late::Hopeless;
        }
    }

    fn poll_thread(&mut self) {
        // SAFETY: the thread is this queue's, and nobody else polls it.
        unsafe { sys::spdk_thread_poll(self.thread.as_ptr(), 0, 0) };
    }
}

impl IoQueue for Queue {
    fn submit(&mut self, request: Request) -> Result<(), Rejected> {
        if self.free.is_empty() {
            self.counters.queue_full += 1;
            return Err(Rejected::QueueFull(request));
        }
        let shared = self.place.shared();
        if let Err(error) = shared.check(&request.operation) {
            return Err(Rejected::Invalid(request, error));
        }
        if shared.is_gone() {
            let error = shared.absence();
            return Err(Rejected::Invalid(request, error));
        }
        if self.late == Late::Hopeless {
            let what = "a request was not given back in time".into();
            return Err(Rejected::Invalid(request, Cause::Poisoned { what }.into()));
        }
        let index = self.free.pop().expect("it was looked at above");
        let slot = &mut self.slots[index as usize];
        slot.tick = self.deadlines.start();
        slot.request = Some(request);
        self.waiting.push_back(index);
        self.inflight += 1;
        self.counters.submissions += 1;
        Ok(())
    }

    fn ring(&mut self) {
        if self.waiting.len() == self.rung {
            return;
        }
        self.rung = self.waiting.len();
        self.counters.sq_doorbells += 1;
        self.send_all();
    }

    fn poll(&mut self, max: usize, sink: &mut dyn FnMut(Completion)) -> usize {
        self.counters.polls += 1;
        if self.noted.0.borrow().len() < max {
            if self.rung > 0 {
                self.send_all();
            }
            self.poll_thread();
            if self.deadlines.overdue() {
                self.hurry();
            }
        }
        let mut count = 0;
        while count < max {
            match self.take() {
                None => break,
                Some(None) => {}
                Some(Some(completion)) => {
                    count += 1;
                    sink(completion);
                }
            }
        }
        if count == 0 {
            self.counters.idle_polls += 1;
        }
        if self.inflight == 0 && self.sent == 0 && self.late == Late::Reset {
            self.late = Late::No;
        }
        count
    }

    fn inflight(&self) -> usize {
        self.inflight
    }

    fn depth(&self) -> usize {
        self.slots.len()
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        // What was not sent never will be.
        self.waiting.clear();
        self.rung = 0;
        while self.sent > 0 && Instant::now() < deadline {
            self.poll_thread();
            while self.take().is_some() {}
            self.waiting.clear();
            self.rung = 0;
        }
        if self.sent > 0 {
            let count = self.sent;
            tracing::error!(
                count,
                "SPDK has not given back requests: their memory, and the device, stay"
            );
            core::mem::take(&mut self.slots).into_iter().for_each(core::mem::forget);
            self.place.keep_for_ever();
            return;
        }
        {
            let _here = Here::on(self.thread);
            // SAFETY: the channel is of the current SPDK thread, and nothing is in flight on it.
            unsafe { sys::spdk_put_io_channel(self.channel.as_ptr()) };
        }
        end(self.thread);
        // SAFETY: neither is used again; SPDK has called back for everything that it was given.
        unsafe { ManuallyDrop::drop(&mut self.contexts) };
        // SAFETY: as above.
        unsafe { ManuallyDrop::drop(&mut self.noted) };
    }
}

/// Ends an SPDK thread, with its channels.
fn end(thread: NonNull<sys::spdk_thread>) {
    let thread = thread.as_ptr();
    {
        let _here = Here::on(NonNull::new(thread).expect("it came from one"));
        // SAFETY: the thread exists and is current.
        unsafe { sys::spdk_thread_exit(thread) };
    }
    let deadline = Instant::now() + PATIENCE;
    // SAFETY: it is destroyed below only.
    while !unsafe { sys::spdk_thread_is_exited(thread) } {
        if Instant::now() > deadline {
            return tracing::error!("a thread of SPDK does not end");
        }
        // SAFETY: nobody else polls it.
        unsafe { sys::spdk_thread_poll(thread, 0, 0) };
    }
    // SAFETY: it has exited and nobody knows it any more.
    unsafe { sys::spdk_thread_destroy(thread) };
}

/// Makes an SPDK thread the current one, and the one before it again.
struct Here(*mut sys::spdk_thread);

impl Here {
    #[inline]
    fn on(thread: NonNull<sys::spdk_thread>) -> Self {
        // SAFETY: it reads a variable of this OS thread's.
        let before = unsafe { sys::spdk_get_thread() };
        // SAFETY: the SPDK thread exists, and runs nowhere else.
        unsafe { sys::spdk_set_thread(thread.as_ptr()) };
        Self(before)
    }
}

impl Drop for Here {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: it was current before.
        unsafe { sys::spdk_set_thread(self.0) };
    }
}

/// Where the memory of a request is.
enum Memory {
    One(*mut c_void),
    List(*mut sys::iovec, c_int),
    /// Not all of it is memory of the device's domain.
    Foreign,
}

#[inline]
fn describe(
    payload: &Payload,
    list: &mut Vec<sys::iovec>,
    translation: &mut Translation,
) -> Memory {
    if payload.count() == 1 {
        let run = payload.run(0);
        match translation.host(run) {
            Some((start, len)) if len == run.len => return Memory::One(start as *mut c_void),
            _ => {}
        }
    }
    describe_as_list(payload, list, translation)
}

fn describe_as_list(
    payload: &Payload,
    list: &mut Vec<sys::iovec>,
    translation: &mut Translation,
) -> Memory {
    list.clear();
    for run in runs(payload, 0, payload.len()) {
        let mut rest = run;
        while rest.len > 0 {
            let Some((start, len)) = translation.host(rest) else { return Memory::Foreign };
            let bytes = usize::try_from(len).expect("memory of this process");
            list.push(sys::iovec { iov_base: start as *mut c_void, iov_len: bytes });
            rest = Run { iova: rest.iova + len, len: rest.len - len };
        }
    }
    match c_int::try_from(list.len()) {
        Ok(count) => Memory::List(list.as_mut_ptr(), count),
        Err(_) => Memory::Foreign,
    }
}

/// The mark of requests that SPDK did not take: not a status code type of NVMe's, which have three bits.
const REFUSED: c_int = -1;

/// The status code type of media errors, and the status of a Compare that found a difference (Base Figures 96 and 98).
const MEDIA: c_int = 2;
const MISCOMPARE: (c_int, c_int) = (MEDIA, 0x85);

/// What SPDK calls when a request is done, on the thread that polls the queue.
extern "C" fn done(io: *mut sys::spdk_bdev_io, is_success: bool, context: *mut c_void) {
    // SAFETY: the context of a queue that is alive: it waits for what it has sent.
    let context = unsafe { &*context.cast_const().cast::<Context>() };
    let (mut cdw0, mut kind, mut code) = (0, 0, 0);
    if !is_success {
        // SAFETY: the I/O is this callback's until it frees it.
        unsafe {
            sys::spdk_bdev_io_get_nvme_status(io, &raw mut cdw0, &raw mut kind, &raw mut code);
        };
    }
    // SAFETY: as above, once.
    unsafe { sys::spdk_bdev_free_io(io) };
    let note = Note { index: context.index, status: (kind, code), is_success };
    // SAFETY: the notes live as long as the context, and this is the one thread that has them; none are borrowed while
    // SPDK runs.
    let noted = unsafe { context.noted.as_ref() };
    noted.0.borrow_mut().push_back(note);
}
