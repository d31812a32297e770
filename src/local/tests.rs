//! One suite, run on every engine.

use std::panic;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use super::{Capacity, Local, LocalEngine};

type Text = Local<String, Arc<str>>;

fn counted(engine: LocalEngine, entries: u64) -> Text {
    let never = Arc::new(|_: &_, _: &_| panic!("entries are counted, not weighed"));
    Local::new(engine, Capacity::Entries(entries), never)
}

/// A map bounded by the bytes of its values.
fn weighed(engine: LocalEngine, bytes: u64) -> Text {
    let weigher = Arc::new(|_: &_, value: &Arc<str>| value.len() as u32);
    Local::new(engine, Capacity::Weight(bytes), weigher)
}

/// Spreads `n` over all 64 bits, as the callers' hash does.
fn hash(n: u64) -> u64 {
    xxhash_rust::xxh3::xxh3_64(&n.to_be_bytes())
}

fn put(map: &Text, n: u64, value: &str) {
    map.insert(hash(n), n.to_string(), value.into());
}

fn get(map: &Text, n: u64) -> Option<Arc<str>> {
    map.get(hash(n), &n.to_string())
}

fn an_insert_is_readable_at_once_and_a_remove_is_final(engine: LocalEngine) {
    let map = counted(engine, 100);
    for n in 0..50 {
        put(&map, n, "old");
        assert_eq!(get(&map, n).as_deref(), Some("old"));
        put(&map, n, "new");
        assert_eq!(get(&map, n).as_deref(), Some("new"));
        assert_eq!(map.peek(hash(n), &n.to_string()).as_deref(), Some("new"));
        assert_eq!(map.peek_hash(hash(n)).as_deref(), Some("new"));
        assert!(map.remove(hash(n)));
        assert_eq!(get(&map, n), None);
        assert_eq!(map.peek_hash(hash(n)), None);
        assert!(!map.remove(hash(n)));
    }
    assert_eq!(map.len(), 0);
}

fn keys_of_one_hash_displace_each_other_and_never_answer_for_one_another(engine: LocalEngine) {
    let map = counted(engine, 100);
    let (ann, bob) = ("ann".to_owned(), "bob".to_owned());
    map.insert(7, ann.clone(), "of ann".into());
    assert_eq!(map.get(7, &bob), None);
    assert_eq!(map.peek(7, &bob), None);

    map.insert(7, bob.clone(), "of bob".into());
    assert_eq!(map.get(7, &bob).as_deref(), Some("of bob"));
    assert_eq!(map.get(7, &ann), None);
    assert_eq!(map.peek_hash(7).as_deref(), Some("of bob"));
    assert_eq!(map.len(), 1);

    assert!(map.remove(7));
    assert_eq!((map.get(7, &ann), map.get(7, &bob)), (None, None));
}

fn the_number_of_entries_stays_within_the_capacity(engine: LocalEngine) {
    for capacity in [1, 2, 31, 33, 100, 1000, 1001] {
        let map = counted(engine, capacity);
        for n in 0..4 * capacity {
            put(&map, n, "value");
        }
        let len = map.len();
        assert!((1..=capacity).contains(&len), "{len} entries of {capacity}");
        assert_eq!(map.weight(), len);
        let readable = (0..4 * capacity).filter(|&n| get(&map, n).is_some());
        assert_eq!(readable.count() as u64, len);
    }
}

fn the_weight_stays_within_the_capacity(engine: LocalEngine) {
    let map = weighed(engine, 100_000);
    let large = "x".repeat(1000);
    for n in 0..1000 {
        put(&map, n, &large);
        put(&map, 1000 + n, "ten bytes.");
    }
    let weight = map.weight();
    assert!((50_000..=100_000).contains(&weight), "weight {weight}");
}

fn an_entry_heavier_than_the_capacity_is_not_kept(engine: LocalEngine) {
    let map = weighed(engine, 1000);
    put(&map, 1, "small");
    put(&map, 1, &"x".repeat(1001));
    assert_eq!(map.len(), 0);
    assert_eq!(get(&map, 1), None);
}

fn an_entry_that_weighs_nothing_is_bounded_all_the_same(engine: LocalEngine) {
    let map = weighed(engine, 100);
    for n in 0..1000 {
        put(&map, n, "");
    }
    assert!((1..=100).contains(&map.len()));
}

/// A weigher of the user's may see a value that changes; the sums must not.
fn a_weigher_is_asked_once_per_insert(engine: LocalEngine) {
    let asked = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&asked);
    let weigher = Arc::new(move |_: &_, _: &_| counter.fetch_add(1, Ordering::Relaxed) + 1);
    let map: Local<u64, ()> = Local::new(engine, Capacity::Weight(100), weigher);
    for n in 0..100 {
        map.insert(hash(n), n, ());
        map.get(hash(n), &n);
    }
    assert!(map.weight() <= 100);
    (0..100).for_each(|n| {
        map.remove(hash(n));
    });
    assert_eq!((map.weight(), map.len()), (0, 0));
    assert_eq!(asked.load(Ordering::Relaxed), 100);
}

fn a_panic_of_the_weigher_leaves_the_map_usable(engine: LocalEngine) {
    let weigher = Arc::new(|key: &u64, _: &()| match key {
        0 => panic!("of the user's"),
        _ => 1,
    });
    let map: Local<u64, ()> = Local::new(engine, Capacity::Weight(100), weigher);
    let insert = panic::AssertUnwindSafe(|| map.insert(hash(0), 0, ()));
    assert!(panic::catch_unwind(insert).is_err());
    map.insert(hash(1), 1, ());
    assert_eq!(map.get(hash(1), &1), Some(()));
}

