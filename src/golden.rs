//! The bytes that released versions wrote, kept in `tests/wire/` and read on every run.
//!
//! To add a version, see `tests/wire/README.md`.

use std::fs;
use std::path::Path;

use crate::coherence::wire::{Batch, Hint, Kind, LogEntry};
use crate::coherence::{Epoch, Head, Incarnation, Lane, Nonce, Position};
use crate::envelope::{
    self, Compression, Header, Lease, Outcome, Packing, Seal, Stored, TagVersion,
};
use crate::key::{Carried, HashedKey, TagHash};

/// The directory of the forms that this version writes.
const CURRENT: &str = "v1";
const SCHEMA: u32 = 0x0A0B_0C0D;

/// How a payload is packed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Packed {
    Plain,
    Lz4,
    Zstd,
    Sealed,
    SealedLz4,
}

impl Packed {
    /// `None` if this build cannot read it.
    fn packing(self) -> Option<Packing> {
        let compression = match self {
            Self::Plain | Self::Sealed => None,
            Self::Lz4 | Self::SealedLz4 => Some(lz4()?),
            Self::Zstd => Some(zstd()?),
        };
        let seal = match self {
            Self::Sealed | Self::SealedLz4 => Some(seal()?),
            _ => None,
        };
        Some(Packing {
            compression,
            compress_above: 0,
            seal,
        })
    }

    /// Whether the same bytes are written for ever. What a compressor makes of a payload may change with
    /// its version.
    fn is_fixed(self) -> bool {
        matches!(self, Self::Plain | Self::Sealed)
    }
}

fn lz4() -> Option<Compression> {
    #[cfg(feature = "lz4")]
    return Some(Compression::Lz4);
    #[cfg(not(feature = "lz4"))]
    None
}

fn zstd() -> Option<Compression> {
    #[cfg(feature = "zstd")]
    return Some(Compression::Zstd { level: 3 });
    #[cfg(not(feature = "zstd"))]
    None
}

/// The key counts from 0 on, the nonce from 0x40 on.
#[cfg(feature = "seal")]
fn seal() -> Option<Seal> {
    let key = std::array::from_fn(|at| at as u8);
    let ring = envelope::KeyRing::new(0xA1A2_A3A4, &key);
    let seal = Seal::new(ring, "shop", "user").drawing(|nonce| {
        *nonce = std::array::from_fn(|at| 0x40 + at as u8);
        Ok(())
    });
    Some(seal)
}

#[cfg(not(feature = "seal"))]
fn seal() -> Option<Seal> {
    None
}

