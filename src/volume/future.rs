//! The `Future` face: for whatever executor there is, and none in particular.
//!
//! A future submits its request when it is first polled and is woken when the request is finished. Nothing
//! moves by itself: somebody calls [`AsyncHandle::drive`], which rings and polls the device. That is a line in
//! the executor's loop, the [`Driver`] future, or [`AsyncHandle::block_on`].
//!
//! A future that is dropped does not take its request back: memory stays with the device until it is
//! finished, and goes home then.
#![forbid(unsafe_code)]

use core::future::Future;
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::{Done, Handle, Io, Refused};
use crate::block::MapBlocks;

/// How many requests one turn of the driver hands over at most.
const TURN: usize = 64;

/// A handle whose requests are futures; clones are the same handle.
pub struct AsyncHandle<M: MapBlocks> {
    shared: Arc<Mutex<Shared<M>>>,
}

impl<M: MapBlocks> Clone for AsyncHandle<M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

struct Shared<M: MapBlocks> {
    handle: Handle<M>,
    /// Requests that were submitted, by the number in their tags; and the numbers that are free.
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Futures that found no room.
    crowd: Vec<Waker>,
    /// Futures to be woken once the lock is free: whoever is woken may poll at once.
    woken: Vec<Waker>,
    /// The driver, while nothing is in flight.
    driver: Option<Waker>,
}

enum Slot {
    Free,
    /// In flight, with the caller's tag.
    Waiting {
        tag: u64,
        waker: Option<Waker>,
    },
    Finished(Box<Done>),
    /// In flight, and its future is gone.
    Forgotten,
}

impl<M: MapBlocks> AsyncHandle<M> {
    /// Makes futures of a handle's requests.
    pub fn new(handle: Handle<M>) -> Self {
        let shared = Shared {
            handle,
            slots: Vec::new(),
            free: Vec::new(),
            crowd: Vec::new(),
            woken: Vec::new(),
            driver: None,
        };
        Self { shared: Arc::new(Mutex::new(shared)) }
    }

    /// Makes the future of a request, which is submitted when the future is first polled.
    pub fn submit(&self, io: Io) -> IoFuture<M> {
        IoFuture { shared: Arc::clone(&self.shared), state: State::Fresh(Some(io)) }
    }

    /// Tells the device of what was submitted, takes in what is finished and wakes its futures; returns how
    /// many requests that was.
    pub fn drive(&self) -> usize {
        drive(&self.shared)
    }

    /// Returns the number of requests in flight.
    pub fn inflight(&self) -> usize {
        lock(&self.shared).handle.inflight()
    }

    /// Makes the future that drives: it is woken while requests are in flight, sleeps while none are, and
    /// ends when the last handle and the last request are gone.
    pub fn driver(&self) -> Driver<M> {
        Driver { shared: Arc::downgrade(&self.shared) }
    }

    /// Runs a future to its end on this thread, driving the device: the small loop for those who have no
    /// executor.
    ///
    /// Other futures of the same handle make progress; what the future waits for otherwise has to
    /// happen without this thread.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
            if self.drive() == 0 {
                core::hint::spin_loop();
            }
        }
    }
}

impl<M: MapBlocks> Shared<M> {
    fn drive(&mut self) -> usize {
        let Self { handle, slots, free, woken, .. } = self;
        handle.ring();
        let count = handle.poll(TURN, &mut |done| {
            let number = done.tag as usize;
            match core::mem::replace(&mut slots[number], Slot::Free) {
                Slot::Waiting { tag, waker } => {
                    slots[number] = Slot::Finished(Box::new(Done { tag, ..done }));
                    woken.extend(waker);
                }
                // Nobody asks for it any more: its memory goes home here.
                Slot::Forgotten => free.push(number),
                Slot::Free | Slot::Finished(_) => unreachable!("a request finishes once"),
            }
        });
        if count > 0 {
            self.woken.append(&mut self.crowd);
        }
        count
    }

