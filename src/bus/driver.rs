//! The task that keeps one cache in step with its store: connect, join, touch, sync, then hear, poll, catch
//! up and apply, until the link breaks; then again, for ever.
//!
//! It waits in one place ([`Session::run`]) for whatever comes first: a hint, the end of a store call,
//! a time that a lane set itself, the heartbeat, or somebody who wants a poll now. Store calls run
//! beside it, so that hints go on being applied while the store is slow.

use super::join::{inspect, join, refused};
use super::sample::sample;
use super::{Bus, lock};
use crate::coherence::{Action, Batch, Head, Hint, Incarnation, Kind, Lane, LinkState, LogEntry};
use crate::error::{StoreError, StoreErrorKind};
use crate::random::{random, random_part};
use crate::store::rooms::RoomEvent;
use crate::store::{Hints, Link, Polled, StoreResult};
use crate::telemetry::Event;
use crate::time::Millis;
use bytes::Bytes;
use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Entries read from a log in one go.
const LOG_LIMIT: usize = 1000;
/// The shortest time between two polls that were asked for out of turn.
const POLL_GAP: Duration = Duration::from_millis(5);
/// Hints applied in a row before anything else gets its turn.
const HINT_BURST: usize = 256;
/// How much longer than it says a store may take to give up by itself: it can say what it waited for.
const CONNECT_GRACE: Duration = Duration::from_millis(100);

/// How a store call of the driver ended.
enum Done {
    Joined(StoreResult<()>),
    Polled(Millis, StoreResult<Polled>),
    Heads(Millis, StoreResult<Vec<(Lane, Head)>>),
    Log(Lane, u64, StoreResult<Vec<LogEntry>>),
}

/// Runs until the cache shuts down.
pub(super) async fn drive(bus: Arc<Bus>, first: Option<tokio::sync::oneshot::Sender<StoreError>>) {
    let mut state = LinkState::default();
    let mut first = first;
    loop {
        let error = tokio::select! {
            biased;
            () = bus.shutdown.cancelled() => break,
            error = live(&bus, &mut state) => error,
        };
        bus.unpublish();
        tracing::debug!(namespace = %bus.namespace.name, store = %bus.store.describe(),
            %error, "link to the store is down");
        bus.observed.failed(error.clone());
        bus.telemetry.tell(|| Event::LinkDown {
            reason: error.clone(),
        });
        if let Some(first) = first.take() {
            // Nobody listens any more once the cache is built.
            let _ = first.send(error);
        }
        let wait = state.failed(random() as u32);
        tokio::select! {
            () = bus.shutdown.cancelled() => break,
            () = tokio::time::sleep(wait) => {}
        }
    }
    bus.unpublish();
}

/// One life of a link; gives what ended it.
async fn live(bus: &Arc<Bus>, state: &mut LinkState) -> StoreError {
    state.connecting();
    let connect = bus.store.connect(&bus.namespace);
    let limit = bus.store.connect_timeout().saturating_add(CONNECT_GRACE);
    let (link, hints) = match bus.within(limit, "connect", connect).await {
        Ok(connected) => connected,
        Err(error) => return error,
    };
    state.touching();
    let mut session = Session {
        bus,
        link,
        hints,
        calls: JoinSet::new(),
        poll_sent: None,
        last_poll: Instant::now(),
        next_poll: Instant::now(),
        fell_behind: false,
        joining: false,
        joined: false,
        published: false,
        incarnation: None,
    };
    match session.run(state).await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

/// The link in use, and what is under way on it.
struct Session<'a> {
    bus: &'a Arc<Bus>,
    link: Arc<dyn Link>,
    hints: Box<dyn Hints>,
    calls: JoinSet<Done>,
    /// When the poll under way was sent.
    poll_sent: Option<Instant>,
    last_poll: Instant,
    next_poll: Instant,
    /// The log had to be read since the last poll, because hints were missing.
    fell_behind: bool,
    /// The namespace's record is being read or written.
    joining: bool,
    joined: bool,
    published: bool,
    /// The life of the server that the last poll met.
    incarnation: Option<Incarnation>,
}

