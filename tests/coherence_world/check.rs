//! What was promised, checked after every step.

use super::{Config, Key, Pod, Version, World};
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
}

impl World {
    /// The newest version whose invalidation was acknowledged.
    pub(super) fn acked(&self, key: usize) -> Version {
        let versions = self.acks[key].iter().map(|(version, _)| *version);
        versions.max().unwrap_or(0)
    }

    /// The newest version whose invalidation was acknowledged more than Δ before `now`.
    pub(super) fn required(&self, config: &Config, key: usize, now: Millis) -> Version {
        let old = self.acks[key].iter();
        let old = old.filter(|(_, at)| *at + config.lease() < now);
        old.map(|(version, _)| *version).max().unwrap_or(0)
    }

    /// Of the acknowledgements older than Δ only the newest version counts.
    pub(super) fn forget_old_acks(&mut self, config: &Config) {
        let (now, lease) = (self.now, config.lease());
        for key in 0..self.acks.len() {
            let required = self.required(config, key, now);
            self.acks[key].retain(|(version, at)| *at + lease >= now || *version == required);
            // Their time does not count any more.
            for (_, at) in self.acks[key]
                .iter_mut()
                .filter(|(_, at)| *at + lease < now)
            {
                *at = Millis(0);
            }
            self.acks[key].dedup();
        }
    }

    /// What a reader on `pod` would be served now.
    pub(super) fn servable(&self, config: &Config, pod: &Pod, key: usize) -> Option<Version> {
        let entry = pod.entries[key]?;
        let now = self.clock(config, pod);
        let may = config.rules().may_serve(pod.word, entry.stamp, now);
        may.then_some(entry.version)
    }

    /// Whether some invalidation was acknowledged.
    pub(crate) fn has_acks(&self) -> bool {
        (0..self.acks.len()).any(|key| self.acked(key) > 0)
    }

    pub(super) fn check(&mut self, config: &Config) {
        for (n, pod) in self.pods.iter().enumerate().filter(|(_, pod)| !pod.paused) {
            for key in 0..usize::from(config.keys) {
                let (at, name) = (n as u8, key as u8);
                let wants = pod.own[key].max(self.required(config, key, self.now));
                if let Some(got) = self.servable(config, pod, key).filter(|got| *got < wants) {
                    return self.turn_red(config, Red::Hit(at, name, got, wants));
                }
                if !pod.driver.is_usable() {
                    continue;
                }
                let wants = self.acked(key);
                if let Some(got) = self.in_store(config, pod, name).filter(|got| *got < wants) {
                    return self.turn_red(config, Red::Store(at, name, got, wants));
                }
            }
        }
    }

    /// Notes the first promise that was broken. Of a server that claims what it cannot keep only
    /// repair is expected.
    pub(super) fn turn_red(&mut self, config: &Config, red: Red) {
        let repair = matches!(
            red,
            Red::LocalDiverged(..) | Red::StoreDiverged(..) | Red::Stuck(_) | Red::Dead(_)
        );
        if repair || !config.lossy {
            self.red.get_or_insert(red);
        }
    }
}
