//! The store as the pipelines see it, with a model that listens to what passes between the two.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use udirect::block::{Begun, BlockError, Committed, MapBlocks, Mapping, Mark, Reach};
use udirect::extent::{Guard, Store};
use udirect::units::{BlockCount, FileBlock, FileId};

use super::hook::Hook;
use super::model::Model;

/// A model that several listeners share, all of them on one thread.
pub(crate) type SharedModel = Arc<Mutex<Model>>;

/// Enters a model. Whoever panicked in it has failed the run already.
pub(crate) fn enter<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells a model the times that a step of the store's own may have written down.
pub(crate) fn note_deferred(store: &Store, model: &SharedModel) {
    enter(model).note_deferred(|id| store.stat(FileId(id)).ok().map(|stat| stat.modified));
}

/// The store of one handle.
pub(crate) struct Watched {
    pub(crate) store: Store,
    pub(crate) model: SharedModel,
    pub(crate) hook: Arc<Hook>,
    pub(crate) handle: usize,
}

/// The guard of a request that is listened to.
pub(crate) struct Held {
    /// `None` once it is spent.
    inner: Option<Guard>,
    tag: u64,
    model: SharedModel,
}

impl Drop for Held {
    /// The request has failed, or had no room.
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            enter(&self.model).undone(self.tag);
            drop(inner);
        }
    }
}

impl MapBlocks for Watched {
    type Guard = Held;

    fn unit(&self) -> BlockCount {
        self.store.unit()
    }

    fn begin(&self, reach: &Reach) -> Result<Option<Begun<Held>>, BlockError> {
        let Some(Begun { guard, size }) = self.store.begin(reach)? else { return Ok(None) };
        let tag = enter(&self.model).begin(self.handle, reach, size);
        let model = Arc::clone(&self.model);
        Ok(Some(Begun { guard: Held { inner: Some(guard), tag, model }, size }))
    }

    fn map(
        &self,
        guard: &mut Held,
        at: FileBlock,
        blocks: BlockCount,
    ) -> Result<Mapping, BlockError> {
        let inner = guard.inner.as_mut().expect("it is spent once");
        let mapping = self.store.map(inner, at, blocks)?;
        enter(&self.model).mapped(guard.tag, at.0, &mapping);
        Ok(mapping)
    }

    fn commit(&self, mut guard: Held, bytes: u64) -> Result<Committed, BlockError> {
        let inner = guard.inner.take().expect("it is spent once");
        let tag = guard.tag;
        // Its data went through the cache before the device said so.
        self.hook.settle();
        enter(&self.model).ended(tag, true);
        let file = enter(&self.model).file_of(tag);
        let committed = self.store.commit(inner, bytes)?;
        let stat = file.and_then(|file| self.store.stat(FileId(file)).ok());
        let (size, time) = stat.map_or((0, 0), |stat| (stat.size, stat.modified));
        enter(&self.model).committed(tag, size, time);
        Ok(committed)
    }

    fn sync(&self, file: FileId) -> Result<Option<Mark>, BlockError> {
        self.store.sync(file)
    }

    fn settled(&self, mark: Mark) -> Result<bool, BlockError> {
        self.store.settled(mark)
    }

    fn turn(&self) {
        self.store.turn();
        note_deferred(&self.store, &self.model);
        self.hook.settle();
    }
}
