//! A local hit in steps: what it looks at, in which order, and what may happen in between (hole H11).

use super::{Config, Entry, Event, Key, Pod, Red, Version, World, spend, take};
use tidings::Millis;
use tidings::coherence::{Mechanism, Word};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reader {
    key: Key,
    word: Option<Word>,
    entry: Option<Entry>,
    /// What this pod had acknowledged when the read began.
    own: Version,
}

impl Entry {
    pub(super) fn lives(&self, now: Millis) -> bool {
        self.ends.is_none_or(|ends| now < ends)
    }
}

impl World {
    pub(super) fn enabled_readers(&self, pod: &Pod, n: u8, config: &Config, out: &mut Vec<Event>) {
        if self.left.looks > 0 && pod.readers.len() < usize::from(config.readers) {
            let held = (0..config.keys).filter(|&key| pod.entries[usize::from(key)].is_some());
            out.extend(held.map(|key| Event::Look(n, key)));
        }
        out.extend((0..pod.readers.len() as u8).map(|at| Event::Read(n, at)));
    }

    /// The word before the entry. With [`Mechanism::CheckOrder`] off, the entry before the word.
    pub(super) fn look(&mut self, config: &Config, n: u8, key: Key) -> bool {
        if self.running(n).is_none() || !spend(&mut self.left.looks) {
            return false;
        }
        let own = self.owed(&self.pods[usize::from(n)], usize::from(key));
        let pod = &mut self.pods[usize::from(n)];
        let in_order = config.on(Mechanism::CheckOrder);
        pod.readers.push(Reader {
            key,
            word: in_order.then_some(pod.word),
            entry: pod.entries[usize::from(key)].filter(|_| !in_order),
            own,
        });
        true
    }

    pub(super) fn step_reader(&mut self, config: &Config, n: u8, at: u8) -> bool {
        let Some(pod) = self.running(n) else {
            return false;
        };
        let Some(reader) = pod.readers.get_mut(usize::from(at)) else {
            return false;
        };
        match (reader.word, reader.entry) {
            (Some(_), None) => match pod.entries[usize::from(reader.key)] {
                None => return take(&mut pod.readers, at).is_some(),
                entry => reader.entry = entry,
            },
            (None, Some(_)) => reader.word = Some(pod.word),
            (None, None) => return take(&mut pod.readers, at).is_some(),
            (Some(word), Some(entry)) => {
                let (key, own) = (reader.key, reader.own);
                pod.readers.remove(usize::from(at));
                let pod = &self.pods[usize::from(n)];
                let now = self.clock(config, pod);
                let stands = entry.lives(now) && pod.stands(config, entry.tied, now);
                if stands && config.rules().may_serve(word, entry.stamp, now) {
                    let own = own.min(self.owed(pod, usize::from(key)));
                    let wants = self.hit_wants(config, pod, entry, usize::from(key), own);
                    if entry.version < wants {
                        self.turn_red(Red::Hit(n, key, entry.version, wants));
                    }
                }
            }
        }
        true
    }
}
