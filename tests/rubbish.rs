//! Everything that is parsed takes any bytes: those that make no sense, and those that nearly do. The same
//! targets are fuzzed with a look at what they cover in `tests/fuzz`.
//!
//! `PROPTEST_CASES` sets the number of cases for each target.
#![cfg(feature = "redis")]

use proptest::prelude::*;
use tidings::coherence::{Epoch, HEAD_LEN, Hint, Kind, Lane, LogEntry, Nonce};
use tidings::testing::rubbish::TARGETS;

/// What is well-formed somewhere, to be spoilt.
fn seeds() -> Vec<Vec<u8>> {
    let entry = LogEntry {
        seq: 3,
        kind: Kind::Invalidate,
        prev: Nonce(1),
        nonce: Nonce(2),
        hashes: vec![7, 8],
    };
    let hint = Hint {
        lane: Lane(0),
        epoch: Epoch(9),
        server_ms: 5,
        entry: entry.clone(),
    };
    let mut value = vec![0xD7, 1, 1, 1];
    value.resize(100, 0);
    let row = "*3\r\n:0\r\n:99\r\n*3\r\n$1\r\na\r\n:7000\r\n$2\r\nid\r\n";
    let head = format!("${HEAD_LEN}\r\n{}\r\n", "h".repeat(HEAD_LEN));
    let texts = [
        format!("*1\r\n{row}"),
        format!("*3\r\n$1\r\nv\r\n{head}$1\r\n4\r\n"),
        format!("*4\r\n{head}:1\r\n:2\r\n:1\r\n"),
        "*1\r\n*2\r\n$3\r\n3-0\r\n*2\r\n$1\r\ne\r\n$1\r\nx\r\n".to_owned(),
        "*2\r\n:18446744073709551\r\n:999999\r\n".to_owned(),
        "role:master\r\nmaster_replid:b\r\nmaster_replid2:a\r\nsecond_repl_offset:9\r\n\
         repl_backlog_first_byte_offset:1\r\nrepl_backlog_histlen:5\r\nredis_version:7.0.15\r\n"
            .to_owned(),
        "user:word@[::1]:6379,host/name/3?sentinel_user=a".to_owned(),
        "0.e.3-f.ffffffffffffffff.ffffffffffff".to_owned(),
    ];
    let bytes = [entry.encode(), hint.encode(), value, vec![0; HEAD_LEN]];
    let texts = texts.into_iter().map(String::into_bytes);
    bytes.into_iter().chain(texts).collect()
}

/// Rubbish: bytes at random, or something well-formed with some bytes changed, and cut or lengthened.
fn rubbish() -> impl Strategy<Value = Vec<u8>> {
    let spoilt = (
        prop::sample::select(seeds()),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        any::<prop::sample::Index>(),
        prop::collection::vec(any::<u8>(), 0..20),
    );
    let spoilt = spoilt.prop_map(|(mut bytes, changes, cut, tail)| {
        for (at, to) in changes {
            let at = at.index(bytes.len());
            bytes[at] = to;
        }
        if tail.len() % 2 == 1 {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        bytes.extend(tail);
        bytes
    });
    prop_oneof![prop::collection::vec(any::<u8>(), 0..200), spoilt]
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in rubbish()) {
        for (_, target) in TARGETS {
            target(&bytes);
        }
    }
}
