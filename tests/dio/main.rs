//! The direct-I/O pipeline over the driver and the software controller.
//!
//! `rules` holds each of the rules by its number, `faults` what happens when something is wrong, `model`
//! random requests against a model of the file, `fsx` random mixes of everything against an array of bytes,
//! `sizes` every size and place of the end of a file, `counts` how many commands and doorbells the controller
//! sees, `ragged` requests off the grid, `xfs` what the tests of a grown filesystem look for. They stand on
//! `bed`, and on `ledger` where the order of what is asked matters.

mod bed;
mod counts;
mod faults;
mod fsx;
mod ledger;
mod model;
mod ragged;
mod rules;
mod sizes;
mod xfs;
