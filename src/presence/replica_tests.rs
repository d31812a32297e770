//! The replica of a room, fed by hand.

use super::super::told::{QUEUE, Tell, Told};
use super::*;
use crate::coherence::Epoch;
use crate::store::rooms::Present;
use proptest::prelude::*;

/// A room as the store has it, with every event that it ever published.
#[derive(Debug, Default)]
struct World {
    at: Option<Position>,
    epochs: u64,
    members: BTreeMap<String, (u64, Bytes)>,
    log: Vec<RoomEvent>,
}

impl World {
    fn next(&mut self) -> Position {
        let epochs = &mut self.epochs;
        let at = self.at.get_or_insert_with(|| {
            *epochs += 1;
            let epoch = Epoch(*epochs);
            Position { epoch, seq: 0 }
        });
        at.seq += 1;
        *at
    }

    fn publish(&mut self, kind: RoomEventKind, member: &str, meta: Bytes) {
        let event = RoomEvent {
            room: "room".into(),
            kind,
            at: self.next(),
            member: member.into(),
            meta,
        };
        self.log.push(event);
    }

    /// Somebody comes, says something, or goes.
    fn act(&mut self, choice: u8) {
        let member = format!("m{}", choice % 5);
        let is_there = self.members.contains_key(&member);
        if choice & 0x40 != 0 {
            if is_there {
                self.members.remove(&member);
                self.publish(RoomEventKind::Left, &member, Bytes::new());
                if self.members.is_empty() {
                    self.at = None;
                }
            }
            return;
        }
        let kind = match is_there {
            true => RoomEventKind::Updated,
            false => RoomEventKind::Joined,
        };
        let meta = Bytes::from(format!("{}", self.log.len()));
        self.publish(kind, &member, meta.clone());
        let version = self.at.expect("somebody is there").seq;
        self.members.insert(member, (version, meta));
    }

    fn page(&self, after: Option<&str>, limit: usize) -> Page {
        let behind = self
            .members
            .iter()
            .filter(|(member, _)| after < Some(member));
        let present = |(member, (version, meta)): (&String, &(u64, Bytes))| Present {
            member: member.clone(),
            version: *version,
            meta: meta.clone(),
        };
        let members: Vec<_> = behind.take(limit).map(present).collect();
        Page {
            at: self.at,
            ends: members.len() < limit,
            members,
        }
    }
}

/// What somebody knows who was told every delta.
#[derive(Debug, Default)]
struct Consumer(BTreeMap<Arc<str>, Bytes>);

impl Consumer {
    fn take(&mut self, delta: Delta) {
        match delta {
            Delta::Joined(member, meta) => assert!(self.0.insert(member, meta).is_none()),
            Delta::Updated(member, meta) => assert!(self.0.insert(member, meta).is_some()),
            Delta::Left(member, _) => assert!(self.0.remove(&member).is_some()),
        }
    }

    fn knows(&self, replica: &Replica) -> bool {
        let mut names: Vec<_> = replica.names().collect();
        names.sort();
        let same = |member: &Arc<str>| self.0.get(member) == replica.meta(member);
        names.iter().copied().eq(self.0.keys()) && names.into_iter().all(same)
    }
}

/// One pod that follows the world.
#[derive(Debug, Default)]
struct Pod {
    replica: Replica,
    reading: Option<Reading>,
    /// A page on its way.
    page: Option<Page>,
    delivered: usize,
    consumer: Consumer,
    told: Told,
    slow: Consumer,
}

impl Pod {
    fn tell(&mut self, deltas: Vec<Delta>) {
        for delta in deltas {
            self.told.push(delta.clone());
            self.consumer.take(delta);
        }
        assert!(self.consumer.knows(&self.replica));
    }

    fn hear(&mut self, event: &RoomEvent) {
        let mut deltas = Vec::new();
        let again = match &mut self.reading {
            Some(reading) => reading.hear(event.clone()).is_err(),
            None => self.replica.hear(event, &mut deltas) == Heard::Hole,
        };
        if again {
            self.read_again();
        }
        self.tell(deltas);
    }

    fn read_again(&mut self) {
        self.reading = Some(Reading::default());
        self.page = None;
    }

