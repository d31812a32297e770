#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidings::testing::rubbish::feed(bytes));
