//! Writing under a guard, in steps: leave the marker, be told, commit, invalidate. The pod may end at any of
//! them. What `src/bus/guard.rs` does for the writer, and `src/entity` for those who load meanwhile.

use super::calls::Invalidation;
use super::{
    Ack, Config, ENTITY, ENTITY_HASH, Event, Flight, Key, LANE, Pod, Version, VersionPart, World,
    hash, key_of, physical, spend,
};
use std::sync::Arc;
use std::time::Duration;
use tidings::Millis;
use tidings::coherence::{Ack as Answer, Call, Epoch, LogEntry, Nonce};
use tidings::store::{LeaseReply, LeaseRequest, Markers, Place};

/// A part of what guards do, to be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum GuardPart {
    /// The marker; off: the writer announces nothing.
    Marker,
    /// What is loaded under a marker goes with its youth; off: it is kept as any other.
    Youth,
    /// Such a load is joined while it is young (hole H28); off: as any other.
    Join,
    /// Whoever cannot ask reckons with a marker; off: it is taken for granted that there is none.
    Reckoning,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Writer {
    key: Key,
    guard: u64,
    /// By the server's clock.
    ends: Millis,
    stage: Stage,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// The marker is to be left.
    Asked,
    /// It was left; the answer is on its way.
    Logged { entry: LogEntry, epoch: Epoch },
    /// It stands, as far as its writer knows.
    Stands,
    /// The change is committed; nobody was told.
    Committed,
}

fn call_of(key: Key) -> Call {
    Call::invalidate(&ENTITY.into(), ENTITY_HASH, &[(hash(key), physical(key))])
}

impl World {
    pub(super) fn enabled_guards(&self, pod: &Pod, n: u8, config: &Config, out: &mut Vec<Event>) {
        if config.writers & (1 << n) != 0 && self.left.guards > 0 {
            out.extend((0..config.keys).map(|key| Event::Begin(n, key)));
        }
        for (at, writer) in pod.writing.iter().enumerate() {
            if writer.stage != Stage::Asked || pod.driver.is_usable() {
                out.push(Event::Guard(n, at as u8));
            }
        }
    }

    /// A writer is about to change a key.
    pub(super) fn begin_write(&mut self, n: u8, key: Key) -> bool {
        if self.running(n).is_none() || !spend(&mut self.left.guards) {
            return false;
        }
        let guard = self.draw();
        self.pods[usize::from(n)].writing.push(Writer {
            key,
            guard,
            ends: Millis(0),
            stage: Stage::Asked,
        });
        true
    }

    pub(super) fn step_guard(&mut self, config: &Config, n: u8, at: u8) -> bool {
        let Some(pod) = self.running(n) else {
            return false;
        };
        let reign = pod.driver.reign();
        let Some(writer) = pod.writing.get(usize::from(at)).cloned() else {
            return false;
        };
        let stage = match (writer.stage, reign) {
            (Stage::Asked, _) if !config.guards(GuardPart::Marker) => Stage::Stands,
            (Stage::Asked, None) => return false,
            (Stage::Asked, Some(reign)) => {
                let markers = Markers {
                    leave: Some((writer.guard, config.guard())),
                    ..Markers::default()
                };
                let call = call_of(writer.key);
                let Some((entry, epoch)) = self.log_markers(config, reign, &call, markers) else {
                    return false;
                };
                self.pods[usize::from(n)].writing[usize::from(at)].ends = self.now + config.guard();
                Stage::Logged { entry, epoch }
            }
            (Stage::Logged { entry, epoch }, _) => {
                let (now, call) = (self.local(n), Arc::new(call_of(writer.key)));
                let (answer, _) = self.learn(config, n, LANE, |lane, out| {
                    lane.on_ack(&call, &entry, epoch, now, out)
                });
                if !matches!(answer, Answer::Acknowledged(_)) {
                    // It was not taken. What it has left ends by itself.
                    self.pods[usize::from(n)].writing.remove(usize::from(at));
                    return true;
                }
                Stage::Stands
            }
            (Stage::Stands, _) => {
                let key = usize::from(writer.key);
                self.source[key] += 1;
                // The commit counts as acknowledged, if the guard has not ended.
                if self.now < writer.ends || !config.guards(GuardPart::Marker) {
                    let ack = Ack::by_commit(self.source[key], self.now, n);
                    self.acks[key].push(ack);
                }
                Stage::Committed
            }
            (Stage::Committed, _) => {
                let pod = &mut self.pods[usize::from(n)];
                pod.writing.remove(usize::from(at));
                let finish = Invalidation::finish(call_of(writer.key), writer.guard);
                pod.invalidations.push(finish);
                return true;
            }
        };
        self.pods[usize::from(n)].writing[usize::from(at)].stage = stage;
        true
    }

    pub(super) fn log_markers(
        &mut self,
        config: &Config,
        reign: u8,
        call: &Call,
        markers: Markers,
    ) -> Option<(LogEntry, Epoch)> {
        let opening = self.opening(config);
        let nonce = Nonce(self.drawn);
        let guarded = self.step_at(reign, |server, now, hints| {
            let (keys, hashes) = (&call.keys, &call.hashes);
            server.guard(LANE, keys, hashes, markers, nonce, opening, now, hints)
        })?;
        match (markers.minimum, call.key_hashes()) {
            // It says nothing of later versions.
            (Some((version, _)), [hash]) => {
                self.mark_version(reign, key_of(*hash) as Key, version as Version);
            }
            _ => self.mark_done(reign, |key| call.key_hashes().contains(&hash(key))),
        }
        let entry = LogEntry {
            seq: guarded.logged.at.seq,
            kind: call.kind,
            prev: guarded.logged.prev,
            nonce,
            hashes: call.hashes.clone(),
        };
        Some((entry, guarded.logged.at.epoch))
    }

    /// A lease beside the value of `key`, for what the store says with it.
    pub(super) fn ask_beside(
        &mut self,
        config: &Config,
        reign: Option<u8>,
        key: Key,
    ) -> Option<LeaseReply> {
        if !config.reckons() {
            return None;
        }
        let request = LeaseRequest {
            token: self.draw(),
            ttl: Duration::from_millis(1),
            unusable: None,
            opening: self.opening(config),
        };
        let beside = Place {
            lane: LANE,
            hash: hash(key),
            entity: ENTITY,
            key: b"beside",
        };
        self.step_at(reign?, |server, now, hints| {
            server.lease(beside, request, now, hints)
        })
    }

    /// Whether `pod` must reckon with a marker that it was not told of.
    pub(super) fn may_be_guarded(&self, config: &Config, pod: &Pod, key: Key) -> bool {
        let disturbed = pod.stripes[usize::from(key)].disturbed;
        let since = disturbed.max(pod.followed_since);
        config.reckons()
            && config.guards(GuardPart::Reckoning)
            && config.versions(VersionPart::Reckoning)
            && pod.clock.at(self.now) < since + config.guard()
    }
}

impl Flight {
    /// It loads what somebody writes, or may be writing.
    pub(super) fn loads_under_guard(&mut self, config: &Config) {
        self.guarded = config.guards(GuardPart::Youth);
        self.meta.uncovered |= config.guards(GuardPart::Join);
    }
}
