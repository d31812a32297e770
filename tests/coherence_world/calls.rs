//! A pod's own invalidations, as `src/bus/calls.rs` sees them through: poison, reach the store, be
//! acknowledged on the timeline that the pod follows; else again.

use super::flights::write_value;
use super::tags::is_of_tag;
use super::versions::OwnedPut;
use super::{
    Config, ENTITY, ENTITY_HASH, Event, Key, LANE, Pod, TAGS, Version, VersionPart, World, hash,
    key_of, physical, place, spend, take,
};
use std::sync::Arc;
use tidings::coherence::{Ack, Call, Epoch, Kind, Lane, LogEntry, Nonce, Rank};
use tidings::store::{self, Logged, Markers, Put};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Invalidation {
    call: Arc<Call>,
    /// What its acknowledgement says: key by key, the newest version when it was called.
    covers: Vec<(Key, Version)>,
    stage: Stage,
    /// It was logged once before, and lost.
    again: bool,
    /// The version that it names, or whose value it puts.
    version: Option<Version>,
    extra: Extra,
    /// It was logged with the version.
    told: bool,
}

/// What goes with the first attempt.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Extra {
    Nothing,
    /// The guard that it ends.
    Lift(u64),
    /// Its value is to be put, once it is clear where.
    Value,
    Put(OwnedPut),
    /// The version that the source has at least.
    Minimum(Version),
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
    pub(super) fn of(call: Call) -> Self {
        Self {
            call: Arc::new(call),
            covers: Vec::new(),
            stage: Stage::Committed,
            again: false,
            version: None,
            extra: Extra::Nothing,
            told: false,
        }
    }

    /// One that ends a guard, after what was committed under it.
    pub(super) fn finish(call: Call, guard: u64) -> Self {
        Self {
            extra: Extra::Lift(guard),
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
            version: None,
            extra: Extra::Nothing,
            told: false,
        }
    }
}

