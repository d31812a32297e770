//! One load per key and pod, in steps: read the store, judge, take the lease, load, land, fill.

use super::tags::{Began, Question, Tie, Unfilled, Worth};
use super::{
    Config, Entry, Event, Key, Pod, Version, VersionPart, World, physical, place, spend, take,
};
use bytes::Bytes;
use std::time::Duration;
use tidings::Millis;
use tidings::coherence::rules::rank_of_head;
use tidings::coherence::{EntryStamp, Epoch, FlightMeta, Mechanism, Position, Rank, Verdict, View};
use tidings::store::{self, Found, LeaseReply, LeaseRequest, LeaseState};

/// Where the flags of stored bytes are, and a version behind them, as `docs/wire-format.md` has it.
const FLAGS_AT: usize = 60;
const VERSION_AT: usize = 64;
const TAG_AT: usize = 72;
const VALUE: u8 = 1;
const HAS_VERSION: u8 = 8;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Flight {
    pub(super) key: Key,
    pub(super) meta: FlightMeta,
    /// Later readers start another one.
    pub(super) detached: bool,
    /// It loads what is there anew, and nobody who misses joins it.
    refresh: bool,
    /// What it loads is kept for its youth alone.
    pub(super) guarded: bool,
    /// The version that the source has at least, as the store has told.
    pub(super) minimum: Option<Version>,
    /// It loads without having asked for that.
    pub(super) untold: bool,
    /// When it began, and its load, in the order in which the pod comes to know of things.
    moment: u32,
    then: u32,
    /// Where entries carry a tag: who may be given what, at least.
    aboard: Vec<(Began, Version)>,
    generation: u32,
    view: Option<View>,
    stage: Stage,
    /// The oldest version that all aboard may be given.
    pub(super) wants: Version,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Begun,
    /// The answer to the read is on its way.
    Found(Found),
    /// Only the floor of its tag can say what it is worth.
    Asking {
        found: Found,
        question: Question,
    },
    /// There was nothing to use.
    Absent {
        unusable: Option<Bytes>,
    },
    /// There is a value, with this token, and it is to be replaced. The lease that keeps other pods from
    /// doing the same may be lost, so here it is not even asked for.
    Standing {
        token: u64,
    },
    /// The answer to the lease is on its way.
    Leased {
        token: u64,
        reply: LeaseReply,
    },
    Loading(Option<Lease>),
    Loaded(Option<Lease>, Version),
}

/// How an outcome came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Landing {
    /// It misses nothing that was acknowledged before.
    pub as_of: Millis,
    pub then: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lease {
    token: u64,
    epoch: Epoch,
    seq: u64,
    /// The token of the value to replace, instead of a lease.
    over: Option<u64>,
}

/// A fill on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Fill {
    /// The server that it is sent to.
    to: u8,
    key: Key,
    lease: Lease,
    envelope: Vec<u8>,
}

impl Fill {
    pub(super) fn new(to: u8, key: Key, lease: Lease, envelope: Vec<u8>) -> Self {
        Self {
            to,
            key,
            lease,
            envelope,
        }
    }
}

impl World {
    pub(super) fn enabled_flights(&self, pod: &Pod, n: u8, config: &Config, out: &mut Vec<Event>) {
        for key in 0..config.keys {
            if self.would_board(config, pod, n, key) {
                out.push(Event::Miss(n, key));
            }
            if self.would_refresh(config, pod, n, key) {
                out.push(Event::Refresh(n, key));
            }
        }
        for (at, flight) in pod.flights.iter().enumerate() {
            let at = at as u8;
            let usable = pod.driver.is_usable();
            let asks = flight.stage.asks();
            if (usable || !asks) && !self.would_load_less(config, pod, usize::from(at)) {
                out.push(Event::Flight(n, at));
            }
            if asks && (config.bypass || !usable) {
                out.push(Event::Bypass(n, at));
            }
        }
    }

    fn would_board(&self, config: &Config, pod: &Pod, n: u8, key: Key) -> bool {
        let servable = self.servable(config, pod, usize::from(key)).is_some();
        if servable || config.loaders & (1 << n) == 0 {
            return false;
        }
        match self.joinable(config, pod, key) {
            Some(at) => self.joiner_wants(config, pod, &pod.flights[at]) > pod.flights[at].wants,
            None => self.left.flights > 0,
        }
    }

