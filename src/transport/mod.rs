//! Reaching a controller: its registers, its doorbells, and the memory it is to see.
//!
//! A [`Transport`] is one controller within reach: in-process (the software controller),
//! behind vfio-pci ([`vfio`]), or in another process ([`vfio_user`]). The driver cannot tell which it drives, with one exception that it
//! may not look behind: a controller that has no processor of its own is given turns ([`Pump`]).
//!
//! ```text
//!   driver --- read32/write32 ---> registers          (control, rare)
//!          --- Doorbell::ring ---> one 32-bit store    (data, hot)
//!          --- Pump::pump -------> a turn, where the controller lives on the host's time
//!          <-- rings and buffers in the memory of a dma::Domain, mapped by the Mapper side
//! ```

mod doorbell;
mod removal;
pub mod vfio;
pub mod vfio_user;

pub use doorbell::Doorbell;

use std::io;

use crate::dma::Mapper;
use crate::units::QueueId;

/// One controller within reach.
pub trait Transport: Mapper {
    /// Reads a 32-bit register. All ones where there is no device any more.
    fn read32(&self, offset: u32) -> u32;

    /// Reads a 64-bit register. All ones where there is no device any more.
    fn read64(&self, offset: u32) -> u64;

    /// Writes a 32-bit register.
    fn write32(&self, offset: u32, value: u32);

    /// Writes a 64-bit register.
    fn write64(&self, offset: u32, value: u64);

    /// Returns the doorbell at a register offset, for one queue to hold and ring.
    ///
    /// # Errors
    ///
    /// When the register space ends before it.
    fn doorbell(&self, offset: u32) -> io::Result<Doorbell>;

    /// Returns the means to give the controller turns for one queue, or `None` if it needs none.
    fn pump(&self, queue: QueueId) -> Option<Box<dyn Pump>>;

    /// Has somebody told, once and on another thread, when the device is about to be taken away: everything that holds
    /// the transport has to go then. A transport whose device cannot be taken away never tells.
    fn on_removal(&self, told: Box<dyn FnOnce(&str) + Send>) {
        drop(told);
    }
}

/// Time for a controller that has no processor of its own.
pub trait Pump: Send {
    /// Lets the controller work on what the queue's doorbell announced.
    fn pump(&mut self);
}
