//! The benchmark: jobs, workload generation, workers, statistics, reports.
//!
//! ```text
//!  job file, flags -> option::JobBuilder -> job::Job -> runner -> worker: one queue, one core
//!                                                                   |  workload::Generator
//!       report::{human, fio_json, csv} <- result::RunResult <- stats <-+
//! ```
//!
//! Key types are [`job::Job`], [`workload::Generator`], [`stats::DirectionStats`] and
//! [`result::RunResult`]. A key of a job file means here what it means to fio, or it is refused.
#![forbid(unsafe_code)]

mod batch;
mod buffers;
mod clock;
pub mod human;
pub mod job;
mod lane;
pub mod option;
mod pace;
pub mod parse;
pub mod pattern;
pub mod report;
pub mod result;
pub mod runner;
pub mod stats;
mod summary;
mod target;
pub mod usage;
mod value;
mod worker;
pub mod workload;
