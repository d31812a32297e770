//! What this pod knows of the floors that the store keeps for tags, and what values of the store are
//! worth by it.
//!
//! A floor is read once. From then on the pod hears of whatever would raise it, as a local entry does,
//! so it stands for as long as the counts of its tag do, within the same bound. Counts are noted down
//! before the store is asked: what is heard meanwhile makes the answer void.

use super::{Cell, Dependency, Registry};
use crate::bus::{Bus, Moment};
use crate::coherence::{Position, View};
use crate::envelope::TagVersion;
use crate::key::{Carried, TagHash};
use crate::store::{Link, StoreResult, TagFloor, TagPlace};
use crate::time::Millis;
use std::sync::Arc;
use std::time::Duration;

/// Floors are asked to be kept for this much longer than a value that needs them …
const KEEP_MORE: Duration = Duration::from_secs(60);
/// … and for this many times its life, so that a floor that is in use is asked for again once in a life.
const KEEP_LIVES: u32 = 2;

/// A floor as this pod read it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floor {
    counts: [u64; 2],
    told: TagFloor,
    /// When the store was asked.
    asked: Millis,
    /// The store keeps it until then; `NEVER` for ever.
    kept_until: Millis,
}

impl Floor {
    fn new(counts: [u64; 2], told: TagFloor, asked: Millis, keep: Option<Duration>) -> Self {
        Self {
            counts,
            told,
            asked,
            kept_until: keep.map_or(Millis::NEVER, |keep| asked + keep),
        }
    }
}

/// What a stored value is worth by its tags.
pub(crate) enum Judged {
    /// None of them was invalidated since it was loaded, but soft ones if it is expired; it stands while
    /// this holds.
    Current { tied: Dependency, expired: bool },
    /// One of them was.
    Dead,
    /// The floors of some are not known.
    Unknown,
}

/// Floors that one question was answered with.
#[derive(Default)]
pub(crate) struct Told(Vec<(TagPlace, Floor)>);

/// Floors that are to be asked for.
pub(crate) struct Wanted {
    places: Vec<TagPlace>,
    cells: Vec<[Arc<Cell>; 2]>,
    counts: Vec<[u64; 2]>,
    views: Vec<Option<View>>,
    asked: Millis,
    keep: Option<Duration>,
}

/// A tag, what counts its invalidations, and its floor if it is known.
struct Known {
    place: TagPlace,
    cells: [Arc<Cell>; 2],
    counts: [u64; 2],
    floor: Option<Floor>,
    /// Its lane is in an epoch that may lack invalidations which the epoch before it had.
    in_doubt: bool,
}

impl Known {
    /// Whether the floor speaks against a value that knows of no invalidation up to `at`. In a fork that is
    /// in doubt it may be too low for what is from before, wherever that was stored:
    ///
    /// 1. The tag is invalidated, which is acknowledged and lost with the node that its lane is on.
    /// 2. A replica of that is promoted. The value stands on another node, which was not replaced.
    /// 3. Whoever made the call logs it again, within the time of doubt.
    fn has_fallen(&self, at: Position) -> bool {
        self.floor.is_some_and(|floor| {
            let doubted = self.in_doubt && at.epoch != floor.told.head.at.epoch;
            doubted || !floor.told.admits(at)
        })
    }
}

impl Registry {
    /// What a value with these tags is worth that was just read from the store, or is still to be.
    /// If floors are `told`, by no others.
    pub(crate) fn judge(&self, bus: &Bus, tags: &[TagVersion], told: Option<&Told>) -> Judged {
        let until = self.liveness.until();
        let mut known = self.known(bus, tags.iter().map(|version| version.carried.tag));
        if let Some(Told(told)) = told {
            for known in &mut known {
                let same = |(place, _): &&(TagPlace, Floor)| *place == known.place;
                let floor = told.iter().find(same).map(|(_, floor)| *floor);
                known.floor = floor.filter(|floor| floor.counts == known.counts);
            }
        }
        let (mut since, mut unknown, mut expired) = (Millis::NEVER, false, false);
        for (known, version) in known.iter().zip(tags) {
            // After the counts, see `wanted`, by which the floor is not to be had then.
            let poisoned = is_poisoned(bus, &known.place);
            let fallen = known.has_fallen(version.at);
            if (poisoned || fallen) && !version.carried.soft {
                return Judged::Dead;
            }
            expired |= poisoned || fallen;
            let confirmed = self.liveness.confirmed_by(until);
            match known.floor {
                _ if poisoned => since = since.min(confirmed),
                Some(floor) if self.liveness.vouches(until, floor.asked) => {
                    since = since.min(floor.asked.max(confirmed));
                }
                _ => unknown = true,
            }
        }
        if unknown {
            return Judged::Unknown;
        }
        let cells = known.into_iter().zip(tags).flat_map(|(known, version)| {
            let counted = known.counts.into_iter().zip(known.cells);
            counted.map(|cell| (version.carried.soft, cell))
        });
        let tied = self.tied(cells, since);
        Judged::Current { tied, expired }
    }

