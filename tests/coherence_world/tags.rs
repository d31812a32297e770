//! One tag that every entry carries, with a lane of its own: counts, moments and floors, as `src/tags`,
//! `src/bus/listen.rs` and `src/entity/tagging.rs` have them.

use super::calls::Invalidation;
use super::flights::{Fill, Landing, Lease, write_tagged};
use super::{Config, Event, Key, Pod, TAGS, Version, World, spend, take};
use std::collections::BTreeSet;
use std::time::Duration;
use tidings::Millis;
use tidings::coherence::{Action, Call, LaneState, Nonce, Position, Rank, View};
use tidings::store::{TagFloor, TagPlace};

const NAME: u64 = 0xF;
const HASH: u64 = 0xFE;
const PLACE: TagPlace = TagPlace {
    lane: TAGS,
    name: NAME,
    key: HASH,
};

/// A part of what tags do, to be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TagPart {
    /// An entry is served while the count of its tag stays the same; off: whatever it is.
    Counts,
    /// An entry is served while the lane of its tag is live, too; off: by its own lane alone.
    Liveness,
    /// What a tag was invalidated during is kept nowhere; off: as any other.
    Noticed,
    /// Who joined a load before a tag was invalidated looks when it lands; off: takes what comes.
    Overtaken,
    /// A value of the store is compared with the floor of its tag; off: it is believed.
    Floors,
    /// What is heard while a floor is asked for makes the answer void; off: it counts from when it came.
    CountsFirst,
    /// Until its own invalidation is acknowledged a pod asks for no floor and believes nothing; off: it does.
    Poison,
    /// What was stored before a fork of the tag's lane is doubted as long as that is; off: it is believed.
    Doubt,
}

/// What one pod knows of the tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Side {
    pub lane: LaneState,
    /// Its lane is live until then.
    pub until: Millis,
    /// How often the tag was invalidated.
    count: u32,
    /// The order in which the pod comes to know of things, and when it did of the tag, or of a gap.
    moments: u32,
    noticed: u32,
    last: Rank,
    poisoned: u8,
    floor: Option<Floor>,
    /// Entries that were told of.
    told: BTreeSet<u64>,
    pub own: BTreeSet<u64>,
    pub unfilled: Vec<Unfilled>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Floor {
    count: u32,
    told: TagFloor,
    asked: Millis,
}

/// That the tag was not invalidated since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tie {
    count: u32,
    since: Millis,
}

/// A reader, as far as it may be given what somebody else has loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Began {
    moment: u32,
    start: Millis,
    until: Millis,
}

/// A floor that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    count: u32,
    view: Option<View>,
    asked: Millis,
    answer: Option<TagFloor>,
    pub answered: bool,
}

/// What a value of the store is worth by its tag.
pub(super) enum Worth {
    Tied(Option<Tie>),
    Dead,
    Unknown,
}

/// An outcome that is to be stored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Unfilled {
    pub key: Key,
    pub lease: Lease,
    pub version: Version,
    pub then: u32,
    pub question: Option<Question>,
}

impl Side {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            lane: LaneState::new(config.mechanisms()),
            until: Millis(0),
            count: 0,
            moments: 0,
            noticed: 0,
            last: Rank::default(),
            poisoned: 0,
            floor: None,
            told: BTreeSet::new(),
            own: BTreeSet::new(),
            unfilled: Vec::new(),
        }
    }

    pub(super) fn moment(&self) -> u32 {
        self.moments
    }

    fn notice(&mut self) {
        self.moments += 1;
        self.noticed = self.moments;
    }

    fn noticed_since(&self, config: &Config, then: u32) -> bool {
        config.tagged(TagPart::Noticed) && self.noticed > then
    }

    /// The pod invalidates the tag itself: it is told before the store is.
    pub(super) fn fence_off(&mut self, tells: bool) {
        self.poisoned += 1;
        self.notice();
        self.count += u32::from(tells);
    }

    pub(super) fn heal(&mut self) {
        self.poisoned -= 1;
    }

    pub(super) fn carry_out(&mut self, config: &Config, action: &Action) {
        match *action {
            Action::Evict { rank, .. } if self.last < rank => {
                self.last = rank;
                self.notice();
            }
            Action::Drop { .. } => self.notice(),
            Action::Tell { nonce, .. } => {
                let is_new = !self.own.contains(&nonce.0) && self.told.insert(nonce.0);
                self.count += u32::from(is_new);
            }
            Action::Flush => {
                self.notice();
                self.last = Rank::default();
                self.count += 1;
            }
            Action::Confirm { sent } => self.until = self.until.max(sent + config.lease()),
            _ => {}
        }
    }

    fn known_floor(&self) -> Option<Floor> {
        let epoch = self.lane.view().map(|view| view.epoch);
        let here = |floor: &Floor| Some(floor.told.head.at.epoch) == epoch;
        self.floor
            .filter(|floor| floor.count == self.count)
            .filter(here)
    }

    fn is_poisoned(&self, config: &Config) -> bool {
        self.poisoned > 0 && config.tagged(TagPart::Poison)
    }
}

