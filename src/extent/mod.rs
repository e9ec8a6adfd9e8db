//! The extent store: which units of a device are whose.
//!
//! [`tree`] is the map of one object. It says where things are in memory; nothing here does I/O.
//!
//! The invariant: every unit of the device belongs to one extent of one object, or is free, and never both.
#![forbid(unsafe_code)]

#[doc(hidden)]
pub mod tree;
