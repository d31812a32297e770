//! This pod's view of one room: one replica for all who watch it here, and the task that follows the
//! room with it.
//!
//! The task subscribes before it reads, so that nothing falls between. It reads again after a hole in
//! the numbers of the events, after a new link, and when a heartbeat shows that the room has moved on
//! while no event came; the difference is told as events.

use super::replica::{Another, Delta, Heard, Reading, Replica};
use super::room::Room;
use super::told::{Tell, Told};
use crate::bus::lock;
use crate::coherence::Position;
use crate::error::StoreError;
use crate::store::Link;
use crate::store::rooms::{MAX_PAGE, RoomEvent};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

/// Events that wait for the task; more are taken for lost.
const MAX_INBOX: usize = 8192;
/// Their metas.
const MAX_INBOX_BYTES: usize = 1 << 23;
/// How long an event may be under way when its effect has been seen already.
const UNDER_WAY: Duration = Duration::from_millis(250);
/// The pause after a reading that did not come out well, doubling.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct State {
    replica: Replica,
    /// The replica has been read.
    synced: bool,
    consumers: HashMap<u64, Told>,
    next_consumer: u64,
    inbox: VecDeque<RoomEvent>,
    inbox_bytes: usize,
    /// Events were thrown away.
    spilled: bool,
    /// What a heartbeat saw that no event has said yet, and when to stop waiting for that.
    seen: Option<(Option<Position>, Instant)>,
    is_followed: bool,
    closed: bool,
}

#[derive(Debug, Default)]
pub(super) struct View {
    state: Mutex<State>,
    wake: Notify,
}

impl View {
    pub(super) fn is_in_use(&self) -> bool {
        lock(&self.state).is_followed
    }

    /// An event came. Never waits.
    pub(super) fn heard(&self, event: RoomEvent) {
        let mut state = lock(&self.state);
        if !state.is_followed {
            return;
        }
        state.inbox_bytes += event.meta.len();
        state.inbox.push_back(event);
        if state.inbox.len() > MAX_INBOX || state.inbox_bytes > MAX_INBOX_BYTES {
            state.empty_inbox();
            state.spilled = true;
        }
        self.wake.notify_one();
    }

    /// A heartbeat saw where the room is.
    pub(super) fn seen(&self, at: Option<Position>) {
        let mut state = lock(&self.state);
        if state.is_followed && state.synced && state.replica.is_behind(at) {
            state.seen.get_or_insert((at, Instant::now() + UNDER_WAY));
            self.wake.notify_one();
        }
    }

    /// Adds somebody who is told everything from now on, beginning with what is there.
    pub(super) fn add(room: &Arc<Room>) -> u64 {
        let mut state = lock(&room.view.state);
        let id = state.next_consumer;
        state.next_consumer += 1;
        state.closed |= room.rooms.is_closing();
        let told = match state.closed {
            true => Told::all(),
            false => Told::nothing(&state.replica),
        };
        state.consumers.insert(id, told);
        let is_new = !state.closed && !std::mem::replace(&mut state.is_followed, true);
        drop(state);
        if is_new {
            room.rooms.spawn(follow(Arc::clone(room)));
            room.used();
        }
        id
    }

    pub(super) fn remove(&self, consumer: u64) {
        let told = lock(&self.state).consumers.remove(&consumer);
        self.wake.notify_one();
        drop(told);
    }

