//! Where invalidations stand in the log.

use crate::cache::Cache;
use crate::coherence::{Epoch, Lane, Position};
use std::fmt;
use std::str::FromStr;

/// Where an invalidation stands in the logs of its lanes, once the store has acknowledged it.
///
/// Hand it to another pod to tell it what it must have seen:
/// [`Entity::get_at_least`](crate::Entity::get_at_least). As text it fits in a header or a message.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tidings::{Cache, Stamp};
///
/// let cache = Cache::builder("shop").build().await?;
/// let stamp = cache.invalidate(["user:42"]).await?;
/// assert_eq!(stamp.to_string().parse::<Stamp>()?, stamp);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Stamp {
    pub(super) positions: Vec<(Lane, Position)>,
}

/// `lane.epoch.seq` for each lane, in hexadecimal, joined by `-`.
impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (lane, at)) in self.positions.iter().enumerate() {
            let joint = if n == 0 { "" } else { "-" };
            write!(f, "{joint}{:x}.{:x}.{:x}", lane.0, at.epoch.0, at.seq)?;
        }
        Ok(())
    }
}

/// The text is not that of a [`Stamp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a stamp: expected lane.epoch.seq in hexadecimal, joined by `-`")]
#[non_exhaustive]
pub struct ParseStampError;

impl FromStr for Stamp {
    type Err = ParseStampError;

    fn from_str(text: &str) -> Result<Self, ParseStampError> {
        let position = |part: &str| {
            let mut words = part.split('.');
            let mut word = || u64::from_str_radix(words.next()?, 16).ok();
            let lane = Lane(u16::try_from(word()?).ok()?);
            let (epoch, seq) = (Epoch(word()?), word()?);
            words
                .next()
                .is_none()
                .then_some((lane, Position { epoch, seq }))
        };
        let parts = text.split('-').filter(|_| !text.is_empty());
        let positions: Option<_> = parts.map(position).collect();
        let positions = positions.ok_or(ParseStampError)?;
        Ok(Self { positions })
    }
}

impl Stamp {
    /// One position for each lane that the call was logged on.
    pub fn positions(&self) -> impl Iterator<Item = (Lane, Position)> + '_ {
        self.positions.iter().copied()
    }

    /// Waits until no pod can serve what this made invalid any more: for [`Health::bound`], counted from
    /// the call, because a stamp does not say when it was acknowledged. Makes no round trip. An empty
    /// stamp has nothing to wait for.
    ///
    /// For an invalidation of your own, [`Invalidation::settled`] is shorter.
    ///
    /// [`Health::bound`]: crate::Health::bound
    /// [`Invalidation::settled`]: crate::Invalidation::settled
    ///
    /// # Cancel safety
    /// Cancel safe.
    ///
    /// # Consistency
    /// On every pod, a read that begins after this returned gives nothing older: as
    /// [`Entity::get_at_least`](crate::Entity::get_at_least) would, without having to hand the stamp on.
    pub async fn settled(&self, cache: &Cache) {
        if !self.positions.is_empty() {
            tokio::time::sleep(cache.0.bus.bound()).await;
        }
    }
}