    /// Asks for a page, or gets the one that was asked for.
    fn read(&mut self, world: &World) {
        let Some(reading) = &mut self.reading else {
            return;
        };
        if let Some(page) = self.page.take() {
            if reading.page(page).is_err() {
                self.read_again();
            }
            self.finish(false);
        } else if !reading.has_ended() {
            self.page = Some(world.page(reading.last(), 2));
        }
    }

    /// Ends the reading if it is whole, or all pages are in and nothing more is coming.
    fn finish(&mut self, at_last: bool) {
        let ready = |reading: &mut Reading| reading.is_whole() || at_last && reading.has_ended();
        let Some(reading) = self.reading.take_if(ready) else {
            return;
        };
        let is_whole = reading.is_whole();
        let mut deltas = Vec::new();
        reading.finish(&mut self.replica, &mut deltas);
        self.tell(deltas);
        if !is_whole {
            self.read_again();
        }
    }

    fn poll(&mut self) {
        if let Some(Tell::Change(delta)) = self.told.next(&self.replica, true) {
            self.slow.take(delta);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever is lost, and whenever pages are read: what is told makes sense in order, and ends with
    /// the truth.
    #[test]
    fn every_schedule_ends_with_the_truth(steps in prop::collection::vec((0..16_u8, any::<u8>()), 0..120)) {
        let mut world = World::default();
        let mut pod = Pod { reading: Some(Reading::default()), ..Pod::default() };
        for (step, choice) in steps {
            match step {
                0..6 => world.act(choice),
                6..11 => {
                    if let Some(event) = world.log.get(pod.delivered).cloned() {
                        pod.delivered += 1;
                        pod.hear(&event);
                        pod.finish(false);
                    }
                }
                11 => pod.delivered = (pod.delivered + 1).min(world.log.len()),
                12..14 => pod.read(&world),
                14 => pod.finish(true),
                _ => pod.poll(),
            }
        }
        for event in &world.log[pod.delivered..] {
            pod.hear(event);
        }
        // As heartbeats would find.
        while pod.reading.is_some() || pod.replica.is_behind(world.at) {
            pod.reading.get_or_insert_default();
            pod.read(&world);
            pod.finish(true);
        }
        let mut deltas = Vec::new();
        pod.replica.end_doubts(&mut deltas);
        pod.tell(deltas);
        prop_assert!(!pod.replica.is_behind(world.at));
        let truth = world.members.iter().map(|(member, (_, meta))| (&**member, meta));
        prop_assert!(pod.consumer.0.iter().map(|(m, meta)| (&**m, meta)).eq(truth));
        while let Some(tell) = pod.told.next(&pod.replica, true) {
            if let Tell::Change(delta) = tell {
                pod.slow.take(delta);
            }
        }
        prop_assert!(pod.slow.knows(&pod.replica));
    }

    /// A consumer that takes an event now and then is told no nonsense and ends with the truth, however
    /// far it falls behind.
    #[test]
    fn a_slow_consumer_ends_with_the_truth(choices in prop::collection::vec(any::<u8>(), 0..4000), pace in 1..40_usize) {
        let mut world = World::default();
        let mut pod = Pod::default();
        for (n, choice) in choices.into_iter().enumerate() {
            world.act(choice);
            while pod.delivered < world.log.len() {
                pod.hear(&world.log[pod.delivered].clone());
                pod.delivered += 1;
            }
            // In bursts, so that both forms of waiting occur.
            if n % (QUEUE + 300) > QUEUE || n % pace == 0 {
                pod.poll();
            }
        }
        while let Some(tell) = pod.told.next(&pod.replica, true) {
            if let Tell::Change(delta) = tell {
                pod.slow.take(delta);
            }
        }
        prop_assert!(pod.slow.knows(&pod.replica));
    }
}

#[test]
fn an_event_of_a_later_version_has_the_room_read() {
    let mut world = World::default();
    world.publish(RoomEventKind::Unknown(9), "m0", Bytes::new());
    let mut replica = Replica::default();
    assert_eq!(replica.hear(&world.log[0], &mut Vec::new()), Heard::Hole);
}
