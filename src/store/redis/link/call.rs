//! How a call of a script is written: which keys and arguments it takes, in which order.
//!
//! Keys and arguments travel in one list. What is common to all steps comes first in both of its parts, so
//! a step's own keys are written between the two.

use super::RedisLink;
use crate::coherence::Lane;
use crate::store::redis::keys::{Key, LaneKeys, tag_name};
use crate::store::redis::numbers::{millis, word};
use crate::store::redis::scripts::{FILL, LEASE, Step, TAGS};
use crate::store::redis::server::Life;
use crate::store::{Fill, LeaseRequest, Opening, Place, Replaces, StoreResult, TagPlace};
use ::redis::Cmd;
use std::time::Duration;

impl RedisLink {
    /// A call of `step`, which may have to open an epoch, up to its own keys.
    pub(super) fn opening_call(
        &self,
        step: &Step,
        lane: Lane,
        own: &[Key<'_>],
        opening: Opening,
    ) -> StoreResult<Cmd> {
        let life = self.nodes.of_lane(step.operation(), lane)?.life();
        self.opening_call_in(life, step, lane, own, opening)
    }

    /// The same for a life of the server that was looked up before.
    pub(super) fn opening_call_in(
        &self,
        life: Life,
        step: &Step,
        lane: Lane,
        own: &[Key<'_>],
        opening: Opening,
    ) -> StoreResult<Cmd> {
        let keys = self.keys.lane(lane)?;
        let mut call = step.call(3 + own.len());
        call.arg(&keys.head).arg(&keys.log).arg(&keys.pace).arg(own);
        self.common_args(&mut call, keys);
        call.arg(&word(life.incarnation.0));
        call.arg(&word(opening.epoch.0)).arg(&word(opening.nonce.0));
        match self.publisher.pace() {
            Some(pace) => call.arg(pace),
            None => call.arg(""),
        };
        Ok(call)
    }

    /// A call of `step`, which touches one value and opens nothing.
    pub(super) fn value_call(&self, step: &Step, keys: &LaneKeys, place: Place<'_>) -> Cmd {
        let mut call = step.call(2);
        call.arg(&keys.head).arg(keys.value(place.key));
        self.waking_args(&mut call, keys);
        call.arg(&word(place.hash));
        call
    }

    /// A call that asks for leases of keys of one lane and one entity.
    pub(super) fn lease_call<'a>(
        &self,
        lane: Lane,
        asked: impl Iterator<Item = &'a (Place<'a>, LeaseRequest<'a>)>,
    ) -> StoreResult<Cmd> {
        let keys = self.keys.lane(lane)?;
        let asked: Vec<_> = asked.collect();
        let (first, request) = asked[0];
        let values = asked.iter().map(|(place, _)| keys.value(place.key));
        let before = [keys.floor(first.entity), keys.markers()];
        let own: Vec<_> = before.into_iter().chain(values).collect();
        let mut call = self.opening_call(&LEASE, lane, &own, request.opening)?;
        for (place, request) in asked {
            call.arg(&word(request.token)).arg(millis(request.ttl));
            // Empty bytes are never taken for a value, and so stand for none.
            call.arg(request.unusable.unwrap_or_default());
            call.arg(&word(place.hash));
        }
        Ok(call)
    }

    /// A call that fills keys of one lane.
    pub(super) fn fill_call<'a>(
        &self,
        lane: Lane,
        fills: impl Iterator<Item = &'a (Place<'a>, Fill<'a>)>,
    ) -> StoreResult<Cmd> {
        let keys = self.keys.lane(lane)?;
        let fills: Vec<_> = fills.collect();
        let mut call = FILL.call(1 + fills.len());
        call.arg(&keys.head);
        for (place, _) in &fills {
            call.arg(keys.value(place.key));
        }
        self.waking_args(&mut call, keys);
        for (place, fill) in fills {
            call.arg(&word(place.hash)).arg(&word(fill.token));
            call.arg(&word(fill.epoch.0)).arg(fill.envelope);
            call.arg(match fill.replaces {
                Replaces::Lease => "L",
                Replaces::Value => "V",
            });
            match fill.ttl {
                Some(ttl) => call.arg(millis(ttl)),
                None => call.arg(""),
            };
        }
        Ok(call)
    }

    /// A call that asks for the floors of tags of one lane.
    pub(super) fn tags_call(
        &self,
        lane: Lane,
        tags: impl Iterator<Item = TagPlace>,
        keep: Option<Duration>,
    ) -> StoreResult<Cmd> {
        let keys = self.keys.lane(lane)?;
        let names: Vec<_> = tags
            .flat_map(|tag| [tag_name(tag.name), tag_name(tag.key)])
            .collect();
        let mut call = TAGS.call(1 + names.len());
        call.arg(&keys.head);
        for name in &names {
            call.arg(keys.tag(name));
        }
        self.common_args(&mut call, keys);
        match keep {
            Some(keep) => call.arg(millis(keep)),
            None => call.arg(""),
        };
        Ok(call)
    }

    fn common_args(&self, call: &mut Cmd, keys: &LaneKeys) {
        call.arg(&keys.lane[..]).arg(&keys.channel);
    }

    /// As [`common_args`](Self::common_args), for steps that wake those who wait for a load. With a relay
    /// nobody is sent anything but by that: who waits looks every 5 to 50 ms anyway.
    fn waking_args(&self, call: &mut Cmd, keys: &LaneKeys) {
        let channel = if self.publisher.relays() {
            ""
        } else {
            &keys.channel
        };
        call.arg(&keys.lane[..]).arg(channel);
    }
}
