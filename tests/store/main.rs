//! Tests of the whole store, over the pipeline, the driver and the controller in software.

mod bed;
mod bits;
mod by_hand;
mod damage;
mod image;
mod life;
mod limits;
mod model;
mod poison;
mod refusal;
mod threads;
