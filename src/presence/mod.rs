//! Presence: who is in a room, with a word from each, while they are there.
//!
//! A [`Presence`] is one room. Whoever [joins](Presence::join) it is a member for as long as the
//! [`Lease`] lives; everybody else can list, count and [watch](Presence::watch) the members. Time is
//! the store's. The page on presence in the documentation says what it is for.
//!
//! ```text
//!   Presence ── join ──▶ Lease          list · page · count · get           watch ──▶ Watch
//!                          │                      │                                    │
//!     hold · keeper        │  one task a room:    │                 view · replica     │  one task a room:
//!                          │  changes in batches  │                 told               │  events, gaps healed
//!     node ────────────────┴──────────────────────┼────────────────────────────────────┘
//!       one heartbeat for all rooms               │
//!     store::rooms ── Redis · Memory · yours
//! ```

mod error;
mod hold;
mod keeper;
mod lease;
mod node;
mod replica;
mod room;
mod told;
mod view;
mod watch;

pub use error::PresenceError;
pub use lease::Lease;
pub(crate) use node::Rooms;
pub use replica::LeftReason;
pub use watch::{Event, Watch};

use crate::cache::Cache;
use crate::codec::{self, CodecError};
use crate::error::{BuildError, StoreError, StoreErrorKind};
use crate::store::rooms::{MAX_PAGE, Present};
use crate::store::{Link, StoreResult};
use bytes::Bytes;
use hold::Holding;
use room::Room;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// Fifteen seconds: a pod that dies is missed soon, and one that stands still for a garbage collection
/// or a slow network is not.
pub const DEFAULT_TTL: Duration = Duration::from_secs(15);
/// A heartbeat three times a second is the most that a store is asked for.
pub const MIN_TTL: Duration = Duration::from_secs(1);
/// Above a day nobody could call it presence.
pub const MAX_TTL: Duration = Duration::from_secs(24 * 3600);
/// The most bytes that a meta may take when encoded: it goes to everybody who watches.
pub const MAX_META: usize = 64 * 1024;
/// The longest name of a room or a member, in bytes.
pub const MAX_NAME: usize = 256;

/// A member of a room.
#[derive(Clone, Debug)]
pub struct Member<M> {
    /// Its name.
    pub name: String,
    /// What was last said about it. An error where another version of your service wrote what this
    /// one's `M` cannot hold; the member is there all the same.
    pub meta: Result<M, CodecError>,
}

impl<M: DeserializeOwned> Member<M> {
    fn read(name: String, meta: &[u8]) -> Self {
        let meta = codec::decode(meta);
        Self { name, meta }
    }

    fn of(present: Present) -> Self {
        Self::read(present.member, &present.meta)
    }
}

/// Options of a [`Presence`]; made by [`Cache::presence`].
#[must_use = "a builder does nothing until `build`"]
pub struct PresenceBuilder<M> {
    cache: Cache,
    room: String,
    ttl: Duration,
    meta: PhantomData<fn() -> M>,
}

impl<M> fmt::Debug for PresenceBuilder<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PresenceBuilder")
            .field("room", &self.room)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

impl Cache {
    /// Starts building the presence of one room; `M` is what is said about each member.
    ///
    /// The room's name is 1 to 256 bytes of any text. Rooms need not be made or removed: one is there
    /// while somebody is in it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tidings::Cache;
    ///
    /// let cache = Cache::builder("shop").build().await?;
    /// let room = cache.presence::<String>("document:42").build()?;
    /// let lease = room.join("ada", &"writing".to_owned()).await?;
    /// assert_eq!(room.count().await?, 1);
    /// lease.leave().await?;
    /// assert_eq!(room.count().await?, 0);
    /// # Ok(()) }
    /// ```
    pub fn presence<M: Serialize + DeserializeOwned>(
        &self,
        room: impl Into<String>,
    ) -> PresenceBuilder<M> {
        PresenceBuilder {
            cache: self.clone(),
            room: room.into(),
            ttl: DEFAULT_TTL,
            meta: PhantomData,
        }
    }
}

