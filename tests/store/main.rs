//! Tests of the whole store, over the pipeline, the driver and the controller in software.

mod bed;
mod life;
