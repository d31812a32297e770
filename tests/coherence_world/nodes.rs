//! The servers: a primary, replicas that lag behind it, and perhaps a primary that was replaced and goes
//! on for those who do not know it yet.

use super::{Config, Key, LANE, Pod, PodId, TAGS, Version, World};
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use tidings::Millis;
use tidings::coherence::{Epoch, Head, Hint, Incarnation, LaneState, Mechanism, Nonce};
use tidings::store::memory::{Continuity, MemoryState};

/// For how long a primary without its replicas goes on taking writes.
const MINORITY_MS: std::ops::RangeInclusive<u16> = 1..=3000;
const RETENTION: usize = 32;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node {
    pub state: MemoryState,
    /// Names it to the links that lead to it.
    pub reign: u8,
    /// The life of the server that wrote what it has.
    life: Incarnation,
    /// By key: the newest version that was committed when it last carried out an invalidation of the key,
    /// or made all void. Of what was acknowledged up to that, nothing is missing here.
    pub done: Vec<Version>,
    /// The same of invalidations of the tag that all keys carry.
    tags_done: Vec<Version>,
    /// When the fork was opened that it is in.
    forked: Option<Millis>,
    tags_forked: Option<Millis>,
}

/// A primary that was replaced, and ends at a time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Deposed {
    pub node: Node,
    end: Millis,
}

/// An acknowledged invalidation of one key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ack {
    pub version: Version,
    pub at: Millis,
    by: PodId,
    /// The call, as pods that heard of it name it.
    nonce: Nonce,
    /// It was of the tag that all keys carry.
    pub by_tag: bool,
    /// It counts by its commit, under a guard: the log need not have it.
    by_commit: bool,
    /// Who had it acknowledged has ended.
    abandoned: bool,
    /// The primary does not have it, and nobody is bound to it until it has: it was acknowledged by a
    /// primary that had been replaced, or was not logged again within the time of doubt.
    excused: bool,
    /// That is so because it was not logged again in time. A primary that had been replaced may come to
    /// have it later than it was acknowledged.
    late: bool,
    /// A promotion lost it.
    lost: bool,
    /// The store lost the minimum version that it left, before the copy of the source had it.
    pub forgotten: bool,
    /// Lost, and nobody is left who knows of it.
    declared: bool,
}

/// What became of what a failover endangered. No part of what may happen next, so all are equal.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub promotions: u64,
    /// The replaced primary went on.
    pub splits: u64,
    /// Promotions that lost an acknowledged invalidation.
    pub lost_tails: u64,
    /// Acknowledged invalidations that a promoted replica lacked.
    pub lost: u64,
    /// Of those, and of what a replaced primary had acknowledged: logged again, or another invalidation of
    /// the key was.
    pub repaired: u64,
    /// Calls that the pods logged again.
    pub again: u64,
    /// Answers that came when their epoch was over (hole H16).
    pub late_answers: u64,
    /// Acknowledged by a primary that had been replaced.
    pub minority: u64,
    /// Not repaired within the time of doubt.
    pub late: u64,
    /// Repaired though the pod ended that had it acknowledged.
    pub inherited: u64,
    /// Those whose pod ended, and that no other one had heard of: nobody can repair them.
    pub declared_lost: u64,
    /// Of those: no later invalidation of the key made up for it.
    pub never_repaired: u64,
    /// Acknowledged minimum versions that the store lost too early, and those that were said again.
    pub forgotten: u64,
    pub said_again: u64,
    /// Loads that were behind what they had to give.
    pub behind: u64,
    /// Values that were put in the place of a lower version.
    pub puts: u64,
}

impl PartialEq for Tally {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Tally {}

impl Hash for Tally {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.promotions += other.promotions;
        self.splits += other.splits;
        self.lost_tails += other.lost_tails;
        self.lost += other.lost;
        self.repaired += other.repaired;
        self.again += other.again;
        self.late_answers += other.late_answers;
        self.minority += other.minority;
        self.late += other.late;
        self.inherited += other.inherited;
        self.declared_lost += other.declared_lost;
        self.never_repaired += other.never_repaired;
        self.forgotten += other.forgotten;
        self.said_again += other.said_again;
        self.behind += other.behind;
        self.puts += other.puts;
    }
}

impl Node {
    pub(super) fn new(keys: usize) -> Self {
        let life = Incarnation(1);
        Self {
            state: MemoryState::new(life).with_retention(RETENTION),
            reign: 0,
            life,
            done: vec![0; keys],
            tags_done: vec![0; keys],
            forked: None,
            tags_forked: None,
        }
    }