impl Session<'_> {
    async fn run(&mut self, state: &mut LinkState) -> StoreResult<Infallible> {
        self.join();
        loop {
            let due = self.next_due();
            tokio::select! {
                // What is seldom ready first, so that a flood of hints starves nothing.
                biased;
                Some(done) = self.calls.join_next() => {
                    let done = done.map_err(|error| {
                        StoreError::new(StoreErrorKind::Protocol, "store call").with_source(error)
                    })?;
                    self.on_done(done, state)?;
                }
                () = wait_until(due) => self.on_time(),
                hint = poll_fn(|cx| self.hints.poll_next(cx)) => {
                    let hint = hint.ok_or_else(|| {
                        StoreError::new(StoreErrorKind::Unavailable, "subscription")
                    })?;
                    state.heard();
                    self.on_hints(hint).await;
                }
                () = self.bus.nudge.notified() => {}
            }
            // What came in one go is told in one go.
            self.bus.settle();
        }
    }

    /// When to look at the clock again; `None` if nothing is timed.
    fn next_due(&self) -> Option<Instant> {
        if !self.published && self.poll_sent.is_none() && !self.calls.is_empty() {
            return None; // still joining or touching
        }
        let poll = match self.poll_sent {
            Some(_) => None,
            None if self.bus.observed.is_poll_wanted() => {
                Some(self.next_poll.min(self.last_poll + POLL_GAP))
            }
            None => Some(self.next_poll),
        };
        let now = self.bus.clock.now();
        let lanes = self
            .bus
            .lanes
            .iter()
            .filter_map(|cell| lock(&cell.state).due())
            .min();
        // The coarse clock may lag the timer: look a little later rather than spin.
        let lane = lanes.map(|due| Instant::now() + due.since(now).max(Duration::from_millis(1)));
        [poll, lane].into_iter().flatten().min()
    }

    fn on_time(&mut self) {
        let now = self.bus.clock.now();
        for lane in self.bus.namespace.lanes() {
            let (missing, actions) = self.bus.step(lane, |state, out| {
                state.on_timer(now, out);
                state.misses_hints()
            });
            if !actions.is_empty() {
                self.fell_behind |= missing;
                self.bus.observed.catch_ups.fetch_add(1, Ordering::Relaxed);
            }
            self.ask_store(lane, actions);
        }
        let wanted = self.bus.observed.is_poll_wanted();
        if self.poll_sent.is_none() && (wanted || self.next_poll <= Instant::now()) {
            self.poll();
        }
    }

    /// Applies a hint and those that already wait behind it.
    async fn on_hints(&mut self, first: Bytes) {
        let mut next = Some(first);
        let mut burst = 0;
        while let Some(bytes) = next.take() {
            self.on_message(bytes);
            burst += 1;
            if burst < HINT_BURST {
                next = poll_fn(|cx| match self.hints.poll_next(cx) {
                    std::task::Poll::Ready(Some(bytes)) => std::task::Poll::Ready(Some(bytes)),
                    _ => std::task::Poll::Ready(None),
                })
                .await;
            }
        }
    }

    fn on_message(&mut self, bytes: Bytes) {
        if RoomEvent::is_one(&bytes) {
            if let Some(listener) = self.bus.room_listener.get().and_then(Weak::upgrade) {
                listener.heard(bytes);
            }
        } else {
            self.on_hint(&bytes);
        }
    }

    fn on_hint(&mut self, bytes: &[u8]) {
        let ours = |lane: &Lane| lane.0 < self.bus.namespace.lanes;
        let (lane, hints): (_, Vec<Hint>) = if let Some(batch) = Batch::decode(bytes)
            && ours(&batch.lane)
        {
            (batch.lane, batch.into_hints().collect())
        } else if let Some(hint) = Hint::decode(bytes)
            && ours(&hint.lane)
        {
            (hint.lane, vec![hint])
        } else {
            self.bus.observed.hints.fetch_add(1, Ordering::Relaxed);
            self.bus.observed.rubbish.fetch_add(1, Ordering::Relaxed);
            return;
        };
        for hint in &hints {
            if matches!(hint.entry.kind, Kind::Unknown(_)) {
                self.bus.observed.unknown.fetch_add(1, Ordering::Relaxed);
            }
            self.bus.note_lag(hint);
        }
        let now = self.bus.clock.now();
        let ((), actions) = self.bus.step(lane, |state, out| {
            hints.iter().for_each(|hint| state.on_hint(hint, now, out));
        });
        // Whoever sees it counted sees what it did.
        self.bus.observed.hints.fetch_add(1, Ordering::Release);
        self.ask_store(lane, actions);
    }

    fn on_done(&mut self, done: Done, state: &mut LinkState) -> StoreResult<()> {
        let now = self.bus.clock.now();
        match done {
            Done::Joined(joined) => {
                joined?;
                self.joining = false;
                if !std::mem::replace(&mut self.joined, true) {
                    self.touch(self.served());
                }
                self.bus.observed.ask_for_poll();
            }
            Done::Polled(sent, polled) => {
                self.poll_sent = None;
                if !self.on_polled(sent, &polled?, now, state)? {
                    return Ok(());
                }
            }
            Done::Heads(sent, heads) => {
                for (lane, head) in heads? {
                    self.on_head(lane, Some(head), sent, now);
                }
            }
            Done::Log(lane, from, entries) => {
                let entries = entries?;
                self.bus.telemetry.tell(|| Event::CatchUp {
                    lane: lane.0,
                    entries: entries.len(),
                });
                let ((), actions) = self
                    .bus
                    .step(lane, |state, out| state.on_log(from, &entries, now, out));
                self.ask_store(lane, actions);
            }
        }
        self.bus.synced.notify_waiters();
        Ok(())
    }

    /// Takes what a poll found; false if it is worth nothing.
    fn on_polled(
        &mut self,
        sent: Millis,
        polled: &Polled,
        now: Millis,
        state: &mut LinkState,
    ) -> StoreResult<bool> {
        self.bus.observed.polled(polled.server_ms, sent);
        let server = (polled.incarnation, polled.server_ms);
        self.bus.compare_clocks(server, sent);
        let settings = self.bus.space.settings();
        let record = polled.record.as_deref();
        // Where the first lane is silent, the record is too: nobody can write another there.
        let unread = polled.silent.contains(&Lane(0));
        if !unread && !settings.may_go_by(record).map_err(refused)? {
            // Evicted, or lost with everything else. What this poll found is worth nothing: we
            // cannot know who else goes by what.
            self.join();
            return Ok(false);
        }
        if polled.heads.len() != usize::from(self.bus.namespace.lanes) {
            return Err(StoreError::new(StoreErrorKind::Protocol, "poll"));
        }
        let before = self.incarnation.replace(polled.incarnation);
        if before.is_some_and(|before| before != polled.incarnation) {
            // Another life behind a connection that never broke: a proxy reconnected. Its
            // heads prove nothing until every lane is in an epoch of this life.
            self.touch(self.served());
            self.bus.life.send_modify(|lives| *lives += 1);
        } else {
            self.on_heads(sent, polled, now);
        }
        let deaf = state.polled(self.fell_behind, self.bus.rules.mechanisms);
        self.fell_behind = false;
        if deaf && self.bus.store.pushes() {
            return Err(StoreError::new(StoreErrorKind::Unavailable, "subscription")
                .with_detail("silent while the log grew"));
        }
        if !self.published {
            self.published = true;
            state.up();
            self.bus.publish(Arc::clone(&self.link));
        }
        Ok(true)
    }

    /// Gives each lane its head, and the clock by which a fork is old.
    fn on_heads(&mut self, sent: Millis, polled: &Polled, now: Millis) {
        for (lane, head) in self.bus.namespace.lanes().zip(polled.heads.iter().copied()) {
            if polled.silent.contains(&lane) {
                continue;
            }
            if let Some(head) = head.filter(|head| head.fork) {
                let server_ms = polled.clock_of(lane);
                self.bus
                    .step(lane, |state, _| state.on_clock(&head, server_ms));
            }
            self.on_head(lane, head, sent, now);
        }
    }

    fn on_head(&mut self, lane: Lane, head: Option<Head>, sent: Millis, now: Millis) {
        let ((), actions) = self
            .bus
            .step(lane, |state, out| state.on_head(head, sent, now, out));
        self.ask_store(lane, actions);
    }

    /// Starts what a lane asks of the store.
    fn ask_store(&mut self, lane: Lane, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Poll => self.bus.observed.ask_for_poll(),
                Action::Touch => self.touch(vec![lane]),
                Action::Reissue(call) => {
                    // Nobody waits for it: it sees itself through.
                    let extra = self.bus.extra_again(&call);
                    drop(self.bus.announce(lane, call, extra));
                }
                Action::ReadLog { from } => {
                    let (link, limit) = (Arc::clone(&self.link), self.bus.timing.poll_timeout);
                    let bus = Arc::clone(self.bus);
                    self.calls.spawn(async move {
                        let read = link.log_since(lane, from, LOG_LIMIT);
                        Done::Log(lane, from, bus.within(limit, "log", read).await)
                    });
                }
                Action::Fence { epoch } => {
                    tracing::warn!(namespace = %self.bus.namespace.name, lane = lane.0,
                        "the store lost part of its log: fencing the lane");
                    let (link, limit) = (Arc::clone(&self.link), self.bus.timing.poll_timeout);
                    let (opening, sent) = (self.bus.opening(), self.bus.clock.now());
                    let bus = Arc::clone(self.bus);
                    self.calls.spawn(async move {
                        let fence = link.fence(lane, epoch, opening);
                        let head = bus.within(limit, "fence", fence).await;
                        Done::Heads(sent, head.map(|head| vec![(lane, head)]))
                    });
                }
                // Carried out by `Bus::step`.
                Action::Evict { .. }
                | Action::Drop { .. }
                | Action::Clear { .. }
                | Action::Tell { .. }
                | Action::Flush
                | Action::Confirm { .. }
                | Action::Filled { .. } => {}
            }
        }
    }

    fn join(&mut self) {
        if !std::mem::replace(&mut self.joining, true) {
            let (bus, link) = (Arc::clone(self.bus), Arc::clone(&self.link));
            let first = !self.joined;
            self.calls.spawn(async move {
                let inspected = match first {
                    true => inspect(&bus, &link).await,
                    false => Ok(()),
                };
                Done::Joined(match inspected {
                    Ok(()) => join(&bus, &link).await,
                    Err(error) => Err(error),
                })
            });
        }
    }

    /// The lanes that the link can reach.
    fn served(&self) -> Vec<Lane> {
        let lanes = self.bus.namespace.lanes();
        lanes.filter(|&lane| self.link.serves(lane)).collect()
    }

    fn touch(&mut self, lanes: Vec<Lane>) {
        let (link, limit) = (Arc::clone(&self.link), self.bus.timing.touch_timeout);
        let lanes: Vec<_> = lanes
            .into_iter()
            .map(|lane| (lane, self.bus.opening()))
            .collect();
        let (bus, sent) = (Arc::clone(self.bus), self.bus.clock.now());
        self.calls.spawn(async move {
            let heads = bus.within(limit, "touch", link.touch(&lanes)).await;
            let named = |heads: Vec<Head>| lanes.iter().map(|(lane, _)| *lane).zip(heads).collect();
            Done::Heads(sent, heads.map(named))
        });
    }

    fn poll(&mut self) {
        self.bus.observed.take_poll_wanted();
        let (link, limit) = (Arc::clone(&self.link), self.bus.timing.poll_timeout);
        // Noted before it is sent: liveness counts from here (hole H7).
        let sent = self.bus.clock.now();
        let now = Instant::now();
        self.poll_sent = Some(now);
        self.last_poll = now;
        let jitter = 0.9 + 0.2 * random_part();
        self.next_poll = now + self.bus.timing.heartbeat.mul_f64(jitter);
        let bus = Arc::clone(self.bus);
        self.calls
            .spawn(async move { Done::Polled(sent, bus.within(limit, "poll", link.poll()).await) });
    }
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}

