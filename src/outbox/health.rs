//! How a delivery is doing.

use super::OutboxError;
use super::row::Waiting;
use crate::bus::lock;
use std::sync::Mutex;
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
pub(super) struct Progress(Mutex<Noted>);

#[derive(Debug)]
struct Noted {
    health: DeliveryHealth,
    /// When [`DeliveryHealth::lag`] was what it is, while rows wait.
    looked: Option<Instant>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Noted {
            health: DeliveryHealth {
                state: DeliveryState::Connecting,
                delivered: 0,
                refused: 0,
                failures: 0,
                last_failure: None,
                waiting: None,
                lag: None,
            },
            looked: None,
        }))
    }

    pub(super) fn health(&self) -> DeliveryHealth {
        let noted = lock(&self.0);
        let mut health = noted.health.clone();
        let since = noted.looked.map(|looked| looked.elapsed());
        health.lag = health.lag.map(|lag| lag + since.unwrap_or_default());
        health
    }

    pub(super) fn enter(&self, state: DeliveryState) {
        let mut noted = lock(&self.0);
        noted.health.state = state;
        (noted.health.waiting, noted.health.lag, noted.looked) = (None, None, None);
    }

    pub(super) fn looked(&self, rows: &[Waiting]) {
        let mut noted = lock(&self.0);
        let oldest = rows.iter().map(|row| row.age).fold(0.0, f64::max);
        noted.health.waiting = Some(rows.len());
        noted.health.lag = Some(Duration::try_from_secs_f64(oldest).unwrap_or_default());
        noted.looked = (!rows.is_empty()).then(Instant::now);
    }

    pub(super) fn done(&self, delivered: usize, refused: usize) {
        let health = &mut lock(&self.0).health;
        health.delivered += delivered as u64;
        health.refused += refused as u64;
        let left = |waiting: usize| waiting.saturating_sub(delivered + refused);
        health.waiting = health.waiting.map(left);
    }

    pub(super) fn failed(&self, error: OutboxError) {
        let health = &mut lock(&self.0).health;
        health.failures += 1;
        health.last_failure = Some(error);
    }
}