impl<M: Serialize + DeserializeOwned> PresenceBuilder<M> {
    /// How long after its last heartbeat a pod is taken for dead, and its members for gone; 1 s to a
    /// day, default 15 s. A pod beats three times in it, once for all rooms.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Builds it. No round trip.
    ///
    /// # Errors
    /// [`BuildError`] naming the option: `room` if the name is empty or too long; `ttl` if it is out of
    /// range, or another one is in use for the room in this pod; `runtime` outside a Tokio runtime.
    pub fn build(self) -> Result<Presence<M>, BuildError> {
        if !(1..=MAX_NAME).contains(&self.room.len()) {
            let reason = format!("the name of a room has 1 to {MAX_NAME} bytes");
            return Err(BuildError::new("room", reason));
        }
        if !(MIN_TTL..=MAX_TTL).contains(&self.ttl) {
            let reason = format!("{:?} is not within {MIN_TTL:?} to {MAX_TTL:?}", self.ttl);
            return Err(BuildError::new("ttl", reason));
        }
        let Ok(runtime) = Handle::try_current() else {
            let reason = "a presence is built inside a Tokio runtime";
            return Err(BuildError::new("runtime", reason));
        };
        let bus = &self.cache.0.bus;
        let rooms = self
            .cache
            .0
            .rooms
            .get_or_init(|| Rooms::start(bus, runtime));
        let (lane, name) = bus.space.room(&self.room);
        let room = rooms.room(&name, || Room::new(rooms, lane, &name, self.ttl));
        if room.ttl != self.ttl {
            let reason = format!("the room is in use with a TTL of {:?}", room.ttl);
            return Err(BuildError::new("ttl", reason));
        }
        Ok(Presence {
            cache: self.cache,
            name: self.room.into(),
            room,
            meta: PhantomData,
        })
    }
}

/// One room: who is in it, and what they say. Cheap to clone.
///
/// All that it tells is true by the store's clock at the moment of the answer. Handles, leases and
/// watches each keep the cache alive.
pub struct Presence<M> {
    cache: Cache,
    name: Arc<str>,
    room: Arc<Room>,
    meta: PhantomData<fn() -> M>,
}

impl<M> Clone for Presence<M> {
    fn clone(&self) -> Self {
        Self {
            cache: self.cache.clone(),
            name: Arc::clone(&self.name),
            room: Arc::clone(&self.room),
            meta: PhantomData,
        }
    }
}

impl<M> fmt::Debug for Presence<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presence")
            .field("room", &self.name)
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

impl<M> Presence<M> {
    /// The room's name.
    #[must_use]
    pub fn room(&self) -> &str {
        &self.name
    }

    /// The cache that it belongs to.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    fn check_open(&self, operation: &'static str) -> StoreResult<()> {
        match self.room.rooms.is_closing() {
            true => Err(StoreError::new(StoreErrorKind::Closed, operation)),
            false => Ok(()),
        }
    }

    fn link(&self, operation: &'static str) -> StoreResult<Arc<dyn Link>> {
        self.check_open(operation)?;
        self.room.rooms.bus.link()
    }
}

impl<M: Serialize + DeserializeOwned> Presence<M> {
    /// Brings a member into the room, or says something new about one that is there, and holds it there
    /// until the lease is dropped.
    ///
    /// A member that is brought several times, by one pod or by many, is one member and leaves with
    /// its last lease; what was said last is what everybody sees. One round trip, which calls made at
    /// the same time for the same room share.
    ///
    /// # Errors
    /// [`PresenceError::Name`], [`PresenceError::MetaTooLarge`] and [`PresenceError::Codec`] for what
    /// cannot be stored; [`PresenceError::Store`] if the store cannot be told: then the member is not
    /// held here, and if the store learnt of it all the same, it goes within the TTL;
    /// [`PresenceError::Closed`].
    ///
    /// # Cancel safety
    /// Cancel safe: a member that nobody waits for leaves again.
    pub async fn join(&self, member: &str, meta: &M) -> Result<Lease<M>, PresenceError> {
        let mut leases = self.join_many([(member, meta)]).await?;
        Ok(leases.remove(0))
    }