impl World {
    pub(super) fn enabled_calls(&self, pod: &Pod, n: u8, config: &Config, out: &mut Vec<Event>) {
        if config.writers & (1 << n) != 0 {
            if self.left.writes > 0 {
                out.extend((0..config.keys).map(|key| Event::Commit(n, key)));
            }
            if self.left.puts > 0 {
                out.extend((0..config.keys).map(|key| Event::CommitPut(n, key)));
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

    /// The value that is committed may be put as well.
    pub(super) fn commit(&mut self, config: &Config, n: u8, key: Key, put: bool) -> bool {
        let left = match put {
            true => &mut self.left.puts,
            false => &mut self.left.writes,
        };
        if !spend(left) || self.running(n).is_none() {
            return false;
        }
        self.source[usize::from(key)] += 1;
        self.committed(config, key);
        let version = self.source[usize::from(key)];
        let call = Call::invalidate(&ENTITY.into(), ENTITY_HASH, &[(hash(key), physical(key))]);
        let pod = &mut self.pods[usize::from(n)];
        pod.invalidations.push(Invalidation {
            version: (put || config.lag_ms > 0).then_some(version),
            extra: match put {
                true => Extra::Value,
                false if config.lag_ms > 0 => Extra::Minimum(version),
                false => Extra::Nothing,
            },
            ..Invalidation::of(call)
        });
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
            extra,
            ..
        } = invalidation;
        match (stage, reign) {
            (Stage::Committed, _) => self.begin(config, n, at, &call),
            (Stage::Begun, None) => return false,
            (Stage::Begun, Some(reign)) => {
                let Some((entry, epoch)) = self.log(config, (n, reign), &call, &extra) else {
                    return false;
                };
                // What is repeated is the invalidation alone.
                if let Extra::Lift(_) = extra {
                    self.forget_extra(n, at);
                }
                self.tally.again += u64::from(again);
                let minority = self.is_deposed(reign);
                let told = self.tells(config, n, &call, &extra);
                self.pods[usize::from(n)].invalidations[usize::from(at)].told = told;
                if again && !minority {
                    self.said_again(n, |key| covers(&call, key));
                }
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
                let (ack, _) = self.learn(config, n, lane_of(&call), |lane, out| {
                    lane.on_ack(&call, &entry, epoch, now, out)
                });
                match ack {
                    Ack::Acknowledged(_) => self.acknowledged(n, at, entry.nonce, minority),
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

    fn begin(&mut self, config: &Config, n: u8, at: u8, call: &Call) {
        let now = self.local(n);
        let begun = &self.pods[usize::from(n)].invalidations[usize::from(at)];
        let (version, extra) = (begun.version, begun.extra.clone());
        if let Extra::Value = extra {
            return self.begin_put(config, n, at, call);
        }
        if let Some(version) = version {
            let key = key_of(call.key_hashes()[0]) as Key;
            self.pods[usize::from(n)].note_minimum(config, key, version, now);
        }
        let keys = (0..self.source.len() as u8).filter(|&key| covers(call, key));
        // What names a version says nothing of what was committed since.
        let newest = |key: Key| version.unwrap_or(self.source[usize::from(key)]);
        let covers = keys.map(|key| (key, newest(key))).collect();
        let pod = &mut self.pods[usize::from(n)];
        pod.poison(call, true);
        pod.invalidations[usize::from(at)].covers = covers;
        self.set_stage(n, at, Stage::Begun);
    }

    /// What is put is the version that was committed; what was committed since is for others to say.
    fn begin_put(&mut self, config: &Config, n: u8, at: u8, call: &Call) {
        let token = self.draw();
        let pod = &mut self.pods[usize::from(n)];
        let invalidation = &mut pod.invalidations[usize::from(at)];
        let version = invalidation.version.unwrap_or_default();
        let key = key_of(call.key_hashes()[0]) as Key;
        invalidation.covers = vec![(key, version)];
        let view = pod.lane.view();
        let view = view.filter(|view| !view.in_doubt || !config.versions(VersionPart::Believed));
        invalidation.extra = view.map_or(Extra::Nothing, |view| {
            let (epoch, seq) = (view.epoch, view.applied.seq());
            let envelope = write_value(token, epoch, seq, version);
            Extra::Put(OwnedPut {
                version,
                epoch,
                envelope,
            })
        });
        pod.poison(call, true);
        self.set_stage(n, at, Stage::Begun);
    }

    fn forget_extra(&mut self, n: u8, at: u8) {
        self.pods[usize::from(n)].invalidations[usize::from(at)].extra = Extra::Nothing;
    }

    fn set_stage(&mut self, n: u8, at: u8, stage: Stage) {
        self.pods[usize::from(n)].invalidations[usize::from(at)].stage = stage;
    }

    fn log(
        &mut self,
        config: &Config,
        (n, reign): (u8, u8),
        call: &Call,
        extra: &Extra,
    ) -> Option<(LogEntry, Epoch)> {
        let markers = match *extra {
            Extra::Put(ref put) => return self.log_put(config, reign, call, put),
            Extra::Lift(guard) => Markers {
                lift: Some(guard),
                ..Markers::default()
            },
            Extra::Minimum(version) => self.minimum_for(config, version),
            _ => self.said_before(config, n, call),
        };
        if markers != Markers::default() {
            return self.log_markers(config, reign, call, markers);
        }
        let opening = self.opening(config);
        let nonce = Nonce(self.drawn);
        let logged = self.step_at(reign, |server, now, hints| match call.kind {
            Kind::Clear => server.clear(LANE, ENTITY, ENTITY_HASH, nonce, opening, now, hints),
            _ => {
                let (lane, keys) = (lane_of(call), &call.keys);
                server.invalidate(lane, keys, &call.hashes, nonce, opening, now, hints)
            }
        })?;
        if config.tags {
            self.note_own(n, nonce);
        }
        match is_of_tag(call) {
            true => self.mark_tags_done(reign),
            false => self.mark_done(reign, |key| covers(call, key)),
        }
        Some(Self::entry(call, nonce, logged))
    }

    /// What is repeated says again what its pod knows of the version.
    fn said_before(&self, config: &Config, n: u8, call: &Call) -> Markers {
        let pod = &self.pods[usize::from(n)];
        match call.key_hashes() {
            [hash] if !is_of_tag(call) && config.versions(VersionPart::Repeated) => {
                let known = self.known(pod, key_of(*hash) as Key);
                known.map_or_else(Markers::default, |version| {
                    self.minimum_for(config, version)
                })
            }
            _ => Markers::default(),
        }
    }

    fn tells(&self, config: &Config, n: u8, call: &Call, extra: &Extra) -> bool {
        matches!(extra, Extra::Minimum(_)) || self.said_before(config, n, call).minimum.is_some()
    }

    fn minimum_for(&self, config: &Config, version: Version) -> Markers {
        Markers {
            minimum: Some((version.into(), config.guard())),
            ..Markers::default()
        }
    }

    fn log_put(
        &mut self,
        config: &Config,
        reign: u8,
        call: &Call,
        put: &OwnedPut,
    ) -> Option<(LogEntry, Epoch)> {
        let opening = self.opening(config);
        let nonce = Nonce(self.drawn);
        let key = key_of(call.key_hashes()[0]) as Key;
        let (name, there) = (physical(key), self.version_at(reign, key));
        let plants = match there {
            Some(there) if there >= put.version => !config.versions(VersionPart::Compared),
            Some(_) => false,
            None => !config.versions(VersionPart::Standing),
        };
        let what = Put {
            version: put.version.into(),
            epoch: put.epoch,
            envelope: &put.envelope,
            ttl: None,
        };
        let logged = self.step_at(reign, |server, now, hints| {
            let (place, hashes) = (place(key, &name), &call.hashes);
            let logged = server.put(place, what, hashes, nonce, opening, now, hints);
            if plants {
                let fill = store::Fill {
                    token: 0,
                    replaces: store::Replaces::Value,
                    epoch: put.epoch,
                    envelope: &put.envelope,
                    ttl: None,
                };
                server.plant(place, fill, now);
            }
            logged
        })?;
        match self.version_at(reign, key) {
            Some(stands) => {
                self.tally.puts += u64::from(stands == put.version && there < Some(stands));
                self.mark_version(reign, key, put.version);
            }
            None => self.mark_done(reign, |done| done == key),
        }
        Some(Self::entry(call, nonce, logged))
    }

    fn entry(call: &Call, nonce: Nonce, logged: Logged) -> (LogEntry, Epoch) {
        let entry = LogEntry {
            seq: logged.at.seq,
            kind: call.kind,
            prev: logged.prev,
            nonce,
            hashes: call.hashes.clone(),
        };
        (entry, logged.at.epoch)
    }

    fn acknowledged(&mut self, n: u8, at: u8, nonce: Nonce, minority: bool) {
        let pod = &mut self.pods[usize::from(n)];
        let invalidation = take(&mut pod.invalidations, at);
        let Some(Invalidation {
            call, covers, told, ..
        }) = invalidation
        else {
            return;
        };
        pod.heal(&call);
        for (key, version) in covers {
            let own = &mut self.pods[usize::from(n)].own[usize::from(key)];
            *own = version.max(*own);
            let mut ack = self.new_ack(usize::from(key), version, (n, nonce), minority);
            // The store may have lost since what it was told.
            ack.by_tag = is_of_tag(&call);
            ack.forgotten = (told || minority) && self.is_lost(usize::from(key), version);
            self.acks[usize::from(key)].push(ack);
        }
    }

    /// A commit of a kind that is still possible.
    pub(crate) fn any_commit(&self, pod: u8, key: Key) -> Event {
        match (self.left.puts, self.left.tags) {
            (0, 0) => Event::Commit(pod, key),
            (0, _) => Event::CommitTag(pod),
            _ => Event::CommitPut(pod, key),
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
        self.forget_extra(n, at);
        self.set_stage(n, at, Stage::Begun);
        true
    }
}

fn lane_of(call: &Call) -> Lane {
    match is_of_tag(call) {
        true => TAGS,
        false => LANE,
    }
}

/// Whether `call` makes `key` invalid.
fn covers(call: &Call, key: Key) -> bool {
    call.kind == Kind::Clear || is_of_tag(call) || call.key_hashes().contains(&hash(key))
}

impl Pod {
    /// Fences a call off: nothing loaded before is served or kept, and what the store holds is not
    /// believed until it has acknowledged.
    /// What is called again is not told to this pod again.
    pub(super) fn poison(&mut self, call: &Call, tells: bool) {
        if is_of_tag(call) {
            return self.tag.fence_off(tells);
        }
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
        if is_of_tag(call) {
            return self.tag.heal();
        }
        if call.kind == Kind::Clear {
            self.clearing -= 1;
            return;
        }
        for &hash in call.key_hashes() {
            self.stripes[key_of(hash)].poisoned -= 1;
        }
    }
}
