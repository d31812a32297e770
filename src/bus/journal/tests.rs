//! Journals: what is noted is read by the next process, whatever became of the file in between.

use super::format::*;
use super::*;
use crate::bus::pending::Name;
use crate::coherence::Lane;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::num::NonZero;
use std::sync::atomic::{AtomicU32, Ordering};
use xxhash_rust::xxh3::xxh3_64;

/// A folder of the test's own, removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tidings-journal-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn namespace(lanes: u16) -> (Namespace, KeySpace) {
    let name = "journal".to_owned();
    let space = KeySpace::new(&name, NonZero::new(lanes).expect("some"), None);
    (Namespace { name, lanes }, space)
}

fn name(text: &str) -> Name {
    let (_, space) = namespace(16);
    let hash = space.entity(text).entity_hash();
    Name {
        text: text.into(),
        hash,
    }
}

fn key(lane: u16, text: &str) -> Item {
    Item::Key {
        lane: Lane(lane),
        of: name("user"),
        hash: xxh3_64(text.as_bytes()),
        key: Bytes::from(format!("user:{text}")),
    }
}

fn items() -> Vec<Item> {
    let entity = Item::Entity {
        lane: Lane(3),
        of: name("ünïcode, and a name that is long"),
    };
    vec![
        key(0, "42"),
        entity,
        Item::Lane { lane: Lane(15) },
        key(7, ""),
    ]
}

/// A journal with a record for each item, and one that was struck.
fn written() -> Vec<u8> {
    let (namespace, _) = namespace(16);
    let mut bytes = header(&namespace);
    push_record(NOTED, &key(1, "done"), &mut bytes);
    for item in items() {
        push_record(NOTED, &item, &mut bytes);
    }
    push_record(STRUCK, &key(1, "done"), &mut bytes);
    bytes
}

fn read_back(bytes: &[u8]) -> Result<Left, &'static str> {
    let (namespace, space) = namespace(16);
    read(bytes, &namespace, &space)
}

fn everything() -> Vec<Item> {
    (0..16)
        .map(|lane| Item::Lane { lane: Lane(lane) })
        .collect()
}

#[test]
fn what_was_noted_and_not_struck_is_read_back_in_order() {
    let left = read_back(&written()).expect("a journal");
    assert_eq!(
        left,
        Left {
            items: items(),
            damage: None
        }
    );
    assert_eq!(read_back(b""), Ok(Left::default()));
}

#[test]
fn a_journal_that_was_cut_off_anywhere_keeps_what_is_whole() {
    let bytes = written();
    let (namespace, _) = namespace(16);
    let begin = header(&namespace).len();
    let mut whole = 0;
    for end in 1..bytes.len() {
        let Ok(left) = read_back(&bytes[..end]) else {
            assert!(end < begin, "cut off at {end}");
            continue;
        };
        match left.damage {
            None => whole += 1,
            Some(JournalDamage::Torn { bytes: dropped }) => assert!(dropped < end as u64),
            other => panic!("cut off at {end}: {other:?}"),
        }
    }
    assert_eq!(whole, 6, "between records, and after the header");
}

#[test]
fn a_tail_of_zeros_is_a_torn_one() {
    let mut bytes = written();
    bytes.extend([0; 4096]);
    let left = read_back(&bytes).expect("a journal");
    let damage = Some(JournalDamage::Torn { bytes: 4096 });
    assert_eq!(
        left,
        Left {
            items: items(),
            damage
        }
    );
}

/// Whatever byte is not what was written: either the journal is refused, or everything is invalidated.
#[test]
fn no_wrong_byte_loses_an_item() {
    let bytes = written();
    for at in 0..bytes.len() {
        for wrong in [1, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] ^= wrong;
            if let Ok(left) = read_back(&bytes) {
                let corrupt = matches!(left.damage, Some(JournalDamage::Corrupt { .. }));
                assert!(corrupt, "byte {at}: {left:?}");
                assert_eq!(left.items, everything());
            }
        }
    }
}

#[test]
fn rubbish_is_no_journal() {
    for rubbish in [
        &b"x"[..],
        b"TIDJ",
        b"TIDJ\x02",
        &[0; 100],
        b"{\"json\": true}",
    ] {
        assert!(read_back(rubbish).is_err(), "{rubbish:?}");
    }
}

