//! Random schedules: drawn from a seed, run, shrunk.

use crate::coherence_world::{Budget, Config, ENDLESS, Event, Red, World};
use std::fmt::Write;
use std::ops::Range;
use tidings::store::memory::Continuity;

/// SplitMix64: one multiplication chain per number, any seed is as good as another.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform below `n`.
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        ((self.next() >> 32).wrapping_mul(u64::from(n)) >> 32) as u32
    }

    /// True once in `n` times.
    pub(crate) fn once_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }
}

/// How eagerly each kind of event is chosen.
#[derive(Clone, Debug)]
pub(crate) struct Taste {
    pub time: u32,
    pub reads: u32,
    pub flights: u32,
    pub writes: u32,
    pub calls: u32,
    pub polls: u32,
    pub driver: u32,
    pub hints: u32,
    pub replication: u32,
    pub trouble: u32,
}

impl Taste {
    fn of(random: &mut Random) -> Self {
        let mut draw = || [1, 3, 8, 20][random.below(4) as usize];
        Self {
            time: draw(),
            reads: draw(),
            flights: draw(),
            writes: draw(),
            calls: draw(),
            polls: draw(),
            driver: draw(),
            hints: draw(),
            replication: draw(),
            trouble: 2,
        }
    }

    fn weight(&self, event: Event) -> u32 {
        use Event as E;
        match event {
            E::Advance(_) => self.time,
            E::Miss(..) | E::Refresh(..) | E::Look(..) | E::Read(..) => self.reads,
            E::Flight(..) | E::Bypass(..) | E::Store(..) | E::Fill(_) => self.flights,
            E::Commit(..) | E::CommitPut(..) | E::CommitTag(_) | E::Clear(_) | E::Begin(..) => {
                self.writes
            }
            E::Invalidation(..) | E::Guard(..) => self.calls,
            E::Poll(_) | E::Connect(_) | E::ConnectOld(_) => self.polls,
            E::AtStore(..) | E::Answer(..) | E::Timer(_) => self.driver,
            E::Deliver(..) => self.hints,
            E::Replicate(_) => self.replication,
            // When there is one says the schedule.
            E::Promote(_) | E::Split(..) => 0,
            E::Kill(_) => 1,
            _ => self.trouble,
        }
    }
}

/// A schedule that can be drawn again from its seed.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    pub config: Config,
    taste: Taste,
    /// How many events there are before, between and after failovers.
    steps: Range<u32>,
    failovers: u32,
    random: Random,
}

impl Schedule {
    /// The schedule of `seed`, in a deployment also drawn from it.
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = Random::new(seed);
        Self {
            config: any_config(&mut random),
            taste: Taste::of(&mut random),
            steps: 40..120,
            failovers: 0,
            random,
        }
    }

    /// The schedule of `seed`, of some failovers with anything in between.
    pub(crate) fn of_failovers(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let config = any_replicated_config(&mut random);
        let taste = Taste::of(&mut random);
        Self {
            config,
            // Calls that no replica has are what this is about.
            taste: Taste {
                calls: taste.calls.max(3),
                replication: random.below(3),
                ..taste
            },
            steps: 20..90,
            failovers: 1 + random.below(4),
            random,
        }
    }

    /// The schedule of `seed` in `config`.
    pub(crate) fn within(seed: u64, config: Config) -> Self {
        let schedule = match config.replicas {
            0 => Self::of(seed),
            _ => Self::of_failovers(seed),
        };
        Self { config, ..schedule }
    }

    /// Runs it to the end; what happened, and what came of it.
    pub(crate) fn run(mut self) -> (Vec<Event>, World) {
        let mut world = World::new(&self.config);
        let mut events = Vec::new();
        self.go_on(&mut world, &mut events);
        for _ in 0..self.failovers {
            for event in self.failover(&world) {
                if world.apply(&self.config, event) {
                    events.push(event);
                }
            }
            self.go_on(&mut world, &mut events);
        }
        world.settle(&self.config);
        (events, world)
    }

    fn go_on(&mut self, world: &mut World, events: &mut Vec<Event>) {
        let steps = self.steps.start + self.random.below(self.steps.end - self.steps.start);
        for _ in 0..steps {
            let enabled = world.enabled(&self.config);
            let Some(event) = self.choose(&enabled) else {
                break;
            };
            world.apply(&self.config, event);
            events.push(event);
        }
    }

    /// A promotion; as a rule just after something was acknowledged, now and then together with the end of
    /// the pod that had it acknowledged.
    fn failover(&mut self, world: &World) -> Vec<Event> {
        let mut below = |n: u8| self.random.below(u32::from(n)) as u8;
        let (pod, key) = (below(self.config.pods), below(self.config.keys));
        let replica = below(self.config.replicas);
        let mut events = Vec::new();
        if below(4) > 0 {
            let call = world.newest_call(pod).map_or(0, |newest| newest + 1);
            events.push(world.any_commit(pod, key));
            events.extend([Event::Invalidation(pod, call); 3]);
        }
        if below(3) == 0 {
            let hears = below(self.config.pods);
            events.extend([Event::Deliver(hears, 0); 4]);
        }
        events.push(match below(3) {
            0 => Event::Split(replica, [20, 300, 3000][usize::from(below(3))]),
            _ => Event::Promote(replica),
        });
        if below(8) == 0 {
            events.push(Event::Kill(pod));
        }
        events
    }

    fn choose(&mut self, enabled: &[Event]) -> Option<Event> {
        let total: u32 = enabled.iter().map(|event| self.taste.weight(*event)).sum();
        if total == 0 {
            return None;
        }
        let mut at = self.random.below(total);
        enabled.iter().copied().find(|event| {
            let weight = self.taste.weight(*event);
            let found = at < weight;
            at = at.saturating_sub(weight);
            found
        })
    }
}

