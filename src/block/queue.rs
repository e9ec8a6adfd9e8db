//! The data side of a device: submit, ring, poll, on one core.
#![forbid(unsafe_code)]

use super::{BlockError, Request};

/// A queue of requests to one device, driven by one core.
///
/// No method blocks, allocates or takes a lock while requests succeed. A queue may move to another
/// thread while it is not in use (`Send`), but two threads never share one.
pub trait IoQueue: Send {
    /// Takes a request, without telling the device yet.
    ///
    /// # Errors
    ///
    /// The request comes back at once, with its buffers, if the queue is full (a value, not a
    /// failure: poll, then try again) or if the request can never be sent.
    fn submit(&mut self, request: Request) -> Result<(), Rejected>;

    /// Tells the device of everything that was submitted since the last call.
    fn ring(&mut self);

    /// Hands finished requests to `sink`, at most `max`, and returns how many.
    ///
    /// The slot of a request is free again before `sink` sees it.
    fn poll(&mut self, max: usize, sink: &mut dyn FnMut(Completion)) -> usize;

    /// Returns the number of requests that were submitted and have not come back.
    fn inflight(&self) -> usize;

    /// Returns the most requests that may be in flight.
    fn depth(&self) -> usize;

    /// Returns what the queue has counted since it was opened.
    fn counters(&self) -> Counters;
}

/// A finished request.
#[derive(Debug)]
pub struct Completion {
    /// The request as it was submitted, with its buffers.
    pub request: Request,
    /// How it ended.
    pub result: Result<(), BlockError>,
}

/// A request that was not taken.
#[derive(Debug)]
pub enum Rejected {
    /// Every slot is taken: poll, then submit the request again.
    QueueFull(Request),
    /// The request can never be sent to this device.
    Invalid(Request, BlockError),
}

impl Rejected {
    /// Returns the request.
    pub fn into_request(self) -> Request {
        match self {
            Self::QueueFull(request) | Self::Invalid(request, _) => request,
        }
    }
}

/// What a polled queue would otherwise hide. All values count from the opening of the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls of `poll`.
    pub polls: u64,
    /// Calls of `poll` that found nothing.
    pub idle_polls: u64,
    /// Commands sent to the device.
    pub submissions: u64,
    /// Commands that the device finished.
    pub completions: u64,
    /// Submission doorbells rung.
    pub sq_doorbells: u64,
    /// Completion doorbells rung.
    pub cq_doorbells: u64,
    /// Requests turned away because the queue was full.
    pub queue_full: u64,
    /// Requests that were sent as more than one command.
    pub splits: u64,
    /// Commands that were not completed in time.
    pub timeouts: u64,
    /// Commands that the device was asked to end since they were overdue.
    pub aborts: u64,
    /// Requests that were sent again: after a reset, an abort, or a failure that passes.
    pub resends: u64,
    /// Completions that broke a rule.
    pub violations: u64,
    /// Resets of the device that the queue has lived through.
    pub resets: u64,
}

impl Counters {
    /// Adds another queue's counts to these.
    pub fn add(&mut self, other: &Self) {
        self.polls += other.polls;
        self.idle_polls += other.idle_polls;
        self.submissions += other.submissions;
        self.completions += other.completions;
        self.sq_doorbells += other.sq_doorbells;
        self.cq_doorbells += other.cq_doorbells;
        self.queue_full += other.queue_full;
        self.splits += other.splits;
        self.timeouts += other.timeouts;
        self.aborts += other.aborts;
        self.resends += other.resends;
        self.violations += other.violations;
        self.resets += other.resets;
    }

    /// Returns what was counted since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            polls: self.polls - earlier.polls,
            idle_polls: self.idle_polls - earlier.idle_polls,
            submissions: self.submissions - earlier.submissions,
            completions: self.completions - earlier.completions,
            sq_doorbells: self.sq_doorbells - earlier.sq_doorbells,
            cq_doorbells: self.cq_doorbells - earlier.cq_doorbells,
            queue_full: self.queue_full - earlier.queue_full,
            splits: self.splits - earlier.splits,
            timeouts: self.timeouts - earlier.timeouts,
            aborts: self.aborts - earlier.aborts,
            resends: self.resends - earlier.resends,
            violations: self.violations - earlier.violations,
            resets: self.resets - earlier.resets,
        }
    }
}