    fn joinable(&self, config: &Config, pod: &Pod, key: Key) -> Option<usize> {
        let (until, now) = (pod.word.until(), self.clock(config, pod));
        pod.flights.iter().position(|flight| {
            flight.key == key
                && !flight.detached
                && !flight.refresh
                && config.rules().may_join(until, &flight.meta, now)
        })
    }

    /// Who joins may be given what an entry could have given it.
    fn joiner_wants(&self, config: &Config, pod: &Pod, flight: &Flight) -> Version {
        let own = self.owed(pod, usize::from(flight.key));
        match flight.untold {
            true => own,
            false => own.max(self.required(config, pod, usize::from(flight.key))),
        }
    }

    /// A reader found nothing to serve.
    pub(super) fn miss(&mut self, config: &Config, n: u8, key: Key) -> bool {
        if self.running(n).is_none()
            || !self.would_board(config, &self.pods[usize::from(n)], n, key)
        {
            return false;
        }
        let pod = &self.pods[usize::from(n)];
        if let Some(at) = self.joinable(config, pod, key) {
            let wants = self.joiner_wants(config, pod, &pod.flights[at]);
            let began = pod.began(config, self.clock(config, pod));
            let flight = &mut self.pods[usize::from(n)].flights[at];
            flight.wants = wants;
            if config.tags {
                flight.aboard.push((began, wants));
            }
            return true;
        }
        if !spend(&mut self.left.flights) {
            return false;
        }
        self.take_off(config, n, key, false);
        true
    }

    fn would_refresh(&self, config: &Config, pod: &Pod, n: u8, key: Key) -> bool {
        let under_way = |flight: &Flight| flight.refresh && flight.key == key && !flight.detached;
        self.left.refreshes > 0
            && config.loaders & (1 << n) != 0
            && !pod.flights.iter().any(under_way)
    }

    /// Somebody wants what is there loaded anew.
    pub(super) fn refresh(&mut self, config: &Config, n: u8, key: Key) -> bool {
        if self.running(n).is_none()
            || !self.would_refresh(config, &self.pods[usize::from(n)], n, key)
            || !spend(&mut self.left.refreshes)
        {
            return false;
        }
        self.take_off(config, n, key, true);
        true
    }

    fn take_off(&mut self, config: &Config, n: u8, key: Key, refresh: bool) {
        // Whoever asks the store or the source misses nothing that was acknowledged before.
        let wants = self.acked_for_reads(config, &self.pods[usize::from(n)], usize::from(key));
        let start = self.clock(config, &self.pods[usize::from(n)]);
        let pod = &mut self.pods[usize::from(n)];
        let replaced = |flight: &&mut Flight| flight.key == key && flight.refresh == refresh;
        for flight in pod.flights.iter_mut().filter(replaced) {
            flight.detached = true;
        }
        let mut flight = Flight {
            key,
            meta: FlightMeta {
                rank: Rank::default(),
                start,
                uncovered: true,
            },
            detached: false,
            refresh,
            guarded: false,
            minimum: None,
            untold: false,
            moment: 0,
            then: 0,
            aboard: Vec::new(),
            generation: 0,
            view: None,
            stage: Stage::Begun,
            wants,
        };
        if config.tags {
            flight.aboard.push((pod.began(config, start), wants));
        }
        flight.begin(pod);
        pod.flights.push(flight);
    }

