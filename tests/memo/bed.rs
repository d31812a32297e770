//! A cache on a clock of the test's own, and something to compute that can be held up.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};
use tidings::store::Memory;
use tidings::{Cache, CacheBuilder, CacheError, Clock, Loader, Memo, MemoBuilder, Millis};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How a computation is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused(pub(crate) u32);

pub(crate) type Numbers = Memo<u64, u64, Refused>;
pub(crate) type Got = Result<u64, CacheError<Refused>>;

/// How long something that must happen may take before the promise counts as broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Bed {
    pub(crate) cache: Cache,
    pub(crate) clock: Clock,
    pub(crate) source: Source,
    _place: Place,
}

/// Where pods meet: the embedded store, or that which `servers.rs` is told to take.
#[derive(Clone)]
pub(crate) enum Place {
    Embedded(Memory),
    #[cfg(feature = "redis")]
    Servers(String, Arc<crate::servers::Servers>),
}

impl Place {
    pub(crate) fn new() -> Self {
        #[cfg(feature = "redis")]
        if crate::servers::is_told() {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let namespace = format!("memo-{}", NEXT.fetch_add(1, SeqCst));
            return Self::Servers(namespace, crate::servers::servers());
        }
        Self::Embedded(Memory::new())
    }

    pub(crate) fn builder(&self) -> CacheBuilder {
        match self {
            Self::Embedded(memory) => Cache::builder("memo").store(memory.clone()),
            #[cfg(feature = "redis")]
            Self::Servers(namespace, servers) => {
                Cache::builder(namespace.as_str()).store_url(servers.url())
            }
        }
    }
}

impl Bed {
    pub(crate) async fn new() -> Self {
        Self::at(Place::new()).await
    }

    /// For paused time, in which a server has none to answer.
    pub(crate) async fn embedded() -> Self {
        Self::at(Place::Embedded(Memory::new())).await
    }

    async fn at(place: Place) -> Self {
        let clock = Clock::manual(Millis(1_000));
        let cache = place.builder().clock(clock.clone()).build().await.unwrap();
        let source = Source::default();
        Self {
            cache,
            clock,
            source,
            _place: place,
        }
    }

    pub(crate) fn builder(&self) -> MemoBuilder<u64, u64, Refused> {
        self.cache.memo("number", self.source.clone())
    }

    pub(crate) fn numbers(&self) -> Numbers {
        self.builder().build().unwrap()
    }

    pub(crate) fn pass(&self, millis: u64) {
        self.clock.advance(Duration::from_millis(millis));
    }
}

/// What a computation of a key gives.
#[derive(Clone, Copy)]
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
    started: AtomicUsize,
    running: AtomicUsize,
}

/// Counts a computation that is dropped as well as one that ends.
struct Running<'a>(&'a State);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, SeqCst);
    }
}

impl Source {
    pub(crate) fn answer(&self, key: u64, answer: Answer) {
        self.0.answers.lock().unwrap().insert(key, answer);
    }

    pub(crate) fn commit(&self, key: u64, version: u64) {
        self.answer(key, Answer::Version(version));
    }

    /// From here on computations see what is committed when they begin, and end when told to.
    pub(crate) fn hold(&self) {
        self.0.held.send_replace(true);
    }

    pub(crate) fn let_go(&self) {
        self.0.held.send_replace(false);
    }

    /// Computations begun so far.
    pub(crate) fn begun(&self) -> usize {
        self.0.started.load(SeqCst)
    }

    /// Computations under way.
    pub(crate) fn running(&self) -> usize {
        self.0.running.load(SeqCst)
    }

    /// Waits until exactly `count` computations are under way.
    pub(crate) async fn runs(&self, count: usize) {
        let what = format!("{count} computations under way");
        eventually(&what, async || self.running() == count).await;
    }
}

impl Loader<u64> for Source {
    type Value = u64;
    type Error = Refused;

    async fn load(&self, key: &u64) -> Result<u64, Refused> {
        let state = &*self.0;
        state.started.fetch_add(1, SeqCst);
        state.running.fetch_add(1, SeqCst);
        let _running = Running(state);
        let answer = state.answers.lock().unwrap().get(key).copied();
        let mut held = state.held.subscribe();
        held.wait_for(|held| !held).await.unwrap();
        match answer {
            None => Ok(0),
            Some(Answer::Version(version)) => Ok(version),
            Some(Answer::Refusal(number)) => Err(Refused(number)),
            Some(Answer::Panic) => panic!("the computation panics, as it was told to"),
        }
    }
}

/// A call in a task of its own.
pub(crate) fn getter(numbers: &Numbers, key: u64) -> JoinHandle<Got> {
    let numbers = numbers.clone();
    tokio::spawn(async move { numbers.get(&key).await })
}

pub(crate) fn refresher(numbers: &Numbers, key: u64) -> JoinHandle<Got> {
    let numbers = numbers.clone();
    tokio::spawn(async move { numbers.refresh(&key).await })
}

/// Calls that have all joined the computation under way.
pub(crate) async fn on_board(
    numbers: &Numbers,
    key: u64,
    calls: usize,
) -> Vec<Pin<Box<dyn Future<Output = Got> + Send>>> {
    let mut on_board = Vec::new();
    for _ in 0..calls {
        let numbers = numbers.clone();
        let mut call = Box::pin(async move { numbers.get(&key).await }) as Pin<Box<_>>;
        poll_once(&mut call).await;
        on_board.push(call as _);
    }
    on_board
}

/// Waits until `look` gives true.
pub(crate) async fn eventually(what: &str, mut look: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !look().await {
        assert!(began.elapsed() < PATIENCE, "never happened: {what}");
        // Yields rather than sleeps: a sleep would move paused time.
        tokio::task::yield_now().await;
    }
}

/// Waits for a future that must end.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(PATIENCE, future).await;
    ended.unwrap_or_else(|_| panic!("never ended: {what}"))
}

/// Polls a future that is not ready once: its effects up to its first wait have happened.
pub(crate) async fn poll_once(future: &mut (impl Future + Unpin)) {
    let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx).is_pending()));
    assert!(polled.await, "it waits");
}