pub(super) fn call() -> Call {
    Call::invalidate(&"org".into(), NAME, &[(HASH, "t".into())])
}

/// Whether `call` is one of the tag.
pub(super) fn is_of_tag(call: &Call) -> bool {
    call.entity_hash() == NAME
}

impl Pod {
    /// All lanes are live until then.
    fn live_until(&self, config: &Config) -> Millis {
        match config.tagged(TagPart::Liveness) {
            true => self.word.until().min(self.tag.until),
            false => self.word.until(),
        }
    }

    pub(super) fn began(&self, config: &Config, start: Millis) -> Began {
        Began {
            moment: self.tag.moment(),
            start,
            until: self.live_until(config),
        }
    }

    /// Whether an entry that is tied so may be served, by its tag.
    pub(super) fn stands(&self, config: &Config, tie: Option<Tie>, now: Millis) -> bool {
        let Some(tie) = tie else {
            return true;
        };
        let unchanged = tie.count == self.tag.count || !config.tagged(TagPart::Counts);
        unchanged && (now < self.live_until(config) || now < tie.since + config.lease())
    }

    /// What is tied so reflects every invalidation of the tag that was acknowledged before this.
    pub(super) fn as_of(&self, config: &Config, tie: Tie) -> Millis {
        let until = self.live_until(config).0;
        tie.since.max(Millis(until.saturating_sub(config.lease_ms)))
    }

    /// What ties an outcome that was loaded since; `None` if it is not to be kept.
    pub(super) fn tie(&self, config: &Config, since: Millis, then: u32) -> Option<Tie> {
        let count = self.tag.count;
        (!self.tag.noticed_since(config, then)).then_some(Tie { count, since })
    }

    /// Whether who began so may not be given what landed so.
    pub(super) fn is_overtaken(&self, config: &Config, began: Began, landing: Landing) -> bool {
        let live = began.start < began.until;
        let young = began.start < landing.as_of + config.lease();
        let older = landing.then < began.moment;
        config.tags
            && config.tagged(TagPart::Overtaken)
            && (!(live || young) || older && self.tag.noticed_since(config, landing.then))
    }

    /// What a value is worth that says nothing against itself up to `at`.
    pub(super) fn worth(&self, config: &Config, at: Position, now: Millis) -> Worth {
        let until = self.live_until(config);
        let side = &self.tag;
        let confirmed = Millis(until.0.saturating_sub(config.lease_ms));
        let known = side.known_floor();
        let doubted = |floor: &Floor| {
            let in_doubt = side.lane.view().is_some_and(|view| view.in_doubt);
            in_doubt && at.epoch != floor.told.head.at.epoch && config.tagged(TagPart::Doubt)
        };
        let fallen = |floor: &Floor| {
            !floor.told.admits(at) && config.tagged(TagPart::Floors) || doubted(floor)
        };
        if side.is_poisoned(config) || known.as_ref().is_some_and(fallen) {
            return Worth::Dead;
        }
        match known {
            Some(floor) if now < until || now < floor.asked + config.lease() => {
                Worth::Tied(Some(Tie {
                    count: side.count,
                    since: floor.asked.max(confirmed),
                }))
            }
            _ => Worth::Unknown,
        }
    }

    /// The floor is to be asked for, unless it is known or the pod invalidates the tag itself.
    pub(super) fn wanted(&self, config: &Config, now: Millis) -> Option<Question> {
        let until = self.live_until(config);
        let side = &self.tag;
        let will_do = |floor: Floor| now < until || now < floor.asked + config.lease();
        if side.known_floor().is_some_and(will_do) || side.is_poisoned(config) {
            return None;
        }
        Some(Question {
            count: side.count,
            view: side.lane.view(),
            asked: now,
            answer: None,
            answered: false,
        })
    }

    pub(super) fn learn_floor(&mut self, config: &Config, question: Question) {
        let Some(told) = question.answer else {
            return;
        };
        let behind = tidings::coherence::rules::rank_of_head(question.view, &told.head).is_none();
        if behind {
            return;
        }
        let count = match config.tagged(TagPart::CountsFirst) {
            true => question.count,
            false => self.tag.count,
        };
        self.tag.floor = Some(Floor {
            count,
            told,
            asked: question.asked,
        });
    }

