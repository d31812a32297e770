//! Pods and the nodes of a cluster in virtual time.
//!
//! A node runs what it is sent in the order in which it comes, each for as long as the model says, so that
//! its clients wait for each other and for the fan-out. It keeps its lanes as the scripts do: a log, a
//! head that counts what is not published, batches of the same size. A pod follows each lane by the
//! crate's own [`LaneState`], of messages that went through the crate's own encoder and back.
//!
//! All pods invalidate, poll and are sent what is published; some of them, spread over the subscribers, are
//! *followed*: their state machines run. The others do what those do, so what followed ones ask besides
//! (reads of the log) counts for all.

use crate::model::{FLUSH, FLUSH_ENTRY, LOG, LOG_ENTRY, POLL, SCRIPT, Sent, Spent};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;
use tidings::Millis;
use tidings::coherence::{
    Action, Batch, Call, Epoch, Head, Hint, Incarnation, Kind, Lane, LaneState, LogEntry,
    Mechanisms, Nonce, Position,
};

/// Microseconds of virtual time.
type Micros = u64;

const EPOCH: Epoch = Epoch(0xE);
const ENTITY: u64 = 0xE17;
const HEARTBEAT: f64 = 250_000.0;
/// Bytes of a message that takes no further entry, as in `publish.lua`.
const MESSAGE: usize = 16_384;
/// Entries read from a log in one go, as by the driver.
const LOG_LIMIT: usize = 1000;
/// One way through the network: this, and as much again on average.
const LATENCY: f64 = 150.0;
/// What applying an entry takes a pod, in microseconds: the upper end of 0.5 to 1.
const APPLY: f64 = 1.0;

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) pods: usize,
    /// How many of them are followed.
    pub(crate) followed: usize,
    pub(crate) nodes: usize,
    pub(crate) lanes: u16,
    /// Invalidations a second, of one key each, of all pods together.
    pub(crate) rate: f64,
    /// How often a relay publishes.
    pub(crate) every: Duration,
    pub(crate) span: Duration,
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Of each node.
    pub(crate) spent: Vec<Spent>,
    pub(crate) span: Duration,
    /// Milliseconds from the log to a followed pod, of every entry and pod, in their order.
    pub(crate) lags: Vec<f32>,
    /// Milliseconds until an invalidation was acknowledged, in their order.
    pub(crate) acks: Vec<f32>,
    pub(crate) logged: usize,
    /// Reads of the log by followed pods.
    pub(crate) log_reads: usize,
    /// Flushes of lanes by followed pods, but for the one of each lane at its start.
    pub(crate) flushes: usize,
}

impl Outcome {
    /// The part of a core that each node needs, the busiest first.
    pub(crate) fn load(&self) -> Vec<f64> {
        let span = self.span.as_nanos() as f64;
        let mut load: Vec<_> = self.spent.iter().map(|node| node.all() / span).collect();
        load.sort_by(|one, other| other.total_cmp(one));
        load
    }
}

pub(crate) fn percentile(sorted: &[f32], percent: usize) -> f32 {
    sorted[(sorted.len() - 1) * percent / 100]
}

/// A seeded source of chance.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Uniform above 0, up to 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// Exponential: times between what happens independently.
    fn wait(&mut self, mean: f64) -> f64 {
        -self.unit().ln() * mean
    }

    fn hop(&mut self) -> Micros {
        (LATENCY + self.wait(LATENCY)) as Micros
    }
}

/// A lane in the store.
#[derive(Default)]
struct Log {
    entries: Vec<LogEntry>,
    /// When each was logged.
    at: Vec<Micros>,
    published: usize,
}

