//! Every instrument, declared once: what is exported, and the table in `docs/metrics.md`.

/// How an instrument's numbers behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows.
    Counter,
    /// What is now.
    Gauge,
    /// Many values, by size.
    Histogram,
}

/// A label, and its values; whatever the program names so if there are none.
type Label = (&'static str, &'static [&'static str]);

/// What is measured under one name.
#[derive(Debug)]
pub(super) struct Instrument {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// As UCUM writes it: `s`, or what is counted in braces.
    pub(super) unit: &'static str,
    /// Besides `cache`, which all have: the namespace.
    pub(super) labels: &'static [Label],
    pub(super) help: &'static str,
}

macro_rules! instruments {
    ($($constant:ident = $kind:ident $name:literal [$unit:literal] ($($labels:expr),*) $help:literal;)*) => {
        $(pub(super) const $constant: Instrument = Instrument {
            name: $name,
            kind: Kind::$kind,
            unit: $unit,
            labels: &[$($labels),*],
            help: $help,
        };)*
        pub(super) const ALL: &[&Instrument] = &[$(&$constant),*];
    };
}

const ENTITY: Label = ("entity", &[]);
const MEMO: Label = ("memo", &[]);
const LEVEL: Label = ("level", &["local", "store"]);
const LOAD_OUTCOME: Label = (
    "outcome",
    &["value", "error", "aborted", "timed_out", "behind"],
);
const FILL_OUTCOME: Label = ("outcome", &["stored", "refused", "failed"]);
const STALE_REASON: Label = (
    "reason",
    &["refreshing", "load_failed", "load_timed_out", "allowed"],
);
const CAUSE: Label = ("cause", &["evicted", "invalidated"]);
const OPERATION: Label = ("operation", &[]);
const CALL_OUTCOME: Label = ("outcome", &["ok", "failed"]);
const CIRCUIT_STATE: Label = ("state", &["closed", "open", "half_open"]);
const BEAT_OUTCOME: Label = ("outcome", &["ok", "lost"]);
const LANE_STATE: Label = ("state", &["live", "lapsed"]);

instruments! {
    ENTITY_HITS = Counter "tidings.entity.hits" ["{read}"] (ENTITY, LEVEL)
        "Reads that a level answered.";
    ENTITY_MISSES = Counter "tidings.entity.misses" ["{read}"] (ENTITY, LEVEL)
        "Reads that a level did not answer. Those that miss the local level join another read, or ask the store.";
    ENTITY_JOINS = Counter "tidings.entity.joins" ["{read}"] (ENTITY)
        "Reads that shared the way of another one of the same key.";
    ENTITY_LOADS = Counter "tidings.entity.loads" ["{load}"] (ENTITY, LOAD_OUTCOME)
        "Loads from the source, refreshes among them. Behind: made again, as a replica lags.";
    ENTITY_LOAD_DURATION = Histogram "tidings.entity.load.duration" ["s"] (ENTITY)
        "How long loads took that ended with a value or an error.";
    ENTITY_FILLS = Counter "tidings.entity.fills" ["{fill}"] (ENTITY, FILL_OUTCOME)
        "Outcomes brought to the store. It refuses those that an invalidation or another load has overtaken.";
    ENTITY_STALE = Counter "tidings.entity.stale" ["{read}"] (ENTITY, STALE_REASON)
        "Reads that were served a stale value, within grace or as the call allowed.";
    ENTITY_UNUSABLE = Counter "tidings.entity.unusable" ["{value}"] (ENTITY)
        "Stored values that could not be used and were taken for a miss.";
    ENTITY_REMOVALS = Counter "tidings.entity.removals" ["{entry}"] (ENTITY, CAUSE)
        "Local entries that made room for others, or that an invalidation removed.";
    ENTITY_ENTRIES = Gauge "tidings.entity.entries" ["{entry}"] (ENTITY)
        "Local entries, those that may not be served any more included.";
    ENTITY_WEIGHT = Gauge "tidings.entity.weight" ["1"] (ENTITY)
        "What the local entries weigh: bytes with a weigher, else their number.";
    MEMO_HITS = Counter "tidings.memo.hits" ["{call}"] (MEMO)
        "Calls that were answered from memory.";
    MEMO_MISSES = Counter "tidings.memo.misses" ["{call}"] (MEMO)
        "Calls that were not.";
    MEMO_JOINS = Counter "tidings.memo.joins" ["{call}"] (MEMO)
        "Calls that shared a computation under way.";
    MEMO_LOADS = Counter "tidings.memo.loads" ["{load}"] (MEMO, ("outcome", &["value", "error"]))
        "Computations that ended.";
    MEMO_EVICTIONS = Counter "tidings.memo.evictions" ["{entry}"] (MEMO)
        "Entries that made room for others.";
    MEMO_ENTRIES = Gauge "tidings.memo.entries" ["{entry}"] (MEMO)
        "Entries, the expired ones that nothing has replaced included.";
    MEMO_WEIGHT = Gauge "tidings.memo.weight" ["1"] (MEMO)
        "What they weigh: in the unit of the weigher, else their number.";
    INVALIDATIONS_SENT = Counter "tidings.invalidations.sent" ["{invalidation}"] ()
        "Invalidations begun by this pod; one of many keys goes in pieces, by lane and 64 keys.";
    INVALIDATIONS_ACKNOWLEDGED = Counter "tidings.invalidations.acknowledged" ["{invalidation}"] ()
        "Those of them that the store has acknowledged.";
    INVALIDATIONS_RECEIVED = Counter "tidings.invalidations.received" ["{invalidation}"] ()
        "Invalidations by other pods that were carried out here.";
    INVALIDATIONS_PENDING = Gauge "tidings.invalidations.pending" ["{invalidation}"] ()
        "Invalidations of this pod that are not acknowledged.";
    INVALIDATIONS_PENDING_AGE = Gauge "tidings.invalidations.pending.age" ["s"] ()
        "How long the oldest of them has waited; 0 without any.";
    INVALIDATIONS_MERGED = Counter "tidings.invalidations.merged" ["{invalidation}"] ()
        "Pending ones that were merged into coarser ones, because there were too many.";
    JOURNAL_HELD = Gauge "tidings.journal.held" ["{invalidation}"] ()
        "Invalidations that the journal holds; absent without one, as all of its kind.";
    JOURNAL_SIZE = Gauge "tidings.journal.size" ["By"] ()
        "The size of its file.";
    JOURNAL_FAILURES = Counter "tidings.journal.failures" ["{write}"] ()
        "Times that it could not be written.";
    INVALIDATION_DURATION = Histogram "tidings.invalidation.duration" ["s"] ()
        "How long it took from the call until the store had acknowledged.";
    INVALIDATION_LAG = Histogram "tidings.invalidation.lag" ["s"] ()
        "How long ago an invalidation that came as a message had been published, by the server's clock. In error by a round trip and a tick of the kernel.";
    GUARDS_LAPSED = Counter "tidings.guards.lapsed" ["{guard}"] ()
        "Write guards that had ended before they were finished: what was committed under them was not guarded.";
    CLOCK_STALLS = Counter "tidings.clock.stalls" ["{stall}"] ()
        "Times that the store's clock had gone on by more than the bound further than this pod's: its machine was paused with its clock, or the store's was set.";
    BOUND = Gauge "tidings.bound" ["s"] ()
        "Δ: no read that is served as fresh misses an invalidation acknowledged longer ago.";
    CONFIRMED_AGE = Gauge "tidings.confirmed.age" ["s"] ()
        "How long ago the poll was sent that confirmed the lane which has waited longest; absent before every lane was.";
    LANES = Gauge "tidings.lanes" ["{lane}"] (LANE_STATE)
        "Lanes that may be served from the local level, and those that may not.";
    GAPS = Counter "tidings.gaps" ["{gap}"] ()
        "Times that an invalidation was missing before those that had come.";
    CATCH_UPS = Counter "tidings.catch_ups" ["{read}"] ()
        "Times that the log was read because hints were missing.";
    FLUSHES = Counter "tidings.flushes" ["{flush}"] ()
        "Lanes whose entries were dropped because their history was lost; each counts once at the start.";
    HINTS = Counter "tidings.hints" ["{message}"] ()
        "Messages that came on the subscription.";
    RUBBISH = Counter "tidings.hints.rubbish" ["{message}"] ()
        "Those of them that were none of ours.";
    UNKNOWN_HINTS = Counter "tidings.hints.unknown" ["{message}"] ()
        "Those of a kind that this version does not know, from pods of a later one. They do nothing.";
    PRESENCE_ROOMS = Gauge "tidings.presence.rooms" ["{room}"] ()
        "Rooms that this pod has members in, or watches.";
    PRESENCE_MEMBERS = Gauge "tidings.presence.members" ["{member}"] ()
        "Members that this pod holds there.";
    PRESENCE_BEATS = Counter "tidings.presence.heartbeats" ["{heartbeat}"] (BEAT_OUTCOME)
        "Heartbeats: one renews this pod's members in all rooms that are due.";
    PRESENCE_SWEEPS = Counter "tidings.presence.sweeps" ["{room}"] ()
        "Rooms that a heartbeat had to come back to at once, because so many members had ended there.";
    PRESENCE_LOSSES = Counter "tidings.presence.losses" ["{room}"] ()
        "Rooms in which the store did not have this pod's members any more; they were brought again.";
    STORE_UP = Gauge "tidings.store.up" ["1"] ()
        "1 while the store is in use, else 0.";
    STORE_LINKS = Counter "tidings.store.links" ["{link}"] ()
        "Links to the store that went up: 1 if it never broke.";
    CIRCUIT = Gauge "tidings.circuit" ["1"] (CIRCUIT_STATE)
        "1 for the state that the circuit breaker of reads is in, else 0. While it is open, reads go to the loaders at once.";
    CIRCUIT_OPENINGS = Counter "tidings.circuit.openings" ["{opening}"] ()
        "Times that it opened, because several reads in a row got no answer.";
    STORE_DURATION = Histogram "tidings.store.duration" ["s"] (OPERATION, CALL_OUTCOME)
        "Round trips to the store, by operation.";
    OUTBOX_DELIVERED = Counter "tidings.outbox.delivered" ["{row}"] ()
        "Rows of outboxes that this pod delivered.";
    OUTBOX_REFUSED = Counter "tidings.outbox.refused" ["{row}"] ()
        "Rows of outboxes that name nothing, and were set aside.";
    OUTBOX_FAILURES = Counter "tidings.outbox.failures" ["{failure}"] ()
        "Times that delivering ended in an error of the database or of the store.";
    OUTBOX_LAG = Gauge "tidings.outbox.lag" ["s"] ()
        "How long the oldest row has waited that this pod has found; 0 without any, and in pods that do not deliver.";
    EVENTS_LOST = Counter "tidings.events.lost" ["{event}"] ()
        "Events that those who follow them were too slow for.";
}

/// As rows of the table in `docs/metrics.md`.
#[cfg(test)]
fn table() -> String {
    let mut table =
        "| name | kind | unit | labels besides `cache` | what it is |\n|---|---|---|---|---|\n"
            .to_owned();
    for instrument in ALL {
        let label = |(name, values): &Label| match values.is_empty() {
            true => format!("`{name}`"),
            false => format!("`{name}`: {}", values.join(", ")),
        };
        let labels: Vec<_> = instrument.labels.iter().map(label).collect();
        table += &format!(
            "| `{}` | {} | `{}` | {} | {} |\n",
            instrument.name,
            format!("{:?}", instrument.kind).to_lowercase(),
            instrument.unit,
            labels.join("; "),
            instrument.help,
        );
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    const BEGIN: &str = "<!-- table: begin -->\n";
    const END: &str = "<!-- table: end -->";

    /// `TIDINGS_WRITE_DOCS=1` brings the page up to date.
    #[test]
    fn the_table_of_metrics_is_what_the_code_declares() {
        let page = std::fs::read_to_string(PAGE).expect("the page is there");
        let (before, rest) = page.split_once(BEGIN).expect("the table begins");
        let (written, after) = rest.split_once(END).expect("the table ends");
        if std::env::var_os("TIDINGS_WRITE_DOCS").is_some() {
            let page = [before, BEGIN, &table(), END, after].concat();
            std::fs::write(PAGE, page).expect("the page can be written");
        } else {
            assert_eq!(
                written,
                table(),
                "write it with TIDINGS_WRITE_DOCS=1 cargo test --all-features --lib table_of_metrics"
            );
        }
    }

    #[test]
    fn no_two_instruments_have_one_name_and_each_is_ours() {
        let names: HashSet<_> = ALL.iter().map(|instrument| instrument.name).collect();
        assert_eq!(names.len(), ALL.len());
        for instrument in ALL {
            assert!(instrument.name.starts_with("tidings."), "{instrument:?}");
            assert!(!instrument.help.is_empty(), "{instrument:?}");
            // Exporters for Prometheus append these.
            assert!(!instrument.name.ends_with("total"), "{instrument:?}");
            assert!(!instrument.name.ends_with("seconds"), "{instrument:?}");
        }
    }
}
