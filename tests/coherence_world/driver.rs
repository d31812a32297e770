//! What `src/bus/driver.rs` does for one pod: subscribe, touch, poll, hear, read the log; and how a
//! lane's [`Action`]s are carried out.

use super::calls::Invalidation;
use super::{Config, Event, Pod, TAGS, World, key_of, spend, take};
use tidings::Millis;
use tidings::coherence::{Action, Epoch, Head, Hint, Lane, LaneState, LogEntry, Nonce, Rank};
use tidings::store::Opening;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Driver {
    pub(super) link: Option<Link>,
    poll_wanted: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Link {
    /// Which server it leads to.
    to: u8,
    pub(super) broken: bool,
    /// Touched and polled: reads and calls may use it.
    pub(super) published: bool,
    calls: Vec<Call>,
    inbox: Vec<Hint>,
}

/// A call of the driver: on its way there, or back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Call {
    Touch {
        sent: Millis,
        openings: Vec<(Lane, Opening)>,
    },
    Poll {
        sent: Millis,
    },
    Log {
        lane: Lane,
        from: u64,
    },
    Fence {
        lane: Lane,
        sent: Millis,
        epoch: Epoch,
        opening: Opening,
    },
    Heads {
        sent: Millis,
        heads: Vec<(Lane, Head)>,
    },
    Polled {
        sent: Millis,
        heads: Vec<Option<Head>>,
        server_ms: u64,
    },
    Read {
        lane: Lane,
        from: u64,
        entries: Vec<LogEntry>,
    },
}

impl Call {
    fn is_answered(&self) -> bool {
        matches!(
            self,
            Self::Heads { .. } | Self::Polled { .. } | Self::Read { .. }
        )
    }

    fn is_poll(&self) -> bool {
        matches!(self, Self::Poll { .. } | Self::Polled { .. })
    }
}

impl Driver {
    pub(super) fn hear(&mut self, from: u8, hint: &Hint) {
        let there = |link: &&mut Link| !link.broken && link.to == from;
        if let Some(link) = self.link.as_mut().filter(there) {
            link.inbox.push(hint.clone());
        }
    }

    /// Whether it has a connection to this server.
    pub(super) fn leads_to(&self, reign: u8) -> bool {
        let link = self.link.as_ref();
        link.is_some_and(|link| !link.broken && link.to == reign)
    }

    /// The server that reads and calls reach.
    pub(super) fn reign(&self) -> Option<u8> {
        let link = self.link.as_ref();
        link.filter(|link| link.published && !link.broken)
            .map(|link| link.to)
    }

    /// Whether reads and calls can reach the store.
    pub(super) fn is_usable(&self) -> bool {
        self.reign().is_some()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.link.as_ref().is_some_and(|link| {
            link.published && !link.broken && link.calls.is_empty() && link.inbox.is_empty()
        }) && !self.poll_wanted
    }

    /// Its first poll, without which it is of no use, is still to come.
    fn is_new(&self) -> bool {
        self.link.as_ref().is_some_and(|link| !link.published)
    }

    pub(super) fn wants_link(&self) -> bool {
        self.link.as_ref().is_none_or(|link| link.broken)
    }

    pub(super) fn inbox(&self) -> usize {
        self.link.as_ref().map_or(0, |link| link.inbox.len())
    }

    pub(super) fn calls(&self) -> usize {
        self.link.as_ref().map_or(0, |link| link.calls.len())
    }

    fn may_poll(&self) -> bool {
        self.link.as_ref().is_some_and(|link| {
            let touched = link.published || link.calls.is_empty();
            touched && !link.broken && !link.calls.iter().any(Call::is_poll)
        })
    }
}

impl World {
    /// What may happen to `pod` even while it stands still.
    pub(super) fn enabled_on_the_way(&self, pod: &Pod, n: u8, _: &Config, out: &mut Vec<Event>) {
        let Some(link) = &pod.driver.link else {
            return;
        };
        if link.broken {
            return;
        }
        let sent = link.calls.iter().enumerate();
        let sent = sent.filter(|(_, call)| !call.is_answered());
        out.extend(sent.map(|(at, _)| Event::AtStore(n, at as u8)));
        if self.left.disconnects > 0 {
            out.push(Event::Disconnect(n));
        }
        if !link.inbox.is_empty() {
            if self.left.losses > 0 {
                out.push(Event::Lose(n));
            }
            if self.left.repeats > 0 {
                out.push(Event::Repeat(n));
            }
        }
    }