    /// Up to where the log is known to say nothing against an outcome that was loaded since `then`.
    fn tag_version(&self, config: &Config, then: u32) -> Option<Position> {
        let side = &self.tag;
        let view = side.lane.view()?;
        let doubted = view.in_doubt && config.tagged(TagPart::Doubt);
        let floor = side.known_floor()?;
        let stands = floor.told.admits(view.position()) || !config.tagged(TagPart::Floors);
        (stands && !doubted && !side.noticed_since(config, then)).then_some(view.position())
    }
}

impl World {
    pub(super) fn enabled_tags(&self, pod: &Pod, n: u8, config: &Config, out: &mut Vec<Event>) {
        if config.writers & (1 << n) != 0 && self.left.tags > 0 {
            out.push(Event::CommitTag(n));
        }
        for (at, unfilled) in (0..).zip(&pod.tag.unfilled) {
            let asks = unfilled.question.is_some_and(|question| !question.answered);
            if !asks || pod.driver.is_usable() {
                out.push(Event::Store(n, at));
            }
        }
    }

    /// What every entry was made of is written, and its tag is about to be invalidated.
    pub(super) fn commit_tag(&mut self, n: u8) -> bool {
        if self.running(n).is_none() || !spend(&mut self.left.tags) {
            return false;
        }
        self.source.iter_mut().for_each(|version| *version += 1);
        let pod = &mut self.pods[usize::from(n)];
        pod.invalidations.push(Invalidation::of(call()));
        true
    }

    /// The floor of the tag, from the server that the pod asks.
    pub(super) fn ask_floor(&mut self, reign: u8, question: Question) -> Option<Question> {
        let answer = self.step_at(reign, |server, now, _| {
            server.tag_floors(&[PLACE], Some(Duration::from_secs(3600)), now)[0]
        })?;
        Some(Question {
            answer,
            answered: true,
            ..question
        })
    }

    /// What was loaded is stored, in steps: ask for the floor if it is not known, be told, encode.
    pub(super) fn step_unfilled(&mut self, config: &Config, n: u8, at: u8) -> bool {
        let now = self.local(n);
        let Some(pod) = self.running(n) else {
            return false;
        };
        let reign = pod.driver.reign();
        let Some(unfilled) = pod.tag.unfilled.get(usize::from(at)).cloned() else {
            return false;
        };
        match unfilled.question {
            None => match pod.wanted(config, now) {
                Some(question) => {
                    pod.tag.unfilled[usize::from(at)].question = Some(question);
                }
                None => self.encode(config, n, at, reign),
            },
            Some(question) if !question.answered => {
                let Some(told) = reign.and_then(|reign| self.ask_floor(reign, question)) else {
                    // The store is of no help.
                    take(&mut self.pods[usize::from(n)].tag.unfilled, at);
                    return true;
                };
                self.pods[usize::from(n)].tag.unfilled[usize::from(at)].question = Some(told);
            }
            Some(question) => {
                pod.learn_floor(config, question);
                self.encode(config, n, at, reign);
            }
        }
        true
    }

    fn encode(&mut self, config: &Config, n: u8, at: u8, reign: Option<u8>) {
        let pod = &mut self.pods[usize::from(n)];
        let Some(unfilled) = take(&mut pod.tag.unfilled, at) else {
            return;
        };
        let version = pod.tag_version(config, unfilled.then);
        if let (Some(tag), Some(to)) = (version, reign) {
            let Unfilled {
                key,
                lease,
                version,
                ..
            } = unfilled;
            let envelope = write_tagged(lease, version, tag);
            self.fills.push(Fill::new(to, key, lease, envelope));
        }
    }

    /// What the store itself says a value is worth, to `pod`.
    pub(super) fn floor_admits(&self, config: &Config, pod: &Pod, at: Position) -> bool {
        let Some(node) = pod.driver.reign().and_then(|reign| self.node(reign)) else {
            return false;
        };
        let told = node.state.tag_floor(&PLACE, self.now.0);
        let view = pod.tag.lane.view();
        told.is_some_and(|told| {
            let known = tidings::coherence::rules::rank_of_head(view, &told.head).is_some();
            let doubted = view.is_some_and(|view| view.in_doubt) && at.epoch != told.head.at.epoch;
            known
                && (told.admits(at) || !config.tagged(TagPart::Floors))
                && (!doubted || !config.tagged(TagPart::Doubt))
        })
    }

    /// A pod draws the number of a call.
    pub(super) fn note_own(&mut self, n: u8, nonce: Nonce) {
        self.pods[usize::from(n)].tag.own.insert(nonce.0);
    }
}
