//! Memory that a device may read and write.
//!
//! ```text
//!   Domain    one IOVA space for all devices; grows by arenas, tells every mapper of them
//!    └ Arena      one memfd: hugepages if there are any, one range of IOVAs, one right
//!       ├ Window      a shared piece: rings, PRP lists. Copies and atomics only, for life
//!       └ Pool        size classes taken at start-up, for one core
//!          └ DmaBuf       owned memory: plain bytes while you hold it, the device's while in flight
//!             └ Loan          buffers that several commands use at once, each by its DmaPieces
//! ```
//!
//! There are two kinds of memory and two types for them. A [`Window`] is shared with the device for as
//! long as it lives: no reference to its bytes ever exists, only copies and atomics. A [`DmaBuf`]
//! takes turns: while the caller owns it, it is `&mut [u8]`; while a request owns it, nobody can name it.
//!
//! This is one of the doors to `unsafe`; its promises are in `docs/unsafe.md`.

mod arena;
mod buf;
mod domain;
mod free;
mod iova;
mod loan;
mod pages;
mod pool;
mod ring;
mod span;
mod vanished;
mod window;

pub use arena::{Access, Arena};
pub use buf::DmaBuf;
pub use domain::{Attachment, Domain, DomainOptions, Mapper};
pub use iova::{IovaLimits, IovaRange};
pub use loan::{DmaPiece, Loan};
pub use pages::{PageKind, PagePolicy};
pub use pool::{Pool, SizeClass};
pub use ring::Ring;
pub use span::{SharedBytes, Span};
pub use window::Window;

/// The page that devices count in: PRP entries, and the least alignment of an IOVA mapping.
pub const PAGE_BYTES: usize = 4096;

/// A failure to find, map or lock memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DmaError {
    /// The kernel refused memory.
    #[error("cannot map {len} bytes of {kind}")]
    Map {
        /// Bytes asked for.
        len: u64,
        /// What kind of page.
        kind: PageKind,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// There are fewer hugepages than needed, and ordinary pages were ruled out.
    #[error("{len} bytes of hugepages were required and are not to be had (vm.nr_hugepages)")]
    NoHugepages {
        /// Bytes asked for.
        len: u64,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// The IOVA space has no room.
    #[error("no {len} bytes are free between the device addresses {lowest:#x} and {highest:#x}")]
    IovaExhausted {
        /// Bytes asked for.
        len: u64,
        /// The lowest address that every device can use.
        lowest: u64,
        /// The highest.
        highest: u64,
    },
    /// A device that joined later cannot reach memory that is in use.
    #[error("memory at device address {iova:#x}+{len:#x} is out of reach of {device}")]
    OutOfReach {
        /// Start of the arena.
        iova: u64,
        /// Its length.
        len: u64,
        /// Who cannot reach it.
        device: String,
    },
    /// A device could not map an arena.
    #[error("{device} cannot map {len} bytes at device address {iova:#x}")]
    Attach {
        /// Start of the arena.
        iova: u64,
        /// Its length.
        len: u64,
        /// Who could not map it.
        device: String,
        /// Why.
        source: std::io::Error,
    },
    /// A length or alignment that cannot be served.
    #[error("{what} {value} is outside {least}..={most}")]
    Invalid {
        /// What was measured.
        what: &'static str,
        /// The number.
        value: u64,
        /// The least that is allowed.
        least: u64,
        /// The most.
        most: u64,
    },
}
