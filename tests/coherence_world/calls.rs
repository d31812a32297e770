//! A pod's own invalidations, as `src/bus/calls.rs` sees them through: poison, reach the store, be
//! acknowledged on the timeline that the pod follows; else again.

use super::{
    Config, ENTITY, ENTITY_HASH, Event, Key, LANE, Pod, Version, World, hash, key_of, physical,
    spend, take,
};
use std::sync::Arc;
use tidings::coherence::{Ack, Call, Epoch, Kind, LogEntry, Nonce, Rank};
use tidings::store::Markers;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Invalidation {
    call: Arc<Call>,
    /// What its acknowledgement says: key by key, the newest version when it was called.
    covers: Vec<(Key, Version)>,
    stage: Stage,
    /// It was logged once before, and lost.
    again: bool,
    /// The guard that it ends, if the first attempt succeeds.
    lift: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// Committed to the source; the writer is about to invalidate.
    Committed,
    /// Carried out here; to be logged.
    Begun,
    /// Logged; the answer is on its way, or waits for the lane to learn of the epoch.
    Logged {
        entry: LogEntry,
        epoch: Epoch,
        /// By a primary that had been replaced.
        minority: bool,
        tries: u8,
    },
}

impl Invalidation {
    fn of(call: Call) -> Self {
        Self {
            call: Arc::new(call),
            covers: Vec::new(),
            stage: Stage::Committed,
            again: false,
            lift: None,
        }
    }

    /// One that ends a guard, after what was committed under it.
    pub(super) fn finish(call: Call, guard: u64) -> Self {
        Self {
            lift: Some(guard),
            ..Self::of(call)
        }
    }

    /// One that the store lost. Nobody waits for it.
    pub(super) fn again(call: Arc<Call>) -> Self {
        Self {
            call,
            covers: Vec::new(),
            stage: Stage::Begun,
            again: true,
            lift: None,
        }
    }
}

impl World {
    pub(super) fn enabled_calls(&self, pod: &Pod, n: u8, config: &Config, out: &mut Vec<Event>) {
        if config.writers & (1 << n) != 0 {
            if self.left.writes > 0 {
                out.extend((0..config.keys).map(|key| Event::Commit(n, key)));
            }
            if self.left.clears > 0 {
                out.push(Event::Clear(n));
            }
        }
        for (at, invalidation) in pod.invalidations.iter().enumerate() {
            let at = at as u8;
            if invalidation.stage != Stage::Begun || pod.driver.is_usable() {
                out.push(Event::Invalidation(n, at));
            }
            if matches!(invalidation.stage, Stage::Logged { .. }) && self.left.losses > 0 {
                out.push(Event::LoseAnswer(n, at));
            }
        }
    }

    pub(super) fn commit(&mut self, _: &Config, n: u8, key: Key) -> bool {
        if self.running(n).is_none() || !spend(&mut self.left.writes) {
            return false;
        }
        self.source[usize::from(key)] += 1;
        let call = Call::invalidate(&ENTITY.into(), ENTITY_HASH, &[(hash(key), physical(key))]);
        let pod = &mut self.pods[usize::from(n)];
        pod.invalidations.push(Invalidation::of(call));
        true
    }

    pub(super) fn begin_clear(&mut self, _: &Config, n: u8) -> bool {
        if self.running(n).is_none() || !spend(&mut self.left.clears) {
            return false;
        }
        self.source.iter_mut().for_each(|version| *version += 1);
        let call = Call::clear(&ENTITY.into(), ENTITY_HASH);
        let pod = &mut self.pods[usize::from(n)];
        pod.invalidations.push(Invalidation::of(call));
        true
    }