    /// Another life of the server begins, on what is there.
    fn begin_life(&mut self, life: Incarnation, continuity: Continuity) {
        let data = self.state.clone().with_continuity(continuity);
        self.state.restart_from(data, life);
        self.life = life;
        (self.forked, self.tags_forked) = (None, None);
    }

    /// Of a key: the newest version up to which nothing that was acknowledged is missing.
    pub(super) fn has(&self, key: usize) -> Version {
        self.done[key].max(self.tags_done[key])
    }

    /// Whether the lane was last written in the life that this replica has followed.
    fn follows(&self) -> bool {
        let head = self.state.head(LANE);
        head.is_some_and(|head| head.incarnation == self.life)
    }
}

impl Ack {
    pub(super) fn is_by(&self, n: PodId) -> bool {
        self.by == n && !self.abandoned
    }

    /// A commit under a guard that stood.
    pub(super) fn by_commit(version: Version, at: Millis, by: PodId) -> Self {
        Self {
            by_commit: true,
            ..Self::new(version, at, (by, Nonce(0)))
        }
    }

    /// It was so long ago that its time does not count any more.
    pub(super) fn grow_old(&mut self) {
        *self = Self {
            by_commit: self.by_commit,
            by_tag: self.by_tag,
            ..Self::new(self.version, Millis(0), (0, Nonce(0)))
        };
    }

    pub(super) fn new(version: Version, at: Millis, (by, nonce): (PodId, Nonce)) -> Self {
        Self {
            version,
            at,
            by,
            nonce,
            by_tag: false,
            by_commit: false,
            abandoned: false,
            excused: false,
            late: false,
            lost: false,
            forgotten: false,
            declared: false,
        }
    }
}

impl World {
    pub(super) fn node(&self, reign: u8) -> Option<&Node> {
        let deposed = self.deposed.as_ref().map(|deposed| &deposed.node);
        let nodes = [Some(&self.primary), deposed];
        nodes.into_iter().flatten().find(|node| node.reign == reign)
    }

    fn node_mut(&mut self, reign: u8) -> Option<&mut Node> {
        let deposed = self.deposed.as_mut().map(|deposed| &mut deposed.node);
        let nodes = [Some(&mut self.primary), deposed];
        nodes.into_iter().flatten().find(|node| node.reign == reign)
    }

    /// The server carries out a step, and publishes.
    pub(super) fn step_at<T>(
        &mut self,
        reign: u8,
        step: impl FnOnce(&mut MemoryState, u64, &mut Vec<Hint>) -> T,
    ) -> Option<T> {
        let now = self.now;
        // What is loaded from here on.
        let loaded = match self.lags {
            true => self.copy.clone(),
            false => self.source.clone(),
        };
        let node = self.node_mut(reign)?;
        let before = [LANE, TAGS].map(|lane| node.state.head(lane));
        let mut hints = Vec::new();
        let result = step(&mut node.state, now.0, &mut hints);
        let epoch = |head: Option<Head>| head.map_or(Epoch(0), |head| head.at.epoch);
        for (lane, before) in [LANE, TAGS].into_iter().zip(before) {
            let head = node.state.head(lane);
            let Some(head) = head.filter(|head| epoch(before) != head.at.epoch) else {
                continue;
            };
            let (done, forked) = match lane {
                TAGS => (&mut node.tags_done, &mut node.tags_forked),
                _ => (&mut node.done, &mut node.forked),
            };
            *forked = head.fork.then_some(now);
            if !head.fork {
                for (done, loaded) in done.iter_mut().zip(&loaded) {
                    *done = *loaded.max(done);
                }
            }
        }
        self.publish(reign, hints);
        Some(result)
    }

    /// An invalidation of these keys was carried out.
    pub(super) fn mark_done(&mut self, reign: u8, covered: impl Fn(Key) -> bool) {
        let source = self.source.clone();
        if let Some(node) = self.node_mut(reign) {
            let keys = node.done.iter_mut().zip(source).enumerate();
            for (_, (done, now)) in keys.filter(|(key, _)| covered(*key as Key)) {
                *done = now;
            }
        }
        if reign == self.primary.reign {
            let keys = (0..self.source.len()).filter(|key| covered(*key as Key));
            keys.for_each(|key| self.make_up_for(key));
        }
    }

    /// An invalidation of this version of a key was carried out, which says nothing of later ones.
    pub(super) fn mark_version(&mut self, reign: u8, key: Key, version: Version) {
        // What is loaded from here on is no older than the copy.
        let version = version.max(self.copy[usize::from(key)]);
        if let Some(node) = self.node_mut(reign) {
            let done = &mut node.done[usize::from(key)];
            *done = version.max(*done);
        }
        if reign == self.primary.reign {
            self.make_up_for(usize::from(key));
        }
    }