    /// Submits a request; gives it back where there is no room.
    fn submit(&mut self, io: Io, waker: &Waker) -> Result<usize, Refused> {
        let tag = io.tag;
        let number = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            self.slots.len() - 1
        });
        match self.handle.submit(Io { tag: number as u64, ..io }) {
            Ok(()) => {
                self.slots[number] = Slot::Waiting { tag, waker: Some(waker.clone()) };
                Ok(number)
            }
            Err(refused) => {
                self.free.push(number);
                Err(match refused {
                    Refused::Full(io) => {
                        self.crowd.push(waker.clone());
                        Refused::Full(Io { tag, ..io })
                    }
                    Refused::Invalid(io, error) => Refused::Invalid(Io { tag, ..io }, error),
                })
            }
        }
    }
}

/// A request on its way.
#[must_use = "a future does nothing until it is polled"]
pub struct IoFuture<M: MapBlocks> {
    shared: Arc<Mutex<Shared<M>>>,
    state: State,
}

enum State {
    Fresh(Option<Io>),
    Submitted(usize),
    Over,
}

impl<M: MapBlocks> Future for IoFuture<M> {
    /// The request's memory, and how it ended; a request that could never be carried out ends at once.
    type Output = Done;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Done> {
        let this = self.get_mut();
        let mut shared = lock(&this.shared);
        match &mut this.state {
            State::Fresh(io) => {
                let io = io.take().expect("it is put back where it is not taken");
                match shared.submit(io, context.waker()) {
                    Ok(number) => {
                        this.state = State::Submitted(number);
                        let sleeper = shared.driver.take();
                        drop(shared);
                        sleeper.into_iter().for_each(Waker::wake);
                    }
                    Err(Refused::Full(io)) => this.state = State::Fresh(Some(io)),
                    Err(Refused::Invalid(Io { tag, memory, .. }, error)) => {
                        this.state = State::Over;
                        return Poll::Ready(Done { tag, memory, bytes: 0, result: Err(error) });
                    }
                }
                Poll::Pending
            }
            State::Submitted(number) => {
                let number = *number;
                match core::mem::replace(&mut shared.slots[number], Slot::Free) {
                    Slot::Finished(done) => {
                        shared.free.push(number);
                        this.state = State::Over;
                        Poll::Ready(*done)
                    }
                    Slot::Waiting { tag, .. } => {
                        let waker = Some(context.waker().clone());
                        shared.slots[number] = Slot::Waiting { tag, waker };
                        Poll::Pending
                    }
                    Slot::Free | Slot::Forgotten => unreachable!("a future holds its slot"),
                }
            }
            State::Over => panic!("a future is not polled after its end"),
        }
    }
}

impl<M: MapBlocks> Drop for IoFuture<M> {
    fn drop(&mut self) {
        let State::Submitted(number) = self.state else { return };
        let mut shared = lock(&self.shared);
        match shared.slots[number] {
            Slot::Waiting { .. } => shared.slots[number] = Slot::Forgotten,
            _ => {
                shared.slots[number] = Slot::Free;
                shared.free.push(number);
            }
        }
    }
}

/// Drives a handle, as a task of an executor.
#[must_use = "a future does nothing until it is polled"]
pub struct Driver<M: MapBlocks> {
    shared: Weak<Mutex<Shared<M>>>,
}

impl<M: MapBlocks> Future for Driver<M> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(shared) = self.shared.upgrade() else { return Poll::Ready(()) };
        drive(&shared);
        let mut shared = lock(&shared);
        if shared.handle.inflight() > 0 {
            context.waker().wake_by_ref();
        } else {
            shared.driver = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

impl<M: MapBlocks> Drop for Shared<M> {
    /// Tells a driver that sleeps that there is nothing left to drive.
    fn drop(&mut self) {
        self.driver.take().into_iter().for_each(Waker::wake);
    }
}

/// Drives, and wakes who is to be woken when the lock is free.
fn drive<M: MapBlocks>(shared: &Mutex<Shared<M>>) -> usize {
    let mut locked = lock(shared);
    let count = locked.drive();
    let mut woken = core::mem::take(&mut locked.woken);
    drop(locked);
    woken.drain(..).for_each(Waker::wake);
    if woken.capacity() > 0 {
        // Its room is used again.
        lock(shared).woken = woken;
    }
    count
}

fn lock<M: MapBlocks>(shared: &Mutex<Shared<M>>) -> MutexGuard<'_, Shared<M>> {
    // A panic under it came from the queue's own checks; what it left is whole.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
