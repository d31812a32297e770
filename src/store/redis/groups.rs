//! Steps on many keys: one call of a script for the keys of a lane, all calls in one write.

use super::link::RedisLink;
use super::reply::Reply;
use super::scripts::Step;
use crate::coherence::Lane;
use crate::store::{Place, StoreResult};
use ::redis::{Cmd, Pipeline};
use std::collections::BTreeMap;

/// Keys of one call at most: the server answers nothing else meanwhile.
const KEYS: usize = 64;

/// Keys of one lane (and of one entity, where that matters), by where they stand in the question.
pub(super) struct Group {
    pub(super) lane: Lane,
    pub(super) members: Vec<usize>,
}

/// Divides places into groups of at most [`KEYS`].
pub(super) fn groups<'a>(places: impl Iterator<Item = Place<'a>>) -> Vec<Group> {
    divide(places.map(|place| (place.lane, place.entity)))
}

/// As [`groups`], whatever the entity.
pub(super) fn by_lane(lanes: impl Iterator<Item = Lane>) -> Vec<Group> {
    divide(lanes.map(|lane| (lane, "")))
}

fn divide<'a>(places: impl Iterator<Item = (Lane, &'a str)>) -> Vec<Group> {
    let mut lanes: BTreeMap<(Lane, &str), Vec<usize>> = BTreeMap::new();
    for (at, place) in places.enumerate() {
        lanes.entry(place).or_default().push(at);
    }
    let mut groups = Vec::with_capacity(lanes.len());
    for ((lane, _), members) in lanes {
        let some = members.chunks(KEYS).map(<[usize]>::to_vec);
        groups.extend(some.map(|members| Group { lane, members }));
    }
    groups
}

/// Runs a call of `step` for each group, and gives each key its part of the answers.
pub(super) async fn run<T>(
    link: &RedisLink,
    step: &Step,
    groups: Vec<Group>,
    call: impl Fn(&Group) -> StoreResult<Cmd>,
    read: impl Fn(Reply, usize) -> StoreResult<Vec<T>>,
) -> Vec<StoreResult<T>> {
    let count = groups.iter().map(|group| group.members.len()).sum();
    let calls = || -> StoreResult<Pipeline> {
        let mut calls = Pipeline::with_capacity(groups.len());
        for group in &groups {
            calls.add_command(call(group)?);
        }
        Ok(calls)
    };
    let replies = match calls() {
        Ok(calls) => link.run_many(step, &calls).await,
        Err(error) => return (0..count).map(|_| Err(error.clone())).collect(),
    };
    let mut answers: Vec<_> = (0..count)
        .map(|_| Err(Reply::malformed(step.operation())))
        .collect();
    for (group, reply) in groups.iter().zip(replies) {
        match reply.and_then(|reply| read(reply, group.members.len())) {
            Ok(parts) => {
                for (&at, part) in group.members.iter().zip(parts) {
                    answers[at] = Ok(part);
                }
            }
            Err(error) => {
                for &at in &group.members {
                    answers[at] = Err(error.clone());
                }
            }
        }
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_of_one_lane_and_entity_and_bounded() {
        let place = |n: usize| Place {
            lane: Lane((n % 2) as u16),
            hash: 0,
            entity: if n < 300 { "a" } else { "b" },
            key: b"k",
        };
        let groups = groups((0..400).map(place));
        let mut seen: Vec<_> = groups
            .iter()
            .flat_map(|group| group.members.clone())
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..400).collect::<Vec<_>>());
        for group in &groups {
            assert!(group.members.len() <= KEYS);
            let first = place(group.members[0]);
            for &member in &group.members {
                let member = place(member);
                assert_eq!((member.lane, member.entity), (group.lane, first.entity));
            }
        }
        assert_eq!(groups.len(), 2 * 3 + 2);
    }
}