    /// As [`join`](Self::join) for many members, with their leases in order: one round trip for up to
    /// 64 of them. If one fails, those that joined before leave again.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    ///
    /// # Cancel safety
    /// As [`join`](Self::join).
    pub async fn join_many<'a>(
        &self,
        members: impl IntoIterator<Item = (&'a str, &'a M)>,
    ) -> Result<Vec<Lease<M>>, PresenceError>
    where
        M: 'a,
    {
        let checked = members.into_iter().map(|(member, meta)| {
            if !(1..=MAX_NAME).contains(&member.len()) {
                return Err(PresenceError::Name { len: member.len() });
            }
            Ok((Arc::from(member), encode(meta)?))
        });
        let members = checked.collect::<Result<Vec<_>, _>>()?;
        self.check_open("join")?;
        let seats = Holding::join(&self.room, members).await?;
        let lease = |seat| Lease::new(self.clone(), seat);
        Ok(seats.into_iter().map(lease).collect())
    }

    /// The members behind `after` in the order of their bytes, at most `limit`. Fewer mean that
    /// nobody follows. A page is as of its moment: who joins or leaves between two pages may be in
    /// neither or in both. One round trip for up to 256 members.
    ///
    /// # Errors
    /// The store's.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn page(&self, after: Option<&str>, limit: usize) -> StoreResult<Vec<Member<M>>> {
        let (link, place) = (self.link("page")?, self.room.place());
        let mut found: Vec<Member<M>> = Vec::new();
        while found.len() < limit {
            let after = found.last().map_or(after, |member| Some(&member.name));
            let limit = (limit - found.len()).min(MAX_PAGE);
            let page = || link.rooms().page(place, after, limit);
            let page = self.room.look("page", page).await?;
            found.extend(page.members.into_iter().map(Member::of));
            if page.ends {
                break;
            }
        }
        Ok(found)
    }

    /// All members in the order of their bytes: as many [pages](Self::page) as it takes, all of them
    /// in memory. A large room is better walked by page.
    ///
    /// # Errors
    /// The store's.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn list(&self) -> StoreResult<Vec<Member<M>>> {
        self.page(None, usize::MAX).await
    }

    /// How many members there are. One round trip.
    ///
    /// # Errors
    /// The store's.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn count(&self) -> StoreResult<u64> {
        let (link, place) = (self.link("count")?, self.room.place());
        let count = || link.rooms().count(place);
        self.room.look("count", count).await
    }

    /// One member, if it is there. One round trip.
    ///
    /// # Errors
    /// The store's.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn get(&self, member: &str) -> StoreResult<Option<Member<M>>> {
        let (link, place) = (self.link("get")?, self.room.place());
        let found = || link.rooms().get(place, member);
        let found = self.room.look("get", found).await?;
        Ok(found.map(Member::of))
    }

    /// Follows the room: [`Event::Joined`] for each member that is there, [`Event::Synced`], and from
    /// then on everything that happens. See [`Watch`].
    ///
    /// Starts in the background and waits for the store if it is away. All who watch a room in one
    /// pod share one copy of it.
    pub fn watch(&self) -> Watch<M> {
        Watch::new(self.clone())
    }
}

fn encode<M: Serialize>(meta: &M) -> Result<Bytes, PresenceError> {
    let bytes = codec::encode(meta).map_err(PresenceError::Codec)?;
    match bytes.len() <= MAX_META {
        true => Ok(bytes.into()),
        false => Err(PresenceError::MetaTooLarge { len: bytes.len() }),
    }
}
