//! A whole deployment as one value: pods, their local levels, the store, the source, and everything
//! that is on its way between them. [`World::enabled`] says what may happen next, [`World::apply`]
//! makes it happen, and every promise of the protocol is checked after each step.
//!
//! The parts are the crate's own: [`LaneState`], [`Rules`], [`Word`] and [`MemoryState`]. What is
//! written here is only what production does between them (`src/bus`), in the same order, cut where
//! something else can get in between. The simulator draws events at random, the model checker tries
//! them all.
//!
//! A pause, a slow network and a slow loader need no events of their own: any step may be put off for
//! any time. [`Event::Pause`] only makes long ones likely.

mod calls;
mod check;
mod clock;
mod config;
mod driver;
mod flights;
mod guards;
mod nodes;
mod readers;
mod settle;
mod tags;
mod versions;

pub(crate) use check::Red;
pub(crate) use config::{Budget, Config, ENDLESS};
pub(crate) use guards::GuardPart;
pub(crate) use nodes::Tally;
pub(crate) use tags::TagPart;
pub(crate) use versions::VersionPart;

use bytes::Bytes;
use calls::Invalidation;
use clock::Clock;
use config::Left;
use driver::Driver;
use flights::{Fill, Flight};
use guards::Writer;
use nodes::{Ack, Deposed, Node};
use readers::Reader;
use std::collections::BTreeMap;
use std::fmt;
use tags::Tie;
use tidings::Millis;
use tidings::coherence::{
    EntryStamp, Epoch, Hint, Kind, Lane, LaneState, Mechanism, Nonce, Rank, Word,
};
use tidings::store::memory::MemoryState;
use tidings::store::{Opening, Place};
use versions::Minimum;

/// The lane of every key.
const LANE: Lane = Lane(0);
/// The lane of the tag that entries carry, where they do.
const TAGS: Lane = Lane(1);
const ENTITY: &str = "e";
const ENTITY_HASH: u64 = 0xE;
/// How long a primary that was replaced goes on, where nobody says otherwise.
const SPLIT_MS: u16 = 500;
/// By how much a clock jumps: within a lease, and beyond.
const JUMPS: [u16; 2] = [60, 1000];

type PodId = u8;
type Key = u8;
/// What the source holds under a key: how often it was written.
type Version = u16;

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// So many milliseconds pass, everywhere.
    Advance(u16),
    /// A reader that finds nothing to serve joins the flight of its key, or starts one.
    Miss(PodId, Key),
    /// Somebody wants what is there loaded anew.
    Refresh(PodId, Key),
    /// A flight takes its next step: read the store, judge, take a lease, load, land.
    Flight(PodId, u8),
    /// A flight goes on without the store.
    Bypass(PodId, u8),
    /// A fill reaches the store.
    Fill(u8),
    /// A fill is lost on its way.
    LoseFill(u8),
    /// A reader loads the lane word.
    Look(PodId, Key),
    /// A reader takes its next step: fetch the entry, read the clock and decide.
    Read(PodId, u8),
    /// A writer commits to the source, and is about to invalidate.
    Commit(PodId, Key),
    /// The same of one who is about to put what it has committed.
    CommitPut(PodId, Key),
    /// A writer commits what every entry is made of, and is about to invalidate its tag.
    CommitTag(PodId),
    /// What was loaded, and carries a tag, takes its next step to the store.
    Store(PodId, u8),
    /// A writer is about to take a guard.
    Begin(PodId, Key),
    /// A writer under a guard takes its next step: leave the marker, be told, commit, finish.
    Guard(PodId, u8),
    /// Somebody writes every key, and is about to clear the entity.
    Clear(PodId),
    /// An invalidation takes its next step: poison, reach the store, be acknowledged.
    Invalidation(PodId, u8),
    /// The answer to an invalidation is lost: it must be repeated.
    LoseAnswer(PodId, u8),
    /// Subscribe, and touch the lane.
    Connect(PodId),
    /// The link breaks; what has arrived can still be read.
    Disconnect(PodId),
    /// Send a poll.
    Poll(PodId),
    /// A call of the driver reaches the store.
    AtStore(PodId, u8),
    /// The answer to a call of the driver is processed.
    Answer(PodId, u8),
    /// The n-th waiting hint is processed.
    Deliver(PodId, u8),
    /// The first waiting hint is lost.
    Lose(PodId),
    /// The first waiting hint comes a second time.
    Repeat(PodId),
    /// The time that the lane set itself has come.
    Timer(PodId),
    /// The pod stands still.
    Pause(PodId),
    /// The pod's machine stands still, with its clock.
    Freeze(PodId),
    /// It goes on, and its clock with it.
    Resume(PodId),
    /// The pod's clock jumps ahead by so many milliseconds.
    Jump(PodId, u16),
    /// The pod evicts an entry.
    EvictLocal(PodId, Key),
    /// The server writes its data to disk.
    Snapshot,
    /// The server restarts with what it last wrote to disk.
    Restart,
    /// The server restarts and has lost everything.
    RestartEmpty,
    /// A replica has come to have what the primary has.
    Replicate(u8),
    /// The primary is dead, and a replica takes its place.
    Promote(u8),
    /// A replica takes the primary's place, which goes on for so many milliseconds.
    Split(u8, u16),
    /// The primary that was replaced learns of it.
    Heal,
    /// Connects to the primary that was replaced.
    ConnectOld(PodId),
    /// The pod's process ends, and another one begins.
    Kill(PodId),
    /// The pod reaches nobody any more.
    Cut(PodId),
    /// It reaches everybody again.
    Mend(PodId),
    /// Somebody removes everything from the server.
    FlushAll,
    /// The log is lost.
    TrimLog,
    /// The head is evicted.
    DropHead,
    /// The floor of the entity is evicted.
    DropFloor,
    /// The minimum versions and markers are evicted.
    DropMarkers,
    /// The floors of tags are evicted.
    DropTagFloors,
    /// The node that the tag is on is replaced by its replica.
    PromoteTags(u8),
    /// A value or lease is evicted.
    Evict(Key),
}

