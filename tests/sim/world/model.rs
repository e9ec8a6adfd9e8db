//! The model: what the store was asked, and what of it may be found after a power cut.
//!
//! ```text
//!   history    base ── event ── event ── event ── live        one prefix explains names, sizes, maps, attributes of all
//!              durable                                        no event before the last that was promised is missing
//!   blocks     versions of each block of each unit            any of them that no durable one has replaced
//! ```
//!
//! A version is replaced by another only if that began after it had ended: of two writes that were under way
//! together either may be the last. The invariant: `live` is `base` with every event applied.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;

use udirect::block::{Durability, Extent, Intent, Mapping, Reach};

use super::content::{self, ZERO};

/// What lies at a unit of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Space that was never written: it reads as zeroes.
    Unwritten,
    /// Space that holds the blocks of this number.
    Written(usize),
}

/// The value of an attribute: so many bytes, all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Value {
    len: usize,
    /// `None` where they are not the same.
    byte: Option<u8>,
}

impl Value {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let byte = bytes.first().copied();
        Self { len: bytes.len(), byte: byte.filter(|byte| bytes.iter().all(|one| one == byte)) }
    }
}

/// An object as it can be seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Object {
    pub(crate) name: Option<String>,
    pub(crate) size: u64,
    pub(crate) created: u64,
    pub(crate) modified: u64,
    pub(crate) attributes: BTreeMap<String, Value>,
    pub(crate) units: BTreeMap<u64, Unit>,
}

impl Object {
    /// Says whether two objects are the same but for what their blocks hold.
    fn is_like(&self, other: &Self) -> bool {
        let kind = |unit: &Unit| matches!(unit, Unit::Unwritten);
        let units = self.units.iter().map(|(at, unit)| (at, kind(unit)));
        (&self.name, self.size, self.created, self.modified, &self.attributes)
            == (&other.name, other.size, other.created, other.modified, &other.attributes)
            && units.eq(other.units.iter().map(|(at, unit)| (at, kind(unit))))
    }
}

/// Objects by their numbers.
pub(crate) type State = BTreeMap<u64, Object>;

/// What was found on an image: the units of its objects count its contents.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) objects: State,
    /// By unit: the write that each block comes from.
    pub(crate) contents: Vec<Vec<u64>>,
}

impl Found {
    /// Says what differs from another finding, if anything does.
    pub(crate) fn difference(&self, other: &Self) -> Option<String> {
        if let Some(what) = shape_difference(&self.objects, &other.objects) {
            return Some(what);
        }
        for (id, object) in &self.objects {
            let ours = object.units.values().map(|unit| self.content(*unit));
            let theirs = other.objects[id].units.values().map(|unit| other.content(*unit));
            if !ours.eq(theirs) {
                return Some(format!("the blocks of object {id}"));
            }
        }
        None
    }

    /// Says what differs from another finding but for what blocks hold, if anything does.
    pub(crate) fn shape_difference(&self, other: &Self) -> Option<String> {
        shape_difference(&self.objects, &other.objects)
    }

    fn content(&self, unit: Unit) -> Option<&Vec<u64>> {
        match unit {
            Unit::Unwritten => None,
            Unit::Written(index) => Some(&self.contents[index]),
        }
    }
}

fn shape_difference(one: &State, other: &State) -> Option<String> {
    if !one.keys().eq(other.keys()) {
        let ids = |state: &State| state.keys().copied().collect::<Vec<_>>();
        return Some(format!("objects {:?}, not {:?}", ids(one), ids(other)));
    }
    let (id, _) = one.iter().find(|(id, object)| !object.is_like(&other[id]))?;
    Some(format!("object {id} is not {:?}", other[id]))
}

/// What the log says, one operation each, in its order.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Create { id: u64, name: Option<String>, time: u64 },
    Remove { id: u64 },
    Rename { id: u64, replaced: Option<u64>, name: String },
    Attribute { id: u64, key: String, value: Option<Value> },
    Map { id: u64, units: Vec<(u64, Unit)>, size: u64, time: u64 },
    Unmap { id: u64, units: Range<u64>, size: u64, time: u64 },
    Size { id: u64, size: u64, time: u64 },
}

impl Event {
    /// Returns the object after whose time nobody has to ask any more.
    fn timed(&self) -> Option<u64> {
        match self {
            Self::Map { id, .. }
            | Self::Unmap { id, .. }
            | Self::Size { id, .. }
            | Self::Remove { id } => Some(*id),
            Self::Rename { replaced, .. } => *replaced,
            Self::Create { .. } | Self::Attribute { .. } => None,
        }
    }
}

