//! The driver's C files: those functions that the models have in Rust are as they were when the models were
//! compared with them, no file calls one of a higher layer, and `thread_write`, `take_filled` and the functions of
//! `predict.c` do what they should with stubs around them.

mod draft;
mod fault;
mod layers;
mod lost;
mod predict;
mod source;
mod stubs;
mod transcribed;