/// An entry of a local level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    pub version: Version,
    pub stamp: EntryStamp,
    /// The end of its life, if it has one.
    pub ends: Option<Millis>,
    /// It was loaded without asking which version the source has at least.
    pub untold: bool,
    /// By its tag, if it carries one.
    pub tied: Option<Tie>,
}

/// The stripe of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Stripe {
    last: Rank,
    poisoned: u8,
    /// When an invalidation was applied last.
    disturbed: Millis,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pod {
    lane: LaneState,
    word: Word,
    stripes: Vec<Stripe>,
    entries: Vec<Option<Entry>>,
    /// The newest clear that was carried out.
    cleared: Rank,
    /// Clears that the store has not acknowledged.
    clearing: u8,
    flights: Vec<Flight>,
    readers: Vec<Reader>,
    invalidations: Vec<Invalidation>,
    writing: Vec<Writer>,
    /// When it began to follow the lane.
    followed_since: Millis,
    driver: Driver,
    paused: bool,
    clock: Clock,
    /// No server can be reached.
    cut: bool,
    /// When it last left a primary that had been replaced.
    left: Millis,
    /// What a ticker thread last published.
    ticked: Millis,
    /// By key: the newest version whose invalidation this pod had acknowledged.
    own: Vec<Version>,
    /// By key: the version that it knows the source to have at least.
    minimums: Vec<Option<Minimum>>,
    tag: tags::Side,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub now: Millis,
    pub pods: Vec<Pod>,
    primary: Node,
    replicas: Vec<Node>,
    deposed: Option<Deposed>,
    snapshot: Node,
    source: Vec<Version>,
    /// Loads read a copy of the source that is behind it.
    lags: bool,
    copy: Vec<Version>,
    /// What the copy does not have yet, and when it will.
    to_copy: Vec<(Millis, Key, Version)>,
    fills: Vec<Fill>,
    /// By key.
    acks: Vec<Vec<Ack>>,
    /// Where pods may end: which of them heard of each call in its place, a bit for each.
    heard: BTreeMap<u64, u8>,
    left: Left,
    /// No time passes beyond this.
    end: Millis,
    /// Nonces, epochs, tokens and incarnations are all drawn from here.
    drawn: u64,
    pub tally: Tally,
    pub red: Option<Red>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World")
            .field("now", &self.now.0)
            .field("source", &self.source)
            .field("red", &self.red)
            .finish_non_exhaustive()
    }
}

