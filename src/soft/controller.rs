//! The controller as its host holds it: registers, doorbells, mappings, turns.
//!
//! [`Controller`] has the registers and, if it has one, the thread; what commands need is in `engine`.
//! `registers` decides what a write means, and it is carried out here.
//! Invariant: the thread runs only while the controller is ready, and is joined before queues are let go.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use super::counters::DeviceCounters;
use super::engine::{Core, lock};
use super::events::Event;
use super::logs::SmartOverrides;
use super::namespace::Namespace;
use super::options::{Execution, Options, SoftError};
use super::registers::{Change, Registers};
use super::thread::Worker;
use crate::dma::{Arena, IovaLimits, Mapper};
use crate::spec::registers::offset::DOORBELLS;
use crate::transport::{Doorbell, Pump, Transport};
use crate::units::QueueId;

/// A software NVMe controller, in this process.
pub struct Controller {
    registers: Mutex<Registers>,
    /// The thread, while the controller is enabled and has one.
    worker: Mutex<Option<Worker>>,
    core: Arc<Core>,
}

impl Controller {
    /// Makes a controller, disabled, with its media open.
    ///
    /// # Errors
    ///
    /// When an option is outside its limits or a medium cannot be opened.
    pub fn new(options: Options) -> Result<Arc<Self>, SoftError> {
        options.check()?;
        let registers = Mutex::new(Registers::new(&options));
        let core = Arc::new(Core::new(options)?);
        Ok(Arc::new(Self { registers, worker: Mutex::default(), core }))
    }

    /// Returns the way to reach the controller.
    pub fn transport(self: &Arc<Self>) -> Arc<dyn Transport> {
        Arc::clone(self) as _
    }

    /// Gives every queue one turn and returns how many commands were executed.
    pub fn step(&self) -> usize {
        self.core.serve_and_patrol()
    }

    /// Returns what was counted since the controller was made.
    pub fn counters(&self) -> DeviceCounters {
        self.core.counters()
    }

    /// Lets something happen that hosts are told of by an asynchronous event.
    pub fn raise_event(&self, event: Event) {
        self.core.raise(event);
    }

    /// Stops with CSTS.CFS, until it is reset.
    pub fn fail(&self) {
        self.core.fail("it is told to");
    }

    /// Takes the controller away, for good: its registers read as all ones, and nothing is served.
    pub fn vanish(&self) {
        self.core.vanish();
    }

    /// Changes what the SMART log says, and raises the event that a new critical warning asks for.
    pub fn set_smart(&self, smart: SmartOverrides) {
        let new = smart.critical_warning & !self.core.errors().set_smart(smart);
        if new != 0 {
            self.core.raise(Event::CriticalWarning(new));
        }
        self.core.admin().look_at_temperature(&self.core);
    }

    /// Starts over: registers are as they were made, queues and settings are gone. Media and mappings stay.
    pub fn reset(&self) {
        let mut registers = self.registers();
        *registers = Registers::new(&self.core.options);
        self.change(&mut registers, Change::Disable);
    }

    /// Makes everything durable that the media keep.
    ///
    /// # Errors
    ///
    /// When a medium cannot be flushed.
    pub fn flush(&self) -> io::Result<()> {
        let flushed = self.core.namespaces.iter().try_for_each(Namespace::shut_down);
        flushed.map_err(|_| io::Error::other("a medium cannot be flushed"))
    }

    /// Returns the file behind the doorbells, to be shared with another process: they begin at 0x1000 there, as among the
    /// registers. `None` unless the options ask for it.
    pub fn doorbells_file(&self) -> Option<&File> {
        self.core.doorbells_file.as_ref()
    }

    /// Says whether queues are served by a thread of the controller's own.
    pub fn has_thread(&self) -> bool {
        self.core.options.execution == Execution::Thread
    }

    /// Returns how many bytes the registers have, doorbells included.
    pub fn register_bytes(&self) -> u64 {
        u64::from(DOORBELLS) + self.core.doorbells.len() as u64
    }

    /// Returns how many interrupt vectors there are: one for the admin queue, and as many as there are queue pairs.
    pub fn vectors(&self) -> u16 {
        self.core.options.max_queues + 1
    }

