//! Random schedules: drawn from a seed, run, shrunk.

use crate::coherence_world::{Budget, Config, ENDLESS, Event, Red, World};
use std::fmt::Write;
use tidings::coherence::Mechanism;
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
            trouble: 2,
        }
    }

    fn weight(&self, event: Event) -> u32 {
        use Event as E;
        match event {
            E::Advance(_) => self.time,
            E::Miss(..) | E::Refresh(..) | E::Look(..) | E::Read(..) => self.reads,
            E::Flight(..) | E::Bypass(..) | E::Fill(_) => self.flights,
            E::Commit(..) | E::Clear(_) => self.writes,
            E::Invalidation(..) => self.calls,
            E::Poll(_) | E::Connect(_) => self.polls,
            E::AtStore(..) | E::Answer(..) | E::Timer(_) => self.driver,
            E::Deliver(..) => self.hints,
            _ => self.trouble,
        }
    }
}

/// A schedule that can be drawn again from its seed.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    pub config: Config,
    taste: Taste,
    steps: u32,
    random: Random,
}

impl Schedule {
    /// The schedule of `seed`, in a deployment also drawn from it.
    pub(crate) fn of(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut config = any_config(&mut random);
        // The doubt lasts for longer than most schedules: with it, little would be served after a fork.
        if config.continuity == Continuity::Fork && !seed.is_multiple_of(4) {
            config = config.without(Mechanism::DoubtForks);
        }
        Self {
            config,
            taste: Taste::of(&mut random),
            steps: 40 + random.below(80),
            random,
        }
    }

    /// The schedule of `seed`, whose server claims continuity though it may have lost something.
    pub(crate) fn lossy(seed: u64) -> Self {
        let mut schedule = Self::of(seed);
        let config = &mut schedule.config;
        config.continuity = Continuity::Fork;
        config.lossy = true;
        // Nothing is promised of what is read meanwhile, but that all is logged again.
        config.off = (!seed.is_multiple_of(4)).then_some(Mechanism::DoubtForks);
        config.budget = Budget {
            restarts: 1,
            snapshots: 2,
            empty_restarts: 0,
            promotions: 0,
            flushes: 0,
            heads_lost: 0,
            ..config.budget
        };
        schedule
    }

    /// The schedule of `seed` in `config`.
    pub(crate) fn within(seed: u64, config: Config) -> Self {
        Self {
            config,
            ..Self::of(seed)
        }
    }

    /// Runs it to the end; what happened, and what was broken by it.
    pub(crate) fn run(mut self) -> (Vec<Event>, Option<Red>) {
        let mut world = World::new(&self.config);
        let mut events = Vec::new();
        for _ in 0..self.steps {
            let enabled = world.enabled(&self.config);
            let Some(event) = self.choose(&enabled) else {
                break;
            };
            world.apply(&self.config, event);
            events.push(event);
        }
        world.settle(&self.config);
        (events, world.red)
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
        promotions: few(2, 8),
        flushes: few(2, 8),
        trims: few(2, 6),
        heads_lost: few(2, 8),
        floors_lost: few(2, 8),
    };
    let fork = random.once_in(3);
    Config {
        pods: 2 + random.below(3) as u8,
        keys: 1 + random.below(2) as u8,
        fill_ttl_ms: [30, 300, 3000][random.below(3) as usize],
        // A server that continues after it lost something breaks its word: see `lossy_config`.
        budget: if fork {
            Budget {
                restarts: 0,
                ..budget
            }
        } else {
            budget
        },
        continuity: if fork {
            Continuity::Fork
        } else {
            Continuity::Fence
        },
        warm: !random.once_in(4),
        bypass: random.once_in(3),
        reorder: random.once_in(2),
        readers: 2,
        ..Config::default()
    }
}
