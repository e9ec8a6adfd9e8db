//! Who has which store open in this process.
//!
//! A file behind `file:` is locked by its medium and a drive behind VFIO by the kernel; what is left are two openings
//! through one device, which only this process can see.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::StoreError;
use super::uuid::Uuid;
use crate::block::BlockDevice;

/// A store, and the device through which it is open: copies of an image are different stores.
type Key = (Uuid, usize, String);

static OPEN: Mutex<BTreeSet<Key>> = Mutex::new(BTreeSet::new());

/// The right to have a store open.
#[derive(Debug)]
pub(super) struct Claim(Key);

impl Claim {
    /// Claims a store.
    pub(super) fn of(store: Uuid, device: &dyn BlockDevice) -> Result<Self, StoreError> {
        // Memory that a device can reach belongs to one connection to it.
        let domain = Arc::as_ptr(device.dma()).addr();
        let key = (store, domain, device.info().address.clone());
        if open().insert(key.clone()) { Ok(Self(key)) } else { Err(StoreError::Open(store)) }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        open().remove(&self.0);
    }
}

fn open() -> MutexGuard<'static, BTreeSet<Key>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}