    pub(super) fn step_flight(&mut self, config: &Config, n: u8, at: u8) -> bool {
        let Some(pod) = self.running(n) else {
            return false;
        };
        let reign = pod.driver.reign();
        self.hold_to_what_is_known(n, at);
        let pod = &self.pods[usize::from(n)];
        let Some(flight) = pod.flights.get(usize::from(at)).cloned() else {
            return false;
        };
        let stage = match flight.stage.clone() {
            ref stage if stage.asks() && reign.is_none() => return false,
            Stage::Begun => match self.read_at(reign, flight.key) {
                Some(found) => Stage::Found(found),
                None => return false,
            },
            Stage::Found(found) => return self.judge(config, n, at, &found),
            Stage::Asking { found, question } if !question.answered => {
                match reign.and_then(|reign| self.ask_floor(reign, question)) {
                    Some(question) => Stage::Asking { found, question },
                    None => return false,
                }
            }
            Stage::Asking { found, question } => {
                self.pods[usize::from(n)].learn_floor(config, question);
                return self.judge_again(config, n, at, &found);
            }
            Stage::Standing { token } => self.replace(config, n, at, token),
            Stage::Absent { unusable } => match self.lease(config, reign, flight.key, unusable) {
                Some(stage) => stage,
                None => return false,
            },
            Stage::Leased { token, reply } => return self.take_lease(config, n, at, token, &reply),
            Stage::Loading(_) if self.would_load_less(config, pod, usize::from(at)) => {
                self.tally.behind += 1;
                return false;
            }
            Stage::Loading(lease) => Stage::Loaded(lease, self.loaded(flight.key)),
            Stage::Loaded(lease, version) => {
                self.send(config, n, reign, &flight, lease, version);
                let since = flight.meta.start;
                let pod = &self.pods[usize::from(n)];
                let tie = pod.tie(config, since, flight.then);
                let landing = Landing {
                    as_of: since,
                    then: flight.then,
                };
                return self.land(config, n, at, version, landing, tie);
            }
        };
        let pod = &mut self.pods[usize::from(n)];
        let then = pod.tag.moment();
        let flight = &mut pod.flights[usize::from(at)];
        flight.stage = stage;
        flight.note_load(then);
        true
    }

    /// The store is away, slow, or has given the key to somebody else: load without it.
    pub(super) fn bypass(&mut self, config: &Config, n: u8, at: u8) -> bool {
        let Some(pod) = self.running(n) else {
            return false;
        };
        let (usable, then) = (pod.driver.is_usable(), pod.tag.moment());
        let Some(flight) = pod.flights.get_mut(usize::from(at)) else {
            return false;
        };
        let may = flight.stage.asks() && (config.bypass || !usable);
        if may {
            flight.stage = Stage::Loading(None);
            flight.note_load(then);
            self.goes_without(config, n, at);
        }
        may
    }

    /// It loads without having asked anything.
    fn goes_without(&mut self, config: &Config, n: u8, at: u8) {
        self.pods[usize::from(n)].flights[usize::from(at)].untold = config.lag_ms > 0;
        self.hold_to_what_is_known(n, at);
        self.reckon(config, n, at);
    }

    /// It loads without having asked whether somebody writes the key.
    fn reckon(&mut self, config: &Config, n: u8, at: u8) {
        let pod = &self.pods[usize::from(n)];
        let key = pod.flights[usize::from(at)].key;
        if self.may_be_guarded(config, pod, key) {
            self.pods[usize::from(n)].flights[usize::from(at)].loads_under_guard(config);
        }
    }

    fn judge(&mut self, config: &Config, n: u8, at: u8, found: &Found) -> bool {
        self.judge_by(config, n, at, found, true)
    }

    /// What is still not known was not to be had.
    fn judge_again(&mut self, config: &Config, n: u8, at: u8, found: &Found) -> bool {
        self.judge_by(config, n, at, found, false)
    }

