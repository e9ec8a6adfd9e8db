//! Tests of the whole store, over the pipeline, the driver and the controller in software.

mod bed;
mod by_hand;
mod damage;
mod life;
mod limits;
mod poison;
mod refusal;
mod threads;
