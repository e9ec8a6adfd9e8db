//! The extent store: which units of a device are whose.
//!
//! [`tree`] is the map of one object, [`space`] what no object has. They say where things are; nothing here does I/O.
//!
//! The invariant: every unit of the device belongs to one extent of one object, or is free, and never both.
#![forbid(unsafe_code)]

#[doc(hidden)]
pub mod space;
#[doc(hidden)]
pub mod tree;
