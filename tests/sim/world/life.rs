//! A life: a store from its opening to the next power cut, and all that is done to it meanwhile, on one thread.

use std::sync::{Arc, Mutex};

use udirect::block::{
    BlockDevice, BlockError, Durability, ErrorKind, MapBlocks, Mark, QueueOptions,
};
use udirect::dio::{Action, Done, Io, Memory, MemoryPolicy, Options, Pipeline, Refused};
use udirect::dma::Access;
use udirect::extent::{Exclusion, Store, StoreError};
use udirect::seed::Seed;
use udirect::soft::{Disk, FaultAction, FaultRule, Faults};
use udirect::spec::command::NvmOpcode;
use udirect::spec::status::Status;
use udirect::units::FileId;

use super::config::{Config, Op};
use super::content;
use super::hook::Hook;
use super::image::{Examiner, PATIENCE, open_options};
use super::model::{Deed, Event, Found, Model, Request, Unit, Value};
use super::watch::{SharedModel, Watched, enter, note_deferred};

/// Steps after which something must have come to its end.
const STUCK: u64 = 20_000;

/// What is done to an object while writes are kept out.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Len(u64),
    Punch(u64, u64),
    Preallocate(u64, u64),
}

/// What is durable when a mark is settled, or a flush answered.
struct Waiting {
    /// `None` for a flush.
    mark: Option<Mark>,
    time: u64,
    position: u64,
}

/// A store that is open.
pub(crate) struct Life {
    // First: nothing is in flight when the rest goes.
    pub(crate) handles: Vec<Pipeline<Watched>>,
    shaping: Vec<(u64, Exclusion, Shape)>,
    pub(crate) store: Store,
    device: Arc<dyn BlockDevice>,
    pub(crate) hook: Arc<Hook>,
    pub(crate) model: SharedModel,
    pub(crate) disk: Arc<Disk>,
    pub(crate) config: Config,
    pub(crate) seed: Seed,
    marks: Vec<Waiting>,
    flushes: std::collections::HashMap<u64, Waiting>,
    next_tag: u64,
    /// Whether requests may fail because commands do.
    pub(crate) faulty: bool,
    pub(crate) done: u64,
    pub(crate) failures: u64,
}

impl Life {
    /// Opens the store of a disk.
    pub(crate) fn open(
        config: &Config,
        disk: Arc<Disk>,
        model: Model,
        examiner: Examiner,
        mut seed: Seed,
        next_tag: u64,
    ) -> Result<Self, String> {
        let faults = Faults::new(seed.u64(..));
        // No time comes twice, so that one that is missing is seen.
        let latest = model.live().values().map(|object| object.modified.max(object.created));
        let time = 1 + latest.max().unwrap_or(0);
        let model = Arc::new(Mutex::new(model));
        let bench = examiner.bench.clone();
        let hook = Arc::new(Hook::new(&disk, examiner, &model, faults));
        let device = bench.device(&disk, config.drive, Some(Arc::clone(&hook) as _));
        let opened = Store::open(&device, &open_options(time));
        let store = opened.map_err(|error| format!("the store cannot be opened: {error}"))?;
        hook.settle();
        let mut life = Self {
            handles: Vec::new(),
            shaping: Vec::new(),
            store,
            device,
            hook,
            model,
            disk,
            config: config.clone(),
            seed,
            marks: Vec::new(),
            flushes: std::collections::HashMap::new(),
            next_tag,
            faulty: false,
            done: 0,
            failures: 0,
        };
        for handle in 0..config.handles {
            life.handles.push(life.pipeline(handle));
        }
        life.hook.set_rate(config.images);
        life.hook.set_verbose(config.verbose);
        Ok(life)
    }

    fn pipeline(&self, handle: usize) -> Pipeline<Watched> {
        let map = Watched {
            store: self.store.clone(),
            model: Arc::clone(&self.model),
            hook: Arc::clone(&self.hook),
            handle,
        };
        let options = Options {
            queue: QueueOptions { depth: 16, timeout: PATIENCE },
            memory: MemoryPolicy::Strict,
            ..Options::default()
        };
        Pipeline::open(&*self.device, map, &options).expect("there is a queue for each handle")
    }

