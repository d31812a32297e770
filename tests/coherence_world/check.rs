//! What was promised, checked after every step.

use super::{Ack, Clock, Config, Entry, Key, Pod, Version, World};
use tidings::Millis;

/// A promise that was broken: pod, key, the version that was given, the oldest that was allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Red {
    /// A local hit missed an invalidation acknowledged more than Δ ago, or one of its own pod.
    Hit(u8, Key, Version, Version),
    /// A read that asked the store or the source missed an invalidation acknowledged before it
    /// began, or who joined a load got what no local hit could have given it.
    Load(u8, Key, Version, Version),
    /// The store offers a value older than an acknowledged invalidation.
    Store(u8, Key, Version, Version),
    /// After all was delivered, a local level still serves an old value.
    LocalDiverged(u8, Key, Version, Version),
    /// After all was delivered, the store still offers an old value.
    StoreDiverged(u8, Key, Version, Version),
    /// Nothing stands in the way, and an invalidation is not acknowledged all the same.
    Stuck(u8),
    /// Nothing stands in the way, and a lane is not live all the same.
    Dead(u8),
    /// After all was delivered, the log lacks an acknowledged invalidation whose pod lives.
    Forgotten(Key, Version),
}

impl World {
    /// The newest version whose invalidation was acknowledged, as far as `pod` is bound to it.
    pub(super) fn acked(&self, pod: &Pod, key: usize) -> Version {
        let acks = self.acks[key].iter();
        let bound = acks.filter(|ack| ack.binds(self, pod, key).is_some());
        bound.map(|ack| ack.version).max().unwrap_or(0)
    }

    /// The same of those that were acknowledged more than Δ ago, by the pod's own clock.
    pub(super) fn required(&self, config: &Config, pod: &Pod, key: usize) -> Version {
        let now = self.measured(config, &pod.clock, self.now);
        let over = |at: Millis| self.measured(config, &pod.clock, at) + config.lease() < now;
        let acks = self.acks[key].iter();
        let bound = acks.filter(|ack| ack.binds(self, pod, key).is_some_and(over));
        bound.map(|ack| ack.version).max().unwrap_or(0)
    }

    /// What a read that begins now misses nothing of: by what this pod knows of floors it may miss what was
    /// acknowledged of a tag within Δ.
    pub(super) fn acked_for_reads(&self, config: &Config, pod: &Pod, key: usize) -> Version {
        let required = self.required(config, pod, key);
        let acks = self.acks[key].iter().filter(|ack| !ack.by_tag);
        let bound = acks.filter(|ack| ack.binds(self, pod, key).is_some());
        bound
            .map(|ack| ack.version)
            .max()
            .unwrap_or(0)
            .max(required)
    }

    /// Of the acknowledgements older than Δ only the newest version counts, where none can be lost.
    pub(super) fn forget_old_acks(&mut self, config: &Config) {
        if config.replicas > 0 || self.lags {
            return;
        }
        let (now, lease) = (self.now, config.lease());
        let clocks: Vec<_> = self.pods.iter().map(|pod| pod.clock.clone()).collect();
        for acks in &mut self.acks {
            let over = |clock: &Clock, ack: &Ack| clock.at(ack.at) + lease < clock.at(now);
            let old = |ack: &Ack| clocks.iter().all(|clock| over(clock, ack));
            let newest = acks.iter().filter(|ack| old(ack)).map(|ack| ack.version);
            let newest = newest.max().unwrap_or(0);
            acks.retain(|ack| !old(ack) || ack.version == newest);
            acks.iter_mut()
                .filter(|ack| old(ack))
                .for_each(Ack::grow_old);
            acks.dedup();
        }
    }

    /// What a reader on `pod` would be served now.
    pub(super) fn servable(&self, config: &Config, pod: &Pod, key: usize) -> Option<Version> {
        Some(self.servable_entry(config, pod, key)?.version)
    }

    fn servable_entry(&self, config: &Config, pod: &Pod, key: usize) -> Option<Entry> {
        let entry = pod.entries[key]?;
        let now = self.clock(config, pod);
        let may = config.rules().may_serve(pod.word, entry.stamp, now);
        (may && entry.lives(now) && pod.stands(config, entry.tied, now)).then_some(entry)
    }

    /// The oldest version that what stands here may be, to a reader who knows of its own pod's
    /// invalidations up to `own`.
    pub(super) fn hit_wants(
        &self,
        config: &Config,
        pod: &Pod,
        entry: Entry,
        key: usize,
        own: Version,
    ) -> Version {
        let young = self.clock(config, pod) < entry.stamp.start + config.lease();
        match entry.untold && young {
            true => own,
            false => own.max(self.required(config, pod, key)),
        }
    }

    /// Whether some invalidation was acknowledged.
    pub(crate) fn has_acks(&self) -> bool {
        self.acks.iter().any(|acks| !acks.is_empty())
    }

    pub(super) fn check(&mut self, config: &Config) {
        for (n, pod) in self.pods.iter().enumerate().filter(|(_, pod)| !pod.paused) {
            for key in 0..usize::from(config.keys) {
                let (at, name) = (n as u8, key as u8);
                if let Some(entry) = self.servable_entry(config, pod, key) {
                    let wants = self.hit_wants(config, pod, entry, key, self.owed(pod, key));
                    if entry.version < wants {
                        return self.turn_red(Red::Hit(at, name, entry.version, wants));
                    }
                }
                if !pod.driver.is_usable() {
                    continue;
                }
                let wants = self.acked(pod, key);
                if let Some(got) = self.in_store(config, pod, name).filter(|got| *got < wants) {
                    return self.turn_red(Red::Store(at, name, got, wants));
                }
            }
        }
    }

    /// Notes the first promise that was broken.
    pub(super) fn turn_red(&mut self, red: Red) {
        self.red.get_or_insert(red);
    }
}