impl Log {
    fn head(&self) -> Head {
        let waiting = (self.entries.len() - self.published) as u64;
        Head {
            at: Position {
                epoch: EPOCH,
                seq: self.entries.len() as u64,
            },
            nonce: self.entries.last().map_or(Nonce(0), |entry| entry.nonce),
            incarnation: Incarnation(1),
            prev_epoch: Epoch(0),
            fork_seq: 0,
            last_pub_ms: if waiting == 0 { 1 } else { (1 << 47) + waiting },
            fork: false,
            forked_s: 0,
        }
    }

    fn push(&mut self, nonce: Nonce, key: u64, at: Micros) -> LogEntry {
        let entry = LogEntry {
            seq: self.entries.len() as u64 + 1,
            kind: Kind::Invalidate,
            prev: self.entries.last().map_or(Nonce(0), |entry| entry.nonce),
            nonce,
            hashes: vec![ENTITY, key],
        };
        self.entries.push(entry.clone());
        self.at.push(at);
        entry
    }

    /// What waits, as messages.
    fn flush(&mut self, lane: Lane) -> Vec<Vec<u8>> {
        let waiting = &self.entries[self.published..];
        self.published = self.entries.len();
        // A part of one key takes 18 bytes.
        let chunks = waiting.chunks(MESSAGE / 18 + 1);
        let message = |entries: &[LogEntry]| {
            let batch = Batch {
                lane,
                epoch: EPOCH,
                server_ms: 1,
                entries: entries.to_vec(),
            };
            match entries {
                [_] => batch.into_hints().flat_map(|hint| hint.encode()).collect(),
                _ => batch.encode(),
            }
        };
        chunks.map(message).collect()
    }
}

#[derive(Default)]
struct Node {
    /// Until when it is at work on what it was sent, in nanoseconds.
    busy: f64,
    spent: Spent,
}

impl Node {
    /// Runs something that came at `at`; gives when it is done.
    fn run(&mut self, at: Micros, cost: f64) -> Micros {
        self.busy = self.busy.max(at as f64 * 1000.0) + cost;
        (self.busy / 1000.0) as Micros
    }

    /// Where what was spent is entered, if that was within the span.
    fn book(&mut self, at: Micros, span: Duration) -> Option<&mut Spent> {
        (u128::from(at) < span.as_micros()).then_some(&mut self.spent)
    }
}

struct Pod {
    lanes: Vec<LaneState>,
    /// Lanes that were flushed once, as each is when it is first met.
    met: Vec<bool>,
    /// Up to where each lane's entries were evicted here.
    evicted: Vec<u64>,
    /// Until when it is at work.
    busy: f64,
}

enum Event {
    /// Some pod's invalidation reaches its node.
    Invalidate {
        lane: Lane,
        pod: usize,
        sent: Micros,
    },
    /// A relay's flush reaches its node.
    Tick {
        node: usize,
    },
    /// A pod polls all nodes.
    Poll {
        pod: usize,
    },
    Polled {
        pod: usize,
        node: usize,
        sent: Micros,
    },
    Heads {
        pod: usize,
        heads: Vec<(Lane, Head)>,
        sent: Micros,
    },
    Message {
        pod: usize,
        bytes: Arc<[u8]>,
    },
    Acknowledged {
        pod: usize,
        lane: Lane,
        entry: LogEntry,
    },
    Timer {
        pod: usize,
        lane: Lane,
    },
    ReadLog {
        pod: usize,
        lane: Lane,
        from: u64,
    },
    Read {
        pod: usize,
        lane: Lane,
        from: u64,
        entries: Vec<LogEntry>,
    },
}

pub(crate) struct World {
    plan: Plan,
    random: Random,
    nodes: Vec<Node>,
    logs: Vec<Log>,
    pods: Vec<Pod>,
    /// What happens, the next first; in the order of insertion where it happens at once.
    queue: BinaryHeap<Reverse<(Micros, usize)>>,
    events: Vec<Option<Event>>,
    outcome: Outcome,
}

