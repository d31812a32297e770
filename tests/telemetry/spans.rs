//! Spans.

use crate::bed::{Bed, Source};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Notes the names of all spans of this crate.
struct Names;

static SEEN: Mutex<Vec<(&'static str, Vec<&'static str>)>> = Mutex::new(Vec::new());

impl Subscriber for Names {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "tidings"
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let fields = span.metadata().fields().iter().map(|field| field.name());
        SEEN.lock()
            .unwrap()
            .push((span.metadata().name(), fields.collect()));
        Id::from_u64(NEXT.fetch_add(1, SeqCst))
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[tokio::test]
async fn what_leaves_the_local_level_has_spans_and_none_names_a_key() {
    tracing::subscriber::set_global_default(Names).unwrap();
    let cache = Bed::memory().pod().await;
    let numbers = Source::of(1).numbers(&cache);
    numbers.get(&1).await.unwrap();
    numbers.invalidate(&1).await.unwrap();
    let seen = SEEN.lock().unwrap().clone();
    for name in [
        "tidings.read",
        "tidings.store",
        "tidings.load",
        "tidings.invalidate",
    ] {
        assert!(
            seen.iter().any(|(span, _)| *span == name),
            "{name}: {seen:?}"
        );
    }
    let allowed = ["cache", "entity", "operation"];
    let fields = seen.iter().flat_map(|(_, fields)| fields);
    fields.for_each(|field| assert!(allowed.contains(field), "{field}"));
}