    fn judge_by(&mut self, config: &Config, n: u8, at: u8, found: &Found, asks: bool) -> bool {
        let now = self.local(n);
        let pod = &self.pods[usize::from(n)];
        let known = self.known(pod, pod.flights[usize::from(at)].key);
        let pod = &mut self.pods[usize::from(n)];
        let flight = &mut pod.flights[usize::from(at)];
        let poisoned = pod.clearing > 0 || pod.stripes[usize::from(flight.key)].poisoned > 0;
        let value = found.value.as_deref().and_then(read_value);
        let place = value.map(|(_, epoch, seq, _)| (epoch, seq));
        let verdict = config
            .rules()
            .judge(flight.view, found.head.as_ref(), place, found.floor);
        let tag = found.value.as_deref().and_then(read_tag);
        let worth = match tag {
            Some(tag) => pod.worth(config, tag, now),
            None => Worth::Tied(None),
        };
        let question = pod.wanted(config, now).filter(|_| asks);
        let pod = &mut self.pods[usize::from(n)];
        let flight = &mut pod.flights[usize::from(at)];
        let less = |version| Some(version) < known && config.versions(VersionPart::Held);
        let verdict = match (verdict, &worth) {
            (Verdict::Usable(_), Worth::Unknown) if question.is_none() => Verdict::Sync,
            (verdict, _) => verdict,
        };
        match (verdict, value) {
            (Verdict::Usable(_), Some((.., version))) if less(version) => {
                flight.stage = Stage::Absent {
                    unusable: found.value.clone(),
                };
            }
            (Verdict::Usable(_), Some(_)) if matches!(worth, Worth::Dead) => {
                flight.stage = Stage::Absent {
                    unusable: found.value.clone(),
                };
            }
            (Verdict::Usable(_), Some(_))
                if let (Worth::Unknown, Some(question)) = (&worth, question) =>
            {
                flight.stage = Stage::Asking {
                    found: found.clone(),
                    question,
                };
            }
            (Verdict::Usable(_), Some((token, ..))) if flight.refresh && !poisoned => {
                flight.stage = Stage::Standing { token };
            }
            (Verdict::Usable(rank), Some((.., version))) if !poisoned => {
                flight.meta.rank = flight.meta.rank.max(rank);
                let (start, then) = (flight.meta.start, flight.moment);
                let Worth::Tied(tie) = worth else {
                    return false;
                };
                let as_of = tie.map_or(start, |tie| start.min(pod.as_of(config, tie)));
                return self.land(config, n, at, version, Landing { as_of, then }, tie);
            }
            (Verdict::Sync, _) => {
                // Learn where the store is, and look again from there.
                let mut flight = flight.clone();
                flight.begin(pod);
                flight.stage = Stage::Begun;
                pod.flights[usize::from(at)] = flight;
                pod.want_poll();
            }
            _ => {
                let unusable = value.and(found.value.clone());
                flight.stage = Stage::Absent { unusable };
            }
        }
        true
    }

    /// Begins to load what is to take the place of the value with this token. What the store says of the
    /// lane at that moment is what the load will reflect.
    fn replace(&mut self, config: &Config, n: u8, at: u8, over: u64) -> Stage {
        let token = self.draw();
        let pod = &self.pods[usize::from(n)];
        let (key, reign) = (pod.flights[usize::from(at)].key, pod.driver.reign());
        if let Some(reply) = self.ask_beside(config, reign, key) {
            self.tell(config, n, at, &reply);
            if reply.state == LeaseState::Guarded {
                self.pods[usize::from(n)].flights[usize::from(at)].loads_under_guard(config);
                return Stage::Loading(None);
            }
        }
        let Some(head) = self.read_at(reign, key).and_then(|found| found.head) else {
            self.goes_without(config, n, at);
            return Stage::Loading(None);
        };
        let flight = &mut self.pods[usize::from(n)].flights[usize::from(at)];
        if let Some(rank) = rank_of_head(flight.view, &head) {
            flight.meta.rank = flight.meta.rank.max(rank);
        }
        Stage::Loading(Some(Lease {
            token,
            epoch: head.at.epoch,
            seq: head.at.seq,
            over: Some(over),
        }))
    }

    fn lease(
        &mut self,
        config: &Config,
        reign: Option<u8>,
        key: Key,
        unusable: Option<Bytes>,
    ) -> Option<Stage> {
        let opening = self.opening(config);
        let token = self.drawn;
        let request = LeaseRequest {
            token,
            ttl: Duration::from_millis(config.fill_ttl_ms),
            unusable: unusable.as_deref(),
            opening,
        };
        let name = physical(key);
        let reply = self.step_at(reign?, |server, now, hints| {
            server.lease(place(key, &name), request, now, hints)
        })?;
        Some(Stage::Leased { token, reply })
    }

    fn take_lease(
        &mut self,
        config: &Config,
        n: u8,
        at: u8,
        token: u64,
        reply: &LeaseReply,
    ) -> bool {
        self.tell(config, n, at, reply);
        let then = self.pods[usize::from(n)].tag.moment();
        if let LeaseState::Present(bytes) = &reply.state {
            let found = Found {
                head: Some(reply.head),
                value: Some(bytes.clone()),
                floor: Some(reply.floor),
            };
            return self.judge(config, n, at, &found);
        }
        let flight = &mut self.pods[usize::from(n)].flights[usize::from(at)];
        flight.stage = match reply.state {
            LeaseState::Granted => {
                if let Some(rank) = rank_of_head(flight.view, &reply.head) {
                    flight.meta.rank = flight.meta.rank.max(rank);
                }
                Stage::Loading(Some(Lease {
                    token,
                    epoch: reply.head.at.epoch,
                    seq: reply.head.at.seq,
                    over: None,
                }))
            }
            LeaseState::Guarded => {
                if let Some(rank) = rank_of_head(flight.view, &reply.head) {
                    flight.meta.rank = flight.meta.rank.max(rank);
                }
                flight.loads_under_guard(config);
                Stage::Loading(None)
            }
            // Waits for the fill as long as it likes, then looks again or loads by itself.
            _ if spend(&mut self.left.retries) => Stage::Begun,
            _ => {
                flight.stage = Stage::Loading(None);
                flight.note_load(then);
                self.reckon(config, n, at);
                return true;
            }
        };
        flight.note_load(then);
        true
    }