    pub(super) fn enabled_driver(&self, pod: &Pod, n: u8, config: &Config, out: &mut Vec<Event>) {
        if pod.driver.wants_link() && !pod.cut && self.left.connects > 0 {
            out.push(Event::Connect(n));
            if self.deposed.is_some() {
                out.push(Event::ConnectOld(n));
            }
        }
        let polls = config.pollers & (1 << n) != 0 || pod.driver.is_new();
        if polls && pod.driver.may_poll() && self.left.polls > 0 {
            out.push(Event::Poll(n));
        }
        let Some(link) = &pod.driver.link else {
            return;
        };
        let answered = link.calls.iter().enumerate();
        let answered = answered.filter(|(_, call)| call.is_answered());
        out.extend(answered.map(|(at, _)| Event::Answer(n, at as u8)));
        let reach = if config.reorder { link.inbox.len() } else { 1 };
        let waiting = link.inbox.len().min(reach) as u8;
        out.extend((0..waiting).map(|at| Event::Deliver(n, at)));
        if !link.broken
            && [&pod.lane, &pod.tag.lane]
                .iter()
                .filter_map(|lane| lane.due())
                .any(|due| due <= pod.clock.at(self.now))
        {
            out.push(Event::Timer(n));
        }
    }

    /// Subscribed from here on; then touch, and only then poll (hole H12).
    pub(super) fn connect(&mut self, config: &Config, n: u8) -> bool {
        self.connect_to(config, n, self.primary.reign)
    }

    /// To a primary that was replaced: a sentinel that does not know it yet has named it.
    pub(super) fn connect_old(&mut self, config: &Config, n: u8) -> bool {
        let Some(reign) = self.deposed.as_ref().map(|deposed| deposed.node.reign) else {
            return false;
        };
        let connected = self.connect_to(config, n, reign);
        if connected {
            self.expect_less(n);
        }
        connected
    }

    fn connect_to(&mut self, config: &Config, n: u8, to: u8) -> bool {
        let may = |pod: &mut Pod| pod.driver.wants_link() && !pod.cut;
        if !self.running(n).is_some_and(may) || !spend(&mut self.left.connects) {
            return false;
        }
        let touch = Call::Touch {
            sent: self.local(n),
            openings: self.openings(config, (0..config.lanes()).map(Lane)),
        };
        self.pods[usize::from(n)].driver.link = Some(Link {
            to,
            calls: vec![touch],
            ..Link::default()
        });
        true
    }

    fn openings(
        &mut self,
        config: &Config,
        lanes: impl Iterator<Item = Lane>,
    ) -> Vec<(Lane, Opening)> {
        lanes.map(|lane| (lane, self.opening(config))).collect()
    }

    /// What has arrived can still be read; what has not will not.
    pub(super) fn disconnect(&mut self, n: u8) -> bool {
        let now = self.now;
        let deposed = self.deposed.as_ref().map(|deposed| deposed.node.reign);
        let Some(pod) = self.pods.get_mut(usize::from(n)) else {
            return false;
        };
        let Some(link) = pod.driver.link.as_mut().filter(|link| !link.broken) else {
            return false;
        };
        if deposed == Some(link.to) {
            pod.left = now;
        }
        link.broken = true;
        link.calls.retain(Call::is_answered);
        true
    }

    pub(super) fn poll(&mut self, n: u8) -> bool {
        let now = self.local(n);
        let may = self.running(n).is_some_and(|pod| pod.driver.may_poll());
        if !may || !spend(&mut self.left.polls) {
            return false;
        }
        let driver = &mut self.pods[usize::from(n)].driver;
        driver.poll_wanted = false;
        if let Some(link) = &mut driver.link {
            link.calls.push(Call::Poll { sent: now });
        }
        true
    }

