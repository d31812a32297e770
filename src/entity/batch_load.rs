//! Loading many keys at once, and storing what came of it.

use super::Inner;
use super::batch::{Answers, Loaded, each_once};
use super::context::Said;
use super::fill::Unfilled;
use super::load::{LoadRun, OnPanic, Timing};
use super::many::Load;
use super::outcome::StaleReason;
use super::target::Target;
use crate::key::Key;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tokio::time::sleep;

/// Bytes that are stored at once, unless one value alone has more.
const FILL_BYTES: usize = 1 << 20;

impl<K, V, E> Inner<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Loads, in tasks that go on while anybody waits for one of their keys.
    pub(super) fn load_many(self: &Arc<Self>, loads: Vec<Load<K, V, E>>) {
        if self.batches.load.is_none() {
            for Load { target, guard, run } in loads {
                // The source is asked no faster than it would be by callers without the store.
                let run = LoadRun {
                    queued: true,
                    ..run
                };
                self.load_in_task(&target, guard, run);
            }
            return;
        }
        // A batch loader states no versions.
        let versioned = |load: &Load<K, V, E>| load.run.minimum.is_some();
        let (versioned, loads): (Vec<_>, Vec<_>) = loads.into_iter().partition(versioned);
        for Load { target, guard, run } in versioned {
            self.load_in_task(&target, guard, run);
        }
        let mut loads = loads.into_iter().peekable();
        while loads.peek().is_some() {
            let batch = loads.by_ref().take(self.batches.max).collect();
            self.load_batch_in_task(batch);
        }
    }

    fn load_batch_in_task(self: &Arc<Self>, batch: Vec<Load<K, V, E>>) {
        let waited_for: Vec<_> = batch.iter().map(|load| load.guard.abandoned()).collect();
        // One after another. A key that somebody asks for again after its turn is loaded again, if it
        // comes to that: whoever waits for a lead that is dropped gets it.
        let abandoned = async {
            for flight in waited_for {
                flight.await;
            }
        };
        let targets: Vec<_> = batch.iter().map(|load| Arc::clone(&load.target)).collect();
        let (this, limit) = (Arc::clone(self), self.lead_limit());
        let closing = self.bus().closing.clone();
        self.bus().work.spawn(async move {
            tokio::select! {
                biased;
                () = this.load_batch(batch, &targets) => {}
                () = closing.cancelled() => {}
                () = abandoned => {}
                // A hung load must not hold its keys for ever: whoever still waits leads another one.
                () = sleep(limit) => {
                    this.level.telemetry.load_timed_out();
                    this.note_failures(&targets, StaleReason::LoadTimedOut);
                }
            }
        });
    }

    /// One call of the batch loader: lands its outcomes, and lets them be stored behind the callers.
    async fn load_batch(
        self: &Arc<Self>,
        mut batch: Vec<Load<K, V, E>>,
        targets: &[Arc<Target<K>>],
    ) {
        let Some(load) = &self.batches.load else {
            return;
        };
        let _permit = match batch.iter().any(|load| load.run.queued) {
            false => None,
            true => {
                let permit = self.limiter.acquire().await;
                for load in &mut batch {
                    self.date_anew(&load.target, &mut load.run);
                }
                Some(permit)
            }
        };
        for Load { guard, run, .. } in &batch {
            run.tell_flight(guard);
        }
        let keys = each_once(
            batch
                .iter()
                .map(|load| (load.target.hash, &load.target.key)),
        );
        let moment = self.bus().moment();
        let (start, precise) = (self.bus().clock.now(), std::time::Instant::now());
        let answers = {
            let _panic = OnPanic(|| {
                self.level.telemetry.load_aborted();
                self.note_failures(targets, StaleReason::LoadFailed);
            });
            load(keys).await
        };
        let took = precise.elapsed();
        self.usual_load.add(took);
        self.level.telemetry.load_took(took);

        let timing = Timing {
            moment,
            start,
            took,
        };
        let unfilled = self.land_batch(batch, answers, timing);
        if !unfilled.is_empty() {
            let this = Arc::clone(self);
            self.bus()
                .work
                .spawn(async move { this.fill_many(unfilled).await });
        }
    }

    /// Lands what a batch loader gave, and ends the flights of keys that it forgot. Gives what is left to
    /// be stored.
    fn land_batch(
        &self,
        batch: Vec<Load<K, V, E>>,
        answers: Answers<K, V, E>,
        timing: Timing,
    ) -> Vec<Unfilled<K, V, E>> {
        let loaded = Loaded::new(answers, |key| {
            key.with_bytes(|bytes| self.keys.hash(bytes).hash)
        });
        let mut unfilled = Vec::new();
        let mut forgotten = 0;
        for Load { target, guard, run } in batch {
            match loaded.of(target.hash, &target.key) {
                Some(outcome) => {
                    self.level.telemetry.loaded(outcome.is_err());
                    let landed =
                        self.land_loaded(&target, guard, run, timing, outcome, Said::default());
                    unfilled.extend(landed);
                }
                None => {
                    forgotten += 1;
                    self.note_failure(&target, StaleReason::LoadFailed);
                    guard.abort();
                }
            }
        }
        if forgotten > 0 {
            tracing::warn!(entity = %self.name, forgotten, "the batch loader has no answer for some keys");
        }
        unfilled
    }

    fn note_failures(&self, targets: &[Arc<Target<K>>], reason: StaleReason) {
        for target in targets {
            self.note_failure(target, reason);
        }
    }

    /// Stores outcomes under their leases, or over what they replace. Whatever fails here costs other loads,
    /// nothing else.
    async fn fill_many(&self, unfilled: Vec<Unfilled<K, V, E>>) {
        self.learn_for(&unfilled).await;
        let mut fillings = unfilled
            .into_iter()
            .filter_map(|unfilled| self.encode(unfilled))
            .peekable();
        while let Some(first) = fillings.next() {
            let link = Arc::clone(first.link());
            let mut bytes = first.envelope.len();
            let mut some = vec![first];
            while let Some(next) = fillings.next_if(|next| {
                bytes + next.envelope.len() <= FILL_BYTES && Arc::ptr_eq(&link, next.link())
            }) {
                bytes += next.envelope.len();
                some.push(next);
            }
            let fills: Vec<_> = some.iter().map(|filling| filling.fill()).collect();
            let stored = self.ask(fills.len(), "fill", || link.fill_many(&fills));
            let stored = stored.await;
            for (filling, stored) in some.into_iter().zip(stored) {
                self.level.telemetry.filled(stored.as_ref().ok().copied());
                if stored.is_ok() {
                    filling.answered();
                }
            }
        }
    }
}