impl World {
    pub(crate) fn run(plan: Plan) -> Outcome {
        let lanes = usize::from(plan.lanes);
        let pod = || Pod {
            lanes: (0..lanes)
                .map(|_| LaneState::new(Mechanisms::default()).deferring(plan.every))
                .collect(),
            met: vec![false; lanes],
            evicted: vec![1; lanes],
            busy: 0.0,
        };
        let mut world = Self {
            plan,
            random: Random(plan.seed),
            nodes: (0..plan.nodes).map(|_| Node::default()).collect(),
            logs: (0..lanes).map(|_| Log::default()).collect(),
            pods: (0..plan.followed).map(|_| pod()).collect(),
            queue: BinaryHeap::new(),
            events: Vec::new(),
            outcome: Outcome {
                spent: Vec::new(),
                span: plan.span,
                lags: Vec::new(),
                acks: Vec::new(),
                logged: 0,
                log_reads: 0,
                flushes: 0,
            },
        };
        for log in &mut world.logs {
            log.push(Nonce(1), 0, 0);
            log.published = 1;
        }
        world.schedule();
        while let Some(Reverse((at, event))) = world.queue.pop() {
            if let Some(event) = world.events[event].take() {
                world.happen(at, event);
            }
        }
        world.end()
    }

    fn at(&mut self, at: Micros, event: Event) {
        self.queue.push(Reverse((at, self.events.len())));
        self.events.push(Some(event));
    }

    fn node_of(&self, lane: Lane) -> usize {
        usize::from(lane.0) * self.plan.nodes / usize::from(self.plan.lanes)
    }

    fn lanes_of(&self, node: usize) -> Vec<Lane> {
        let lanes = (0..self.plan.lanes).map(Lane);
        lanes.filter(|&lane| self.node_of(lane) == node).collect()
    }

    /// What happens by itself. Until the end of the span there are invalidations; then pods go on until
    /// all is published and polled.
    fn schedule(&mut self) {
        let (span, every) = (
            self.plan.span.as_micros() as u64,
            self.plan.every.as_micros() as u64,
        );
        let mut at = 0.0;
        let mean = 1e6 / self.plan.rate;
        loop {
            at += self.random.wait(mean);
            if at as Micros >= span {
                break;
            }
            let lane = Lane((self.random.next() % u64::from(self.plan.lanes)) as u16);
            let pod = self.random.next() as usize % self.plan.pods;
            let sent = at as Micros;
            let arrives = sent + self.random.hop();
            self.at(arrives, Event::Invalidate { lane, pod, sent });
        }
        for node in 0..self.plan.nodes {
            let first = self.random.next() % every;
            for tick in 0..=(span / every + 1) {
                let arrives = first + tick * every + self.random.hop();
                self.at(arrives, Event::Tick { node });
            }
        }
        for pod in 0..self.plan.pods {
            // Those that are followed begin with one.
            let first = if pod < self.pods.len() {
                0.0
            } else {
                self.random.unit() * HEARTBEAT
            };
            let mut at = first;
            while (at as Micros) < span + HEARTBEAT as Micros {
                self.at(at as Micros, Event::Poll { pod });
                at += HEARTBEAT * (0.9 + 0.2 * self.random.unit());
            }
        }
    }