    /// The store has told which version the source has at least.
    fn tell(&mut self, config: &Config, n: u8, at: u8, reply: &LeaseReply) {
        let (now, told) = (self.local(n), config.versions(VersionPart::Told));
        let Some(version) = reply.minimum.filter(|_| told) else {
            return;
        };
        let version = version as Version;
        let pod = &mut self.pods[usize::from(n)];
        let flight = &mut pod.flights[usize::from(at)];
        flight.minimum = flight.minimum.max(Some(version));
        let key = flight.key;
        pod.note_minimum(config, key, version, now);
    }

    /// Everybody aboard gets `version`; it is kept if the rules allow it.
    fn land(
        &mut self,
        config: &Config,
        n: u8,
        at: u8,
        version: Version,
        landing: Landing,
        tied: Option<Tie>,
    ) -> bool {
        let pod = &mut self.pods[usize::from(n)];
        let flight = pod.flights.remove(usize::from(at));
        let key = usize::from(flight.key);
        let stamp = EntryStamp {
            rank: flight.meta.rank,
            generation: flight.generation,
            start: flight.meta.start,
        };
        let stripe = pod.stripes[key];
        let existing = pod.entries[key].map(|entry| entry.stamp);
        let poisoned = pod.clearing > 0 || stripe.poisoned > 0;
        // A detached flight has been replaced, or has missed something that was noticed here.
        let detached = flight.detached && config.on(Mechanism::InsertStamp);
        let keeps = !config.tags || tied.is_some();
        if !poisoned
            && keeps
            && !detached
            && config
                .rules()
                .may_insert(pod.word, stripe.last, existing, stamp)
        {
            let ends = flight.guarded.then(|| flight.meta.start + config.lease());
            pod.entries[key] = Some(Entry {
                version,
                stamp,
                ends,
                untold: flight.untold,
                tied: tied.filter(|_| config.tags),
            });
        }
        let given = |began: Began| !pod.is_overtaken(config, began, landing);
        let aboard = flight.aboard.iter().filter(|(began, _)| given(*began));
        let wants = match config.tags {
            true => aboard.map(|(_, wants)| *wants).max().unwrap_or(0),
            false => flight.wants,
        };
        if version < wants {
            self.turn_red(super::Red::Load(n, flight.key, version, wants));
        }
        true
    }

    /// The outcome of a load under a lease is for the store as well.
    fn send(
        &mut self,
        config: &Config,
        n: u8,
        reign: Option<u8>,
        flight: &Flight,
        lease: Option<Lease>,
        version: Version,
    ) {
        let (Some(lease), Some(to)) = (lease, reign) else {
            return;
        };
        let key = flight.key;
        if config.tags {
            self.pods[usize::from(n)].tag.unfilled.push(Unfilled {
                key,
                lease,
                version,
                then: flight.then,
                question: None,
            });
            return;
        }
        let envelope = write_value(lease.token, lease.epoch, lease.seq, version);
        self.fills.push(Fill::new(to, key, lease, envelope));
    }

    pub(super) fn fill(&mut self, config: &Config, at: u8) -> bool {
        let Some(Fill {
            to,
            key,
            lease,
            envelope,
        }) = take(&mut self.fills, at)
        else {
            return false;
        };
        let name = physical(key);
        let fill = store::Fill {
            token: lease.over.unwrap_or(lease.token),
            replaces: match lease.over {
                Some(_) => store::Replaces::Value,
                None => store::Replaces::Lease,
            },
            epoch: lease.epoch,
            envelope: &envelope,
            ttl: None,
        };
        let fenced = config.on(Mechanism::LeaseFence);
        self.step_at(to, |server, now, hints| match fenced {
            true => drop(server.fill(place(key, &name), fill, now, hints)),
            false => server.plant(place(key, &name), fill, now),
        });
        true
    }

