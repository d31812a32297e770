//! The end of a history: nothing breaks any more, everything is delivered.

use super::{Budget, Config, ENDLESS, Event, Key, Red, World};
use std::time::Duration;
use tidings::Millis;
use tidings::coherence::LaneState;
use tidings::store::memory::Continuity;

/// More than enough: what needs more rounds than this is stuck.
const ROUNDS: usize = 40;
const ROUND_MS: u64 = 15;

impl World {
    /// Lets everything come to rest, waits Δ and until no fork is doubted any more, and checks that every
    /// level agrees with the source.
    pub(crate) fn settle(&mut self, config: &Config) {
        if self.red.is_some() {
            return;
        }
        self.end_minority(self.now);
        self.quiesce(config);
        let doubt = match config.continuity {
            Continuity::Fork if config.replicas > 0 => LaneState::DOUBT,
            _ => Duration::ZERO,
        };
        // Once within the doubt, when whoever heard of what is missing is to act, and once after it.
        let within = doubt * 4 / 5;
        for wait in [within, config.lease() + doubt - within] {
            self.now = self.now + wait + Duration::from_millis(1);
            for _ in 0..3 {
                self.now = Millis(self.now.0 + ROUND_MS);
                self.catch_up();
                self.account();
                self.round(config);
            }
        }
        self.check(config);
        for n in 0..self.pods.len() {
            self.check_settled(config, n);
        }
        let (orphans, forgotten) = self.missing();
        self.tally.never_repaired += orphans;
        if let Some((key, version)) = forgotten {
            self.turn_red(Red::Forgotten(key as Key, version));
        }
    }

    fn check_settled(&mut self, config: &Config, n: usize) {
        let pod = &self.pods[n];
        let at = n as u8;
        let mut reds = Vec::new();
        if !pod.invalidations.is_empty() {
            reds.push(Red::Stuck(at));
        }
        let dead = |until: Millis| until < self.local(at);
        let dead_tags = config.tags && dead(pod.tag.until);
        if dead(pod.word.until()) || dead_tags || !pod.driver.is_usable() {
            reds.push(Red::Dead(at));
        }
        for key in 0..config.keys {
            let wants = self.source[usize::from(key)];
            let forgotten = self.acks[usize::from(key)].iter().any(|ack| ack.forgotten);
            if self.primary.has(usize::from(key)) < wants || forgotten {
                // Whoever knew of it has ended, or the store does not know it any more.
                continue;
            }
            let local = self.servable(config, pod, usize::from(key));
            let stored = self.in_store(config, pod, key);
            let local = local.filter(|got| *got != wants);
            let stored = stored.filter(|got| *got != wants);
            reds.extend(local.map(|got| Red::LocalDiverged(at, key, got, wants)));
            reds.extend(stored.map(|got| Red::StoreDiverged(at, key, got, wants)));
        }
        for red in reds {
            self.turn_red(red);
        }
    }

    fn quiesce(&mut self, config: &Config) {
        self.left = Budget {
            polls: ENDLESS,
            connects: ENDLESS,
            attempts: ENDLESS,
            ..Budget::default()
        };
        for _ in 0..ROUNDS {
            self.round(config);
            let resting = self.pods.iter().all(|pod| {
                pod.driver.is_idle()
                    && pod.invalidations.is_empty()
                    && pod.writing.is_empty()
                    && pod.flights.is_empty()
                    && pod.tag.unfilled.is_empty()
                    && !pod.lane.is_behind()
                    && !pod.tag.lane.is_behind()
            });
            if (resting && self.fills.is_empty()) || self.red.is_some() {
                return;
            }
            self.now = Millis(self.now.0 + ROUND_MS);
        }
    }

    /// Everybody takes a turn at everything.
    fn round(&mut self, config: &Config) {
        for pod in &mut self.pods {
            pod.paused = false;
            pod.clock.go_on(self.now);
            pod.cut = false;
            pod.ticked = pod.clock.at(self.now);
        }
        for n in 0..self.pods.len() as u8 {
            self.happen(config, Event::Connect(n));
            self.happen(config, Event::Poll(n));
            self.turn(config, n);
            // Once more after the touch, which comes before any poll.
            self.happen(config, Event::Poll(n));
            for _ in 0..8 {
                if !self.turn(config, n) {
                    break;
                }
            }
        }
        while self.happen(config, Event::Fill(0)) {}
        self.check(config);
    }

    /// Whether there was anything to do.
    fn turn(&mut self, config: &Config, n: u8) -> bool {
        let pod = &self.pods[usize::from(n)];
        let (calls, flights) = (pod.driver.calls() as u8, pod.flights.len() as u8);
        let invalidations = pod.invalidations.len() as u8;
        let writers = pod.writing.len() as u8;
        let unfilled = pod.tag.unfilled.len() as u8;
        let mut busy = false;
        for _ in 0..pod.driver.inbox() {
            busy |= self.happen(config, Event::Deliver(n, 0));
        }
        for at in (0..calls).rev() {
            self.happen(config, Event::AtStore(n, at));
            busy |= self.happen(config, Event::Answer(n, at));
        }
        busy |= self.happen(config, Event::Timer(n));
        for at in (0..writers).rev() {
            busy |= self.happen(config, Event::Guard(n, at));
        }
        for at in (0..invalidations).rev() {
            busy |= self.happen(config, Event::Invalidation(n, at));
        }
        for at in (0..unfilled).rev() {
            busy |= self.happen(config, Event::Store(n, at));
        }
        for at in (0..flights).rev() {
            busy |= self.happen(config, Event::Flight(n, at))
                || self.happen(config, Event::Bypass(n, at));
        }
        while self.happen(config, Event::Read(n, 0)) {
            busy = true;
        }
        busy
    }

    /// Connects every pod, and lets each load every key.
    pub(super) fn warm_up(&mut self, config: &Config) {
        self.quiesce(config);
        self.left.flights = ENDLESS;
        for n in 0..self.pods.len() as u8 {
            for key in 0..config.keys {
                self.apply(config, Event::Miss(n, key));
                for _ in 0..10 {
                    self.apply(config, Event::Flight(n, 0));
                }
                for _ in 0..3 {
                    self.apply(config, Event::Store(n, 0));
                }
                self.apply(config, Event::Fill(0));
            }
        }
        self.left = config.budget;
        self.snapshot = self.primary.clone();
        for replica in &mut self.replicas {
            replica.clone_from(&self.primary);
        }
    }
}