    /// The store carries out a call.
    pub(super) fn at_store(&mut self, config: &Config, n: u8, at: u8) -> bool {
        let Some(link) = self
            .pods
            .get(usize::from(n))
            .and_then(|pod| pod.driver.link.as_ref())
            .filter(|link| !link.broken)
        else {
            return false;
        };
        let Some(call) = link
            .calls
            .get(usize::from(at))
            .filter(|call| !call.is_answered())
        else {
            return false;
        };
        let (call, to) = (call.clone(), link.to);
        let answer = self.step_at(to, |server, now, hints| match call {
            Call::Touch { sent, openings } => {
                let heads = server.touch(&openings, now, hints);
                let lanes = openings.iter().map(|(lane, _)| *lane);
                Call::Heads {
                    sent,
                    heads: lanes.zip(heads).collect(),
                }
            }
            Call::Poll { sent } => Call::Polled {
                sent,
                heads: server.poll(config.lanes(), now).heads,
                server_ms: now,
            },
            Call::Log { lane, from } => Call::Read {
                lane,
                from,
                entries: server.log_since(lane, from, 1000),
            },
            Call::Fence {
                lane,
                sent,
                epoch,
                opening,
            } => Call::Heads {
                sent,
                heads: vec![(lane, server.fence(lane, epoch, opening, now, hints))],
            },
            answered => answered,
        });
        let link = self.pods[usize::from(n)].driver.link.as_mut();
        let (Some(link), Some(answer)) = (link, answer) else {
            return false;
        };
        link.calls[usize::from(at)] = answer;
        true
    }

    /// The driver takes an answer.
    pub(super) fn answer(&mut self, config: &Config, n: u8, at: u8) -> bool {
        let now = self.local(n);
        let Some(link) = self.running(n).and_then(|pod| pod.driver.link.as_mut()) else {
            return false;
        };
        if !link
            .calls
            .get(usize::from(at))
            .is_some_and(Call::is_answered)
        {
            return false;
        }
        let Some(call) = take(&mut link.calls, at) else {
            return false;
        };
        let polled = call.is_poll();
        match call {
            Call::Heads { sent, heads } => {
                for (lane, head) in heads {
                    self.learn(config, n, lane, |lane, out| {
                        lane.on_head(Some(head), sent, now, out);
                    });
                }
            }
            Call::Polled {
                sent,
                heads,
                server_ms,
            } => {
                for (lane, head) in (0..).map(Lane).zip(heads) {
                    self.learn(config, n, lane, |lane, out| {
                        if let Some(head) = head.filter(|head| head.fork) {
                            lane.on_clock(&head, server_ms);
                        }
                        lane.on_head(head, sent, now, out);
                    });
                }
            }
            Call::Read {
                lane,
                from,
                entries,
            } => {
                let (_, told) = self.learn(config, n, lane, |lane, out| {
                    lane.on_log(from, &entries, now, out);
                });
                for nonce in told {
                    self.note_heard(config, n, nonce);
                }
            }
            Call::Touch { .. } | Call::Poll { .. } | Call::Log { .. } | Call::Fence { .. } => {}
        }
        if let Some(link) = self.pods[usize::from(n)]
            .driver
            .link
            .as_mut()
            .filter(|_| polled)
        {
            link.published = true;
        }
        true
    }

    pub(super) fn deliver(&mut self, config: &Config, n: u8, at: u8) -> bool {
        let now = self.local(n);
        let Some(hint) = self
            .running(n)
            .and_then(|pod| pod.driver.link.as_mut())
            .and_then(|link| take(&mut link.inbox, at))
        else {
            return false;
        };
        let followed = self.pods[usize::from(n)].follows(hint.lane).applied();
        if followed.is_some_and(|at| at.epoch == hint.epoch) {
            self.note_heard(config, n, hint.entry.nonce);
        }
        self.learn(config, n, hint.lane, |lane, out| {
            lane.on_hint(&hint, now, out);
        });
        true
    }

    pub(super) fn lose(&mut self, n: u8) -> bool {
        let link = self.pods[usize::from(n)].driver.link.as_mut();
        link.is_some_and(|link| take(&mut link.inbox, 0).is_some())
    }

    pub(super) fn repeat(&mut self, n: u8) -> bool {
        let link = self.pods[usize::from(n)].driver.link.as_mut();
        link.is_some_and(|link| {
            let first = link.inbox.first().cloned();
            link.inbox.extend(first);
            !link.inbox.is_empty()
        })
    }

    pub(super) fn timer(&mut self, config: &Config, n: u8) -> bool {
        let now = self.local(n);
        if self.running(n).is_none() {
            return false;
        }
        let mut was_due = false;
        for lane in (0..config.lanes()).map(Lane) {
            let due = self.pods[usize::from(n)].follows(lane).due();
            if due.is_some_and(|due| due <= now) {
                self.learn(config, n, lane, |lane, out| lane.on_timer(now, out));
                was_due = true;
            }
        }
        was_due
    }