    /// An invalidation of the tag was carried out.
    pub(super) fn mark_tags_done(&mut self, reign: u8) {
        let source = self.source.clone();
        if let Some(node) = self.node_mut(reign) {
            node.tags_done = source;
        }
    }

    /// The node that the tag is on fails over to a replica of it.
    pub(super) fn promote_tags(&mut self, replica: u8) -> bool {
        let Some(replica) = self.replicas.get(usize::from(replica)) else {
            return false;
        };
        self.primary.state.promote_lane(TAGS, &replica.state);
        self.primary.tags_done.clone_from(&replica.tags_done);
        self.primary.tags_forked = None;
        self.cut_off(self.primary.reign);
        self.note_lost_tail();
        true
    }

    pub(super) fn is_deposed(&self, reign: u8) -> bool {
        let deposed = self.deposed.as_ref();
        deposed.is_some_and(|deposed| deposed.node.reign == reign)
    }

    /// A replica has everything that the primary has.
    pub(super) fn replicate(&mut self, replica: u8) -> bool {
        let Some(copy) = self.replicas.get_mut(usize::from(replica)) else {
            return false;
        };
        let behind = *copy != self.primary;
        copy.clone_from(&self.primary);
        behind
    }

    /// The server begins a new life, with `data` or without any. No connection survives it.
    pub(super) fn restart(&mut self, config: &Config, data: Option<Node>) -> bool {
        let life = self.next_life(config);
        let reign = self.primary.reign;
        let keys = self.source.len();
        self.primary = data.unwrap_or_else(|| Node::new(keys));
        self.primary.reign = reign;
        self.primary.begin_life(life, Continuity::Fence);
        self.cut_off(reign);
        self.note_forgotten();
        true
    }

    /// A replica becomes the primary. The one that it replaces is dead, or goes on for a while.
    pub(super) fn promote(&mut self, config: &Config, replica: u8, minority_ms: u16) -> bool {
        let Some(mut node) = self.replicas.get(usize::from(replica)).cloned() else {
            return false;
        };
        self.end_minority(self.now);
        let continuity = match node.follows() {
            true => config.continuity,
            false => Continuity::Fence,
        };
        node.begin_life(self.next_life(config), continuity);
        node.reign = self.primary.reign + 1;
        let old = std::mem::replace(&mut self.primary, node);
        if MINORITY_MS.contains(&minority_ms) {
            let end = Millis(self.now.0 + u64::from(minority_ms));
            self.deposed = Some(Deposed { node: old, end });
            self.tally.splits += 1;
        } else {
            self.cut_off(old.reign);
        }
        self.note_lost_tail();
        self.note_forgotten();
        true
    }

    fn next_life(&mut self, config: &Config) -> Incarnation {
        match config.on(Mechanism::FenceOnRestart) {
            true => Incarnation(self.draw()),
            false => Incarnation(1),
        }
    }

    fn note_lost_tail(&mut self) {
        let primary = &self.primary;
        let acks = self.acks.iter_mut().enumerate();
        let acks = acks.flat_map(|(key, acks)| {
            let done = primary.has(key);
            acks.iter_mut().map(move |ack| (ack, done))
        });
        let mut lost = 0;
        for (ack, _) in acks.filter(|(ack, done)| ack.version > *done && !ack.excused) {
            lost += u64::from(!ack.lost);
            ack.lost = true;
        }
        self.tally.promotions += 1;
        self.tally.lost += lost;
        self.tally.lost_tails += u64::from(lost > 0);
    }

    /// Breaks the links to one server.
    fn cut_off(&mut self, reign: u8) {
        for n in 0..self.pods.len() {
            if self.pods[n].driver.leads_to(reign) {
                self.disconnect(n as u8);
            }
        }
    }

    /// The primary that was replaced is no more, since `at`.
    pub(super) fn end_minority(&mut self, at: Millis) {
        let Some(deposed) = &self.deposed else {
            return;
        };
        let (reign, end) = (deposed.node.reign, deposed.end.min(at));
        self.cut_off(reign);
        for pod in &mut self.pods {
            pod.left = pod.left.min(end);
        }
        self.deposed = None;
    }

    /// Time has passed.
    pub(super) fn pass_minority(&mut self) {
        let now = self.now;
        if self.deposed.as_ref().is_some_and(|it| it.end <= now) {
            self.end_minority(now);
        }
    }

    /// The pod reaches no server any more.
    pub(super) fn cut(&mut self, n: u8) -> bool {
        let Some(pod) = self.pods.get_mut(usize::from(n)) else {
            return false;
        };
        let whole = !std::mem::replace(&mut pod.cut, true);
        self.disconnect(n);
        whole
    }