impl Pod {
    /// Cold, and connected to nothing.
    fn new(config: &Config) -> Self {
        let keys = usize::from(config.keys);
        Self {
            lane: LaneState::new(config.mechanisms()),
            word: Word::default(),
            stripes: vec![Stripe::default(); keys],
            entries: vec![None; keys],
            cleared: Rank::default(),
            clearing: 0,
            flights: Vec::new(),
            readers: Vec::new(),
            invalidations: Vec::new(),
            writing: Vec::new(),
            followed_since: Millis(0),
            driver: Driver::default(),
            paused: false,
            clock: Clock::default(),
            cut: false,
            left: Millis(0),
            ticked: Millis(0),
            own: vec![0; keys],
            minimums: vec![None; keys],
            tag: tags::Side::new(config),
        }
    }
}

impl World {
    /// Cold pods, an empty store, version 0 of everything in the source.
    pub(crate) fn new(config: &Config) -> Self {
        let keys = usize::from(config.keys);
        let server = Node::new(keys);
        let mut world = Self {
            now: Millis(0),
            pods: vec![Pod::new(config); usize::from(config.pods)],
            snapshot: server.clone(),
            replicas: vec![server.clone(); usize::from(config.replicas)],
            primary: server,
            deposed: None,
            source: vec![0; keys],
            lags: config.lag_ms > 0,
            copy: vec![0; keys],
            to_copy: Vec::new(),
            fills: Vec::new(),
            acks: vec![Vec::new(); keys],
            heard: BTreeMap::new(),
            left: Left::new(config),
            end: Millis(config.until),
            drawn: 1,
            tally: Tally::default(),
            red: None,
        };
        if config.warm {
            world.warm_up(config);
        }
        world.end = Millis(world.now.0.saturating_add(config.until));
        world
    }

    /// What may happen next.
    pub(crate) fn enabled(&self, config: &Config) -> Vec<Event> {
        let mut out = Vec::with_capacity(32);
        if self.red.is_some() {
            return out;
        }
        let in_time = |ms: &&u16| self.now.0 + u64::from(**ms) <= self.end.0;
        out.extend(
            config
                .ticks
                .iter()
                .filter(in_time)
                .map(|&ms| Event::Advance(ms)),
        );
        for at in 0..self.pods.len() {
            let (pod, n) = (&self.pods[at], at as u8);
            self.enabled_on_the_way(pod, n, config, &mut out);
            self.enabled_for_process(pod, n, &mut out);
            if pod.paused {
                out.push(Event::Resume(n));
                continue;
            }
            if self.left.pauses > 0 {
                out.push(Event::Pause(n));
            }
            if self.left.freezes > 0 {
                out.push(Event::Freeze(n));
            }
            if self.left.jumps > 0 {
                out.extend(JUMPS.map(|ms| Event::Jump(n, ms)));
            }
            if self.left.evictions > 0 {
                let held = (0..config.keys).filter(|&key| pod.entries[usize::from(key)].is_some());
                out.extend(held.map(|key| Event::EvictLocal(n, key)));
            }
            self.enabled_flights(pod, n, config, &mut out);
            self.enabled_readers(pod, n, config, &mut out);
            self.enabled_calls(pod, n, config, &mut out);
            self.enabled_tags(pod, n, config, &mut out);
            self.enabled_guards(pod, n, config, &mut out);
            self.enabled_driver(pod, n, config, &mut out);
        }
        for fill in 0..self.fills.len() as u8 {
            out.push(Event::Fill(fill));
            if self.left.losses > 0 {
                out.push(Event::LoseFill(fill));
            }
        }
        self.enabled_disasters(config, &mut out);
        out
    }

    /// What may happen to a pod's process, or to all its ways.
    fn enabled_for_process(&self, pod: &Pod, n: u8, out: &mut Vec<Event>) {
        if pod.cut {
            out.push(Event::Mend(n));
        } else if self.left.cuts > 0 {
            out.push(Event::Cut(n));
        }
        if self.left.kills > 0 {
            out.push(Event::Kill(n));
        }
    }

    fn enabled_disasters(&self, config: &Config, out: &mut Vec<Event>) {
        let left = &self.left;
        let mut offer = |left: u8, event: Event| {
            if left > 0 {
                out.push(event);
            }
        };
        if left.restarts > 0 && self.snapshot != self.primary {
            offer(left.snapshots, Event::Snapshot);
        }
        offer(left.restarts, Event::Restart);
        offer(left.empty_restarts, Event::RestartEmpty);
        for replica in 0..self.replicas.len() as u8 {
            if self.replicas[usize::from(replica)] != self.primary {
                offer(left.replications, Event::Replicate(replica));
            }
            offer(left.promotions, Event::Promote(replica));
            offer(left.splits, Event::Split(replica, SPLIT_MS));
            offer(left.tag_promotions, Event::PromoteTags(replica));
        }
        offer(u8::from(self.deposed.is_some()), Event::Heal);
        offer(left.flushes, Event::FlushAll);
        offer(left.trims, Event::TrimLog);
        offer(left.heads_lost, Event::DropHead);
        offer(left.floors_lost, Event::DropFloor);
        offer(left.minimums_lost, Event::DropMarkers);
        offer(left.tag_floors_lost, Event::DropTagFloors);
        for key in 0..config.keys {
            offer(left.evictions, Event::Evict(key));
        }
    }

