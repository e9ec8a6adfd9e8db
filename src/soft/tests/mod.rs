//! The controller from outside: what a host sees, word by word.
#![forbid(unsafe_code)]

mod admin;
mod disk;
mod erase;
mod faults;
mod host;
mod hostile;
mod io;
mod memory;
mod metadata;
mod queues;
mod registers;