    fn tied(
        &self,
        cells: impl Iterator<Item = (bool, (u64, Arc<Cell>))>,
        since: Millis,
    ) -> Dependency {
        let (soft, hard): (Vec<_>, Vec<_>) = cells.partition(|(soft, _)| *soft);
        let counted = |cells: Vec<(bool, _)>| cells.into_iter().map(|(_, cell)| cell);
        let liveness = Arc::clone(&self.liveness);
        Dependency::new(counted(hard), counted(soft), since, liveness)
    }

    /// What depends on `tags` and began at `since`, unless one of them was invalidated since the moment
    /// `then`, which was not after that.
    ///
    /// The counts first: what is noticed after the look at the stripes changes them.
    pub(crate) fn tie(
        &self,
        bus: &Bus,
        tags: &[Carried],
        since: Millis,
        then: Moment,
    ) -> Option<Dependency> {
        let cells: Vec<_> = self.with_table(|table| {
            let cells = |carried: &Carried| {
                let (cells, _) = table.ties(carried.tag, &self.space);
                let soft = carried.soft;
                cells.map(|cell| (soft, (cell.count(), cell)))
            };
            tags.iter().flat_map(cells).collect()
        });
        let dependency = self.tied(cells.into_iter(), since);
        (!self.noticed_since(bus, tags, then)).then_some(dependency)
    }

    /// Whether this pod may have come to know of an invalidation of one of `tags` since `then`.
    pub(crate) fn noticed_since(&self, bus: &Bus, tags: &[Carried], then: Moment) -> bool {
        tags.iter().any(|carried| {
            let place = self.space.place_tag(carried.tag);
            let noticed = |hash| bus.noticed_since(place.lane, hash, then);
            noticed(place.key) || noticed(place.name)
        })
    }

    /// How far the logs are known to say nothing against an outcome with these tags, whose load began
    /// not before `then`; `None` if they do, or if it would be dead to whoever reads it.
    ///
    /// The positions first: whatever is applied up to them is noticed.
    pub(crate) fn versions(
        &self,
        bus: &Bus,
        tags: &[Carried],
        then: Moment,
    ) -> Option<Vec<TagVersion>> {
        let known = self.known(bus, tags.iter().map(|carried| carried.tag));
        let version = |(known, &carried): (&Known, &Carried)| {
            // What may have been loaded before a fork is not to look as if it was loaded since.
            let view = bus.view(known.place.lane).filter(|view| !view.in_doubt)?;
            let at = Position {
                epoch: view.epoch,
                seq: view.applied.seq(),
            };
            let floor = known.floor?;
            floor.told.admits(at).then_some(TagVersion { carried, at })
        };
        let versions: Option<Vec<_>> = known.iter().zip(tags).map(version).collect();
        versions.filter(|_| !self.noticed_since(bus, tags, then))
    }

    /// Those of `tags` whose floors have to be asked for, on behalf of a value that lives for `life`
    /// from now on; `None` if that is none of them.
    ///
    /// Nor is one asked for that this pod is invalidating itself: it was told to those who watch before
    /// the store was, and is not told again when the store has acknowledged it.
    ///
    /// 1. The pod begins to invalidate a tag, and counts that.
    /// 2. A reader asks for the floor, and is told the old one.
    /// 3. The store acknowledges the invalidation, and nothing is counted.
    ///
    /// So the counts first, then the look whether one is under way. One that begins later changes the
    /// counts; one that has ended by then has raised the floor.
    pub(crate) fn wanted(
        &self,
        bus: &Bus,
        tags: impl IntoIterator<Item = TagHash>,
        life: Option<Duration>,
    ) -> Option<Wanted> {
        self.those_wanted(bus, tags, life, true)
    }

    /// As [`wanted`](Self::wanted), of all `tags`, known or not.
    pub(crate) fn wanted_anew(
        &self,
        bus: &Bus,
        tags: impl IntoIterator<Item = TagHash>,
        life: Option<Duration>,
    ) -> Option<Wanted> {
        self.those_wanted(bus, tags, life, false)
    }

    fn those_wanted(
        &self,
        bus: &Bus,
        tags: impl IntoIterator<Item = TagHash>,
        life: Option<Duration>,
        known_will_do: bool,
    ) -> Option<Wanted> {
        let (until, asked) = (self.liveness.until(), self.liveness.now());
        let needed_until = life.map_or(Millis::NEVER, |life| asked + life);
        let mut tags: Vec<_> = tags.into_iter().collect();
        tags.sort_unstable();
        tags.dedup();
        let mut wanted = Wanted {
            places: Vec::new(),
            cells: Vec::new(),
            counts: Vec::new(),
            views: Vec::new(),
            asked,
            keep: life.map(|life| life.saturating_mul(KEEP_LIVES).saturating_add(KEEP_MORE)),
        };
        for known in self.known(bus, tags) {
            let will_do = |floor: Floor| {
                known_will_do
                    && floor.kept_until >= needed_until
                    && self.liveness.vouches(until, floor.asked)
            };
            if known.floor.is_some_and(will_do) || is_poisoned(bus, &known.place) {
                continue;
            }
            wanted.views.push(bus.view(known.place.lane));
            wanted.places.push(known.place);
            wanted.counts.push(known.counts);
            wanted.cells.push(known.cells);
        }
        (!wanted.places.is_empty()).then_some(wanted)
    }

