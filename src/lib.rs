//! A coherent distributed cache for services that run as many pods.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod coherence;
pub mod error;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod time;

pub use time::{COARSE_CLOCK_SLACK, Clock, Millis};