    /// Adds the faults of the configuration.
    pub(crate) fn add_faults(&mut self) {
        let data = self.config.data_blocks();
        for (opcode, status) in
            [(NvmOpcode::READ, Status::UNRECOVERED_READ), (NvmOpcode::WRITE, Status::WRITE_FAULT)]
        {
            let rule = FaultRule::new(FaultAction::Fail(status)).opcode(opcode);
            let rate = self.config.data_faults;
            self.hook.faults.add(rule.blocks(data.clone()).chance(rate));
            self.faulty |= rate > 0;
        }
        if let Some(nth) = self.config.metadata_fault {
            let rule = FaultRule::new(FaultAction::Fail(Status::WRITE_FAULT));
            let rule = if self.seed.bool() {
                rule.opcode(NvmOpcode::FLUSH)
            } else {
                rule.opcode(NvmOpcode::WRITE).blocks(self.config.metadata_blocks())
            };
            self.hook.faults.add(rule.nth(nth + 1));
            self.faulty = true;
        }
    }

    pub(crate) fn next_tag(&self) -> u64 {
        self.next_tag
    }

    // Steps.

    /// Takes one step: something new, or something that is under way.
    pub(crate) fn step(&mut self) -> Result<(), String> {
        let handle = self.seed.below(self.handles.len() as u64) as usize;
        if self.seed.chance(self.config.eager, 10) {
            let all: u64 = self.config.weights.iter().sum();
            let mut at = self.seed.below(all);
            let chosen = self.config.weights.iter().position(|weight| {
                let hit = at < *weight;
                at = at.saturating_sub(*weight);
                hit
            });
            let op = Op::ALL[chosen.expect("it is below the sum")];
            self.perform(op, handle)?;
        }
        match self.seed.below(8) {
            0..3 => self.handles[handle].ring(),
            3..7 => self.poll(handle)?,
            _ => self.shape()?,
        }
        self.violation()
    }

    /// Lets everything that is under way come to its end.
    pub(crate) fn drain(&mut self) -> Result<(), String> {
        for _ in 0..STUCK {
            self.shape()?;
            for handle in 0..self.handles.len() {
                self.handles[handle].ring();
                self.poll(handle)?;
            }
            self.violation()?;
            let busy = self.handles.iter().any(|handle| handle.inflight() > 0);
            if !busy && self.shaping.is_empty() && self.marks.is_empty() {
                return Ok(());
            }
        }
        let inflight: Vec<usize> = self.handles.iter().map(Pipeline::inflight).collect();
        Err(format!(
            "stuck with {inflight:?} requests, {} shapes, {} marks: {:?}",
            self.shaping.len(),
            self.marks.len(),
            self.store.statistics()
        ))
    }

    /// Makes everything durable and holds the store against that.
    pub(crate) fn settle(&mut self) -> Result<(), String> {
        self.drain()?;
        self.perform(Op::SyncAll, 0)?;
        self.drain()
    }

    /// Says what was found to be wrong so far.
    pub(crate) fn violation(&mut self) -> Result<(), String> {
        let found = self.hook.take_violation().or_else(|| enter(&self.model).take_violation());
        found.map_or(Ok(()), Err)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.disk.power_is_cut() || self.store.poisoned().is_some()
    }

    fn poll(&mut self, handle: usize) -> Result<(), String> {
        let max = if self.seed.bool() { usize::MAX } else { 1 + self.seed.below(3) as usize };
        let mut done = Vec::new();
        self.handles[handle].poll(max, &mut |one| done.push(one));
        for one in done {
            self.answered(one)?;
        }
        self.look_at_marks();
        Ok(())
    }

    fn look_at_marks(&mut self) {
        let (store, model) = (&self.store, &self.model);
        let verbose = self.config.verbose;
        self.marks.retain(|waiting| {
            let mark = waiting.mark.expect("these have one");
            match store.settled(mark) {
                Ok(true) => {
                    if verbose {
                        eprintln!("durable up to {}", waiting.position);
                    }
                    enter(model).synced(waiting.time, waiting.position);
                    false
                }
                Ok(false) => true,
                Err(_) => false,
            }
        });
    }