    /// Makes `event` happen; false if it cannot happen now. What was promised is checked afterwards.
    pub(crate) fn apply(&mut self, config: &Config, event: Event) -> bool {
        let done = self.happen(config, event);
        if done && self.red.is_none() {
            self.check(config);
        }
        done
    }

    fn happen(&mut self, config: &Config, event: Event) -> bool {
        let done = self.step(config, event);
        self.catch_up();
        self.account();
        done
    }

    fn step(&mut self, config: &Config, event: Event) -> bool {
        use Event as E;
        match event {
            E::Advance(ms) => self.advance(config, u64::from(ms)),
            E::Miss(pod, key) => self.miss(config, pod, key),
            E::Refresh(pod, key) => self.refresh(config, pod, key),
            E::Flight(pod, at) => self.step_flight(config, pod, at),
            E::Bypass(pod, at) => self.bypass(config, pod, at),
            E::Fill(at) => self.fill(config, at),
            E::LoseFill(at) => spend(&mut self.left.losses) && take(&mut self.fills, at).is_some(),
            E::Look(pod, key) => self.look(config, pod, key),
            E::Read(pod, at) => self.step_reader(config, pod, at),
            E::Commit(pod, key) => self.commit(config, pod, key, false),
            E::CommitPut(pod, key) => self.commit(config, pod, key, true),
            E::CommitTag(pod) => self.commit_tag(pod),
            E::Store(pod, at) => self.step_unfilled(config, pod, at),
            E::Begin(pod, key) => self.begin_write(pod, key),
            E::Guard(pod, at) => self.step_guard(config, pod, at),
            E::Clear(pod) => self.begin_clear(config, pod),
            E::Invalidation(pod, at) => self.step_invalidation(config, pod, at),
            E::LoseAnswer(pod, at) => self.lose_answer(pod, at),
            E::Connect(pod) => self.connect(config, pod),
            E::Disconnect(pod) => spend(&mut self.left.disconnects) && self.disconnect(pod),
            E::Poll(pod) => self.poll(pod),
            E::AtStore(pod, at) => self.at_store(config, pod, at),
            E::Answer(pod, at) => self.answer(config, pod, at),
            E::Deliver(pod, at) => self.deliver(config, pod, at),
            E::Lose(pod) => spend(&mut self.left.losses) && self.lose(pod),
            E::Repeat(pod) => spend(&mut self.left.repeats) && self.repeat(pod),
            E::Timer(pod) => self.timer(config, pod),
            E::Pause(pod) => spend(&mut self.left.pauses) && self.set_paused(pod, true),
            E::Freeze(pod) => self.freeze(pod),
            E::Resume(pod) => self.set_paused(pod, false),
            E::Jump(pod, ms) => self.jump(pod, ms),
            E::EvictLocal(pod, key) => {
                let Some(pod) = self.running(pod) else {
                    return false;
                };
                let evicted = pod.entries[usize::from(key)].take().is_some();
                spend(&mut self.left.evictions) && evicted
            }
            E::Snapshot => {
                spend(&mut self.left.snapshots) && {
                    self.snapshot = self.primary.clone();
                    true
                }
            }
            E::Restart => {
                spend(&mut self.left.restarts) && self.restart(config, Some(self.snapshot.clone()))
            }
            E::RestartEmpty => spend(&mut self.left.empty_restarts) && self.restart(config, None),
            E::Replicate(at) => spend(&mut self.left.replications) && self.replicate(at),
            E::Promote(at) => spend(&mut self.left.promotions) && self.promote(config, at, 0),
            E::Split(at, ms) => spend(&mut self.left.splits) && self.promote(config, at, ms),
            E::Heal => {
                let split = self.deposed.is_some();
                self.end_minority(self.now);
                split
            }
            E::ConnectOld(pod) => self.connect_old(config, pod),
            E::Kill(pod) => spend(&mut self.left.kills) && self.kill(config, pod),
            E::Cut(pod) => spend(&mut self.left.cuts) && self.cut(pod),
            E::Mend(pod) => self.mend(pod),
            E::FlushAll => spend(&mut self.left.flushes) && self.befall(MemoryState::flush_all),
            E::TrimLog => {
                spend(&mut self.left.trims) && self.befall(|server| server.trim_log(LANE))
            }
            E::DropHead => {
                spend(&mut self.left.heads_lost) && self.befall(|server| server.drop_head(LANE))
            }
            E::DropFloor => {
                spend(&mut self.left.floors_lost)
                    && self.befall(|server| server.drop_floor(LANE, ENTITY))
            }
            E::DropMarkers => {
                spend(&mut self.left.minimums_lost)
                    && self.befall(|server| server.drop_markers(LANE))
            }
            E::DropTagFloors => {
                spend(&mut self.left.tag_floors_lost) && self.befall(MemoryState::drop_tag_floors)
            }
            E::PromoteTags(at) => spend(&mut self.left.tag_promotions) && self.promote_tags(at),
            E::Evict(key) => {
                spend(&mut self.left.evictions) && self.primary.state.evict(LANE, &physical(key))
            }
        }
    }

