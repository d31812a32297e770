//! What is counted, given to the `metrics` facade.
//!
//! Counts and gauges are read off by the sampler: whoever counts pays nothing for a recorder. Times are
//! recorded as they are measured. The recorder is asked for anew each time, so it may be installed
//! after the cache was built; what was counted until then is told in one go.

use super::catalogue::*;
use super::counts::BusCounts;
use super::outbox::OutboxCounts;
use super::parts::{Part, PartStats};
use super::stats::{EntityStats, MemoStats, PresenceStats};
use crate::bus::{CircuitState, Health, StoreState, lock};
use metrics::{Key, Label, Level, Metadata, SharedString, Unit, with_recorder};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

static METADATA: Metadata<'static> = Metadata::new("tidings", Level::INFO, Some(module_path!()));

type Labels<'a> = &'a [(&'static str, SharedString)];
type Gauges = HashMap<Key, f64>;

#[derive(Debug)]
pub(super) struct Export {
    cache: Arc<str>,
    /// What has been exported of the cache's own counts.
    exported: Mutex<Vec<u64>>,
    /// The gauges of the last time: a part that is gone leaves nothing.
    gauges: Mutex<Gauges>,
}

impl Export {
    pub(super) fn new(namespace: &str) -> Self {
        Self {
            cache: namespace.into(),
            exported: Mutex::default(),
            gauges: Mutex::default(),
        }
    }

    pub(super) fn store_called(&self, operation: &'static str, took: Duration, failed: bool) {
        let outcome = if failed { "failed" } else { "ok" };
        let labels = [
            ("operation", operation.into()),
            ("outcome", SharedString::const_str(outcome)),
        ];
        self.record(&STORE_DURATION, &labels, took);
    }

    pub(super) fn acknowledged(&self, after: Duration) {
        self.record(&INVALIDATION_DURATION, &[], after);
    }

    pub(super) fn lagged(&self, lag: Duration) {
        self.record(&INVALIDATION_LAG, &[], lag);
    }

    pub(super) fn loaded(&self, entity: &Arc<str>, took: Duration) {
        let entity = SharedString::from_shared(Arc::clone(entity));
        self.record(&ENTITY_LOAD_DURATION, &[("entity", entity)], took);
    }

    fn record(&self, instrument: &Instrument, labels: Labels<'_>, duration: Duration) {
        with_recorder(|recorder| {
            let key = key(&self.cache, instrument, labels);
            let histogram = recorder.register_histogram(&key, &METADATA);
            histogram.record(duration.as_secs_f64());
        });
    }

    /// Exports all counts and gauges.
    pub(super) fn sample(
        &self,
        counts: &BusCounts,
        outbox: &OutboxCounts,
        lost: u64,
        health: &Health,
        presence: &PresenceStats,
        parts: &[Arc<Part>],
    ) {
        describe();
        let mut now = Gauges::new();
        for part in parts {
            let name = SharedString::from_shared(Arc::clone(&part.name));
            let stats = part.stats();
            let mut sheet = Sheet {
                cache: &self.cache,
                exported: &mut lock(&part.exported),
                next: 0,
                gauges: &mut now,
            };
            match stats {
                PartStats::Entity(stats) => sheet.entity(&name, &stats),
                PartStats::Memo(stats) => sheet.memo(&name, &stats),
            }
        }
        let mut sheet = Sheet {
            cache: &self.cache,
            exported: &mut lock(&self.exported),
            next: 0,
            gauges: &mut now,
        };
        sheet.cache(counts, lost, health);
        sheet.presence(presence);
        sheet.outbox(outbox);
        self.set(now);
    }

    fn set(&self, now: Gauges) {
        let mut last = lock(&self.gauges);
        let zero = last.keys().filter(|key| !now.contains_key(*key));
        let gone = zero.map(|key| (key, 0.0));
        let there = now.iter().map(|(key, value)| (key, *value));
        for (key, value) in gone.chain(there) {
            with_recorder(|recorder| recorder.register_gauge(key, &METADATA).set(value));
        }
        *last = now;
    }
}

fn key(cache: &Arc<str>, instrument: &Instrument, labels: Labels<'_>) -> Key {
    debug_assert!(
        labels
            .iter()
            .map(|label| label.0)
            .eq(instrument.labels.iter().map(|label| label.0)),
        "labels of {instrument:?}"
    );
    let cache = SharedString::from_shared(Arc::clone(cache));
    let mut all = Vec::with_capacity(labels.len() + 1);
    all.push(Label::new("cache", cache));
    all.extend(
        labels
            .iter()
            .map(|(name, value)| Label::new(*name, value.clone())),
    );
    Key::from_parts(instrument.name, all)
}

/// Tells the recorder what each name means. Repeated, because it may be another recorder by now.
fn describe() {
    with_recorder(|recorder| {
        for instrument in ALL {
            let (name, help) = (instrument.name.into(), instrument.help.into());
            let unit = Some(match instrument.unit {
                "s" => Unit::Seconds,
                "By" => Unit::Bytes,
                _ => Unit::Count,
            });
            match instrument.kind {
                Kind::Counter => recorder.describe_counter(name, unit, help),
                Kind::Gauge => recorder.describe_gauge(name, unit, help),
                Kind::Histogram => recorder.describe_histogram(name, unit, help),
            }
        }
    });
}

/// The counts of one part of a cache on their way out.
struct Sheet<'a> {
    cache: &'a Arc<str>,
    /// What was exported of them last time, in the order in which they come.
    exported: &'a mut Vec<u64>,
    next: usize,
    gauges: &'a mut Gauges,
}

impl Sheet<'_> {
    fn counter(&mut self, instrument: &Instrument, labels: Labels<'_>, value: u64) {
        if self.next == self.exported.len() {
            self.exported.push(0);
        }
        // What is summed up over threads that count on may seem to fall back by a moment.
        let more = value.saturating_sub(self.exported[self.next]);
        self.exported[self.next] += more;
        self.next += 1;
        let key = key(self.cache, instrument, labels);
        // Also if it is nothing: the series is to be there from the start.
        with_recorder(|recorder| recorder.register_counter(&key, &METADATA).increment(more));
    }

    /// Parts of one name are told together.
    fn gauge(&mut self, instrument: &Instrument, labels: Labels<'_>, value: f64) {
        *self
            .gauges
            .entry(key(self.cache, instrument, labels))
            .or_default() += value;
    }

    fn entity(&mut self, name: &SharedString, stats: &EntityStats) {
        let entity = &[("entity", name.clone())];
        let with = |label, value| {
            [
                ("entity", name.clone()),
                (label, SharedString::const_str(value)),
            ]
        };
        let level = |level| with("level", level);
        let outcome = |outcome| with("outcome", outcome);
        let reason = |reason| with("reason", reason);
        let cause = |cause| with("cause", cause);
        self.counter(&ENTITY_HITS, &level("local"), stats.hits);
        self.counter(&ENTITY_HITS, &level("store"), stats.store_hits);
        self.counter(&ENTITY_MISSES, &level("local"), stats.misses);
        self.counter(&ENTITY_MISSES, &level("store"), stats.store_misses);
        self.counter(&ENTITY_JOINS, entity, stats.joins);
        let values = stats.loads.saturating_sub(stats.load_errors);
        self.counter(&ENTITY_LOADS, &outcome("value"), values);
        self.counter(&ENTITY_LOADS, &outcome("error"), stats.load_errors);
        self.counter(&ENTITY_LOADS, &outcome("aborted"), stats.loads_aborted);
        self.counter(&ENTITY_LOADS, &outcome("timed_out"), stats.loads_timed_out);
        self.counter(&ENTITY_LOADS, &outcome("behind"), stats.loads_behind);
        self.counter(&ENTITY_FILLS, &outcome("stored"), stats.fills);
        self.counter(&ENTITY_FILLS, &outcome("refused"), stats.fills_refused);
        self.counter(&ENTITY_FILLS, &outcome("failed"), stats.fills_failed);
        let refreshing = stats.stale_while_refreshing;
        self.counter(&ENTITY_STALE, &reason("refreshing"), refreshing);
        self.counter(
            &ENTITY_STALE,
            &reason("load_failed"),
            stats.stale_after_failure,
        );
        let timed_out = stats.stale_after_timeout;
        self.counter(&ENTITY_STALE, &reason("load_timed_out"), timed_out);
        self.counter(&ENTITY_STALE, &reason("allowed"), stats.stale_as_allowed);
        self.counter(&ENTITY_UNUSABLE, entity, stats.unusable);
        let evicted = stats.evicted.unwrap_or_default();
        self.counter(&ENTITY_REMOVALS, &cause("evicted"), evicted);
        self.counter(&ENTITY_REMOVALS, &cause("invalidated"), stats.invalidated);
        self.gauge(&ENTITY_ENTRIES, entity, stats.entries as f64);
        self.gauge(&ENTITY_WEIGHT, entity, stats.weight as f64);
    }

    fn memo(&mut self, name: &SharedString, stats: &MemoStats) {
        let memo = &[("memo", name.clone())];
        let outcome = |outcome| {
            [
                ("memo", name.clone()),
                ("outcome", SharedString::const_str(outcome)),
            ]
        };
        self.counter(&MEMO_HITS, memo, stats.hits);
        self.counter(&MEMO_MISSES, memo, stats.misses);
        self.counter(&MEMO_JOINS, memo, stats.joins);
        let values = stats.loads.saturating_sub(stats.load_errors);
        self.counter(&MEMO_LOADS, &outcome("value"), values);
        self.counter(&MEMO_LOADS, &outcome("error"), stats.load_errors);
        self.counter(&MEMO_EVICTIONS, memo, stats.evictions.unwrap_or_default());
        self.gauge(&MEMO_ENTRIES, memo, stats.entries as f64);
        self.gauge(&MEMO_WEIGHT, memo, stats.weight as f64);
    }

    fn cache(&mut self, counts: &BusCounts, lost: u64, health: &Health) {
        let stats = counts.read();
        self.counter(&INVALIDATIONS_SENT, &[], stats.sent);
        self.counter(&INVALIDATIONS_ACKNOWLEDGED, &[], stats.acknowledged);
        self.counter(&INVALIDATIONS_RECEIVED, &[], stats.received);
        self.counter(&GAPS, &[], stats.gaps);
        self.counter(&CATCH_UPS, &[], health.catch_ups);
        self.counter(&FLUSHES, &[], health.flushes);
        self.counter(&HINTS, &[], health.hints);
        self.counter(&RUBBISH, &[], health.rubbish_hints);
        self.counter(&UNKNOWN_HINTS, &[], health.unknown_hints);
        self.counter(&INVALIDATIONS_MERGED, &[], health.merged_pending);
        self.counter(&STORE_LINKS, &[], health.links);
        self.counter(&EVENTS_LOST, &[], lost);
        self.counter(&CIRCUIT_OPENINGS, &[], health.circuit_openings);
        self.counter(&GUARDS_LAPSED, &[], health.lapsed_guards);
        self.counter(&CLOCK_STALLS, &[], health.clock_stalls);
        for (name, state) in [
            ("closed", CircuitState::Closed),
            ("open", CircuitState::Open),
            ("half_open", CircuitState::HalfOpen),
        ] {
            let now = f64::from(u8::from(health.circuit == state));
            self.gauge(&CIRCUIT, &[("state", SharedString::const_str(name))], now);
        }
        let lanes = |state| [("state", SharedString::const_str(state))];
        let (live, all) = (health.live_lanes, health.lanes);
        self.gauge(&LANES, &lanes("live"), live as f64);
        self.gauge(&LANES, &lanes("lapsed"), (all - live) as f64);
        let up = matches!(health.store, StoreState::Up);
        self.gauge(&STORE_UP, &[], f64::from(u8::from(up)));
        self.gauge(&BOUND, &[], health.bound.as_secs_f64());
        if let Some(confirmed) = health.confirmed {
            self.gauge(&CONFIRMED_AGE, &[], confirmed.as_secs_f64());
        }
        self.gauge(&INVALIDATIONS_PENDING, &[], health.pending as f64);
        let age = health.oldest_pending.unwrap_or_default();
        self.gauge(&INVALIDATIONS_PENDING_AGE, &[], age.as_secs_f64());
        // A cache has one for good, or never.
        if let Some(journal) = &health.journal {
            self.gauge(&JOURNAL_HELD, &[], journal.held as f64);
            self.gauge(&JOURNAL_SIZE, &[], journal.bytes as f64);
            self.counter(&JOURNAL_FAILURES, &[], journal.failures);
        }
    }

    fn presence(&mut self, stats: &PresenceStats) {
        let outcome = |outcome| [("outcome", SharedString::const_str(outcome))];
        let lost = stats.heartbeats_lost;
        let kept = stats.heartbeats.saturating_sub(lost);
        self.counter(&PRESENCE_BEATS, &outcome("ok"), kept);
        self.counter(&PRESENCE_BEATS, &outcome("lost"), lost);
        self.counter(&PRESENCE_SWEEPS, &[], stats.sweeps);
        self.counter(&PRESENCE_LOSSES, &[], stats.losses);
        self.gauge(&PRESENCE_ROOMS, &[], stats.rooms as f64);
        self.gauge(&PRESENCE_MEMBERS, &[], stats.members as f64);
    }

    fn outbox(&mut self, counts: &OutboxCounts) {
        self.counter(&OUTBOX_DELIVERED, &[], counts.delivered.get());
        self.counter(&OUTBOX_REFUSED, &[], counts.refused.get());
        self.counter(&OUTBOX_FAILURES, &[], counts.failures.get());
        self.gauge(&OUTBOX_LAG, &[], counts.lag().as_secs_f64());
    }
}