/// Runs `events` in order, leaving out those that cannot happen; what was broken.
pub(crate) fn replay(config: &Config, events: &[Event]) -> Option<Red> {
    let mut world = World::new(config);
    for event in events {
        world.apply(config, *event);
    }
    world.settle(config);
    world.red
}

/// Leaves out what is not needed to break something.
pub(crate) fn shrink(config: &Config, mut events: Vec<Event>) -> Vec<Event> {
    let mut size = events.len().div_ceil(2);
    while size > 0 {
        let mut at = 0;
        while at < events.len() {
            let mut fewer = events.clone();
            fewer.drain(at..(at + size).min(events.len()));
            if replay(config, &fewer).is_some() {
                events = fewer;
            } else {
                at += size;
            }
        }
        size /= 2;
    }
    events
}

/// A trace to read: what happened when, and what it broke.
pub(crate) fn trace(config: &Config, events: &[Event]) -> String {
    let mut world = World::new(config);
    let mut out = format!("{config:?}\n");
    for event in events {
        let mark = if world.apply(config, *event) {
            ""
        } else {
            " (not possible)"
        };
        let _ = writeln!(out, "{:>5} ms  {event:?}{mark}", world.now.0);
        if world.red.is_some() {
            break;
        }
    }
    world.settle(config);
    let _ = writeln!(out, "then: {:?}", world.red);
    for (n, pod) in world.pods.iter().enumerate() {
        let _ = writeln!(out, "pod {n}: {pod:?}");
    }
    out
}

/// Some deployment, and some trouble.
fn any_config(random: &mut Random) -> Config {
    let mut few = |n: u32, chance: u32| {
        if random.once_in(chance) {
            1 + random.below(n) as u8
        } else {
            0
        }
    };
    let budget = Budget {
        writes: 1 + few(4, 1),
        clears: few(2, 4),
        flights: 4 + few(20, 1),
        refreshes: few(6, 1),
        retries: few(20, 2),
        attempts: ENDLESS,
        looks: few(8, 2),
        polls: ENDLESS,
        connects: ENDLESS,
        losses: few(6, 2),
        repeats: few(3, 4),
        disconnects: few(3, 3),
        pauses: few(3, 3),
        evictions: few(3, 4),
        snapshots: 2,
        restarts: few(2, 4),
        empty_restarts: few(2, 8),
        flushes: few(2, 8),
        trims: few(2, 6),
        heads_lost: few(2, 8),
        floors_lost: few(2, 8),
        ..Budget::default()
    };
    Config {
        pods: 2 + random.below(3) as u8,
        keys: 1 + random.below(2) as u8,
        fill_ttl_ms: [30, 300, 3000][random.below(3) as usize],
        budget,
        warm: !random.once_in(4),
        bypass: random.once_in(3),
        reorder: random.once_in(2),
        readers: 2,
        ..Config::default()
    }
}

/// Some deployment with replicas.
fn any_replicated_config(random: &mut Random) -> Config {
    let config = any_config(random);
    let mut few = |n: u32, chance: u32| match random.once_in(chance) {
        true => 1 + random.below(n) as u8,
        false => 0,
    };
    Config {
        budget: Budget {
            writes: few(30, 1),
            replications: ENDLESS,
            promotions: ENDLESS,
            splits: ENDLESS,
            kills: 4,
            cuts: few(3, 3),
            ..config.budget
        },
        replicas: 1 + random.below(2) as u8,
        continuity: match random.once_in(6) {
            true => Continuity::Fence,
            false => Continuity::Fork,
        },
        // Now and then the doubt of a fork runs out.
        ticks: vec![1, 4, 10, 10, 40, 40, 120, 700, 4000],
        ..config
    }
}
