//! A coherent distributed cache for services that run as many pods.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod coherence;
mod local;
mod time;

pub use local::LocalEngine;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub use local::probe;
pub use time::{COARSE_CLOCK_SLACK, Clock, Millis};