    fn read_at(&self, reign: Option<u8>, key: Key) -> Option<Found> {
        let name = physical(key);
        let node = self.node(reign?)?;
        Some(node.state.read(place(key, &name), self.now.0))
    }

    /// Less is known where the pod asks than when it began: loads under way cannot be expected to know more.
    pub(super) fn expect_less(&mut self, n: u8) {
        for at in 0..self.pods[usize::from(n)].flights.len() {
            let pod = &self.pods[usize::from(n)];
            let known = self.acked(pod, usize::from(pod.flights[at].key));
            let flight = &mut self.pods[usize::from(n)].flights[at];
            flight.wants = known.min(flight.wants);
            for (_, wants) in &mut flight.aboard {
                *wants = known.min(*wants);
            }
        }
    }

    /// The version of what stands under a key, usable or not.
    pub(super) fn version_at(&self, reign: u8, key: Key) -> Option<Version> {
        let found = self.read_at(Some(reign), key)?;
        Some(read_value(found.value.as_deref()?)?.3)
    }

    /// The version that a reader who asks the store now would use.
    pub(super) fn in_store(&self, config: &Config, pod: &Pod, key: Key) -> Option<Version> {
        let found = self.read_at(pod.driver.reign(), key)?;
        let (_, epoch, seq, version) = read_value(found.value.as_deref()?)?;
        let (view, place) = (pod.lane.view(), Some((epoch, seq)));
        let verdict = config
            .rules()
            .judge(view, found.head.as_ref(), place, found.floor);
        let less = Some(version) < self.known(pod, key) && config.versions(VersionPart::Held);
        let usable = matches!(verdict, Verdict::Usable(_)) && !less;
        let tag = found.value.as_deref().and_then(read_tag);
        let stands = || tag.is_none_or(|tag| self.floor_admits(config, pod, tag));
        (usable && stands()).then_some(version)
    }
}

impl Stage {
    /// Whether the next step is a call of the store.
    fn asks(&self) -> bool {
        match self {
            Self::Begun | Self::Absent { .. } | Self::Standing { .. } => true,
            Self::Asking { question, .. } => !question.answered,
            _ => false,
        }
    }
}

impl Flight {
    /// If it is about to load: that reflects what the pod has come to know of.
    fn note_load(&mut self, then: u32) {
        if self.loads() {
            self.then = then;
        }
    }

    /// Whether its next step is to load.
    pub(super) fn loads(&self) -> bool {
        matches!(self.stage, Stage::Loading(_))
    }

    /// The generation first: if a flush comes between the two, the view may be of the new generation,
    /// never the other way round.
    fn begin(&mut self, pod: &Pod) {
        self.generation = pod.word.generation();
        self.moment = pod.tag.moment();
        self.view = pod.lane.view();
        self.meta.rank = self.view.map_or(Rank::default(), |view| view.applied);
        self.meta.uncovered = self.view.is_none();
    }
}

pub(super) fn write_value(token: u64, epoch: Epoch, seq: u64, version: Version) -> Vec<u8> {
    let mut out = vec![0xD7, 1, VALUE, 0];
    for word in [token, epoch.0, seq] {
        out.extend(word.to_be_bytes());
    }
    out.resize(FLAGS_AT, 0);
    out.extend([0, HAS_VERSION, 0, 0]);
    out.extend(u64::from(version).to_be_bytes());
    out
}

/// The same with a tag that nothing is known against up to `tag`.
pub(super) fn write_tagged(lease: Lease, version: Version, tag: Position) -> Vec<u8> {
    let mut out = write_value(lease.token, lease.epoch, lease.seq, version);
    out[FLAGS_AT + 3] = 1;
    out.extend(tag.epoch.0.to_be_bytes());
    out.extend(tag.seq.to_be_bytes());
    out
}

fn read_tag(bytes: &[u8]) -> Option<Position> {
    let word = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    Some(Position {
        epoch: Epoch(word(TAG_AT)?),
        seq: word(TAG_AT + 8)?,
    })
}

fn read_value(bytes: &[u8]) -> Option<(u64, Epoch, u64, Version)> {
    let word = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let version = Version::try_from(word(VERSION_AT)?).ok()?;
    let value = (word(4)?, Epoch(word(12)?), word(20)?, version);
    (bytes[2] == VALUE).then_some(value)
}
