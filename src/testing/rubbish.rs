//! Everything that takes bytes apart, in a form in which it can be fed with any.
//!
//! Not for users: `tests/rubbish.rs` and `tests/fuzz` feed it. Each target takes any bytes; what it reads it
//! writes again where there is a way to, and that must read as the same. A panic is a finding.

use crate::Stamp;
use crate::bus::read_rubbish as journal;
use crate::codec;
use crate::coherence::{Batch, Epoch, HEAD_LEN, Head, Hint, LogEntry};
use crate::envelope::{self, Packing, Stored};
use crate::key::{HashedKey, KeySpace};
use crate::registration::Settings;
use crate::store::rooms::RoomEvent;
use bytes::Bytes;
use std::num::NonZeroU16;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What can be fed.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("envelope", stored),
    ("envelope with the right checksum", stored_and_signed),
    ("hint", hint),
    ("log entry", log_entry),
    ("head", head),
    ("room event", room_event),
    ("stamp", stamp),
    ("record", record),
    ("journal", journal),
    ("payload", payload),
    #[cfg(feature = "redis")]
    ("answer of a server", answer),
    #[cfg(feature = "redis")]
    ("INFO of a server", info),
    #[cfg(feature = "redis")]
    ("address", address),
];

/// Feeds the target that the first byte names with the rest.
pub fn feed(bytes: &[u8]) {
    if let Some((&which, rest)) = bytes.split_first() {
        let (_, target) = TARGETS[usize::from(which) % TARGETS.len()];
        target(rest);
    }
}

fn stored(bytes: &[u8]) {
    let key = HashedKey {
        hash: 7,
        bytes: b"key",
    };
    let packing = Packing::default();
    let _ = envelope::version_of(bytes);
    let read = envelope::decode(bytes, key, 0, &packing);
    let Ok(Stored::Outcome(outcome, header, payload)) = read else {
        return;
    };
    // Compressed bytes are not written as they were.
    if let Ok(again) = envelope::encode(outcome, &header, key, &payload, &packing) {
        let again = envelope::decode(&again, key, 0, &packing);
        assert_eq!(again, Ok(Stored::Outcome(outcome, header, payload)));
    }
}

/// What only somebody who means ill would write.
fn stored_and_signed(bytes: &[u8]) {
    let mut signed = bytes.to_vec();
    signed.extend(xxh3_64_with_seed(bytes, 7).to_be_bytes());
    stored(&signed);
}

fn hint(bytes: &[u8]) {
    if let Some(hint) = Hint::decode(bytes) {
        assert_eq!(Hint::decode(&hint.encode()), Some(hint));
    }
    if let Some(batch) = Batch::decode(bytes) {
        assert_eq!(Batch::decode(&batch.encode()), Some(batch));
    }
}

fn log_entry(bytes: &[u8]) {
    if let Some(entry) = LogEntry::decode(3, bytes) {
        assert_eq!(LogEntry::decode(3, &entry.encode()), Some(entry.clone()));
        let _ = entry.change();
    }
}

fn head(bytes: &[u8]) {
    if let Some(head) = Head::decode(bytes) {
        let again: [u8; HEAD_LEN] = head.encode();
        assert_eq!(again, bytes);
        let _ = head.fork_age(u64::from_be_bytes([again[0]; 8]));
    }
}

fn room_event(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    let _ = RoomEvent::is_one(&bytes);
    if let Some(event) = RoomEvent::decode(&bytes) {
        assert_eq!(RoomEvent::decode(&event.encode().into()), Some(event));
    }
}

fn stamp(bytes: &[u8]) {
    if let Ok(stamp) = String::from_utf8_lossy(bytes).parse::<Stamp>() {
        assert_eq!(stamp.to_string().parse(), Ok(stamp));
    }
}

fn record(bytes: &[u8]) {
    let lanes = NonZeroU16::MIN;
    let settings = KeySpace::new("rubbish", lanes, None).settings();
    let _: crate::registration::Verdict = Settings::judge(&settings, Some(bytes), Epoch(1));
    let _ = settings.may_go_by(Some(bytes));
}

fn payload(bytes: &[u8]) {
    let _ = codec::decode::<(u64, Option<String>, Vec<(bool, f64)>)>(bytes);
    let _ = codec::decode::<std::collections::BTreeMap<String, Vec<u8>>>(bytes);
}

/// In the server's own protocol.
#[cfg(feature = "redis")]
fn answer(bytes: &[u8]) {
    if let Ok(value) = ::redis::parse_redis_value(bytes) {
        crate::store::read_rubbish(&value);
        crate::script::read_rubbish(value);
    }
}

#[cfg(feature = "redis")]
fn info(bytes: &[u8]) {
    crate::store::read_rubbish_info(&String::from_utf8_lossy(bytes));
}

#[cfg(feature = "redis")]
fn address(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for scheme in ["", "redis://", "redis+sentinel://", "redis+cluster://"] {
        let _ = crate::store::Redis::new(&format!("{scheme}{text}"));
    }
}