#[test]
fn items_of_another_number_of_lanes_become_their_entities_on_every_lane() {
    let (namespace, space) = namespace(4);
    let mut bytes = header(&Namespace {
        lanes: 16,
        ..namespace.clone()
    });
    push_record(NOTED, &key(9, "1"), &mut bytes);
    push_record(NOTED, &key(10, "2"), &mut bytes);
    let left = read(&bytes, &namespace, &space).expect("a journal");
    let lanes = (0..4).map(Lane);
    let of = name("user");
    let expected = lanes.map(|lane| Item::Entity {
        lane,
        of: of.clone(),
    });
    assert_eq!(left.items, expected.collect::<Vec<_>>());
}

fn open(path: &Path) -> Result<(Journal, Vec<Item>), BuildError> {
    let (namespace, space) = namespace(16);
    Journal::open(path, &namespace, &space)
}

fn refusal(path: &Path) -> String {
    let error = open(path).expect_err("it is refused");
    assert_eq!(error.option(), "journal");
    error.to_string()
}

#[test]
fn what_is_pending_is_there_for_the_next_process_and_nothing_else() {
    let folder = Folder::new();
    let path = folder.file("journal");
    let (journal, left) = open(&path).expect("opens");
    assert_eq!(left, []);
    for item in items() {
        lock(&journal.held).note(&item);
        lock(&journal.held).note(&item);
    }
    journal.write().expect("written");
    lock(&journal.held).strike(&items()[0]);
    lock(&journal.held).strike(&items()[1]);
    lock(&journal.held).strike(&items()[1]);
    journal.write().expect("written");
    drop(journal);
    let (journal, left) = open(&path).expect("opens");
    let expected: BTreeSet<_> = [0, 2, 3].map(|n| items()[n].to_string()).into();
    let left: BTreeSet<_> = left.iter().map(Item::to_string).collect();
    assert_eq!(left, expected);
    assert_eq!(journal.health().replayed, 3);
}

#[test]
fn a_journal_is_one_caches_alone() {
    let folder = Folder::new();
    let path = folder.file("journal");
    let journal = open(&path).expect("opens");
    assert!(refusal(&path).contains("in use"));
    drop(journal);
    open(&path).expect("opens");
    let (_, space) = namespace(16);
    let other = Namespace {
        name: "other".to_owned(),
        lanes: 16,
    };
    let error = Journal::open(&path, &other, &space).expect_err("it is refused");
    assert!(error.to_string().contains("another namespace"), "{error}");
    std::fs::write(&path, "no journal").expect("written");
    assert!(refusal(&path).contains("not a journal"));
    assert!(refusal(&folder.file("no/such/folder")).contains("cannot lock"));
    assert_eq!(
        std::fs::read(&path).expect("there"),
        b"no journal",
        "left alone"
    );
}

#[test]
fn the_file_stays_within_a_few_times_of_what_is_pending() {
    let folder = Folder::new();
    let path = folder.file("journal");
    let (journal, _) = open(&path).expect("opens");
    lock(&journal.held).note(&key(0, "stays"));
    let mut largest = 0;
    for n in 0..20_000 {
        let item = key(1, &n.to_string());
        lock(&journal.held).note(&item);
        journal.write().expect("written");
        lock(&journal.held).strike(&item);
        journal.write().expect("written");
        largest = largest.max(journal.health().bytes);
    }
    assert!(largest < 2 * REWRITE_FROM as u64, "{largest}");
    let size = std::fs::metadata(&path).expect("there").len();
    assert_eq!(size, journal.health().bytes);
    lock(&journal.held).strike(&key(0, "stays"));
    journal.write().expect("written");
    let (namespace, _) = namespace(16);
    assert_eq!(std::fs::read(&path).expect("there"), header(&namespace));
}

#[test]
fn a_write_that_failed_is_made_up_for() {
    let folder = Folder::new();
    let path = folder.file("journal");
    let (journal, _) = open(&path).expect("opens");
    lock(&journal.held).note(&items()[0]);
    journal.write().expect("written");
    // A handle that cannot be written to, as of a disk that is full.
    let full = File::open(&path).expect("there");
    lock(&journal.file).as_mut().expect("open").file = full;
    lock(&journal.held).note(&items()[1]);
    assert!(journal.write().is_err());
    assert!(!journal.is_written());
    assert_eq!(journal.health().failures, 1);
    journal.write().expect("written anew");
    drop(journal);
    assert_eq!(open(&path).expect("opens").1.len(), 2);
}