    /// Asks the store for floors, and gives those it knows: one round trip.
    ///
    /// # Errors
    /// Those of the store, and its silence within the time of a read.
    pub(crate) async fn learn(
        &self,
        bus: &Bus,
        link: &dyn Link,
        wanted: Wanted,
    ) -> StoreResult<Told> {
        let call = link.tag_floors(&wanted.places, wanted.keep);
        let answers = bus.ask("read tags", call).await?;
        let asked = wanted.places.iter().zip(&wanted.counts).zip(&wanted.views);
        let mut told = Vec::new();
        let mut table = crate::bus::lock(&self.tags);
        for (((place, &counts), view), answer) in asked.zip(answers) {
            let Some(answer) = answer else {
                continue;
            };
            // Behind what was applied before the question: a server that is not what it was (H25).
            if crate::coherence::rules::rank_of_head(*view, &answer.head).is_none() {
                continue;
            }
            let tag = TagHash {
                name: place.name,
                key: place.key,
            };
            let (_, floor) = table.ties(tag, &self.space);
            let new = Floor::new(counts, answer, wanted.asked, wanted.keep);
            *floor = Some(new);
            told.push((*place, new));
        }
        drop(table);
        drop(wanted.cells); // held until here, so that their counts cannot have begun anew
        Ok(Told(told))
    }

    fn known(&self, bus: &Bus, tags: impl IntoIterator<Item = TagHash>) -> Vec<Known> {
        let mut known: Vec<_> = self.with_table(|table| {
            let known = |tag| {
                let (cells, floor) = table.ties(tag, &self.space);
                let counts = cells.each_ref().map(|cell| cell.count());
                Known {
                    place: self.space.place_tag(tag),
                    floor: floor.filter(|floor| floor.counts == counts),
                    counts,
                    cells,
                    in_doubt: false,
                }
            };
            tags.into_iter().map(known).collect()
        });
        for known in &mut known {
            // A fork changes no counts, and the floor is a number of the epoch before it.
            let view = bus.view(known.place.lane);
            let epoch = view.map(|view| view.epoch);
            known.floor = known
                .floor
                .filter(|floor| Some(floor.told.head.at.epoch) == epoch);
            known.in_doubt = view.is_some_and(|view| view.in_doubt);
        }
        known
    }
}

fn is_poisoned(bus: &Bus, place: &TagPlace) -> bool {
    bus.is_poisoned(place.lane, place.key, place.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coherence::{Epoch, Head, Incarnation, Nonce};
    use crate::key::Tag;
    use crate::tags::tests::registry;

    /// Epoch 2, which continues 1 behind its entry 5.
    fn fork() -> Head {
        Head {
            at: Position {
                epoch: Epoch(2),
                seq: 6,
            },
            nonce: Nonce(6),
            incarnation: Incarnation(2),
            prev_epoch: Epoch(1),
            fork_seq: 5,
            last_pub_ms: 0,
            fork: true,
            forked_s: 0,
        }
    }

    #[tokio::test]
    async fn while_the_lane_of_a_tag_is_in_doubt_nothing_from_before_the_fork_is_believed() {
        let (bus, registry) = registry();
        let carried = Carried {
            tag: bus.space.hash_tag(&Tag::from("org:7")),
            soft: false,
        };
        let lane = bus.space.place_tag(carried.tag).lane;
        let then = bus.moment();
        bus.follow(lane, fork());
        let then_after = bus.moment();
        {
            let mut table = crate::bus::lock(&registry.tags);
            let (cells, floor) = table.ties(carried.tag, &registry.space);
            let counts = cells.each_ref().map(|cell| cell.count());
            let told = TagFloor {
                head: fork(),
                floor: 3,
            };
            *floor = Some(Floor::new(counts, told, bus.clock.now(), None));
        }
        let judged = |epoch, seq| {
            let at = Position {
                epoch: Epoch(epoch),
                seq,
            };
            registry.judge(&bus, &[TagVersion { carried, at }], None)
        };
        assert!(matches!(judged(1, 5), Judged::Dead));
        assert!(matches!(judged(2, 6), Judged::Current { .. }));
        // What may have been loaded before the fork is not made to look as if it was loaded since.
        for moment in [then, then_after] {
            assert!(registry.versions(&bus, &[carried], moment).is_none());
        }
    }
}
