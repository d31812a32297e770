//! What a pod takes for the time: a clock of its own, which may stand still with its machine, or jump ahead.

use super::{Config, World, spend};
use std::time::Duration;
use tidings::Millis;

/// As the true time, but for its changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Clock {
    /// In order of the true time.
    changes: Vec<Change>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Change {
    at: Millis,
    /// What the clock shows from then on, and whether it goes on from there.
    shows: Millis,
    stands: bool,
}

impl Clock {
    /// What it showed, or will show, at a true time.
    pub(super) fn at(&self, then: Millis) -> Millis {
        let change = self.changes.iter().rev().find(|change| change.at <= then);
        match change {
            None => then,
            Some(change) if change.stands => change.shows,
            Some(change) => change.shows + then.since(change.at),
        }
    }

    fn stands(&self) -> bool {
        self.changes.last().is_some_and(|change| change.stands)
    }

    fn change(&mut self, at: Millis, shows: Millis, stands: bool) {
        self.changes.retain(|change| change.at < at);
        self.changes.push(Change { at, shows, stands });
    }

    /// The machine goes on, if it stood still.
    pub(super) fn go_on(&mut self, now: Millis) {
        if self.stands() {
            self.change(now, self.at(now), false);
        }
    }
}

impl World {
    /// What the clock of a pod shows.
    pub(super) fn local(&self, n: u8) -> Millis {
        let pod = self.pods.get(usize::from(n));
        pod.map_or(self.now, |pod| pod.clock.at(self.now))
    }

    /// The pod's machine stands still, with its clock.
    pub(super) fn freeze(&mut self, n: u8) -> bool {
        let now = self.now;
        if self.running(n).is_none() || !spend(&mut self.left.freezes) {
            return false;
        }
        let pod = &mut self.pods[usize::from(n)];
        pod.clock.change(now, pod.clock.at(now), true);
        pod.paused = true;
        true
    }

    /// The pod's clock jumps ahead.
    pub(super) fn jump(&mut self, n: u8, ms: u16) -> bool {
        let now = self.now;
        if self.running(n).is_none() || !spend(&mut self.left.jumps) {
            return false;
        }
        let clock = &mut self.pods[usize::from(n)].clock;
        clock.change(now, clock.at(now) + Duration::from_millis(ms.into()), false);
        true
    }

    /// What the promises are measured by on a pod: its own clock.
    pub(super) fn measured(&self, config: &Config, clock: &Clock, then: Millis) -> Millis {
        match config.true_time {
            true => then,
            false => clock.at(then),
        }
    }
}