    fn answered(&mut self, done: Done) -> Result<(), String> {
        let Done { tag, memory, bytes, result } = done;
        self.done += 1;
        self.failures += u64::from(result.is_err());
        self.hook.with(|examiner| examiner.note(tag << 1 | u64::from(result.is_ok())));
        self.tell(format_args!("answer to {tag}: {result:?}"));
        if let Some(flush) = self.flushes.remove(&tag) {
            return match result {
                Ok(()) => {
                    enter(&self.model).synced(flush.time, flush.position);
                    Ok(())
                }
                Err(error) => self.excuse(&error, None),
            };
        }
        let file = enter(&self.model).file_of(tag);
        match (result, memory) {
            (Ok(()), Memory::One(buffer)) if enter(&self.model).is_read(tag) => {
                enter(&self.model).read(tag, &buffer[..bytes as usize])
            }
            (Ok(()), _) => {
                enter(&self.model).answered(tag);
                Ok(())
            }
            (Err(error), _) => {
                enter(&self.model).failed(tag);
                self.excuse(&error, file)
            }
        }
    }

    /// Says whether a request may fail so.
    fn excuse(&self, error: &BlockError, file: Option<u64>) -> Result<(), String> {
        let gone = || file.is_none_or(|file| !enter(&self.model).live().contains_key(&file));
        let excused = self.disk.power_is_cut()
            || match error.kind() {
                ErrorKind::NoSpace => true,
                ErrorKind::NotFound => gone(),
                ErrorKind::Poisoned => self.store.poisoned().is_some(),
                _ => self.faulty,
            };
        if excused { Ok(()) } else { Err(format!("a request has failed: {error}")) }
    }

    fn excuse_store(&self, error: &StoreError) -> Result<(), String> {
        let excused = self.disk.power_is_cut()
            || match error {
                StoreError::NotYet | StoreError::NoSpace { .. } | StoreError::Timeout { .. } => {
                    true
                }
                StoreError::Poisoned { .. } => self.store.poisoned().is_some(),
                _ => false,
            };
        if excused { Ok(()) } else { Err(format!("an operation has failed: {error}")) }
    }

    fn tell(&self, what: core::fmt::Arguments<'_>) {
        if self.config.verbose {
            let model = enter(&self.model);
            eprintln!("{:4} at event {}: {what}", self.hook.commands(), model.position());
        }
    }

    // Operations.

    /// Begins an operation, if there is anything to do it to.
    pub(crate) fn perform(&mut self, op: Op, handle: usize) -> Result<(), String> {
        self.hook.with(|examiner| examiner.note(op as u64));
        let some = self.some_object();
        self.tell(format_args!("{op:?} of {some:?} by {handle}"));
        match (op, some) {
            (Op::Create, _) => self.create(),
            (Op::SyncAll, _) => self.sync_all(),
            (Op::Checkpoint, _) => self.checkpoint(),
            (_, None) => Ok(()),
            (Op::Remove, Some(id)) => self.remove(id),
            (Op::Rename, Some(id)) => self.rename(id, false),
            (Op::Replace, Some(id)) => self.rename(id, true),
            (Op::SetAttribute, Some(id)) => self.attribute(id, true),
            (Op::RemoveAttribute, Some(id)) => self.attribute(id, false),
            (Op::Write, Some(id)) => self.write(handle, id, Durability::Lazy, false),
            (Op::Append, Some(id)) => self.write(handle, id, Durability::Lazy, true),
            (Op::WriteData, Some(id)) => self.write(handle, id, Durability::Data, false),
            (Op::WriteFull, Some(id)) => self.write(handle, id, Durability::Full, false),
            (Op::WriteZeroes, Some(id)) => self.write_zeroes(handle, id),
            (Op::Read, Some(id)) => self.read(handle, id),
            (Op::Sync, Some(id)) => self.sync(handle, id),
            (Op::Preallocate, Some(id)) => {
                let (first, end) = self.some_units();
                self.exclude(id, Shape::Preallocate(first, end))
            }
            (Op::Punch, Some(id)) => {
                let (first, end) = self.some_units();
                self.exclude(id, Shape::Punch(first, end))
            }
            (Op::Shrink, Some(id)) => {
                let size = enter(&self.model).live()[&id].size / self.config.unit;
                let size = self.seed.below(size + 1);
                self.exclude(id, Shape::Len(size))
            }
            (Op::Grow, Some(id)) => {
                let size = enter(&self.model).live()[&id].size.div_ceil(self.config.unit);
                let more = self.seed.below(self.config.object_units.saturating_sub(size) + 1);
                self.exclude(id, Shape::Len(size + more))
            }
        }
    }

