//! Asynchronous events: what happened, until an Asynchronous Event Request carries it away.
//!
//! [`Event`] is what can happen; [`Events`] collects from every thread, behind a flag that the admin queue
//! looks at. `admin` owns the outstanding requests and decides what is masked.
//! Invariant: the same event waits once, however often it happens.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::engine::lock;
use crate::spec::event::{
    AsyncEventResult, AsyncEventType, CommandSpecificEvent, ErrorEvent, NoticeEvent, SmartEvent,
};
use crate::spec::feature::AsyncEventConfig;
use crate::spec::log::{CriticalWarning, LogPage};

/// Something that hosts are told of (NVMe Base 2.0, 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A doorbell of a queue that does not exist was rung.
    InvalidDoorbellRegister,
    /// A doorbell was rung with an index that cannot be.
    InvalidDoorbellValue,
    /// Something went wrong in the controller that only a reset ends.
    PersistentInternalError,
    /// Something went wrong in the controller and is over.
    TransientInternalError,
    /// A bit of the SMART log's critical warning was set.
    CriticalWarning(u8),
    /// A namespace changed.
    NamespaceChanged(u32),
    /// A sanitize ended, well or not.
    SanitizeCompleted,
}

/// Kinds of event, masked together until their log page is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Error = 0,
    Health = 1,
    Notice = 2,
    Command = 3,
}

impl Kind {
    /// Returns the kind that reading a log page unmasks.
    pub(super) fn of_page(page: LogPage) -> Option<Self> {
        match page {
            LogPage::ERROR => Some(Self::Error),
            LogPage::SMART => Some(Self::Health),
            LogPage::CHANGED_NAMESPACES => Some(Self::Notice),
            LogPage::SANITIZE_STATUS => Some(Self::Command),
            _ => None,
        }
    }

    fn of_wire(self) -> AsyncEventType {
        match self {
            Self::Error => AsyncEventType::ERROR,
            Self::Health => AsyncEventType::SMART,
            Self::Notice => AsyncEventType::NOTICE,
            Self::Command => AsyncEventType::COMMAND_SPECIFIC,
        }
    }

    fn page(self) -> LogPage {
        match self {
            Self::Error => LogPage::ERROR,
            Self::Health => LogPage::SMART,
            Self::Notice => LogPage::CHANGED_NAMESPACES,
            Self::Command => LogPage::SANITIZE_STATUS,
        }
    }
}

impl Event {
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::CriticalWarning(_) => Kind::Health,
            Self::NamespaceChanged(_) => Kind::Notice,
            Self::SanitizeCompleted => Kind::Command,
            _ => Kind::Error,
        }
    }

    /// Returns dword 0 of the completion (NVMe Base 2.0, Figure 147).
    pub(super) fn dword0(self) -> u32 {
        let information = match self {
            Self::InvalidDoorbellRegister => ErrorEvent::INVALID_DOORBELL.0,
            Self::InvalidDoorbellValue => ErrorEvent::INVALID_DOORBELL_VALUE.0,
            Self::PersistentInternalError => ErrorEvent::PERSISTENT_INTERNAL.0,
            Self::TransientInternalError => ErrorEvent::TRANSIENT_INTERNAL.0,
            Self::CriticalWarning(bits) => health(bits).0,
            Self::NamespaceChanged(_) => NoticeEvent::NAMESPACE_CHANGED.0,
            Self::SanitizeCompleted => CommandSpecificEvent::SANITIZE_COMPLETED.0,
        };
        let (kind, page) = (self.kind().of_wire(), self.kind().page());
        AsyncEventResult::of(kind, information, page).into()
    }

    /// Says whether the Asynchronous Event Configuration feature lets the event through.
    pub(super) fn is_wanted(self, configuration: AsyncEventConfig) -> bool {
        match self {
            Self::CriticalWarning(bits) => configuration.critical_warnings() & bits != 0,
            Self::NamespaceChanged(_) => configuration.namespace_attributes(),
            _ => true,
        }
    }
}

/// Names the warning: one of temperature or spare, or reliability for everything else.
fn health(bits: u8) -> SmartEvent {
    match CriticalWarning::from(bits) {
        warning if warning.temperature() => SmartEvent::TEMPERATURE,
        warning if warning.spare_low() => SmartEvent::SPARE,
        _ => SmartEvent::RELIABILITY,
    }
}

/// What happened and has not been told.
#[derive(Default)]
pub(super) struct Events {
    any: AtomicBool,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    events: Vec<Event>,
    /// What the Changed Namespace List will say.
    changed: BTreeSet<u32>,
}

impl Events {
    /// Lets something happen.
    pub(super) fn raise(&self, event: Event) {
        let mut waiting = lock(&self.waiting);
        if let Event::NamespaceChanged(nsid) = event {
            waiting.changed.insert(nsid);
        }
        let same = |old: &Event| old.dword0() == event.dword0();
        if !waiting.events.iter().any(same) {
            waiting.events.push(event);
        }
        self.any.store(true, Ordering::Release);
    }

    /// Takes the first event that may be told now, and forgets those that nobody wants.
    pub(super) fn take(
        &self,
        configuration: AsyncEventConfig,
        masked: impl Fn(Kind) -> bool,
    ) -> Option<Event> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let mut waiting = lock(&self.waiting);
        waiting.events.retain(|event| event.is_wanted(configuration));
        let at = waiting.events.iter().position(|event| !masked(event.kind()));
        let event = at.map(|at| waiting.events.remove(at));
        self.any.store(!waiting.events.is_empty(), Ordering::Release);
        event
    }

    /// Returns the namespaces that changed, and forgets them if `clear`.
    pub(super) fn changed_namespaces(&self, clear: bool) -> BTreeSet<u32> {
        let mut waiting = lock(&self.waiting);
        if clear { std::mem::take(&mut waiting.changed) } else { waiting.changed.clone() }
    }

    /// Forgets everything, since the controller is reset.
    pub(super) fn clear(&self) {
        *lock(&self.waiting) = Waiting::default();
        self.any.store(false, Ordering::Release);
    }
}
