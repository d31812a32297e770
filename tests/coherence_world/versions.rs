//! What the source says of its states: versions that loads state and invalidations name, for sources that are
//! read from a replica that lags; and values that are put where a lower version stands. What `src/bus/minimum.rs`
//! and `src/entity` do for that.
//!
//! A minimum is negative evidence. What was acknowledged with one counts for loads while the store remembers
//! it, or until the replica has it anyway.

use super::{Config, Key, LANE, Pod, Version, World, hash};
use tidings::Millis;

/// A part of what versions do, to be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum VersionPart {
    /// Who takes a lease is told the version that the source has at least; off: nobody is.
    Told,
    /// A load that gives less is made again; off: its outcome is taken.
    Again,
    /// What is logged again says its version again; off: it is the invalidation alone.
    Repeated,
    /// What stands in the store is held to the version that the pod knows; off: it is believed.
    Held,
    /// Whoever cannot ask keeps what it loads for its youth; off: as any other.
    Reckoning,
    /// A put takes the place of a lower version alone; off: of whatever stands there.
    Compared,
    /// A put takes the place of a value alone; off: it is stored where there is none as well.
    Standing,
    /// Nothing is put while a fork is in doubt; off: it takes the place of what is doubted.
    Believed,
}

/// The version that the source has of a key at least, as far as a pod knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Minimum {
    version: Version,
    until: Millis,
}

/// A value to be put.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct OwnedPut {
    pub version: Version,
    pub epoch: tidings::coherence::Epoch,
    pub envelope: Vec<u8>,
}

impl Pod {
    pub(super) fn note_minimum(
        &mut self,
        config: &Config,
        key: Key,
        version: Version,
        now: Millis,
    ) {
        let there = self.minimum(key, now).unwrap_or(0);
        self.minimums[usize::from(key)] = Some(Minimum {
            version: version.max(there),
            until: now + config.guard(),
        });
    }

    pub(super) fn minimum(&self, key: Key, now: Millis) -> Option<Version> {
        let known = self.minimums[usize::from(key)].filter(|known| now < known.until)?;
        Some(known.version)
    }
}

impl World {
    /// What a load gives that is made now.
    pub(super) fn loaded(&self, key: Key) -> Version {
        match self.lags {
            true => self.copy[usize::from(key)],
            false => self.source[usize::from(key)],
        }
    }

    /// A change was committed.
    pub(super) fn committed(&mut self, config: &Config, key: Key) {
        if self.lags {
            let (at, version) = (self.now + config.lag(), self.source[usize::from(key)]);
            self.to_copy.push((at, key, version));
        }
    }

    /// The copy comes to have what was committed long enough ago.
    pub(super) fn catch_up(&mut self) {
        let (now, copy) = (self.now, &mut self.copy);
        self.to_copy.retain(|(at, key, version)| {
            let due = *at <= now;
            if due {
                copy[usize::from(*key)] = *version;
            }
            !due
        });
    }

    /// Whether what flight `at` would load now is older than it may be, so that it is loaded again.
    pub(super) fn would_load_less(&self, config: &Config, pod: &Pod, at: usize) -> bool {
        let Some(flight) = pod.flights.get(at) else {
            return false;
        };
        let known = self.known(pod, flight.key);
        config.versions(VersionPart::Again)
            && flight.loads()
            && Some(self.loaded(flight.key)) < flight.minimum.max(known)
    }

    /// The version that the source has at least, as far as `pod` knows.
    pub(super) fn known(&self, pod: &Pod, key: Key) -> Option<Version> {
        pod.minimum(key, pod.clock.at(self.now))
    }

    /// The newest version that `pod` may not go behind, as it said itself that it is there.
    pub(super) fn owed(&self, pod: &Pod, key: usize) -> Version {
        match self.acks[key].iter().any(|ack| ack.forgotten) {
            true => {
                let known = self.known(pod, key as Key);
                pod.own[key].min(known.unwrap_or(0).max(self.copy[key]))
            }
            false => pod.own[key],
        }
    }

    /// Less may be known where the pod asks now than where it began.
    pub(super) fn hold_to_what_is_known(&mut self, n: u8, at: u8) {
        if !self.lags {
            return;
        }
        let pod = &self.pods[usize::from(n)];
        let Some(flight) = pod.flights.get(usize::from(at)) else {
            return;
        };
        let key = usize::from(flight.key);
        let most = match flight.untold {
            true => self.known(pod, flight.key).unwrap_or(0),
            false => self.acked(pod, key).max(self.owed(pod, key)),
        };
        let wants = &mut self.pods[usize::from(n)].flights[usize::from(at)].wants;
        *wants = most.min(*wants);
    }

    /// Whether the store does not know that the source has this version, and the copy does not have it.
    pub(super) fn is_lost(&self, key: usize, version: Version) -> bool {
        let state = &self.primary.state;
        let minimum = state.minimum(LANE, hash(key as Key), self.now.0);
        self.lags && self.copy[key] < version && minimum < Some(version.into())
    }

    /// Something befell the store: it may have lost minimums before the copy had caught up.
    pub(super) fn note_forgotten(&mut self) {
        if !self.lags {
            return;
        }
        for key in 0..self.acks.len() {
            for at in 0..self.acks[key].len() {
                let version = self.acks[key][at].version;
                let forgotten = self.is_lost(key, version);
                let ack = &mut self.acks[key][at];
                self.tally.forgotten += u64::from(forgotten && !ack.forgotten);
                ack.forgotten |= forgotten;
            }
        }
    }

    /// A pod has logged again what the store had lost of its calls: it counts as if it had been acknowledged
    /// now.
    pub(super) fn said_again(&mut self, n: u8, covered: impl Fn(Key) -> bool) {
        let now = self.now;
        for (_, acks) in (0..).zip(&mut self.acks).filter(|(key, _)| covered(*key)) {
            for ack in acks.iter_mut().filter(|ack| ack.is_by(n) && ack.forgotten) {
                (ack.forgotten, ack.at) = (false, now);
                self.tally.said_again += 1;
            }
        }
    }

    /// The key was invalidated when the copy had all that was acknowledged of it.
    pub(super) fn make_up_for(&mut self, key: usize) {
        let (now, copy) = (self.now, self.copy[key]);
        let forgotten = self.acks[key].iter_mut().filter(|ack| ack.forgotten);
        for ack in forgotten.filter(|ack| ack.version <= copy) {
            (ack.forgotten, ack.at) = (false, now);
        }
    }
}