    fn advance(&mut self, config: &Config, ms: u64) -> bool {
        if self.now.0 + ms > self.end.0 {
            return false;
        }
        self.now = Millis(self.now.0 + ms);
        self.pass_minority();
        for pod in self.pods.iter_mut().filter(|pod| !pod.paused) {
            pod.ticked = pod.clock.at(self.now);
        }
        self.forget_old_acks(config);
        true
    }

    fn befall(&mut self, disaster: impl FnOnce(&mut MemoryState)) -> bool {
        disaster(&mut self.primary.state);
        self.note_forgotten();
        true
    }

    fn set_paused(&mut self, pod: u8, paused: bool) -> bool {
        let now = self.now;
        let Some(pod) = self.pods.get_mut(usize::from(pod)) else {
            return false;
        };
        if !paused {
            pod.clock.go_on(now);
        }
        std::mem::replace(&mut pod.paused, paused) != paused
    }

    /// A pod that is not paused.
    fn running(&mut self, pod: u8) -> Option<&mut Pod> {
        self.pods
            .get_mut(usize::from(pod))
            .filter(|pod| !pod.paused)
    }

    /// What a reader on `pod` takes for the time.
    fn clock(&self, config: &Config, pod: &Pod) -> Millis {
        if config.on(Mechanism::KernelClock) {
            pod.clock.at(self.now)
        } else {
            pod.ticked
        }
    }

    /// Sends hints to whoever is subscribed there. Announced fills only wake those who wait for them, and
    /// here nobody waits longer than it likes.
    fn publish(&mut self, reign: u8, hints: Vec<Hint>) {
        for hint in hints {
            if hint.entry.kind == Kind::Filled {
                continue;
            }
            for pod in &mut self.pods {
                pod.driver.hear(reign, &hint);
            }
        }
    }

    fn draw(&mut self) -> u64 {
        self.drawn += 1;
        self.drawn
    }

    /// What a new epoch would be made of.
    fn opening(&mut self, config: &Config) -> Opening {
        let drawn = self.draw();
        let epoch = if config.on(Mechanism::RandomEpoch) {
            0xE000 + drawn
        } else {
            1
        };
        Opening {
            epoch: Epoch(epoch),
            nonce: Nonce(0xA000 + drawn),
        }
    }
}

fn place<'a>(key: Key, physical: &'a [u8]) -> Place<'a> {
    Place {
        lane: LANE,
        hash: hash(key),
        entity: ENTITY,
        key: physical,
    }
}

fn hash(key: Key) -> u64 {
    100 + u64::from(key)
}

fn key_of(hash: u64) -> usize {
    (hash - 100) as usize
}

fn physical(key: Key) -> Bytes {
    const NAMES: &[u8] = b"abcdefgh";
    let at = usize::from(key);
    Bytes::from_static(&NAMES[at..=at])
}

/// Takes one from a budget that is not endless; false if nothing is left.
fn spend(left: &mut u8) -> bool {
    let some = *left > 0;
    if some && *left < ENDLESS {
        *left -= 1;
    }
    some
}

fn take<T>(list: &mut Vec<T>, at: u8) -> Option<T> {
    let at = usize::from(at);
    (at < list.len()).then(|| list.remove(at))
}
