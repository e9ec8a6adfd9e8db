//! The benchmark, as far as it needs no device: jobs, workload generation, statistics, reports.
//!
//! ```text
//!  job file, flags -> option::JobBuilder -> job::Job -> workload::Generator -> (runner, queues)
//!                                                                                   |
//!                    report::{human, fio_json, csv} <- result::RunResult <- stats <-+
//! ```
//!
//! Key types are [`job::Job`], [`workload::Generator`], [`stats::DirectionStats`] and
//! [`result::RunResult`]. A key of a job file means here what it means to fio, or it is refused.
#![forbid(unsafe_code)]

pub mod human;
pub mod job;
pub mod option;
pub mod parse;
pub mod report;
pub mod result;
pub mod stats;
mod value;
pub mod workload;