    /// Has a vector raise an eventfd of the host's from now on, or nothing. Only a controller with a thread, or one that
    /// is stepped, raises any.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if there is no such vector; the kernel's.
    pub fn route_interrupt(&self, vector: u16, event: Option<OwnedFd>) -> io::Result<()> {
        if vector >= self.vectors() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.core.interrupts.route(vector, event)
    }

    /// Raises a vector, as a completion would.
    pub fn raise_interrupt(&self, vector: u16) {
        self.core.interrupts.raise(vector);
    }

    /// Has no vector raise anything.
    pub fn forget_interrupts(&self) {
        self.core.interrupts.clear();
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        lock(&self.registers)
    }

    /// Carries out what a register write asked for.
    fn change(&self, registers: &mut Registers, change: Change) {
        match change {
            Change::None => {}
            Change::Enable => self.bring_up(registers),
            Change::Disable => self.tear_down(),
            Change::ShutDown => self.shut_down(registers),
            Change::Fail => self.core.fail("the configuration cannot be served"),
        }
        self.core.entries_sized.store(registers.entry_sizes_are_set(), Ordering::Release);
    }

    /// Makes the admin queues once the controller is ready to be.
    fn bring_up(&self, registers: &mut Registers) {
        if !registers.advance() {
            return;
        }
        let queues = registers.admin_queues();
        if queues.and_then(|queues| self.core.make_admin_queues(queues)).is_none() {
            return self.core.fail("the admin queues are not in mapped memory");
        }
        if self.core.options.execution == Execution::Thread {
            *lock(&self.worker) = Some(Worker::start(&self.core));
        }
    }

    fn tear_down(&self) {
        drop(lock(&self.worker).take());
        self.core.reset();
    }

    fn shut_down(&self, registers: &mut Registers) {
        drop(lock(&self.worker).take());
        self.core.halt();
        if self.core.namespaces.iter().try_for_each(Namespace::shut_down).is_err() {
            return self.core.fail("a medium cannot be flushed");
        }
        registers.shut_down();
    }
}

impl Transport for Controller {
    fn read32(&self, offset: u32) -> u32 {
        if self.core.has_vanished() {
            return u32::MAX;
        }
        let mut registers = self.registers();
        self.bring_up(&mut registers);
        registers.read32(offset, self.core.is_fatal())
    }

    fn read64(&self, offset: u32) -> u64 {
        u64::from(self.read32(offset)) | u64::from(self.read32(offset.saturating_add(4))) << 32
    }

    fn write32(&self, offset: u32, value: u32) {
        if self.core.has_vanished() {
            return;
        }
        let mut registers = self.registers();
        let change = registers.write32(offset, value);
        self.change(&mut registers, change);
    }

    fn write64(&self, offset: u32, value: u64) {
        self.write32(offset, value as u32);
        self.write32(offset.saturating_add(4), (value >> 32) as u32);
    }

    fn doorbell(&self, offset: u32) -> io::Result<Doorbell> {
        let at =
            self.core.doorbell_place(offset).and_then(|at| Doorbell::at(&self.core.doorbells, at));
        at.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn pump(&self, queue: QueueId) -> Option<Box<dyn Pump>> {
        let inline = self.core.options.execution == Execution::Inline;
        inline.then(|| Box::new(Turn { core: Arc::clone(&self.core), queue }) as _)
    }
}

impl Mapper for Controller {
    fn name(&self) -> String {
        format!("software controller {}", self.core.options.serial)
    }

    fn limits(&self) -> IovaLimits {
        IovaLimits::bits(64)
    }

    fn map(&self, arena: &Arc<Arena>) -> io::Result<()> {
        self.core.iommu.map(arena)
    }

    fn unmap(&self, arena: &Arena) {
        self.core.unmap(arena);
    }
}

/// A turn for one queue, on the host's time.
struct Turn {
    core: Arc<Core>,
    queue: QueueId,
}

impl Pump for Turn {
    #[inline]
    fn pump(&mut self) {
        self.core.serve_queue(self.queue);
    }
}