    pub(super) fn step_invalidation(&mut self, config: &Config, n: u8, at: u8) -> bool {
        let Some(pod) = self.running(n) else {
            return false;
        };
        let reign = pod.driver.reign();
        let Some(invalidation) = pod.invalidations.get(usize::from(at)).cloned() else {
            return false;
        };
        let Invalidation {
            call,
            stage,
            again,
            lift,
            ..
        } = invalidation;
        match (stage, reign) {
            (Stage::Committed, _) => self.begin(n, at, &call),
            (Stage::Begun, None) => return false,
            (Stage::Begun, Some(reign)) => {
                let logged = match lift {
                    Some(_) => {
                        let markers = Markers {
                            lift,
                            ..Markers::default()
                        };
                        self.log_markers(config, reign, &call, markers)
                    }
                    None => self.log(config, reign, &call),
                };
                let Some((entry, epoch)) = logged else {
                    return false;
                };
                // What is repeated is the invalidation alone.
                self.pods[usize::from(n)].invalidations[usize::from(at)].lift = None;
                self.tally.again += u64::from(again);
                let minority = self.is_deposed(reign);
                self.set_stage(
                    n,
                    at,
                    Stage::Logged {
                        entry,
                        epoch,
                        minority,
                        tries: 2,
                    },
                );
            }
            (
                Stage::Logged {
                    entry,
                    epoch,
                    minority,
                    tries,
                },
                _,
            ) => {
                let now = self.local(n);
                let ack = self.learn(config, n, |lane, out| {
                    lane.on_ack(&call, &entry, epoch, now, out)
                });
                match ack {
                    Ack::Acknowledged(_) => self.acknowledged(n, at, minority),
                    Ack::Unknown(_) if tries > 1 => {
                        let tries = tries - 1;
                        self.set_stage(
                            n,
                            at,
                            Stage::Logged {
                                entry,
                                epoch,
                                minority,
                                tries,
                            },
                        );
                    }
                    Ack::Unknown(_) if !spend(&mut self.left.attempts) => {}
                    Ack::Unknown(_) => self.set_stage(n, at, Stage::Begun),
                    Ack::Lost => {
                        self.tally.late_answers += 1;
                        self.set_stage(n, at, Stage::Begun);
                    }
                }
            }
        }
        true
    }

    fn begin(&mut self, n: u8, at: u8, call: &Call) {
        let keys = (0..self.source.len() as u8).filter(|&key| covers(call, key));
        let covers = keys
            .map(|key| (key, self.source[usize::from(key)]))
            .collect();
        let pod = &mut self.pods[usize::from(n)];
        pod.poison(call);
        pod.invalidations[usize::from(at)].covers = covers;
        self.set_stage(n, at, Stage::Begun);
    }

    fn set_stage(&mut self, n: u8, at: u8, stage: Stage) {
        self.pods[usize::from(n)].invalidations[usize::from(at)].stage = stage;
    }

    fn log(&mut self, config: &Config, reign: u8, call: &Call) -> Option<(LogEntry, Epoch)> {
        let opening = self.opening(config);
        let nonce = Nonce(self.drawn);
        let logged = self.step_at(reign, |server, now, hints| match call.kind {
            Kind::Clear => server.clear(LANE, ENTITY, ENTITY_HASH, nonce, opening, now, hints),
            _ => server.invalidate(LANE, &call.keys, &call.hashes, nonce, opening, now, hints),
        })?;
        self.mark_done(reign, |key| covers(call, key));
        let entry = LogEntry {
            seq: logged.at.seq,
            kind: call.kind,
            prev: logged.prev,
            nonce,
            hashes: call.hashes.clone(),
        };
        Some((entry, logged.at.epoch))
    }

    fn acknowledged(&mut self, n: u8, at: u8, minority: bool) {
        let pod = &mut self.pods[usize::from(n)];
        let Some(Invalidation { call, covers, .. }) = take(&mut pod.invalidations, at) else {
            return;
        };
        pod.heal(&call);
        for (key, version) in covers {
            let own = &mut self.pods[usize::from(n)].own[usize::from(key)];
            *own = version.max(*own);
            let ack = self.new_ack(usize::from(key), version, n, minority);
            self.acks[usize::from(key)].push(ack);
        }
    }

    /// The number of the newest call of a pod.
    pub(crate) fn newest_call(&self, n: u8) -> Option<u8> {
        let calls = self.pods.get(usize::from(n))?.invalidations.len();
        calls.checked_sub(1).map(|at| at as u8)
    }

    pub(super) fn lose_answer(&mut self, n: u8, at: u8) -> bool {
        let logged = self.running(n).is_some_and(|pod| {
            let invalidation = pod.invalidations.get(usize::from(at));
            invalidation.is_some_and(|it| matches!(it.stage, Stage::Logged { .. }))
        });
        if !logged || !spend(&mut self.left.losses) {
            return false;
        }
        self.set_stage(n, at, Stage::Begun);
        true
    }
}

/// Whether `call` makes `key` invalid.
fn covers(call: &Call, key: Key) -> bool {
    call.kind == Kind::Clear || call.key_hashes().contains(&hash(key))
}

impl Pod {
    /// Fences a call off: nothing loaded before is served or kept, and what the store holds is not
    /// believed until it has acknowledged.
    pub(super) fn poison(&mut self, call: &Call) {
        if call.kind == Kind::Clear {
            self.clearing += 1;
            self.flush();
            return;
        }
        for &hash in call.key_hashes() {
            self.stripes[key_of(hash)].poisoned += 1;
            self.evict(key_of(hash), Rank(u64::MAX));
        }
    }

    fn heal(&mut self, call: &Call) {
        if call.kind == Kind::Clear {
            self.clearing -= 1;
            return;
        }
        for &hash in call.key_hashes() {
            self.stripes[key_of(hash)].poisoned -= 1;
        }
    }
}