    fn happen(&mut self, now: Micros, event: Event) {
        match event {
            Event::Invalidate { lane, pod, sent } => self.invalidate(now, lane, pod, sent),
            Event::Tick { node } => self.publish(now, node),
            Event::Poll { pod } => {
                for node in 0..self.nodes.len() {
                    let arrives = now + self.random.hop();
                    self.at(
                        arrives,
                        Event::Polled {
                            pod,
                            node,
                            sent: now,
                        },
                    );
                }
            }
            Event::Polled { pod, node, sent } => {
                let done = self.nodes[node].run(now, POLL);
                if let Some(spent) = self.nodes[node].book(now, self.plan.span) {
                    spent.polls += POLL;
                }
                if pod < self.pods.len() {
                    let lanes = self.lanes_of(node).into_iter();
                    let heads = lanes.map(|lane| (lane, self.logs[usize::from(lane.0)].head()));
                    let heads = heads.collect();
                    let arrives = done + self.random.hop();
                    self.at(arrives, Event::Heads { pod, heads, sent });
                }
            }
            Event::Heads { pod, heads, sent } => {
                for (lane, head) in heads {
                    self.step(now, pod, lane, |state, out| {
                        state.on_head(Some(head), millis(sent), millis(now), out);
                    });
                }
            }
            Event::Message { pod, bytes } => {
                let hints: Vec<Hint> = match Batch::decode(&bytes) {
                    Some(batch) => batch.into_hints().collect(),
                    None => Hint::decode(&bytes).into_iter().collect(),
                };
                let lane = hints.first().expect("a message of ours").lane;
                // The pod is at work on it until then.
                let pod_busy = &mut self.pods[pod].busy;
                *pod_busy = pod_busy.max(now as f64) + APPLY * hints.len() as f64;
                let done = *pod_busy as Micros;
                self.step(done, pod, lane, |state, out| {
                    hints
                        .iter()
                        .for_each(|hint| state.on_hint(hint, millis(done), out));
                });
            }
            Event::Acknowledged { pod, lane, entry } => {
                let call = Arc::new(Call {
                    kind: entry.kind,
                    hashes: entry.hashes.clone(),
                    keys: vec![],
                    entity: "e".into(),
                });
                self.step(now, pod, lane, |state, out| {
                    state.on_ack(&call, &entry, EPOCH, millis(now), out);
                });
            }
            Event::Timer { pod, lane } => {
                self.step(now, pod, lane, |state, out| {
                    state.on_timer(millis(now), out)
                });
            }
            Event::ReadLog { pod, lane, from } => {
                let log = &self.logs[usize::from(lane.0)].entries;
                let from_at = (from as usize).saturating_sub(1).min(log.len());
                let entries: Vec<_> = log[from_at..].iter().take(LOG_LIMIT).cloned().collect();
                // For all pods that a followed one stands for.
                let alike = self.plan.pods as f64 / self.plan.followed as f64;
                let cost = LOG + LOG_ENTRY * entries.len() as f64;
                let node = self.node_of(lane);
                if let Some(spent) = self.nodes[node].book(now, self.plan.span) {
                    spent.log_reads += cost * alike;
                }
                let done = self.nodes[node].run(now, cost * alike);
                self.outcome.log_reads += 1;
                let arrives = done + self.random.hop();
                self.at(
                    arrives,
                    Event::Read {
                        pod,
                        lane,
                        from,
                        entries,
                    },
                );
            }
            Event::Read {
                pod,
                lane,
                from,
                entries,
            } => {
                self.step(now, pod, lane, |state, out| {
                    state.on_log(from, &entries, millis(now), out);
                });
            }
        }
    }

    fn invalidate(&mut self, now: Micros, lane: Lane, pod: usize, sent: Micros) {
        let node = self.node_of(lane);
        let done = self.nodes[node].run(now, SCRIPT);
        if let Some(spent) = self.nodes[node].book(now, self.plan.span) {
            spent.scripts += SCRIPT;
        }
        let (nonce, key) = (Nonce(self.random.next()), self.random.next());
        let entry = self.logs[usize::from(lane.0)].push(nonce, key, done);
        self.outcome.logged += 1;
        let answered = done + self.random.hop();
        self.outcome.acks.push((answered - sent) as f32 / 1000.0);
        if pod < self.pods.len() {
            self.at(answered, Event::Acknowledged { pod, lane, entry });
        }
    }

