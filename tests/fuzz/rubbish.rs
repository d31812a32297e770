//! Any bytes, to everything that takes bytes apart: see `tests/rubbish.rs`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidings::testing::rubbish::feed(bytes));