    fn some_object(&mut self) -> Option<u64> {
        let model = enter(&self.model);
        let count = model.live().len() as u64;
        let nth = if count > 0 { self.seed.below(count) } else { return None };
        model.live().keys().nth(nth as usize).copied()
    }

    fn some_name(&mut self) -> String {
        // Few, so that they meet; and one that is long, so that records have several blocks.
        let nth = self.seed.below(8);
        if nth == 0 { "long ".repeat(51) } else { format!("name {nth}") }
    }

    fn some_units(&mut self) -> (u64, u64) {
        let first = self.seed.below(self.config.object_units);
        let most = (self.config.object_units - first).min(5);
        (first, first + 1 + self.seed.below(most))
    }

    fn owner(&self, name: &str) -> Option<u64> {
        let model = enter(&self.model);
        let has = |object: &super::model::Object| object.name.as_deref() == Some(name);
        model.live().iter().find(|(_, object)| has(object)).map(|(id, _)| *id)
    }

    fn create(&mut self) -> Result<(), String> {
        if enter(&self.model).live().len() >= self.config.objects {
            return Ok(());
        }
        let name = self.seed.chance(3, 4).then(|| self.some_name());
        let taken = name.as_deref().and_then(|name| self.owner(name)).is_some();
        match self.store.create(name.as_deref()) {
            Ok(id) if !taken => {
                let stat = self.store.stat(id).map_err(|error| error.to_string())?;
                enter(&self.model).push(Event::Create { id: id.0, name, time: stat.created });
                Ok(())
            }
            Err(StoreError::NameTaken(_)) if taken => Ok(()),
            Ok(id) => Err(format!("object {id} was made with the name of another")),
            Err(error) => self.excuse_store(&error),
        }
    }

    fn remove(&mut self, id: u64) -> Result<(), String> {
        match self.store.remove(FileId(id)) {
            Ok(()) => {
                enter(&self.model).push(Event::Remove { id });
                Ok(())
            }
            Err(error) => self.excuse_store(&error),
        }
    }

    fn rename(&mut self, id: u64, replace: bool) -> Result<(), String> {
        let name = self.some_name();
        let owner = self.owner(&name);
        match self.store.rename(FileId(id), &name, replace) {
            Ok(()) if owner == Some(id) => Ok(()),
            Ok(()) if owner.is_none() || replace => {
                enter(&self.model).push(Event::Rename { id, replaced: owner, name });
                Ok(())
            }
            Err(StoreError::NameTaken(_)) if owner.is_some() && !replace => Ok(()),
            Ok(()) => Err(format!("object {id} has taken the name of object {owner:?}")),
            Err(error) => self.excuse_store(&error),
        }
    }

    fn attribute(&mut self, id: u64, set: bool) -> Result<(), String> {
        let key = format!("key {}", self.seed.below(3));
        let has = enter(&self.model).live()[&id].attributes.contains_key(&key);
        let len = [1, 8, 300, 1000][self.seed.below(4) as usize];
        let value = set.then(|| vec![self.seed.u8(..); len]);
        let result = match &value {
            Some(value) => self.store.set_attribute(FileId(id), &key, value),
            None => self.store.remove_attribute(FileId(id), &key),
        };
        match result {
            Ok(()) => {
                let value = value.map(|value| Value::of(&value));
                enter(&self.model).push(Event::Attribute { id, key, value });
                Ok(())
            }
            Err(StoreError::Attribute { .. }) if !set && !has => Ok(()),
            Err(error) => self.excuse_store(&error),
        }
    }

    /// Asks for a checkpoint, and does not wait for it.
    fn checkpoint(&self) -> Result<(), String> {
        let asked = self.store.checkpoint(core::time::Duration::ZERO);
        // The store has taken a step of its own.
        note_deferred(&self.store, &self.model);
        self.hook.settle();
        asked.or_else(|error| self.excuse_store(&error))
    }

    fn sync_all(&mut self) -> Result<(), String> {
        let (time, position) = {
            let mut model = enter(&self.model);
            (model.tick(), model.position())
        };
        match self.store.sync_all() {
            Ok(mark) => {
                self.marks.push(Waiting { mark: Some(mark), time, position });
                Ok(())
            }
            Err(error) => self.excuse_store(&error),
        }
    }

