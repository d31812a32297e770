//! What keeps a member in its room.

use super::hold::Seat;
use super::{Presence, PresenceError, encode};
use crate::error::StoreError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;

/// A member's stay in a room; made by [`Presence::join`].
///
/// Renewed in the background while it lives. Dropping it leaves at once, in the background;
/// [`leave`](Self::leave) waits until the others can know.
#[must_use = "the member leaves as soon as its lease is dropped"]
pub struct Lease<M> {
    presence: Presence<M>,
    seat: Seat,
}

impl<M> fmt::Debug for Lease<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("room", &self.presence.room())
            .field("member", &self.seat.member())
            .finish()
    }
}

impl<M> Lease<M> {
    pub(super) fn new(presence: Presence<M>, seat: Seat) -> Self {
        Self { presence, seat }
    }

    /// The member's name.
    #[must_use]
    pub fn member(&self) -> &str {
        self.seat.member()
    }

    /// The room.
    #[must_use]
    pub fn presence(&self) -> &Presence<M> {
        &self.presence
    }

    /// Gives the lease up, and returns when the store knows. If it was the member's last, everybody who
    /// watches is told.
    ///
    /// # Errors
    /// The store's: the lease is over all the same, and the others learn of it when the store is
    /// back, or when the TTL ends.
    ///
    /// # Cancel safety
    /// Cancel safe: the lease is over from the first poll on, and also if there was none.
    pub async fn leave(self) -> Result<(), StoreError> {
        self.presence.check_open("leave")?;
        self.seat.leave().await
    }
}

impl<M: Serialize + DeserializeOwned> Lease<M> {
    /// Says something new about the member. One round trip.
    ///
    /// # Errors
    /// [`PresenceError::MetaTooLarge`] and [`PresenceError::Codec`] for what cannot be stored;
    /// [`PresenceError::Store`] if the store cannot be told: then others may see the old or the new
    /// meta; [`PresenceError::Closed`].
    ///
    /// # Cancel safety
    /// A call that is dropped may or may not have its effect.
    pub async fn update(&self, meta: &M) -> Result<(), PresenceError> {
        let meta = encode(meta)?;
        self.presence.check_open("update")?;
        Ok(self.seat.update(meta).await?)
    }
}
