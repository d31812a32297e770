//! The source of truth: numbered versions, and a door that holds loads up.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use tidings::Loader;
use tokio::sync::watch;

/// How the source refuses, with a number to tell refusals apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refused(pub(crate) u32);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused with {}", self.0)
    }
}

impl std::error::Error for Refused {}

/// What a load of a key gives.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Version(u64),
    Refusal(u32),
    Panic,
}

/// Versions by key, 0 where nothing was committed. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Source(Arc<State>);

#[derive(Default)]
struct State {
    answers: Mutex<HashMap<u64, Answer>>,
    held: watch::Sender<bool>,
    batches: Mutex<Vec<Vec<u64>>>,
    started: AtomicUsize,
    ended: AtomicUsize,
    running: AtomicUsize,
    peak: AtomicUsize,
}

/// Counts a load that is dropped as well as one that ends.
struct Running<'a>(&'a State);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
    }
}

impl Source {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn answer(&self, key: u64, answer: Answer) {
        self.0.answers.lock().unwrap().insert(key, answer);
    }

    pub(crate) fn commit(&self, key: u64, version: u64) {
        self.answer(key, Answer::Version(version));
    }

    /// Commits the version that follows the newest one of `key`, and gives it.
    pub(crate) fn commit_next(&self, key: u64, newest: &AtomicU64) -> u64 {
        let mut answers = self.0.answers.lock().unwrap();
        let version = newest.fetch_add(1, SeqCst) + 1;
        answers.insert(key, Answer::Version(version));
        version
    }

    /// From here on loads see what is committed when they begin, and end when told to.
    pub(crate) fn hold(&self) {
        self.0.held.send_replace(true);
    }

    pub(crate) fn let_go(&self) {
        self.0.held.send_replace(false);
    }

    /// Loads begun so far.
    pub(crate) fn loads(&self) -> usize {
        self.0.started.load(SeqCst)
    }

    /// Loads that came to their end.
    pub(crate) fn ended(&self) -> usize {
        self.0.ended.load(SeqCst)
    }

    /// Loads under way.
    pub(crate) fn running(&self) -> usize {
        self.0.running.load(SeqCst)
    }

    /// The most loads that ever ran at the same time.
    pub(crate) fn peak(&self) -> usize {
        self.0.peak.load(SeqCst)
    }

    /// The keys of each load of many so far.
    pub(crate) fn batches(&self) -> Vec<Vec<u64>> {
        self.0.batches.lock().unwrap().clone()
    }

    /// One load of many keys; what a key's answer is does not matter to the others, but for a panic.
    pub(crate) async fn ask_many(&self, keys: Vec<u64>) -> Vec<(u64, Result<u64, Refused>)> {
        let state = &*self.0;
        state.batches.lock().unwrap().push(keys.clone());
        let answers = state.answers.lock().unwrap().clone();
        let _running = state.enter().await;
        let answer = |key: u64| (key, of(answers.get(&key).cloned()));
        keys.into_iter().map(answer).collect()
    }

    pub(crate) async fn ask(&self, key: u64) -> Result<u64, Refused> {
        let answer = self.0.answers.lock().unwrap().get(&key).cloned();
        let _running = self.0.enter().await;
        of(answer)
    }
}

impl State {
    /// Counts a load, and holds it up for as long as the door is shut.
    async fn enter(&self) -> Running<'_> {
        self.started.fetch_add(1, SeqCst);
        let running = self.running.fetch_add(1, SeqCst) + 1;
        self.peak.fetch_max(running, SeqCst);
        let running = Running(self);
        let mut held = self.held.subscribe();
        held.wait_for(|held| !held).await.unwrap();
        self.ended.fetch_add(1, SeqCst);
        running
    }
}

fn of(answer: Option<Answer>) -> Result<u64, Refused> {
    match answer {
        None => Ok(0),
        Some(Answer::Version(version)) => Ok(version),
        Some(Answer::Refusal(number)) => Err(Refused(number)),
        Some(Answer::Panic) => panic!("the source panics, as it was told to"),
    }
}

impl Loader<u64> for Source {
    type Value = u64;
    type Error = Refused;

    async fn load(&self, key: &u64) -> Result<u64, Refused> {
        self.ask(*key).await
    }
}
