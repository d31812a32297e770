//! Tools for testing what is built on this crate, and backing stores for it.

pub mod conformance;
