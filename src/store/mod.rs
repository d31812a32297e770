//! The port to the backing store: what the coherence protocol asks of it, and nothing else.
//!
//! A [`Store`] is an address; [`Store::connect`] opens a [`Link`] to it together with the stream of
//! [hints](Hints). A link is used until its first failure and then thrown away: it never reconnects
//! by itself, because whoever reconnects has to find out what happened in between before anything
//! that it reads may be believed. The driver in `bus` does that, once for every link.
//!
//! Four steps must each be atomic in the store, and each is one method: [`Link::lease`],
//! [`Link::fill`], [`Link::invalidate`] (and its siblings [`Link::guard`], [`Link::clear`],
//! [`Link::fence`]) and
//! [`Link::touch`]. Everything else is plain reading. Hints may be lost, late, repeated or reordered;
//! a backend that cannot push may never give one.

mod link;
pub mod memory;
mod raw;
mod report;
pub(crate) mod together;

pub use link::Link;
pub use memory::Memory;
pub use raw::{RawFound, RawLink, RawPage, RawPlace};
pub use report::{FailoverWindow, Finding, ServerReport};
#[cfg(feature = "redis")]
pub(crate) mod redis;
pub mod rooms;

#[cfg(feature = "tls")]
pub use self::redis::Tls;
#[cfg(feature = "redis")]
pub use self::redis::{Acknowledge, Publish, Redis};
#[cfg(all(feature = "redis", feature = "testing"))]
pub(crate) use self::redis::{read_rubbish, read_rubbish_info};
pub use rooms::RoomLink;

use crate::coherence::{Epoch, Head, Incarnation, Lane, Nonce, Position};
use crate::error::StoreError;
use bytes::Bytes;
use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// A boxed future, as the methods of a trait object return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a store call gives.
pub type StoreResult<T> = Result<T, StoreError>;

/// The part of a store that one cache lives in. Two namespaces of one server share nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Namespace {
    /// Its name: `A–Z a–z 0–9 . _ -`, 1 to 64 characters.
    pub name: String,
    /// How many lanes there are logs of. Raw data and rooms may be on any of the first 16, whatever this
    /// says.
    pub lanes: u16,
}

impl Namespace {
    /// Every lane.
    pub fn lanes(&self) -> impl Iterator<Item = Lane> + use<> {
        (0..self.lanes).map(Lane)
    }
}

/// A link and the stream of its hints.
pub type Connected = (Arc<dyn Link>, Box<dyn Hints>);

/// An address of a backing store.
pub trait Store: Any + fmt::Debug + Send + Sync + 'static {
    /// Opens a link for `namespace`: commands and subscription, the subscription acknowledged by the
    /// store before this returns (hole H12: what is published after it is not missed by design).
    ///
    /// # Errors
    /// A [transient](StoreError::is_transient) kind where another attempt may succeed; `Auth`, `Denied`,
    /// `Unsupported` or `Config` where only an operator can help, which ends
    /// [`CacheBuilder::build`](crate::CacheBuilder::build) even if it may start without the store.
    ///
    /// # Cancel safety
    /// Cancel safe: a connection that was being opened is closed.
    fn connect<'a>(&'a self, namespace: &'a Namespace) -> BoxFuture<'a, StoreResult<Connected>>;

    /// How the store may be named in logs and errors: no secrets.
    fn describe(&self) -> String;

    /// How long [`connect`](Self::connect) may take; then the attempt has failed, and the next one
    /// follows soon. Short, as it is part of the time until a store that came back is in use again.
    fn connect_timeout(&self) -> Duration {
        Duration::from_secs(1)
    }

    /// Whether the place of a lane depends on how many there are, so that their number can be no option:
    /// a cluster, which spreads them over its nodes. Raw data and rooms would have to move with it.
    fn fixes_lanes(&self) -> bool {
        false
    }

    /// Whether links of this store give hints. A store that only answers polls is as coherent, within
    /// the same bound; others just learn of an invalidation a heartbeat later.
    fn pushes(&self) -> bool {
        true
    }

    /// How long an entry may stand in the log before its hint is published, where those of some
    /// milliseconds are published together. For so long pods wait for hints before they read the log
    /// instead; the bound does not depend on it. At once, unless a store says otherwise.
    fn publishes_within(&self) -> Duration {
        Duration::ZERO
    }
}

/// The stream of raw pub/sub messages of one link.
pub trait Hints: Send {
    /// The next message; `None` when the subscription ended.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>>;
}

/// Where one entry lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place<'a> {
    /// The lane of the key.
    pub lane: Lane,
    /// The key's 64-bit hash, as hints and log entries carry it.
    pub hash: u64,
    /// The entity the key belongs to.
    pub entity: &'a str,
    /// The physical key within the lane: printable, unique in the namespace.
    pub key: &'a [u8],
}

/// What a new epoch is made of, should the store have to open one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Opening {
    /// Its identity: random.
    pub epoch: Epoch,
    /// The nonce of the log entry that opens it.
    pub nonce: Nonce,
}

/// The answer to [`Link::poll`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Polled {
    /// The head of every lane in order; `None` where the store has none (or one that cannot be read).
    pub heads: Vec<Option<Head>>,
    /// Lanes of which nothing is known now, not even whether they have a head: the part of the store
    /// that has them did not answer. They are not confirmed; the others are.
    pub silent: Vec<Lane>,
    /// The life of the server that answered; of a store of several parts, one of all of them together.
    pub incarnation: Incarnation,
    /// The server's clock: milliseconds since the Unix epoch. Of a store of several parts the latest.
    pub server_ms: u64,
    /// The clock of each lane's server, in order, where there are several; else empty.
    pub clocks: Vec<u64>,
    /// The namespace's record, as [`Link::register`] left it.
    pub record: Option<Bytes>,
}

