//! What a recorder is given.

use crate::bed::{Bed, Source, eventually};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::{fs, process};
use tidings::presence::MIN_TTL;

/// The recorder of this process: there can be one.
fn recorder() -> &'static PrometheusHandle {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    HANDLE.get_or_init(|| {
        let builder = PrometheusBuilder::new().with_recommended_naming(true);
        builder.install_recorder().unwrap()
    })
}

/// The value of a series of this cache; all labels but that of the cache are named.
fn value(bed: &Bed, name: &str, labels: &str) -> Option<f64> {
    let text = recorder().render();
    let mut labels = BTreeSet::from_iter(labels.split(',').filter(|label| !label.is_empty()));
    let cache = format!("cache=\"{}\"", bed.namespace);
    labels.insert(&cache);
    let series = text.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (found, rest) = series.split_once('{')?;
        let there = BTreeSet::from_iter(rest.trim_end_matches('}').split(','));
        (found == name && there == labels).then(|| value.parse().unwrap())
    });
    { series }.next_back()
}

/// The names in the table of `docs/metrics.md`, as Prometheus has them.
fn declared() -> Vec<String> {
    let page = include_str!("../../docs/metrics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `tidings."));
    let names = rows.map(|row| {
        let cells: Vec<_> = row
            .split(" | ")
            .map(|cell| cell.trim_matches(['|', ' ', '`']))
            .collect();
        let mut name = cells[0].replace('.', "_");
        match cells[2] {
            "s" => name += "_seconds",
            "By" => name += "_bytes",
            _ => {}
        }
        if cells[1] == "counter" {
            name += "_total";
        }
        name
    });
    names.collect()
}

/// A folder of the test's own, until it ends.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "tidings-metrics-{}-{}",
            process::id(),
            NEXT.fetch_add(1, Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

on_both_stores!(
    rooms_are_exported_and_counted,
    every_metric_of_the_table_is_exported,
    a_recorder_is_given_what_stats_gives,
);

async fn every_metric_of_the_table_is_exported(bed: Bed) {
    recorder();
    let source = Source::of(1);
    let journal = Folder::new();
    let a = bed
        .pod_with(|builder| builder.journal(journal.0.join("a")))
        .await;
    let b = bed.pod().await;
    let (one, _other) = (source.numbers(&a), source.numbers(&b));
    let memo = a.memo("twice", |n: u64| async move { Ok::<_, Infallible>(n * 2) });
    let memo = memo.build().unwrap();
    memo.get(&1).await.unwrap();
    one.get(&1).await.unwrap();
    one.invalidate(&1).await.unwrap();
    let declared = declared();
    assert!(
        declared.len() > 30,
        "has the table another form? {declared:?}"
    );
    let cache = format!("cache=\"{}\"", bed.namespace);
    let all = async || {
        let text = recorder().render();
        let mine: Vec<_> = text.lines().filter(|line| line.contains(&cache)).collect();
        let missing = declared.iter().find(|name| {
            let begins = |line: &&str| {
                line.strip_prefix(name.as_str())
                    .is_some_and(|rest| rest.starts_with(['{', '_']))
            };
            !mine.iter().any(begins)
        });
        if let Some(missing) = missing {
            println!("not there yet: {missing}");
        }
        missing.is_none()
    };
    eventually("all are there", all).await;
}

async fn rooms_are_exported_and_counted(bed: Bed) {
    recorder();
    let cache = bed.pod().await;
    let room = |name: &str| {
        let room = cache.presence::<u8>(name).ttl(MIN_TTL);
        room.build().unwrap()
    };
    let (one, other) = (room("one"), room("other"));
    let _members = [
        one.join("ada", &1).await.unwrap(),
        one.join("bob", &1).await.unwrap(),
        other.join("ada", &1).await.unwrap(),
    ];
    let now = cache.stats().presence;
    assert_eq!((now.rooms, now.members, now.losses), (2, 3, 0));
    let exported = async || {
        let gauges = ["rooms", "members"].map(|of| format!("tidings_presence_{of}"));
        gauges.map(|name| value(&bed, &name, "")) == [Some(2.0), Some(3.0)]
    };
    eventually("both are told", exported).await;
    let beats = async || {
        let beats = "tidings_presence_heartbeats_total";
        value(&bed, beats, "outcome=\"ok\"").is_some_and(|beats| beats >= 2.0)
    };
    eventually("heartbeats are told", beats).await;
    assert!(cache.stats().presence.heartbeats >= 2);
}

async fn a_recorder_is_given_what_stats_gives(bed: Bed) {
    let cache = bed.pod().await;
    let numbers = Source::of(1).numbers(&cache);
    for _ in 0..10 {
        numbers.get(&1).await.unwrap();
    }
    numbers.invalidate(&1).await.unwrap();
    recorder(); // after the fact: what was counted before is told all the same
    let entity = r#"entity="number""#;
    let hits = async || {
        let local = format!("{entity},level=\"local\"");
        value(&bed, "tidings_entity_hits_total", &local) == Some(9.0)
    };
    eventually("nine hits", hits).await;
    let misses = value(
        &bed,
        "tidings_entity_misses_total",
        &format!("{entity},level=\"store\""),
    );
    assert_eq!(misses, Some(1.0));
    assert_eq!(
        value(
            &bed,
            "tidings_entity_removals_total",
            &format!("{entity},cause=\"invalidated\"")
        ),
        Some(1.0)
    );
    let live = async || value(&bed, "tidings_lanes", "state=\"live\"") == Some(16.0);
    eventually("all lanes are live", live).await;
    assert_eq!(
        value(&bed, "tidings_bound_seconds", ""),
        Some(cache.health().bound.as_secs_f64())
    );
    let up = async || value(&bed, "tidings_store_up", "") == Some(1.0);
    eventually("the store is up", up).await;
    drop(numbers);
    let gone = async || value(&bed, "tidings_entity_entries", entity) == Some(0.0);
    eventually("what is gone leaves no size behind", gone).await;
}
