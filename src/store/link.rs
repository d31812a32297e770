//! The link to a store: every step that the protocol takes of it.

use super::together::together;
use super::{
    BoxFuture, Fill, Found, Guarded, LeaseReply, LeaseRequest, Logged, Markers, Opening, Place,
    Polled, Put, RawLink, RoomLink, ServerReport, StoreResult, TagFloor, TagPlace,
};
use crate::coherence::{Epoch, Head, Lane, LogEntry, Nonce};
use crate::error::{StoreError, StoreErrorKind};
use bytes::Bytes;
use std::any::Any;
use std::time::Duration;

/// A live connection to a store, for one namespace. Each method is one round trip.
///
/// Deadlines are the caller's: a method that hangs is dropped. What the caller cannot know is that a
/// connection broke and was mended in between, so a link must never mend itself.
///
/// # Errors
/// Each method gives the kind that says what to do: `Unavailable` if the connection broke, `Full` or
/// `ReadOnly` if the store takes no writes, `Denied` if this user may not, `Protocol` for an answer that
/// cannot be understood. After `Unavailable` the link is not used again.
///
/// # Cancel safety
/// A future that is dropped may or may not have had its effect; it never mixes up the answers of
/// others.
pub trait Link: Any + Send + Sync + 'static {
    /// Whether the part of the store that has this lane could be reached when the link was opened. One
    /// that could not is left alone for the life of the link, and the others are used.
    fn serves(&self, lane: Lane) -> bool {
        let _ = lane;
        true
    }

    /// The part that presence stands on.
    fn rooms(&self) -> &dyn RoomLink;

    /// What the store says about its own settings; the first call on a link. What it does not say is
    /// unknown, and no error. The provided method knows nothing.
    ///
    /// # Errors
    /// `Denied` with what is missing if this user may not do what every cache needs.
    fn inspect(&self) -> BoxFuture<'_, StoreResult<ServerReport>> {
        Box::pin(async { Ok(ServerReport::default()) })
    }

    /// Puts `record` in the place of the namespace's record if that is `expected` (`None`: if there is
    /// none), in one atomic step; gives what stands there afterwards. Works without free memory. The bytes
    /// mean nothing to the store, never expire, and end with everything else that it holds. It is where the
    /// first lane is: a link that does not [serve](Self::serves) that one, or a poll that names it as
    /// silent, knows nothing of it.
    fn register<'a>(
        &'a self,
        expected: Option<&'a [u8]>,
        record: &'a [u8],
    ) -> BoxFuture<'a, StoreResult<Option<Bytes>>>;

    /// Makes sure that every lane of `lanes` has a head of this life of the server, opening an epoch
    /// where it has none, cannot be read, or is of another life; gives the heads in order. Afterwards
    /// values of epochs that were not continued can be told by their epoch.
    fn touch<'a>(&'a self, lanes: &'a [(Lane, Opening)]) -> BoxFuture<'a, StoreResult<Vec<Head>>>;

    /// Reads the heads of all lanes and the namespace's record, and proves with a small write after it that
    /// this node still takes writes (hole H8).
    fn poll(&self) -> BoxFuture<'_, StoreResult<Polled>>;

    /// The log from sequence number `from` on, in order, at most `limit` entries. What has been
    /// trimmed or cannot be decoded is simply not there.
    fn log_since(
        &self,
        lane: Lane,
        from: u64,
        limit: usize,
    ) -> BoxFuture<'_, StoreResult<Vec<LogEntry>>>;

    /// Reads a value with its lane's head and its entity's floor, in one atomic step.
    fn read<'a>(&'a self, place: Place<'a>) -> BoxFuture<'a, StoreResult<Found>>;

    /// As [`read`](Self::read), of a replica, which may not have heard of everything yet (hole H25): what it
    /// answers counts while the lane is live, and as far as its head is not behind what is applied. `None`
    /// if there is no replica to ask at the time, or none is to be asked; then nothing was sent.
    fn read_replica<'a>(&'a self, _place: Place<'a>) -> Option<BoxFuture<'a, StoreResult<Found>>> {
        None
    }

    /// [`read_replica`](Self::read_replica) for many places; an answer for each, in their order.
    fn read_replica_many<'a>(
        &'a self,
        _places: &'a [Place<'a>],
    ) -> Option<BoxFuture<'a, Vec<StoreResult<Found>>>> {
        None
    }

    /// As [`read`](Self::read), and proves with a small write after it that this node still takes writes
    /// (hole H8): then it was not deposed when it was read from. One round trip, where the store can do
    /// that. The provided method reads, then polls.
    fn read_proven<'a>(&'a self, place: Place<'a>) -> BoxFuture<'a, StoreResult<Found>> {
        Box::pin(async move {
            let found = self.read(place).await?;
            self.poll().await?;
            Ok(found)
        })
    }

    /// Takes the right to fill a key. Present and usable bytes win over the request; a value of an
    /// epoch that the head does not continue, or below the floor, counts as absent.
    fn lease<'a>(
        &'a self,
        place: Place<'a>,
        request: LeaseRequest<'a>,
    ) -> BoxFuture<'a, StoreResult<LeaseReply>>;

    /// Stores a value if what it [replaces](Fill::replaces) is still there and the epoch unchanged, and
    /// announces it if somebody waits for the lease; whether it was stored. A refused fill may also be one
    /// that was stored before and repeated.
    fn fill<'a>(&'a self, place: Place<'a>, fill: Fill<'a>) -> BoxFuture<'a, StoreResult<bool>>;

    /// [`read`](Self::read) for many places; an answer for each, in their order. One round trip, where
    /// the store can do that, and each place in an atomic step of its own. The provided method runs
    /// single reads side by side.
    fn read_many<'a>(&'a self, places: &'a [Place<'a>]) -> BoxFuture<'a, Vec<StoreResult<Found>>> {
        together(places.iter().map(|&place| self.read(place)))
    }

    /// [`lease`](Self::lease) for many keys, in the same way as [`read_many`](Self::read_many).
    fn lease_many<'a>(
        &'a self,
        asked: &'a [(Place<'a>, LeaseRequest<'a>)],
    ) -> BoxFuture<'a, Vec<StoreResult<LeaseReply>>> {
        together(asked.iter().map(|&(place, asked)| self.lease(place, asked)))
    }

    /// [`fill`](Self::fill) for many keys, in the same way as [`read_many`](Self::read_many). How many
    /// bytes go at once is the caller's to bound.
    fn fill_many<'a>(
        &'a self,
        fills: &'a [(Place<'a>, Fill<'a>)],
    ) -> BoxFuture<'a, Vec<StoreResult<bool>>> {
        together(fills.iter().map(|&(place, fill)| self.fill(place, fill)))
    }

    /// Reads the floors of `tags`, all of one lane in one atomic step, and sets those that are missing to
    /// where the log of their lane stands; `None` for a tag whose lane has no head. Floors stay for
    /// `keep` from now on at least, `None` for ever.
    ///
    /// A value names the position of each of its tags' lanes as it was when nothing was known to have
    /// invalidated the tag. So a floor that was lost, by whatever means, costs loads and never a stale
    /// read.
    fn tag_floors<'a>(
        &'a self,
        tags: &'a [TagPlace],
        keep: Option<Duration>,
    ) -> BoxFuture<'a, StoreResult<Vec<Option<TagFloor>>>>;

    /// Gives a lease back, if it is still there, so that the next caller need not wait for its end.
    fn release<'a>(&'a self, place: Place<'a>, token: u64) -> BoxFuture<'a, StoreResult<()>>;

    /// Removes the values of `keys` (and leases on them), raises the floors of the tags that `hashes`
    /// name where there are any, logs `hashes` as one entry, publishes it. Works without free memory. The
    /// keys belong to `lane` and to one entity, and are at most
    /// [`MAX_KEYS`](crate::coherence::wire::MAX_KEYS); the hashes are that of the entity's name, then
    /// theirs.
    fn invalidate<'a>(
        &'a self,
        lane: Lane,
        keys: &'a [Bytes],
        hashes: &'a [u64],
        nonce: Nonce,
        opening: Opening,
    ) -> BoxFuture<'a, StoreResult<Logged>>;

    /// [`invalidate`](Self::invalidate) of the key at `place`, which may leave a value there. If a value
    /// stands under it that a [lease](Self::lease) would find present, and that has a version and no
    /// tags, then: with a lower version than the put's, the put takes its place, if the lane is still in
    /// the put's epoch; with the same or a higher one, it stays. In all other cases what stands there is
    /// removed. Logged and published in any case, with `hashes` as for `invalidate`.
    ///
    /// The provided method invalidates, which is never wrong.
    fn put<'a>(
        &'a self,
        place: Place<'a>,
        _put: Put<'a>,
        hashes: &'a [u64],
        nonce: Nonce,
        opening: Opening,
    ) -> BoxFuture<'a, StoreResult<Logged>> {
        let key = [Bytes::copy_from_slice(place.key)];
        Box::pin(async move {
            let logged = self.invalidate(place.lane, &key, hashes, nonce, opening);
            logged.await
        })
    }

    /// [`invalidate`](Self::invalidate), and in the same atomic step lifts or leaves markers for `keys`,
    /// each under its hash in `hashes`. Works without free memory.
    ///
    /// While a marker stands, no [lease](Self::lease) of the key's hash is granted, whatever physical key
    /// it is for, and so nothing is stored: what could be [filled](Self::fill) was removed with what it
    /// would replace. A key may have markers of many guards. Nothing but [`Markers::lift`] and the end of
    /// its time removes one; an `invalidate`, a `clear` or a `fence` leaves it. The store keeps markers no
    /// less than it keeps heads, and floors of entities: they are not the first to be evicted. The same
    /// holds for minimum versions, which refuse no lease, and go by their time alone.
    ///
    /// The provided method refuses with `Unsupported`: a store that knows no markers takes no write guards.
    fn guard<'a>(
        &'a self,
        _lane: Lane,
        _keys: &'a [Bytes],
        _hashes: &'a [u64],
        _markers: Markers,
        _nonce: Nonce,
        _opening: Opening,
    ) -> BoxFuture<'a, StoreResult<Guarded>> {
        let refused = StoreError::new(StoreErrorKind::Unsupported, "guard");
        Box::pin(async { Err(refused) })
    }

    /// Raises the floor of `entity` on `lane`, and that of its name as a tag, if there are any, above
    /// everything stored; logs `hash`, which is that of its name, and publishes it.
    fn clear<'a>(
        &'a self,
        lane: Lane,
        entity: &'a str,
        hash: u64,
        nonce: Nonce,
        opening: Opening,
    ) -> BoxFuture<'a, StoreResult<Logged>>;

    /// Opens a new epoch that continues nothing, if the lane is still in epoch `expected`; gives the
    /// head that stands afterwards.
    fn fence(
        &self,
        lane: Lane,
        expected: Epoch,
        opening: Opening,
    ) -> BoxFuture<'_, StoreResult<Head>>;

    /// Whether what is logged is acknowledged only once replicas have it. What a fence did is not waited
    /// for; an entry that is logged in its epoch afterwards is.
    fn waits_for_replicas(&self) -> bool {
        false
    }

    /// What of this link keeps raw data: no part of the protocol.
    fn raw(&self) -> &dyn RawLink;
}