fn apply(state: &mut State, event: &Event) {
    let mut with = |id: &u64, change: &mut dyn FnMut(&mut Object)| {
        change(state.get_mut(id).expect("events speak of objects that are there"));
    };
    match event {
        Event::Create { id, name, time } => {
            let (name, created, modified) = (name.clone(), *time, *time);
            state.insert(*id, Object { name, created, modified, ..Object::default() });
        }
        Event::Remove { id } => drop(state.remove(id)),
        Event::Rename { id, replaced, name } => {
            with(id, &mut |object| object.name = Some(name.clone()));
            replaced.map(|other| state.remove(&other));
        }
        Event::Attribute { id, key, value } => with(id, &mut |object| {
            match value {
                Some(value) => object.attributes.insert(key.clone(), *value),
                None => object.attributes.remove(key),
            };
        }),
        Event::Map { id, units, size, time } => with(id, &mut |object| {
            object.units.extend(units.iter().copied());
            (object.size, object.modified) = (*size, *time);
        }),
        Event::Unmap { id, units, size, time } => with(id, &mut |object| {
            object.units.retain(|unit, _| !units.contains(unit));
            (object.size, object.modified) = (*size, *time);
        }),
        Event::Size { id, size, time } => with(id, &mut |object| {
            (object.size, object.modified) = (*size, *time);
        }),
    }
}

/// What a write has put, or may have put, into a block.
#[derive(Clone, Copy, Debug)]
struct Version {
    /// The request.
    tag: u64,
    /// What the block holds then.
    content: u64,
    begun: u64,
    /// When its commands were back: before that it may be there or not.
    ended: Option<u64>,
    /// Whether all of them succeeded; if not, it may be there or not for ever.
    well: bool,
    durable: bool,
}

impl Version {
    /// What is there before anything else, and durable with the map that names it.
    fn first(content: u64, now: u64) -> Self {
        Self { tag: 0, content, begun: now, ended: Some(now), well: true, durable: true }
    }

    fn is_replaced_by(&self, later: &Self) -> bool {
        self.ended.is_some_and(|ended| ended < later.begun)
    }
}

/// The versions of each block of a unit that may still be found after a power cut.
type Blocks = Vec<Vec<Version>>;

/// Forgets what a durable version has replaced.
fn prune(versions: &mut Vec<Version>) {
    let durable: Vec<Version> = versions.iter().filter(|one| one.durable).copied().collect();
    versions.retain(|version| !durable.iter().any(|other| version.is_replaced_by(other)));
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    Read,
    Write(Durability),
    Zero(Durability),
}

impl Deed {
    fn intent(self) -> Intent {
        match self {
            Self::Read => Intent::Read,
            Self::Write(_) => Intent::Write,
            Self::Zero(_) => Intent::Clear,
        }
    }

    fn is_durable(self) -> bool {
        matches!(self, Self::Write(durability) | Self::Zero(durability) if durability.is_durable())
    }
}

/// A request under way, in blocks of its object.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) handle: usize,
    pub(crate) file: u64,
    pub(crate) blocks: Range<u64>,
    pub(crate) deed: Deed,
    begun: Option<u64>,
    ended: bool,
    /// Whether it makes blocks, or data of blocks without, or moves the end.
    changes: bool,
    size: u64,
    /// Units without space that it was given some for, and units without data that it fills.
    taken: Vec<u64>,
    filled: Vec<u64>,
    /// Blocks that it writes in place.
    touched: Vec<(usize, usize)>,
    /// What a read may find, by block of the object.
    expected: BTreeMap<u64, Vec<u64>>,
    /// The instances that a read reads, so that later writes to them are allowed too.
    looked_at: HashMap<(usize, usize), u64>,
    /// What has to be durable before it is answered, if it is durable.
    position: u64,
    /// Whether the time of its object, which has to be durable as well, waits until changes are let in.
    deferred: bool,
}

impl Request {
    pub(crate) fn new(handle: usize, file: u64, blocks: Range<u64>, deed: Deed) -> Self {
        Self {
            handle,
            file,
            blocks,
            deed,
            begun: None,
            ended: false,
            changes: false,
            size: 0,
            taken: Vec::new(),
            filled: Vec::new(),
            touched: Vec::new(),
            expected: BTreeMap::new(),
            looked_at: HashMap::new(),
            position: 0,
            deferred: false,
        }
    }
}