impl Bus {
    fn publish(&self, link: Arc<dyn Link>) {
        self.close_circuit();
        self.replace_link(Some(link));
        self.link_up.send_modify(|links| *links += 1);
        self.telemetry.tell(|| Event::LinkUp);
    }

    fn unpublish(&self) {
        self.replace_link(None);
    }

    fn replace_link(&self, new: Option<Arc<dyn Link>>) {
        let mut link = self
            .link
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        // Under the lock: who has seen the new link does not take this for its end.
        self.life.send_modify(|lives| *lives += 1);
        let old = std::mem::replace(&mut *link, new);
        drop(link);
        drop(old);
    }

    /// Starts the driver, and waits until the store is in use or the first attempt has failed.
    ///
    /// # Errors
    /// Why the first attempt failed. The driver goes on all the same.
    pub(crate) async fn start(self: &Arc<Self>) -> StoreResult<()> {
        let (failed, first_failure) = tokio::sync::oneshot::channel();
        let mut link_up = self.link_up.subscribe();
        self.driver.spawn(drive(Arc::clone(self), Some(failed)));
        self.driver.spawn(sample(Arc::clone(self)));
        tokio::select! {
            // The sender lives as long as we do.
            _ = link_up.wait_for(|links| *links > 0) => Ok(()),
            error = first_failure => Err(error.unwrap_or_else(|_| self.observed.why_down())),
        }
    }
}
