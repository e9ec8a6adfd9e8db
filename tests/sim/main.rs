//! The crash simulation: store, pipeline, driver and controller on one thread, and power cuts at any command.

mod barriers;
mod found;
mod misdirect;
mod poison;
mod random;
mod sequences;
mod tear;
mod world;