    /// What to tell a consumer next; `None` once the cache is closed and everything is told.
    pub(super) fn poll(&self, consumer: u64, cx: &mut Context<'_>) -> Poll<Option<Tell>> {
        let mut state = lock(&self.state);
        let State {
            replica,
            synced,
            consumers,
            closed,
            ..
        } = &mut *state;
        let Some(told) = consumers.get_mut(&consumer) else {
            return Poll::Ready(None);
        };
        match told.next(replica, *synced) {
            Some(tell) => Poll::Ready(Some(tell)),
            None if *closed => Poll::Ready(None),
            None => {
                told.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl State {
    fn empty_inbox(&mut self) -> VecDeque<RoomEvent> {
        self.inbox_bytes = 0;
        std::mem::take(&mut self.inbox)
    }

    fn tell(&mut self, deltas: Vec<Delta>) {
        for told in self.consumers.values_mut() {
            for delta in &deltas {
                told.push(delta.clone());
            }
        }
        self.wake_consumers();
    }

    fn wake_consumers(&mut self) {
        let consumers = self.consumers.values_mut();
        consumers
            .filter_map(|told| told.waker.take())
            .for_each(std::task::Waker::wake);
    }
}

/// Why the task stops following for the moment.
enum Stop {
    Closed,
    /// Nobody watches any more.
    Idle,
    /// The link is another, or gave an error.
    Again,
}

/// Follows a room until nobody watches it.
async fn follow(room: Arc<Room>) {
    let mut pause = PAUSE_MIN;
    let mut follower = Follower::new(&room);
    loop {
        let stop = match follower.subscribe().await {
            Ok(link) => {
                let stop = follower.run(&*link, &mut pause).await;
                if matches!(stop, Stop::Idle) {
                    // Before anybody else can be told that the room is not followed any more: their
                    // subscription must not be the one that this ends.
                    let _ = room
                        .rooms
                        .call("unwatch", link.rooms().unwatch(room.place()))
                        .await;
                }
                stop
            }
            Err(stop) => stop,
        };
        match stop {
            Stop::Closed => return close(&room),
            Stop::Idle => {
                let mut state = lock(&room.view.state);
                if state.consumers.is_empty() {
                    let next_consumer = state.next_consumer;
                    *state = State {
                        next_consumer,
                        ..State::default()
                    };
                    return;
                }
            }
            Stop::Again => follower.rest(&mut pause).await,
        }
    }
}

fn close(room: &Room) {
    let mut state = lock(&room.view.state);
    state.closed = true;
    state.is_followed = false;
    state.wake_consumers();
}

struct Follower<'a> {
    room: &'a Arc<Room>,
    life: watch::Receiver<u64>,
    /// When those who were not brought again are taken for gone.
    doubts_end: Option<Instant>,
}

impl<'a> Follower<'a> {
    fn new(room: &'a Arc<Room>) -> Self {
        Self {
            room,
            life: room.rooms.bus.life(),
            doubts_end: None,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.room.view.state)
    }

    async fn subscribe(&mut self) -> Result<Arc<dyn Link>, Stop> {
        loop {
            // Before it is taken: the coming of this link is not its end.
            self.life.borrow_and_update();
            match self.room.rooms.bus.link() {
                Ok(link) => {
                    // What came through another subscription may have a hole before it.
                    self.state().empty_inbox();
                    let watch = link.rooms().watch(self.room.place());
                    let watched = self.room.rooms.call("watch", watch).await;
                    return watched.map(|()| Arc::clone(&link)).map_err(again);
                }
                Err(_) => self.change().await?,
            }
        }
    }

    /// Waits for another link.
    async fn change(&mut self) -> Result<(), Stop> {
        loop {
            let doubts_end = self.doubts_end();
            tokio::select! {
                biased;
                () = self.room.rooms.bus.closing.cancelled() => return Err(Stop::Closed),
                _ = self.life.changed() => return Ok(()),
                () = self.room.view.wake.notified() => self.go_on()?,
                () = sleep_until_some(doubts_end) => self.end_doubts(),
            }
        }
    }

    async fn rest(&self, pause: &mut Duration) {
        tokio::select! {
            () = self.room.rooms.bus.closing.cancelled() => {}
            () = tokio::time::sleep(*pause) => {}
        }
        *pause = (*pause * 2).min(PAUSE_MAX);
    }

    fn go_on(&self) -> Result<(), Stop> {
        if self.room.rooms.is_closing() {
            return Err(Stop::Closed);
        }
        match self.state().consumers.is_empty() {
            true => Err(Stop::Idle),
            false => Ok(()),
        }
    }

    async fn run(&mut self, link: &dyn Link, pause: &mut Duration) -> Stop {
        loop {
            match self.read(link).await {
                Ok(true) => *pause = PAUSE_MIN,
                // Something was missed while it was read.
                Ok(false) => {
                    self.rest(pause).await;
                    continue;
                }
                Err(stop) => return stop,
            }
            if let Err(stop) = self.follow_events().await {
                return stop;
            }
        }
    }

    /// Reads the room, and tells the difference; whether the replica is up to date then.
    async fn read(&mut self, link: &dyn Link) -> Result<bool, Stop> {
        let mut reading = Reading::default();
        {
            let mut state = self.state();
            state.spilled = false;
            state.seen = None;
        }
        while !reading.has_ended() {
            self.go_on()?;
            let page = self.room.look("page", || {
                link.rooms()
                    .page(self.room.place(), reading.last(), MAX_PAGE)
            });
            let page = page.await.map_err(again)?;
            if reading
                .page(page)
                .and_then(|()| self.hear(&mut reading))
                .is_err()
            {
                reading = Reading::default();
            }
        }
        let deadline = Instant::now() + UNDER_WAY;
        while !reading.is_whole() {
            tokio::select! {
                biased;
                () = sleep_until(deadline) => break,
                () = self.room.view.wake.notified() => self.go_on()?,
            }
            if self.hear(&mut reading).is_err() {
                return Ok(false);
            }
        }
        Ok(self.finish(reading))
    }

    /// Hands the events that have come to a reading.
    fn hear(&self, reading: &mut Reading) -> Result<(), Another> {
        let events = self.state().empty_inbox();
        events.into_iter().try_for_each(|event| reading.hear(event))
    }

    fn finish(&mut self, reading: Reading) -> bool {
        let is_whole = reading.is_whole();
        let mut deltas = Vec::new();
        let mut state = self.state();
        reading.finish(&mut state.replica, &mut deltas);
        state.synced = true;
        state.tell(deltas);
        is_whole && !state.spilled
    }

    /// Follows the room until it has to be read again.
    async fn follow_events(&mut self) -> Result<(), Stop> {
        loop {
            let seen_until = match self.take_events() {
                Some(seen_until) => seen_until,
                None => return Ok(()),
            };
            let doubts_end = self.doubts_end();
            tokio::select! {
                biased;
                () = self.room.rooms.bus.closing.cancelled() => return Err(Stop::Closed),
                _ = self.life.changed() => return Err(Stop::Again),
                () = self.room.view.wake.notified() => self.go_on()?,
                () = sleep_until_some(doubts_end) => self.end_doubts(),
                () = sleep_until_some(seen_until) => {}
            }
        }
    }

    /// Applies the events that have come. Gives until when to wait for more, if a heartbeat saw some;
    /// `None` if there is no point in waiting.
    fn take_events(&self) -> Option<Option<Instant>> {
        let mut deltas = Vec::new();
        let mut state = self.state();
        let events = state.empty_inbox();
        let heard = events.iter().all(|event| {
            let heard = state.replica.hear(event, &mut deltas);
            heard == Heard::Followed
        });
        if !deltas.is_empty() {
            state.tell(deltas);
        }
        if let Some((seen, _)) = state.seen
            && !state.replica.is_behind(seen)
        {
            state.seen = None;
        }
        let until = state.seen.map(|(_, until)| until);
        let late = until.is_some_and(|until| until <= Instant::now());
        (heard && !state.spilled && !late).then_some(until)
    }

    /// When those whose room was lost are taken for gone: a TTL after that was noticed.
    fn doubts_end(&mut self) -> Option<Instant> {
        let ttl = self.room.ttl;
        let has_doubts = self.state().replica.has_doubts();
        self.doubts_end = match self.doubts_end {
            Some(end) if has_doubts => Some(end),
            _ => has_doubts.then(|| Instant::now() + ttl),
        };
        self.doubts_end
    }

    fn end_doubts(&self) {
        let mut deltas = Vec::new();
        let mut state = self.state();
        state.replica.end_doubts(&mut deltas);
        state.tell(deltas);
    }
}

fn again(_: StoreError) -> Stop {
    Stop::Again
}

async fn sleep_until_some(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