    pub(super) fn mend(&mut self, n: u8) -> bool {
        let pod = self.pods.get_mut(usize::from(n));
        pod.is_some_and(|pod| std::mem::replace(&mut pod.cut, false))
    }

    /// The pod's process ends; another one takes its place.
    pub(super) fn kill(&mut self, config: &Config, n: u8) -> bool {
        if usize::from(n) >= self.pods.len() {
            return false;
        }
        let mut clock = std::mem::take(&mut self.pods[usize::from(n)].clock);
        clock.go_on(self.now);
        self.pods[usize::from(n)] = Pod {
            followed_since: clock.at(self.now),
            clock,
            ..Pod::new(config)
        };
        for ack in self.acks.iter_mut().flatten().filter(|ack| ack.by == n) {
            ack.abandoned = true;
        }
        self.heard.values_mut().for_each(|pods| *pods &= !(1 << n));
        true
    }

    /// The pod has come to know of a call, in its place in the log that it follows.
    pub(super) fn note_heard(&mut self, config: &Config, n: u8, nonce: Nonce) {
        if config.budget.kills > 0 {
            *self.heard.entry(nonce.0).or_default() |= 1 << n;
        }
    }

    /// Nobody is left who could see to it that `ack` is not forgotten.
    fn is_orphan(heard: &BTreeMap<u64, u8>, ack: &Ack) -> bool {
        ack.abandoned && heard.get(&ack.nonce.0).is_none_or(|pods| *pods == 0)
    }

    /// `by` is told that the invalidation of `version` is acknowledged; by a primary that had been replaced
    /// when it logged it, or not.
    pub(super) fn new_ack(
        &mut self,
        key: usize,
        version: Version,
        by: (PodId, Nonce),
        minority: bool,
    ) -> Ack {
        let lacked = self.primary.has(key) < version;
        self.tally.minority += u64::from(lacked && minority);
        self.tally.late += u64::from(lacked && !minority && self.is_too_late());
        Ack {
            excused: lacked && (minority || self.is_too_late()),
            lost: lacked,
            ..Ack::new(version, self.now, by)
        }
    }

    /// Whether what the primary lacks is not expected to come any more.
    fn is_too_late(&self) -> bool {
        let late = |at: Option<Millis>| at.is_some_and(|at| self.now >= at + LaneState::DOUBT);
        late(self.primary.forked) || late(self.primary.tags_forked)
    }

    /// Follows what becomes of acknowledged invalidations that the primary lacks.
    pub(super) fn account(&mut self) {
        let too_late = self.is_too_late();
        let late_before = self.tally.late;
        for (key, acks) in self.acks.iter_mut().enumerate() {
            let done = self.primary.has(key);
            for ack in acks {
                let is_done = ack.version <= done;
                if is_done && ack.lost {
                    self.tally.repaired += 1;
                    self.tally.inherited += u64::from(ack.abandoned);
                    ack.lost = false;
                }
                if ack.lost && !ack.declared && Self::is_orphan(&self.heard, ack) {
                    self.tally.declared_lost += 1;
                    ack.declared = true;
                }
                match (ack.excused, is_done) {
                    // From now on it counts, as if it had been acknowledged now.
                    (true, true) => {
                        (ack.excused, ack.late, ack.at) = (false, false, self.now);
                    }
                    (false, false) if too_late => {
                        (ack.excused, ack.late) = (true, true);
                        self.tally.late += 1;
                    }
                    _ => {}
                }
            }
        }
        if self.tally.late > late_before {
            (0..self.pods.len() as u8).for_each(|n| self.expect_less(n));
        }
    }

    /// Acknowledged invalidations that the primary lacks in the end: how many that nobody could have
    /// logged again, and one that somebody should have.
    pub(super) fn missing(&self) -> (u64, Option<(usize, Version)>) {
        let mut orphans = 0;
        for (key, acks) in self.acks.iter().enumerate() {
            let done = self.primary.has(key);
            let lacked = |ack: &&Ack| ack.version > done && !ack.by_commit && !ack.forgotten;
            for ack in acks.iter().filter(lacked) {
                if !Self::is_orphan(&self.heard, ack) {
                    return (orphans, Some((key, ack.version)));
                }
                orphans += 1;
            }
        }
        (orphans, None)
    }
}

impl Ack {
    /// Since when `pod` is bound to it, if it is.
    pub(super) fn binds(&self, world: &World, pod: &Pod, key: usize) -> Option<Millis> {
        let deposed = world.deposed.as_ref().map(|deposed| &deposed.node);
        if let Some(node) = deposed.filter(|node| pod.driver.leads_to(node.reign)) {
            return (!self.late && node.has(key) >= self.version).then_some(self.at);
        }
        (!self.excused && !self.forgotten).then(|| self.at.max(pod.left))
    }
}