    fn tag(&mut self) -> u64 {
        self.next_tag += 1;
        self.next_tag
    }

    fn has_room(&self) -> bool {
        enter(&self.model).under_way() + self.flushes.len() < self.config.under_way
    }

    fn sync(&mut self, handle: usize, id: u64) -> Result<(), String> {
        if !self.has_room() {
            return Ok(());
        }
        let (tag, time) = (self.tag(), enter(&self.model).tick());
        let io = Io::bare(0, Action::Flush, tag).of(FileId(id));
        let taken = self.handles[handle].submit(io);
        // The time of the object is written down at once, or when changes are let in again.
        if let Ok(stat) = self.store.stat(FileId(id)) {
            let mut model = enter(&self.model);
            model.note_time(id, stat.modified);
            model.defer(id);
        }
        match taken {
            Ok(()) => {
                let position = enter(&self.model).position();
                self.flushes.insert(tag, Waiting { mark: None, time, position });
                Ok(())
            }
            Err(Refused::Full(_)) => Ok(()),
            Err(Refused::Invalid(_, error)) => self.excuse(&error, Some(id)),
        }
    }

    fn some_blocks(&mut self, limit: u64) -> Option<core::ops::Range<u64>> {
        let first = self.seed.below(limit.max(1));
        let most = limit.saturating_sub(first).min(3 * self.config.sizes().unit);
        // Half of them whole units.
        let (unit, len) = (self.config.sizes().unit, 1 + self.seed.below(most.max(1)));
        let (first, end) = if self.seed.bool() {
            (first / unit * unit, (first + len).next_multiple_of(unit))
        } else {
            (first, first + len)
        };
        let end = end.min(limit);
        (first < end).then_some(first..end)
    }

    fn write(
        &mut self,
        handle: usize,
        id: u64,
        durability: Durability,
        append: bool,
    ) -> Result<(), String> {
        let sizes = self.config.sizes();
        let limit = self.config.object_units * sizes.unit;
        let Some(mut blocks) = self.some_blocks(limit) else { return Ok(()) };
        if append {
            let end = enter(&self.model).live()[&id].size / sizes.block;
            let len = (blocks.end - blocks.start).min(limit.saturating_sub(end));
            blocks = end..end + len;
        }
        if blocks.is_empty() {
            return Ok(());
        }
        let request = Request::new(handle, id, blocks.clone(), Deed::Write(durability));
        let bytes = ((blocks.end - blocks.start) * sizes.block) as usize;
        let mut buffer = self.device.dma().buffer(bytes, Access::DeviceReads).expect("memory");
        let tag = self.tag();
        for (block, bytes) in (blocks.start..).zip(buffer.chunks_mut(sizes.block as usize)) {
            content::fill(bytes, id, block, tag);
        }
        let io = Io::write(blocks.start * sizes.block, buffer, tag).of(FileId(id)).with(durability);
        self.submit(request, io)
    }

    fn write_zeroes(&mut self, handle: usize, id: u64) -> Result<(), String> {
        let sizes = self.config.sizes();
        let end = enter(&self.model).live()[&id].size / sizes.block;
        let Some(blocks) = self.some_blocks(end) else { return Ok(()) };
        let durability = [Durability::Lazy, Durability::Data, Durability::Full];
        let durability = durability[self.seed.below(3) as usize];
        let request = Request::new(handle, id, blocks.clone(), Deed::Zero(durability));
        let len = (blocks.end - blocks.start) * sizes.block;
        let action = Action::WriteZeroes { len, durability };
        let tag = self.tag();
        let io = Io::bare(blocks.start * sizes.block, action, tag).of(FileId(id));
        self.submit(request, io)
    }

    fn read(&mut self, handle: usize, id: u64) -> Result<(), String> {
        let sizes = self.config.sizes();
        let limit = self.config.object_units * sizes.unit;
        let Some(blocks) = self.some_blocks(limit) else { return Ok(()) };
        let request = Request::new(handle, id, blocks.clone(), Deed::Read);
        let bytes = ((blocks.end - blocks.start) * sizes.block) as usize;
        let buffer = self.device.dma().buffer(bytes, Access::DeviceWrites).expect("memory");
        let tag = self.tag();
        self.submit(request, Io::read(blocks.start * sizes.block, buffer, tag).of(FileId(id)))
    }