impl Polled {
    /// The clock of the server that has `lane`: that which the time of a fork is to be compared with.
    #[must_use]
    pub fn clock_of(&self, lane: Lane) -> u64 {
        let clock = self.clocks.get(usize::from(lane.0));
        clock.copied().unwrap_or(self.server_ms)
    }
}

/// The answer to [`Link::read`]. All three were read in one atomic step.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Found {
    /// The lane's head.
    pub head: Option<Head>,
    /// The bytes stored under the key: a value's envelope, a lease, or anything.
    pub value: Option<Bytes>,
    /// The entity's floor on this lane: a value whose load began below this sequence number was
    /// cleared. A value without a floor may not be used (the floor may have been evicted).
    pub floor: Option<u64>,
}

/// Where the floor of a tag is kept: on the tag's own lane, whatever lanes the entries that carry it are
/// on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TagPlace {
    /// The lane of `key`, which invalidations of the tag are logged on.
    pub lane: Lane,
    /// The hash of the tag's name.
    pub name: u64,
    /// The hash of the tag: of its key, or of its name again if it is a bare name.
    pub key: u64,
}

/// The answer to [`Link::tag_floors`] for one tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TagFloor {
    /// The head of the tag's lane.
    pub head: Head,
    /// The position at which the tag, or its whole name, was invalidated last, or that its floor was set
    /// to. Values that know no later one of this lane are invalid.
    pub floor: u64,
}

impl TagFloor {
    /// Whether a value stands that knows of no invalidation up to `at`.
    ///
    /// A position after a fork in the epoch before it is of a timeline that ended: it counts as the last
    /// one that both share.
    #[must_use]
    pub fn admits(&self, at: Position) -> bool {
        let head = self.head;
        let seq = match head.fork {
            _ if at.epoch == head.at.epoch => at.seq,
            true if at.epoch == head.prev_epoch => at.seq.min(head.fork_seq),
            _ => return false,
        };
        seq >= self.floor
    }
}

/// What [`Link::lease`] asks for.
#[derive(Clone, Copy, Debug)]
pub struct LeaseRequest<'a> {
    /// Identifies this attempt; random.
    pub token: u64,
    /// How long the lease may be held.
    pub ttl: Duration,
    /// Bytes that were found under the key and cannot be used. If they still stand there, they count
    /// as absent.
    pub unusable: Option<&'a [u8]>,
    /// Used if the lane has no head.
    pub opening: Opening,
}

/// The answer to [`Link::lease`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeaseReply {
    /// The lane's head.
    pub head: Head,
    /// The entity's floor on this lane; the call sets it to the head's position if there was none.
    pub floor: u64,
    /// The server's clock: milliseconds since the Unix epoch.
    pub server_ms: u64,
    /// Who has the key now.
    pub state: LeaseState,
    /// The version that the source had of the key at least, if a [minimum](Markers::minimum) of its hash
    /// stands.
    pub minimum: Option<u64>,
}

/// Who has a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LeaseState {
    /// The caller, until the lease ends.
    Granted,
    /// Somebody else is loading it. A [`Kind::Filled`](crate::coherence::Kind::Filled) hint will
    /// announce the fill.
    Held,
    /// It has been filled meanwhile.
    Present(Bytes),
    /// Nobody: a [marker](Link::guard) stands for the key, so that what is loaded now may be out of date
    /// before anything says so.
    Guarded,
}

/// What a fill takes the place of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Replaces {
    /// The lease that its load was granted.
    #[default]
    Lease,
    /// The value that was there when its load began: a refresh.
    Value,
}

/// A fill: of a key that was leased, or over a value that stands.
#[derive(Clone, Copy, Debug)]
pub struct Fill<'a> {
    /// The token of what it takes the place of. For a lease, the one it was granted with; for a value,
    /// the one that its envelope names.
    pub token: u64,
    /// Of which kind that is. Anything else under the key, with whatever token, refuses the fill.
    pub replaces: Replaces,
    /// The epoch that the lane was in when the load began.
    pub epoch: Epoch,
    /// The envelope to store.
    pub envelope: &'a [u8],
    /// How long it lives; `None` for ever. Remainders below the store's resolution round up.
    pub ttl: Option<Duration>,
}

/// A value that its writer gives, beside the invalidation of its key.
#[derive(Clone, Copy, Debug)]
pub struct Put<'a> {
    /// What the source calls this state of the value.
    pub version: u64,
    /// The epoch that the lane was in when the envelope was made.
    pub epoch: Epoch,
    /// The envelope to store.
    pub envelope: &'a [u8],
    /// How long it lives; `None` for ever.
    pub ttl: Option<Duration>,
}

/// What becomes of the markers of the keys that a [`Link::guard`] names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Markers {
    /// Those of this guard go.
    pub lift: Option<u64>,
    /// One of this guard is left for each, and ends after so long. It takes the place of an earlier one
    /// of the same guard.
    pub leave: Option<(u64, Duration)>,
    /// The source has this version of each at least: the store says so with the leases of their hashes
    /// for so long. Of two that stand the higher one counts, for as long as the later one lasts.
    pub minimum: Option<(u64, Duration)>,
}

/// The answer to [`Link::guard`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Guarded {
    /// Where it was logged.
    pub logged: Logged,
    /// How many of the keys had a marker of the guard that was to be lifted, which had not ended.
    pub stood: usize,
}

/// Where a call was logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Logged {
    /// Its position.
    pub at: Position,
    /// The nonce of the entry before it.
    pub prev: Nonce,
}