fn a_capacity_of_zero_keeps_nothing(engine: LocalEngine) {
    for map in [counted(engine, 0), weighed(engine, 0)] {
        put(&map, 1, "value");
        assert_eq!((get(&map, 1), map.len()), (None, 0));
        assert!(!map.remove(hash(1)));
    }
}

fn clear_removes_everything_and_the_map_goes_on(engine: LocalEngine) {
    let map = counted(engine, 1000);
    (0..1000).for_each(|n| put(&map, n, "value"));
    map.clear();
    assert_eq!((map.len(), map.weight()), (0, 0));
    assert!((0..1000).all(|n| get(&map, n).is_none()));
    put(&map, 1, "again");
    assert_eq!(get(&map, 1).as_deref(), Some("again"));
}

/// Four threads insert, read and remove over one range of keys, half of them in pairs of one hash;
/// changes of a hash take turns, as the port asks.
fn churn_never_returns_the_value_of_another_key_nor_loses_capacity(engine: LocalEngine) {
    const KEYS: u64 = 256;
    const CAPACITY: u64 = 64;
    let map: Local<u64, u64> = Local::new(engine, Capacity::Entries(CAPACITY), Arc::new(|_, _| 1));
    let shared_hash = |key: u64| hash(if key < KEYS / 2 { key / 2 } else { key });
    let stripes: Vec<Mutex<()>> = (0..64).map(|_| Mutex::default()).collect();
    let turn = |hash: u64| {
        stripes[hash as usize % 64]
            .lock()
            .expect("no churner panicked")
    };
    thread::scope(|scope| {
        for thread in 1..=4 {
            let (map, turn) = (&map, &turn);
            scope.spawn(move || {
                let mut random = hash(thread);
                for _ in 0..20_000 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let key = random % KEYS;
                    let hash = shared_hash(key);
                    match (random >> 32) % 8 {
                        0..3 => {
                            let _turn = turn(hash);
                            map.insert(hash, key, key);
                        }
                        3 => {
                            let _turn = turn(hash);
                            map.remove(hash);
                        }
                        _ => {
                            let value = map.get(hash, &key);
                            assert!(value.is_none_or(|value| value == key));
                        }
                    }
                }
            });
        }
    });
    assert!(map.len() <= CAPACITY);
    for key in 0..KEYS {
        map.remove(shared_hash(key));
    }
    assert_eq!((map.len(), map.weight()), (0, 0));
}

macro_rules! suite {
    ($engine:expr; $($promise:ident),* $(,)?) => {
        $(#[test] fn $promise() { super::$promise($engine); })*
    };
    ($($(#[$cfg:meta])* $room:ident: $engine:expr),*) => {
        $($(#[$cfg])* mod $room {
            use super::LocalEngine;
            suite! {
                $engine;
                an_insert_is_readable_at_once_and_a_remove_is_final,
                keys_of_one_hash_displace_each_other_and_never_answer_for_one_another,
                the_number_of_entries_stays_within_the_capacity,
                the_weight_stays_within_the_capacity,
                an_entry_heavier_than_the_capacity_is_not_kept,
                an_entry_that_weighs_nothing_is_bounded_all_the_same,
                a_weigher_is_asked_once_per_insert,
                a_panic_of_the_weigher_leaves_the_map_usable,
                a_capacity_of_zero_keeps_nothing,
                clear_removes_everything_and_the_map_goes_on,
                churn_never_returns_the_value_of_another_key_nor_loses_capacity,
            }
        })*
    };
}

suite! {
    quick: LocalEngine::Quick,
    #[cfg(feature = "moka")]
    moka: LocalEngine::Moka
}

/// Of two equally old entries the one that was read survives; a peek does not help. moka cannot
/// tell the two apart, so this is promised of the default alone.
#[test]
fn a_peek_is_not_a_use_on_the_default_engine() {
    let map = counted(LocalEngine::default(), 32);
    (0..32).for_each(|n| put(&map, n, "value"));
    for n in 0..32 {
        match n % 2 {
            0 => drop(get(&map, n)),
            _ => drop(map.peek(hash(n), &n.to_string())),
        }
    }
    (100..112).for_each(|n| put(&map, n, "value"));
    let map = &map;
    let survivors = |parity| (0..32).filter(move |n| n % 2 == parity && get(map, *n).is_some());
    let (read, peeked) = (survivors(0).count(), survivors(1).count());
    assert!(read > peeked, "{read} read, {peeked} peeked");
}

/// A value whose drop looks into every shard of the map that held it.
#[derive(Clone)]
struct CountsOnDrop {
    map: Arc<OnceLock<Local<u64, Self>>>,
    weight: u32,
}

impl Drop for CountsOnDrop {
    fn drop(&mut self) {
        if let Some(map) = self.map.get() {
            map.len();
        }
    }
}

/// Not promised of moka, which drops values in the middle of its own upkeep.
#[test]
fn a_value_may_use_the_map_while_it_is_dropped_by_the_default_engine() {
    let owner = Arc::new(OnceLock::new());
    let weigher = Arc::new(|_: &_, value: &CountsOnDrop| value.weight);
    let capacity = Capacity::Weight(100);
    let map = owner.get_or_init(|| Local::new(LocalEngine::default(), capacity, weigher));
    let put = |key, weight| {
        let map_of_value = Arc::clone(&owner);
        let value = CountsOnDrop {
            map: map_of_value,
            weight,
        };
        map.insert(hash(key), key, value);
    };
    (0..100).for_each(|key| put(key, 1));
    // Displaces many entries at once; replaces one; is too heavy to be kept.
    put(100, 60);
    put(100, 60);
    put(100, 101);
    put(101, 1);
    assert!(map.remove(hash(101)));
    map.clear();
    assert_eq!(map.len(), 0);
}
