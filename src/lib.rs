//! A coherent distributed cache for services that run as many pods.
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod bus;
mod codec;
pub mod coherence;
mod envelope;
pub mod error;
mod flight;
#[cfg(test)]
mod golden;
mod key;
mod local;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod time;

pub use codec::CodecError;
pub use key::{Key, KeyBuf};
pub use local::LocalEngine;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub use local::probe;
pub use time::{COARSE_CLOCK_SLACK, Clock, Millis};
