//! How a delivery is doing.

use super::OutboxError;
use super::row::Waiting;
use crate::bus::lock;
use crate::telemetry::{OutboxCounts, Wait};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What a pod does about the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeliveryState {
    /// It has no connection to the database, and tries to get one.
    Connecting,
    /// Another pod delivers; this one takes over when that one is gone.
    Standby,
    /// It delivers.
    Delivering,
    /// The store does not acknowledge: it leaves the table to pods whose store does, until this one's
    /// does again.
    StoreAway,
    /// It has ended, with its [`Delivery`](super::Delivery) or its cache.
    Ended,
}

/// A snapshot of how a [`Delivery`](super::Delivery) is doing: what this pod did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeliveryHealth {
    /// What it does.
    pub state: DeliveryState,
    /// Rows that the store has acknowledged and that are deleted.
    pub delivered: u64,
    /// Rows that name nothing. They stay in the table, with the reason in the column `refused`: mend the
    /// writer, and what they should have invalidated.
    pub refused: u64,
    /// How often delivering ended in an error: of the database, or of the store. Nothing is lost by it.
    pub failures: u64,
    /// The last of them.
    pub last_failure: Option<OutboxError>,
    /// Rows that wait to be delivered, as this pod found them last, at most 10,000; `None` unless it delivers.
    pub waiting: Option<usize>,
    /// For how long the oldest of them has waited since it was written; zero without any, `None` unless
    /// this pod delivers. The time that its transaction took to commit is part of it.
    pub lag: Option<Duration>,
}

#[derive(Debug)]
pub(super) struct Progress {
    health: Mutex<DeliveryHealth>,
    wait: Arc<Wait>,
    /// Of the cache.
    counts: Arc<OutboxCounts>,
}

impl Progress {
    pub(super) fn new(counts: &Arc<OutboxCounts>) -> Self {
        Self {
            health: Mutex::new(DeliveryHealth {
                state: DeliveryState::Connecting,
                delivered: 0,
                refused: 0,
                failures: 0,
                last_failure: None,
                waiting: None,
                lag: None,
            }),
            wait: counts.add(),
            counts: Arc::clone(counts),
        }
    }

    pub(super) fn health(&self) -> DeliveryHealth {
        let mut health = lock(&self.health).clone();
        health.lag = health.waiting.map(|_| self.wait.lag());
        health
    }

    pub(super) fn enter(&self, state: DeliveryState) {
        let mut health = lock(&self.health);
        (health.state, health.waiting) = (state, None);
        self.wait.set(None);
    }

    pub(super) fn looked(&self, rows: &[Waiting]) {
        let oldest = rows.iter().map(|row| row.age).fold(0.0, f64::max);
        let age = Duration::try_from_secs_f64(oldest).unwrap_or_default();
        let since = Instant::now().checked_sub(age);
        let waits = !rows.is_empty();
        lock(&self.health).waiting = Some(rows.len());
        self.wait.set(since.filter(|_| waits));
    }

    pub(super) fn done(&self, delivered: usize, refused: usize) {
        self.counts.delivered.add(delivered as u64);
        self.counts.refused.add(refused as u64);
        let mut health = lock(&self.health);
        health.delivered += delivered as u64;
        health.refused += refused as u64;
        let left = |waiting: usize| waiting.saturating_sub(delivered + refused);
        health.waiting = health.waiting.map(left);
    }

    pub(super) fn failed(&self, error: OutboxError) {
        self.counts.failures.add(1);
        let mut health = lock(&self.health);
        health.failures += 1;
        health.last_failure = Some(error);
    }
}