/// What a file holds, in this version's terms.
#[derive(Debug, PartialEq)]
enum Sample {
    Outcome(Outcome, Header, Vec<u8>, HashedKey<'static>, Packed),
    Lease(Lease),
    Head(Head),
    LogEntry(LogEntry),
    Hint(Hint),
    Batch(Batch),
}

fn samples() -> Vec<(&'static str, Sample)> {
    let began = Position {
        epoch: Epoch(0x1112_1314_1516_1718),
        seq: 0x2122,
    };
    let lease = Lease {
        token: 0x0102_0304_0506_0708,
        began,
    };
    let tag = |name, key, seq| TagVersion {
        carried: Carried {
            tag: TagHash { name, key },
            soft: seq == 6,
        },
        at: Position {
            epoch: Epoch(0x1112_1314_1516_1719),
            seq,
        },
    };
    let header = Header {
        lease,
        loaded_ms: 1_699_999_940_000,
        expires_ms: 1_700_000_060_000,
        soft_expires_ms: 1_700_000_000_000,
        load_us: 12_345,
        schema: SCHEMA,
        version: None,
        tags: vec![tag(0x3132, 0x3334, 5), tag(0x4142, 0x4142, 6)],
    };
    let untagged = Header {
        soft_expires_ms: 0,
        tags: vec![],
        ..header.clone()
    };
    let key = |bytes| HashedKey {
        hash: 0x5152_5354_5556_5758,
        bytes,
    };
    let entry = LogEntry {
        seq: 0x2123,
        kind: Kind::Invalidate,
        prev: Nonce(0x61),
        nonce: Nonce(0x62),
        hashes: vec![0x71, 0x72],
    };
    let head = Head {
        at: began,
        nonce: Nonce(0x61),
        incarnation: Incarnation(0x81),
        prev_epoch: Epoch(0x91),
        fork_seq: 0x2100,
        last_pub_ms: 1_700_000_000_000,
        fork: true,
        forked_s: 0,
    };
    let hint = Hint {
        lane: Lane(3),
        epoch: began.epoch,
        server_ms: 1_700_000_000_000,
        entry: entry.clone(),
    };
    let batch = Batch {
        lane: Lane(3),
        epoch: began.epoch,
        server_ms: 1_700_000_000_000,
        entries: vec![
            entry.clone(),
            LogEntry {
                seq: 0x2124,
                kind: Kind::Clear,
                prev: Nonce(0x62),
                nonce: Nonce(0x63),
                hashes: vec![0x73],
            },
            LogEntry {
                seq: 0x2125,
                kind: Kind::Invalidate,
                prev: Nonce(0x63),
                nonce: Nonce(0x64),
                hashes: vec![0x71, 0x74, 0x75],
            },
        ],
    };
    // MessagePack of {"id": 42}, and of "gone".
    let (value, error) = (b"\x81\xa2id\x2a".to_vec(), b"\xa4gone".to_vec());
    // MessagePack of "tidings " twenty times.
    let text = [&[0xd9, 160][..], &b"tidings ".repeat(20)].concat();
    let long = key(&[0; 342]);
    vec![
        (
            "envelope-value",
            Sample::Outcome(
                Outcome::Value,
                header.clone(),
                value.clone(),
                key(b"42"),
                Packed::Plain,
            ),
        ),
        (
            "envelope-version",
            Sample::Outcome(
                Outcome::Value,
                Header {
                    version: Some(0xB1B2_B3B4_B5B6_B7B8),
                    ..header.clone()
                },
                value.clone(),
                key(b"42"),
                Packed::Plain,
            ),
        ),
        (
            "envelope-error",
            Sample::Outcome(
                Outcome::Error,
                untagged.clone(),
                error,
                key(b"42"),
                Packed::Plain,
            ),
        ),
        (
            "envelope-long-key",
            Sample::Outcome(
                Outcome::Value,
                untagged.clone(),
                value.clone(),
                long,
                Packed::Plain,
            ),
        ),
        (
            "envelope-lz4",
            Sample::Outcome(
                Outcome::Value,
                untagged.clone(),
                text.clone(),
                key(b"42"),
                Packed::Lz4,
            ),
        ),
        (
            "envelope-zstd",
            Sample::Outcome(
                Outcome::Value,
                untagged.clone(),
                text.clone(),
                key(b"42"),
                Packed::Zstd,
            ),
        ),
        (
            "envelope-sealed",
            Sample::Outcome(Outcome::Value, header, value, key(b"42"), Packed::Sealed),
        ),
        (
            "envelope-sealed-lz4-long-key",
            Sample::Outcome(Outcome::Error, untagged, text, long, Packed::SealedLz4),
        ),
        ("lease", Sample::Lease(lease)),
        ("head", Sample::Head(head)),
        ("log-entry", Sample::LogEntry(entry)),
        ("hint", Sample::Hint(hint)),
        ("batch", Sample::Batch(batch)),
    ]
}

fn encode(sample: &Sample) -> Vec<u8> {
    match sample {
        Sample::Outcome(outcome, header, payload, key, packed) => {
            let packing = packed.packing().expect("the build has it");
            envelope::encode(*outcome, header, *key, payload, &packing).unwrap()
        }
        Sample::Lease(lease) => lease.encode().to_vec(),
        Sample::Head(head) => head.encode().to_vec(),
        Sample::LogEntry(entry) => entry.encode(),
        Sample::Hint(hint) => hint.encode(),
        Sample::Batch(batch) => batch.encode(),
    }
}

/// Asserts that `bytes` are read as `sample`.
fn assert_reads(bytes: &[u8], sample: &Sample, file: &str) {
    match sample {
        Sample::Outcome(outcome, header, payload, key, packed) => {
            let Some(packing) = packed.packing() else {
                let read = envelope::decode(bytes, *key, SCHEMA, &Packing::default());
                assert!(read.is_err(), "{file} is a miss for this build");
                return;
            };
            assert_eq!(
                envelope::decode(bytes, *key, SCHEMA, &packing),
                Ok(Stored::Outcome(*outcome, header.clone(), payload.into())),
                "{file}"
            );
        }
        Sample::Lease(lease) => {
            let key = HashedKey {
                hash: 0,
                bytes: b"",
            };
            assert_eq!(
                envelope::decode(bytes, key, SCHEMA, &Packing::default()),
                Ok(Stored::Lease(*lease)),
                "{file}"
            );
        }
        Sample::Head(head) => assert_eq!(Head::decode(bytes), Some(*head), "{file}"),
        Sample::LogEntry(entry) => {
            assert_eq!(
                LogEntry::decode(entry.seq, bytes).as_ref(),
                Some(entry),
                "{file}"
            );
        }
        Sample::Hint(hint) => assert_eq!(Hint::decode(bytes).as_ref(), Some(hint), "{file}"),
        Sample::Batch(batch) => assert_eq!(Batch::decode(bytes).as_ref(), Some(batch), "{file}"),
    }
}

fn wire_dir() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/wire"))
}

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits
        .chunks(2)
        .map(|pair| (pair[0] << 4 | pair[1]) as u8)
        .collect()
}

/// Lines of 16 bytes.
fn to_hex(bytes: &[u8]) -> String {
    let line = |line: &[u8]| {
        line.iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<Vec<_>>()
            .join(" ")
            + "\n"
    };
    bytes.chunks(16).map(line).collect()
}

#[test]
fn bytes_of_every_released_version_are_still_read() {
    let samples = samples();
    let mut read = 0;
    for version in fs::read_dir(wire_dir()).unwrap() {
        let version = version.unwrap().path();
        if !version.is_dir() {
            continue;
        }
        for file in fs::read_dir(version).unwrap() {
            let file = file.unwrap().path();
            let stem = file.file_stem().unwrap().to_str().unwrap();
            let (_, sample) = samples
                .iter()
                .find(|(name, _)| *name == stem)
                .unwrap_or_else(|| panic!("no sample for {}", file.display()));
            let bytes = from_hex(&fs::read_to_string(&file).unwrap());
            assert_reads(&bytes, sample, &file.display().to_string());
            read += 1;
        }
    }
    assert!(read >= samples.len(), "only {read} files were found");
}

#[test]
fn this_version_writes_the_bytes_of_its_golden_files() {
    for (name, sample) in samples() {
        let fixed = match &sample {
            Sample::Outcome(.., packed) if packed.packing().is_none() => continue,
            Sample::Outcome(.., packed) => packed.is_fixed(),
            _ => true,
        };
        let file = wire_dir().join(CURRENT).join(name).with_extension("hex");
        let kept = fs::read_to_string(&file).unwrap_or_default();
        let written = to_hex(&encode(&sample));
        let holds = format!("{} should hold\n{written}", file.display());
        assert!(written == kept || !(fixed || kept.is_empty()), "{holds}");
    }
}