/// The sizes that the model counts in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Bytes of a block.
    pub(crate) block: u64,
    /// Blocks of a unit.
    pub(crate) unit: u64,
}

/// What the store was asked, and what of it may be found.
pub(crate) struct Model {
    pub(crate) sizes: Sizes,
    now: u64,
    base: State,
    /// Events that are in the base.
    first: u64,
    events: VecDeque<Event>,
    live: State,
    /// By object: the events that say where its data is.
    mapped: HashMap<u64, u64>,
    /// Objects whose times the store may write down by itself, when it lets changes in again.
    deferred: BTreeSet<u64>,
    blocks: Vec<Blocks>,
    requests: HashMap<u64, Request>,
    violation: Option<String>,
}

impl Model {
    /// A model of a store without objects.
    pub(crate) fn new(sizes: Sizes) -> Self {
        Self {
            sizes,
            now: 1,
            base: State::new(),
            first: 0,
            events: VecDeque::new(),
            live: State::new(),
            mapped: HashMap::new(),
            deferred: BTreeSet::new(),
            blocks: Vec::new(),
            requests: HashMap::new(),
            violation: None,
        }
    }

    /// A model of what was found: all of it is durable.
    pub(crate) fn of(sizes: Sizes, found: &Found) -> Self {
        let version = |content: &u64| vec![Version::first(*content, 0)];
        let unit = |contents: &Vec<u64>| contents.iter().map(version).collect();
        Self {
            base: found.objects.clone(),
            live: found.objects.clone(),
            blocks: found.contents.iter().map(unit).collect(),
            ..Self::new(sizes)
        }
    }

    pub(crate) fn live(&self) -> &State {
        &self.live
    }

    pub(crate) fn take_violation(&mut self) -> Option<String> {
        self.violation.take()
    }