    fn submit(&mut self, request: Request, io: Io) -> Result<(), String> {
        if !self.has_room() || !enter(&self.model).is_distinct(&request) {
            return Ok(());
        }
        let (handle, tag, file) = (request.handle, io.tag, request.file);
        self.tell(format_args!("{tag} is {:?} of {file}, {:?}", request.deed, request.blocks));
        enter(&self.model).add(tag, request);
        match self.handles[handle].submit(io) {
            Ok(()) => Ok(()),
            Err(Refused::Full(_)) => {
                enter(&self.model).cancel(tag);
                Ok(())
            }
            Err(Refused::Invalid(_, error)) => {
                enter(&self.model).cancel(tag);
                self.excuse(&error, Some(file))
            }
        }
    }

    // Shapes.

    fn exclude(&mut self, id: u64, shape: Shape) -> Result<(), String> {
        match self.store.exclude(FileId(id)) {
            Ok(Some(exclusion)) => self.shaping.push((id, exclusion, shape)),
            Ok(None) => {}
            Err(error) => return self.excuse_store(&error),
        }
        Ok(())
    }

    /// Changes the shape of objects that nobody writes to any more.
    fn shape(&mut self) -> Result<(), String> {
        for (id, exclusion, shape) in core::mem::take(&mut self.shaping) {
            if !exclusion.is_alone() {
                self.shaping.push((id, exclusion, shape));
                continue;
            }
            match self.change(&exclusion, shape) {
                Ok(()) => self.changed(id, shape)?,
                Err(StoreError::NotYet) if !self.is_over() => {
                    self.shaping.push((id, exclusion, shape));
                }
                Err(StoreError::NoObject(_)) if !enter(&self.model).live().contains_key(&id) => {}
                Err(error) => self.excuse_store(&error)?,
            }
        }
        Ok(())
    }

    fn change(&self, exclusion: &Exclusion, shape: Shape) -> Result<(), StoreError> {
        let unit = self.config.unit;
        match shape {
            Shape::Len(size) => exclusion.set_len(size * unit),
            Shape::Punch(first, end) => exclusion.punch(first * unit..end * unit),
            Shape::Preallocate(first, end) => exclusion.preallocate(first * unit..end * unit),
        }
    }

    fn changed(&mut self, id: u64, shape: Shape) -> Result<(), String> {
        let stat = self.store.stat(FileId(id)).map_err(|error| error.to_string())?;
        let (time, unit_bytes) = (stat.modified, self.config.unit);
        let mut model = enter(&self.model);
        let object = model.live()[&id].clone();
        let size = object.size;
        match shape {
            Shape::Len(units) => {
                let (old, size) = (size, units * unit_bytes);
                let unmaps = size < old && object.units.keys().any(|unit| *unit >= units);
                let event = if unmaps {
                    Event::Unmap { id, units: units..u64::MAX, size, time }
                } else {
                    Event::Size { id, size, time }
                };
                model.push_map(id, event);
            }
            Shape::Punch(first, end) => {
                if object.units.range(first..end).next().is_some() {
                    model.push_map(id, Event::Unmap { id, units: first..end, size, time });
                }
            }
            Shape::Preallocate(first, end) => {
                // Extent by extent; here unit by unit, which no cut can tell from it but by showing more.
                for unit in (first..end).filter(|unit| !object.units.contains_key(unit)) {
                    let units = vec![(unit, Unit::Unwritten)];
                    model.push_map(id, Event::Map { id, units, size, time });
                }
            }
        }
        if stat.size != model.live()[&id].size {
            return Err(format!("object {id} has {} bytes after {shape:?}", stat.size));
        }
        Ok(())
    }

    /// Ends the life with what is found on an image; the examiner and the tags go on.
    pub(crate) fn end(self, image: &Arc<Disk>) -> Result<(Found, Examiner, u64), String> {
        let (next_tag, mut examiner) = (self.next_tag, self.hook.with(|one| one.again()));
        let found = examiner.examine(&image.fork(), &enter(&self.model))?.0;
        Ok((found, examiner, next_tag))
    }
}