    /// Runs one step of a lane, and carries out in order what it asks for, as `Bus::step` and
    /// `Session::ask_store` do. Gives which calls were told of as well.
    pub(super) fn learn<T>(
        &mut self,
        config: &Config,
        n: u8,
        lane: Lane,
        step: impl FnOnce(&mut LaneState, &mut Vec<Action>) -> T,
    ) -> (T, Vec<Nonce>) {
        let mut actions = Vec::new();
        let now = self.local(n);
        let pod = &mut self.pods[usize::from(n)];
        let state = match lane {
            TAGS => &mut pod.tag.lane,
            _ => &mut pod.lane,
        };
        let result = step(state, &mut actions);
        for action in &actions {
            match lane {
                TAGS => pod.tag.carry_out(config, action),
                _ => pod.carry_out(config, action, now),
            }
        }
        let told = actions.iter().filter_map(|action| match action {
            Action::Tell { nonce, .. } => Some(*nonce),
            _ => None,
        });
        let told = told.collect();
        for action in actions {
            self.ask_store(config, n, lane, action);
        }
        (result, told)
    }

    fn ask_store(&mut self, config: &Config, n: u8, lane: Lane, action: Action) {
        let sent = self.local(n);
        let call = match action {
            Action::ReadLog { from } => Call::Log { lane, from },
            Action::Touch => Call::Touch {
                sent,
                openings: self.openings(config, [lane].into_iter()),
            },
            Action::Fence { epoch } => Call::Fence {
                lane,
                sent,
                epoch,
                opening: self.opening(config),
            },
            Action::Reissue(call) => {
                let pod = &mut self.pods[usize::from(n)];
                pod.poison(&call, false);
                pod.invalidations.push(Invalidation::again(call));
                return;
            }
            Action::Poll => {
                self.pods[usize::from(n)].driver.poll_wanted = true;
                return;
            }
            _ => return,
        };
        if let Some(link) = &mut self.pods[usize::from(n)].driver.link
            && !link.broken
        {
            link.calls.push(call);
        }
    }
}

impl Pod {
    /// The actions that concern only the pod, as `Bus::carry_out` has them.
    fn carry_out(&mut self, config: &Config, action: &Action, now: Millis) {
        // Where there are no guards nobody asks, and states that differ in nothing else are the same.
        let now = match config.reckons() {
            true => now,
            false => Millis(0),
        };
        match *action {
            Action::Evict { hash, rank } => {
                let stripe = &mut self.stripes[key_of(hash)];
                if stripe.last < rank {
                    (stripe.last, stripe.disturbed) = (rank, now);
                }
                self.evict(key_of(hash), rank);
            }
            Action::Drop { hash } => {
                self.stripes[key_of(hash)].disturbed = now;
                self.evict(key_of(hash), Rank(u64::MAX));
            }
            Action::Clear { rank, .. } if self.cleared < rank => {
                self.cleared = rank;
                self.flush();
            }
            Action::Flush => {
                self.flush();
                self.followed_since = self.followed_since.max(now);
                self.cleared = Rank::default();
                for stripe in &mut self.stripes {
                    stripe.last = Rank::default();
                }
            }
            Action::Confirm { sent } => self.word = self.word.confirmed(sent + config.lease()),
            _ => {}
        }
    }

    pub(super) fn follows(&self, lane: Lane) -> &LaneState {
        match lane {
            TAGS => &self.tag.lane,
            _ => &self.lane,
        }
    }

    pub(super) fn want_poll(&mut self) {
        self.driver.poll_wanted = true;
    }

    /// Removes what ranks below `below`, and detaches such flights.
    pub(super) fn evict(&mut self, key: usize, below: Rank) {
        self.entries[key].take_if(|entry| entry.stamp.rank < below);
        for flight in &mut self.flights {
            if usize::from(flight.key) == key && flight.meta.rank < below {
                flight.detached = true;
            }
        }
    }

    /// A new generation; nobody joins a flight of the old one.
    pub(super) fn flush(&mut self) {
        self.word = self.word.flushed();
        for flight in &mut self.flights {
            flight.detached = true;
        }
    }
}