    fn violated(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// Moves the clock of the model, and returns it.
    pub(crate) fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    // History.

    pub(crate) fn push(&mut self, event: Event) {
        apply(&mut self.live, &event);
        let timed = event.timed();
        self.events.push_back(event);
        self.tick();
        let Some(id) = timed else { return };
        self.deferred.remove(&id);
        let position = self.position();
        for request in self.requests.values_mut().filter(|one| one.deferred && one.file == id) {
            (request.position, request.deferred) = (position, false);
        }
    }

    /// Adds an event that says where the data of an object is.
    pub(crate) fn push_map(&mut self, id: u64, event: Event) {
        self.push(event);
        self.mapped.insert(id, self.position());
    }

    /// Returns how many events there were.
    pub(crate) fn position(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    /// Notes the time of an object, which a request may have moved.
    pub(crate) fn note_time(&mut self, id: u64, time: u64) {
        let Some(object) = self.live.get(&id) else { return };
        if object.modified != time {
            let size = object.size;
            self.push(Event::Size { id, size, time });
        }
    }

    /// The time of an object may have been asked for while changes were kept out: the store writes it down later.
    pub(crate) fn defer(&mut self, id: u64) {
        self.deferred.insert(id);
    }

    /// Notes the times that the store has written down by itself; `times` tells that of an object.
    pub(crate) fn note_deferred(&mut self, times: impl Fn(u64) -> Option<u64>) {
        let times = self.deferred.iter().filter_map(|id| times(*id).map(|time| (time, *id)));
        // In the order in which it did: its clock never stands still.
        let times: BTreeMap<u64, u64> = times.collect();
        for (time, id) in times {
            self.note_time(id, time);
        }
    }

    /// Events before this one were promised to be durable.
    pub(crate) fn require(&mut self, position: u64) {
        while self.first < position {
            let event = self.events.pop_front().expect("what was promised was done");
            apply(&mut self.base, &event);
            self.first += 1;
        }
    }

    /// A sync that was begun at `time` and `position` has ended well.
    pub(crate) fn synced(&mut self, time: u64, position: u64) {
        self.require(position);
        for versions in self.blocks.iter_mut().flatten().filter(|versions| versions.len() > 1) {
            for version in versions.iter_mut() {
                version.durable |= version.well && version.ended.is_some_and(|at| at < time);
            }
            prune(versions);
        }
    }

    // Requests.

    pub(crate) fn add(&mut self, tag: u64, request: Request) {
        self.tick();
        self.requests.insert(tag, request);
    }

    /// Forgets a request that was not taken.
    pub(crate) fn cancel(&mut self, tag: u64) {
        self.requests.remove(&tag);
    }

    pub(crate) fn is_read(&self, tag: u64) -> bool {
        self.requests.get(&tag).is_some_and(|request| request.deed == Deed::Read)
    }

    /// Returns the object of a request.
    pub(crate) fn file_of(&self, tag: u64) -> Option<u64> {
        self.requests.get(&tag).map(|request| request.file)
    }

    /// Says whether a request could be told apart from those that are under way.
    pub(crate) fn is_distinct(&self, request: &Request) -> bool {
        !self.requests.values().any(|other| {
            (other.handle, other.file, &other.blocks, other.deed.intent())
                == (request.handle, request.file, &request.blocks, request.deed.intent())
        })
    }

    pub(crate) fn under_way(&self) -> usize {
        self.requests.len()
    }

    fn units_of(&self, blocks: &Range<u64>) -> Range<u64> {
        blocks.start / self.sizes.unit..blocks.end.div_ceil(self.sizes.unit)
    }

    /// A request of a handle has begun: returns its tag.
    pub(crate) fn begin(&mut self, handle: usize, reach: &Reach, size: u64) -> u64 {
        let now = self.tick();
        let block = self.sizes.block;
        let blocks = reach.offset / block..(reach.offset + reach.len) / block;
        let found = self.requests.iter().find(|(_, one)| {
            (one.handle, one.file, &one.blocks, one.deed.intent())
                == (handle, reach.file.0, &blocks, reach.intent)
        });
        let Some((tag, _)) = found else {
            self.violated(format!("{reach:?} was begun, and nobody asked for it"));
            return 0;
        };
        let tag = *tag;
        let Some(object) = self.live.get(&reach.file.0) else {
            self.violated(format!("{reach:?} was begun in an object that is gone"));
            return tag;
        };
        let is_written = |unit| matches!(object.units.get(&unit), Some(Unit::Written(_)));
        let written = self.units_of(&blocks).all(is_written);
        let extends = reach.offset + reach.len > object.size;
        if object.size != size {
            let wanted = object.size;
            self.violated(format!("{reach:?} was told of {size} bytes, not {wanted}"));
        }
        let request = self.requests.get_mut(&tag).expect("it was just found");
        request.begun = Some(now);
        request.changes = reach.intent == Intent::Write && (extends || !written);
        request.size = size;
        tag
    }

    /// A request was told what lies at blocks of its object.
    pub(crate) fn mapped(&mut self, tag: u64, at: u64, mapping: &Mapping) {
        self.tick();
        let Some(mut request) = self.requests.remove(&tag) else { return };
        let (blocks, extent) = match mapping {
            Mapping::Mapped(extent) => (extent.blocks.0, Some(*extent)),
            Mapping::Hole(blocks) => (blocks.0, None),
        };
        for unit in self.units_of(&(at..at + blocks)) {
            let there = self.live.get(&request.file).and_then(|object| object.units.get(&unit));
            let there = there.copied();
            if !self.map_unit(tag, &mut request, unit, there, extent) {
                let (file, deed) = (request.file, request.deed);
                self.violated(format!(
                    "{deed:?} of object {file}: unit {unit} is {there:?}, and the map says {mapping:?}"
                ));
            }
        }
        self.requests.insert(tag, request);
    }

    /// Notes one unit of an answer; says whether it can be.
    fn map_unit(
        &mut self,
        tag: u64,
        request: &mut Request,
        unit: u64,
        there: Option<Unit>,
        extent: Option<Extent>,
    ) -> bool {
        match (request.deed, there, extent) {
            (Deed::Read, Some(Unit::Written(index)), Some(Extent { new: false, .. })) => {
                self.look(request, unit, index);
            }
            (Deed::Read, None | Some(Unit::Unwritten), None) => {
                let blocks = unit * self.sizes.unit..(unit + 1) * self.sizes.unit;
                request.expected.extend(blocks.map(|block| (block, vec![ZERO])));
            }
            (Deed::Write(_), None, Some(Extent { new: true, .. })) => request.taken.push(unit),
            (Deed::Write(_), Some(Unit::Unwritten), Some(Extent { new: true, .. })) => {
                request.filled.push(unit);
            }
            (Deed::Write(_), Some(Unit::Written(index)), Some(Extent { new: false, .. })) => {
                self.touch(request, unit, index, tag, tag);
            }
            (Deed::Zero(_), Some(Unit::Written(index)), Some(Extent { new: false, .. })) => {
                self.touch(request, unit, index, tag, ZERO);
            }
            (Deed::Zero(_), None | Some(Unit::Unwritten), None) => {}
            // It was removed meanwhile, and the request will be told so.
            (Deed::Write(_), None, None) => return !self.live.contains_key(&request.file),
            _ => return false,
        }
        true
    }

    /// Notes what a read of a unit may find.
    fn look(&self, request: &mut Request, unit: u64, index: usize) {
        let begun = request.begun.unwrap_or(0);
        for (at, versions) in self.blocks[index].iter().enumerate() {
            let block = unit * self.sizes.unit + at as u64;
            let is_hidden = |version: &Version| {
                let hides = |other: &Version| {
                    let was_there = other.well && other.ended.is_some_and(|ended| ended < begun);
                    was_there && version.is_replaced_by(other)
                };
                versions.iter().any(hides)
            };
            let seen = versions.iter().filter(|version| !is_hidden(version));
            request.expected.insert(block, seen.map(|version| version.content).collect());
            request.looked_at.insert((index, at), block);
        }
    }

    /// Notes the blocks of a unit that a request writes in place.
    fn touch(&mut self, request: &mut Request, unit: u64, index: usize, tag: u64, content: u64) {
        let begun = request.begun.unwrap_or(0);
        for at in 0..self.sizes.unit {
            if !request.blocks.contains(&(unit * self.sizes.unit + at)) {
                continue;
            }
            let place = (index, at as usize);
            request.touched.push(place);
            let version = Version { tag, content, begun, ended: None, well: false, durable: false };
            self.blocks[place.0][place.1].push(version);
            for reader in self.requests.values_mut() {
                if let Some(block) = reader.looked_at.get(&place) {
                    reader.expected.entry(*block).or_default().push(content);
                }
            }
        }
    }

    /// The commands of a request are back.
    pub(crate) fn ended(&mut self, tag: u64, well: bool) {
        let now = self.tick();
        let Some(request) = self.requests.get_mut(&tag) else { return };
        if request.ended {
            return;
        }
        request.ended = true;
        let touched = request.touched.clone();
        for (index, at) in touched {
            for version in self.blocks[index][at].iter_mut().filter(|one| one.tag == tag) {
                (version.ended, version.well) = (Some(now), well);
            }
        }
    }

    /// A request is begun again, since there was no room for its command.
    pub(crate) fn undone(&mut self, tag: u64) {
        self.ended(tag, false);
        if let Some(request) = self.requests.get_mut(&tag) {
            request.ended = false;
            request.taken.clear();
            request.filled.clear();
        }
    }

    /// A request was published; the object is now of this size and time.
    pub(crate) fn committed(&mut self, tag: u64, size: u64, time: u64) {
        let Some(request) = self.requests.get(&tag).cloned() else { return };
        let id = request.file;
        let moved = self.live.get(&id).is_some_and(|object| object.modified != time);
        if request.changes {
            self.publish(tag, &request, time);
            let wanted = self.live.get(&id).map(|object| object.size);
            if wanted != Some(size) {
                self.violated(format!(
                    "object {id} has {size} bytes after a write, not {wanted:?}"
                ));
            }
        } else {
            self.note_time(id, time);
        }
        let mapped = self.mapped.get(&id).copied().unwrap_or(0);
        let full = [Deed::Write(Durability::Full), Deed::Zero(Durability::Full)];
        let timed = full.contains(&request.deed) && self.live.contains_key(&id);
        let position = if timed { self.position() } else { mapped };
        let deferred = timed && !moved;
        if deferred {
            self.defer(id);
        }
        if let Some(request) = self.requests.get_mut(&tag) {
            (request.position, request.deferred) = (position, deferred);
        }
    }

    fn publish(&mut self, tag: u64, request: &Request, time: u64) {
        let id = request.file;
        let Some(object) = self.live.get(&id) else {
            return self.violated(format!("a write to object {id} was published after its end"));
        };
        let old = object.size;
        let size = old.max(request.blocks.end * self.sizes.block);
        let units: Vec<u64> = request.taken.iter().chain(&request.filled).copied().collect();
        let last = units.len().saturating_sub(1);
        for (nth, unit) in units.iter().copied().enumerate() {
            let index = self.make(tag, request, unit);
            let size = if nth == last { size } else { old };
            let units = vec![(unit, Unit::Written(index))];
            self.push_map(id, Event::Map { id, units, size, time });
        }
        if units.is_empty() {
            self.push_map(id, Event::Size { id, size, time });
        }
    }

    /// Makes the blocks of a unit that a write has just filled.
    fn make(&mut self, tag: u64, request: &Request, unit: u64) -> usize {
        let first = unit * self.sizes.unit;
        let content = |block| if request.blocks.contains(&block) { tag } else { ZERO };
        let version = |block| vec![Version::first(content(block), self.now)];
        self.blocks.push((first..first + self.sizes.unit).map(version).collect());
        self.blocks.len() - 1
    }

    /// A request was answered well: what it promised is held against the store from now on.
    pub(crate) fn answered(&mut self, tag: u64) {
        let Some(request) = self.requests.remove(&tag) else { return };
        if request.deed.is_durable() {
            if request.deferred {
                let file = request.file;
                self.violated(format!("a write to object {file} was to make its time durable"));
            }
            self.require(request.position);
            for (index, at) in request.touched {
                let versions = &mut self.blocks[index][at];
                versions.iter_mut().filter(|one| one.tag == tag).for_each(|one| one.durable = true);
                prune(versions);
            }
        }
    }

    /// A request was answered with an error.
    pub(crate) fn failed(&mut self, tag: u64) {
        self.requests.remove(&tag);
    }

    /// A read was answered: says what is wrong with its bytes.
    pub(crate) fn read(&mut self, tag: u64, bytes: &[u8]) -> Result<(), String> {
        let Some(request) = self.requests.remove(&tag) else { return Ok(()) };
        let block_bytes = self.sizes.block as usize;
        let (file, start) = (request.file, request.blocks.start);
        let wanted = request.size.saturating_sub(start * self.sizes.block);
        let wanted = wanted.min((request.blocks.end - start) * self.sizes.block);
        if bytes.len() as u64 != wanted {
            return Err(format!("a read of object {file} has {} bytes, not {wanted}", bytes.len()));
        }
        for (block, bytes) in (start..).zip(bytes.chunks(block_bytes)) {
            let found = content::read(bytes, file, block);
            let expected = request.expected.get(&block).map_or(&[][..], |list| list);
            if !found.is_ok_and(|write| expected.contains(&write)) {
                return Err(format!(
                    "a read of object {file}, block {block}: {found:x?}, and it may be {expected:x?}"
                ));
            }
        }
        Ok(())
    }

    // Images.

    /// Finds the point of the history that an image shows; says what speaks against every one that there may be.
    pub(crate) fn explain(&self, found: &Found) -> Result<u64, String> {
        let mut state = self.base.clone();
        let mut reasons = Vec::new();
        let mut events = self.events.iter();
        for position in self.first..=self.position() {
            let shape = shape_difference(&found.objects, &state);
            match shape.or_else(|| self.blocks_differ(found, &state)) {
                None => return Ok(position),
                Some(what) => reasons.push(format!("\n  event {position}: {what}")),
            }
            if let Some(event) = events.next() {
                apply(&mut state, event);
            }
        }
        // In the middle of a turn in which the store writes down what it has deferred: the model hears of it after that.
        for id in &self.deferred {
            if let (Some(object), Some(found)) = (state.get_mut(id), found.objects.get(id)) {
                object.modified = object.modified.max(found.modified);
            }
        }
        let shape = shape_difference(&found.objects, &state);
        match shape.or_else(|| self.blocks_differ(found, &state)) {
            None => return Ok(self.position()),
            Some(what) => reasons.push(format!("\n  with deferred times: {what}")),
        }
        let found = &found.objects;
        Err(format!("no point of the history explains {found:?}:{}", reasons.concat()))
    }

    fn blocks_differ(&self, found: &Found, state: &State) -> Option<String> {
        for (id, object) in &found.objects {
            for ((at, unit), wanted) in object.units.iter().zip(state[id].units.values()) {
                let (Unit::Written(unit), Unit::Written(index)) = (unit, wanted) else { continue };
                let pairs = found.contents[*unit].iter().zip(&self.blocks[*index]);
                for (block, (content, versions)) in pairs.enumerate() {
                    if !versions.iter().any(|version| version.content == *content) {
                        return Some(format!(
                            "object {id}, unit {at}, block {block} comes from write {content}, and it may be {versions:?}"
                        ));
                    }
                }
            }
        }
        None
    }
}