    /// A flush of all lanes of the node: one turn of its loop, one write to each subscriber.
    fn publish(&mut self, now: Micros, node: usize) {
        let (mut messages, mut entries) = (Vec::new(), 0);
        for lane in self.lanes_of(node) {
            let log = &mut self.logs[usize::from(lane.0)];
            entries += log.entries.len() - log.published;
            messages.extend(log.flush(lane));
        }
        let cost = FLUSH + FLUSH_ENTRY * entries as f64;
        let begin = self.nodes[node].run(now, cost);
        if let Some(spent) = self.nodes[node].book(now, self.plan.span) {
            spent.flushes += cost;
        }
        if messages.is_empty() {
            return;
        }
        let mut sent = Sent::default();
        messages.iter().for_each(|message| sent.add(message.len()));
        let subscribers = self.plan.pods as f64;
        if let Some(spent) = self.nodes[node].book(now, self.plan.span) {
            spent.fan_out += subscribers * sent.cost();
            spent.egress += subscribers * sent.bytes as f64;
        }
        self.nodes[node].run(begin, subscribers * sent.cost());
        let messages: Vec<Arc<[u8]>> = messages.into_iter().map(Into::into).collect();
        for pod in 0..self.pods.len() {
            // Subscribers are written to one behind the other.
            let place = (pod as f64 + 1.0) / self.pods.len() as f64 * subscribers;
            let written = begin + (place * sent.cost() / 1000.0) as Micros;
            let arrives = written + self.random.hop();
            for bytes in &messages {
                let bytes = Arc::clone(bytes);
                self.at(arrives, Event::Message { pod, bytes });
            }
        }
    }

    /// One step of a lane's state machine, and what it asks for.
    fn step(
        &mut self,
        now: Micros,
        pod: usize,
        lane: Lane,
        step: impl FnOnce(&mut LaneState, &mut Vec<Action>),
    ) {
        let (at, mut actions) = (usize::from(lane.0), Vec::new());
        let state = &mut self.pods[pod].lanes[at];
        let was_due = state.due();
        step(state, &mut actions);
        let due = state.due();
        if let Some(due) = due.filter(|_| due != was_due) {
            self.at(due.0 * 1000, Event::Timer { pod, lane });
        }
        for action in actions {
            match action {
                Action::Evict { rank, .. } => self.evicted(now, pod, at, rank.seq()),
                Action::Flush => {
                    let again = std::mem::replace(&mut self.pods[pod].met[at], true);
                    self.outcome.flushes += usize::from(again);
                    // What was logged before is not missed.
                    let seq = self.logs[at].entries.len() as u64;
                    let evicted = &mut self.pods[pod].evicted[at];
                    *evicted = (*evicted).max(seq);
                }
                Action::ReadLog { from } => {
                    let arrives = now + self.random.hop();
                    self.at(arrives, Event::ReadLog { pod, lane, from });
                }
                _ => {}
            }
        }
    }

    /// An entry was carried out by a pod, maybe again, maybe ahead of others.
    fn evicted(&mut self, now: Micros, pod: usize, lane: usize, seq: u64) {
        let done = &mut self.pods[pod].evicted[lane];
        if seq <= *done {
            return;
        }
        // Its own come first, and again with the others: those are met in order.
        if seq == *done + 1 {
            *done = seq;
            let logged = self.logs[lane].at[seq as usize - 1];
            let lag = now.saturating_sub(logged);
            self.outcome.lags.push(lag as f32 / 1000.0);
        }
    }

    fn end(mut self) -> Outcome {
        for (at, log) in self.logs.iter().enumerate() {
            let last = log.entries.len() as u64;
            for pod in &self.pods {
                let applied = pod.lanes[at].applied().map(|at| at.seq);
                assert_eq!(applied, Some(last), "nothing is missing at the end");
                assert_eq!(pod.evicted[at], last, "and nothing was skipped");
            }
        }
        self.outcome.spent = self.nodes.into_iter().map(|node| node.spent).collect();
        self.outcome.lags.sort_by(f32::total_cmp);
        self.outcome.acks.sort_by(f32::total_cmp);
        self.outcome
    }
}

fn millis(at: Micros) -> Millis {
    Millis(at / 1000)
}
