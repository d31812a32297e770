//! Claims on calls for many keys.

use super::harness::{ENTITY, Harness, KEY, LANE, LONG, Lease, Probe, place, value};
use crate::coherence::{Kind, Lane};
use crate::store::{Fill, LeaseReply, LeaseRequest, LeaseState, Place, Replaces};

/// More than any store takes in one piece.
const MANY: usize = 300;

fn names() -> Vec<String> {
    (0..MANY).map(|n| format!("user/{n}")).collect()
}

/// The names as places, over lanes and entities.
fn places(names: &[String]) -> Vec<Place<'_>> {
    names
        .iter()
        .zip(0..)
        .map(|(name, n)| Place {
            lane: Lane((n % 4) as u16),
            hash: n,
            entity: if n % 3 == 0 { "order" } else { ENTITY },
            key: name.as_bytes(),
        })
        .collect()
}

impl Probe<'_> {
    async fn lease_many(&self, places: &[Place<'_>], token: u64) -> Vec<LeaseReply> {
        let request = |at: &Place<'_>| LeaseRequest {
            token: token + at.hash,
            ttl: LONG,
            unusable: None,
            opening: self.opening(),
        };
        let asked: Vec<_> = places.iter().map(|at| (*at, request(at))).collect();
        let replies = self.link.lease_many(&asked).await;
        replies
            .into_iter()
            .map(|reply| reply.expect("lease_many"))
            .collect()
    }

    async fn fill_many(&self, fills: &[(Place<'_>, Lease, Vec<u8>)]) -> Vec<bool> {
        let fills: Vec<_> = fills
            .iter()
            .map(|(at, lease, envelope)| {
                let fill = Fill {
                    token: lease.token,
                    replaces: Replaces::Lease,
                    epoch: lease.head.at.epoch,
                    envelope,
                    ttl: Some(LONG),
                };
                (*at, fill)
            })
            .collect();
        let filled = self.link.fill_many(&fills).await;
        filled
            .into_iter()
            .map(|stored| stored.expect("fill_many"))
            .collect()
    }
}

/// A lease on each key that nobody has, a value for each that somebody stored, and fills that are read
/// back: as if each had been asked for alone.
pub async fn many_keys_are_leased_filled_and_read_as_each_alone(harness: &Harness) {
    let probe = harness.probe().await;
    let names = names();
    let places = places(&names);
    let replies = probe.lease_many(&places, 1000).await;
    assert_eq!(replies.len(), MANY);
    let mut fills = Vec::new();
    for (at, reply) in places.iter().zip(&replies) {
        assert_eq!(reply.state, LeaseState::Granted);
        assert_eq!(Some(reply.head), probe.read(*at).await.head, "of its lane");
        let lease = Lease {
            token: 1000 + at.hash,
            head: reply.head,
        };
        let bytes = [&value(lease)[..], at.key].concat();
        fills.push((*at, lease, bytes));
    }
    let again = probe.lease_many(&places, 2000).await;
    assert!(again.iter().all(|reply| reply.state == LeaseState::Held));
    // Every seventh comes with the wrong token, in between the others.
    for (_, lease, _) in fills.iter_mut().step_by(7) {
        lease.token += 1;
    }
    let stored = probe.fill_many(&fills).await;
    let expected: Vec<_> = (0..MANY).map(|n| n % 7 != 0).collect();
    assert_eq!(stored, expected);
    let found = probe.link.read_many(&places).await;
    let replies = probe.lease_many(&places, 3000).await;
    for (n, ((at, found), reply)) in places.iter().zip(found).zip(replies).enumerate() {
        let found = found.expect("read_many");
        assert_eq!(found, probe.read(*at).await);
        match n % 7 {
            0 => assert_eq!(reply.state, LeaseState::Held),
            _ => {
                assert_eq!(found.value.as_deref(), Some(&fills[n].2[..]));
                assert_eq!(Some(reply.state), found.value.map(LeaseState::Present));
            }
        }
    }
}

/// Fills of leases and fills over values go together; each takes the place of its own kind alone.
pub async fn of_many_fills_each_replaces_what_it_says(harness: &Harness) {
    let probe = harness.probe().await;
    let names = names();
    let places = places(&names);
    let mut loads = Vec::new();
    for (n, at) in places.iter().enumerate() {
        let there = probe.lease(*at).await;
        let (over, new) = match n % 2 {
            0 => (there, there),
            _ => {
                assert!(probe.fill(*at, there, &value(there)).await);
                (there, probe.load(at.lane).await)
            }
        };
        loads.push((*at, over, new, value(new)));
    }
    for right in [false, true] {
        let fills = loads
            .iter()
            .enumerate()
            .map(|(n, (at, over, new, envelope))| {
                let replaces = match (n % 2 == 0) == right {
                    true => Replaces::Lease,
                    false => Replaces::Value,
                };
                let fill = Fill {
                    token: over.token,
                    replaces,
                    epoch: new.head.at.epoch,
                    envelope,
                    ttl: Some(LONG),
                };
                (*at, fill)
            });
        let fills: Vec<_> = fills.collect();
        for (n, stored) in (0..).zip(probe.link.fill_many(&fills).await) {
            assert_eq!(stored.expect("fill_many"), right, "fill {n}");
        }
    }
    for ((at, _, _, envelope), found) in loads.iter().zip(probe.link.read_many(&places).await) {
        let found = found.expect("read_many").value;
        assert_eq!(found.as_ref(), Some(envelope), "{at:?}");
    }
}

/// The same key twice in one call is asked for twice, one after the other.
pub async fn a_key_named_twice_is_granted_once(harness: &Harness) {
    let probe = harness.probe().await;
    let states = probe.lease_many(&[KEY, KEY], 1).await;
    let states: Vec<_> = states.into_iter().map(|reply| reply.state).collect();
    assert_eq!(
        states
            .iter()
            .filter(|state| **state == LeaseState::Granted)
            .count(),
        1
    );
    assert_eq!(
        states
            .iter()
            .filter(|state| **state == LeaseState::Held)
            .count(),
        1
    );
    let single = probe.read(KEY).await;
    for found in probe.link.read_many(&[KEY, KEY]).await {
        assert_eq!(found.expect("read_many"), single);
    }
}

/// Nothing asked is nothing answered.
pub async fn no_keys_are_no_answers(harness: &Harness) {
    let probe = harness.probe().await;
    assert!(probe.link.read_many(&[]).await.is_empty());
    assert!(probe.lease_many(&[], 1).await.is_empty());
    assert!(probe.fill_many(&[]).await.is_empty());
}

/// Bytes named unusable belong to their key alone.
pub async fn unusable_bytes_are_those_of_their_own_key(harness: &Harness) {
    let probe = harness.probe().await;
    let other = place(b"user/2", 0x52);
    let (bad, good) = (probe.put(KEY).await, probe.put(other).await);
    let request = |token, unusable| LeaseRequest {
        token,
        ttl: LONG,
        unusable,
        opening: probe.opening(),
    };
    let asked = [(KEY, request(8, Some(&bad[..]))), (other, request(9, None))];
    let replies = probe.link.lease_many(&asked).await;
    let states: Vec<_> = replies
        .into_iter()
        .map(|reply| reply.expect("lease").state)
        .collect();
    assert_eq!(states, [LeaseState::Granted, LeaseState::Present(good)]);
}

/// Of many fills each is announced that somebody waits for, and no other.
pub async fn a_waiter_hears_of_its_fill_among_many(harness: &Harness) {
    let (probe, mut ears) = harness.connect().await;
    probe.touch(LANE).await;
    ears.hint().await;
    let names = names();
    let places: Vec<_> = places(&names)
        .into_iter()
        .filter(|at| at.lane == LANE)
        .collect();
    let replies = probe.lease_many(&places, 1).await;
    let waited = places[places.len() / 2];
    assert_eq!(probe.ask(waited).await.state, LeaseState::Held);
    let fills = places.iter().zip(replies).map(|(at, reply)| {
        let lease = Lease {
            token: 1 + at.hash,
            head: reply.head,
        };
        (*at, lease, value(lease).to_vec())
    });
    let fills: Vec<_> = fills.collect();
    assert!(
        probe
            .fill_many(&fills)
            .await
            .into_iter()
            .all(|stored| stored)
    );
    let told = ears.hint().await;
    assert_eq!(
        (told.entry.kind, told.entry.hashes),
        (Kind::Filled, vec![waited.hash])
    );
    // What comes next is this invalidation, so nothing else was announced.
    let logged = probe.invalidate(&[waited]).await;
    assert_eq!(ears.hint().await.at(), logged.at);
}
