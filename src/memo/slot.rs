//! An outcome that is remembered, in as little room as can be.
//!
//! The room is what a hit costs: entries that outgrow a core's caches are fetched from memory, and a
//! map of `Arc`s has hardly anything else in its entries. So expiry and weight share the word of the tag
//! that tells the variants apart, and what does not fit there stands aside.

use crate::tags::Dependency;
use crate::time::{Clock, Millis};
use std::sync::Arc;

/// Fields of the sizes that a core copies: what was stored as bytes and is loaded as a word has to wait
/// for the store, which costs a hit a tenth.
pub(super) enum Slot<V, E> {
    /// A value that depends on nothing, and does not weigh much.
    Plain {
        ends_high: u8,
        weight: u16,
        ends_low: u32,
        value: V,
    },
    /// Anything else.
    Aside(Arc<Aside<V, E>>),
}

pub(super) struct Aside<V, E> {
    outcome: Result<V, Arc<E>>,
    weight: u32,
    expires: Millis,
    dependency: Option<Dependency>,
}

// Not derived: that would ask for `E: Clone`.
impl<V: Clone, E> Clone for Slot<V, E> {
    #[inline]
    fn clone(&self) -> Self {
        match self {
            Self::Plain {
                ends_high,
                weight,
                ends_low,
                value,
            } => Self::Plain {
                ends_high: *ends_high,
                weight: *weight,
                ends_low: *ends_low,
                value: value.clone(),
            },
            Self::Aside(aside) => Self::Aside(Arc::clone(aside)),
        }
    }
}

impl<V, E> Slot<V, E> {
    pub(super) fn new(
        outcome: Result<V, Arc<E>>,
        expires: Millis,
        weight: u32,
        dependency: Option<Dependency>,
    ) -> Self {
        match (outcome, u16::try_from(weight), split(expires), dependency) {
            (Ok(value), Ok(weight), Some((ends_high, ends_low)), None) => Self::Plain {
                ends_high,
                weight,
                ends_low,
                value,
            },
            (outcome, .., dependency) => Self::Aside(Arc::new(Aside {
                outcome,
                weight,
                expires,
                dependency,
            })),
        }
    }

    #[inline]
    pub(super) fn weight(&self) -> u32 {
        match self {
            Self::Plain { weight, .. } => (*weight).into(),
            Self::Aside(aside) => aside.weight,
        }
    }

    /// Whether its life ends by the clock that is looked at for a plain value.
    pub(super) fn ends(&self) -> bool {
        match self {
            Self::Plain {
                ends_high,
                ends_low,
                ..
            } => join(*ends_high, *ends_low) != Millis::NEVER,
            Self::Aside(_) => false,
        }
    }

    /// The outcome, if it may be served to a call that began at `began`. What depends on tags is judged by
    /// the time it is then.
    #[inline(always)]
    pub(super) fn current(self, began: Millis, clock: &Clock) -> Option<Result<V, Arc<E>>>
    where
        V: Clone,
    {
        match self {
            Self::Plain {
                ends_high,
                ends_low,
                value,
                ..
            } => {
                let expires = join(ends_high, ends_low);
                let stands = expires == Millis::NEVER || began < expires;
                stands.then_some(Ok(value))
            }
            Self::Aside(aside) => aside.current(clock),
        }
    }
}

impl<V: Clone, E> Aside<V, E> {
    /// Out of line, for the sake of those that are plain.
    #[inline(never)]
    fn current(&self, clock: &Clock) -> Option<Result<V, Arc<E>>> {
        let ended = self.expires != Millis::NEVER && clock.now() >= self.expires;
        let current = self.dependency.as_ref().is_none_or(Dependency::is_current);
        (!ended && current).then(|| self.outcome.clone())
    }
}

/// Stands for [`Millis::NEVER`] in 40 bits.
const NEVER: u64 = (1 << 40) - 1;

/// The upper and the lower part of a moment within 34 years of the clock's origin, or of never.
fn split(moment: Millis) -> Option<(u8, u32)> {
    let moment = match moment {
        Millis::NEVER => NEVER,
        Millis(moment) if moment < NEVER => moment,
        Millis(_) => return None,
    };
    Some(((moment >> 32) as u8, moment as u32))
}

#[inline(always)]
fn join(high: u8, low: u32) -> Millis {
    match u64::from(high) << 32 | u64::from(low) {
        NEVER => Millis::NEVER,
        moment => Millis(moment),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 8 more would cost a hit of a number a tenth.
    #[test]
    fn an_entry_is_8_bytes_larger_than_its_value() {
        type Value = Arc<[u8; 16]>;
        assert_eq!(size_of::<Slot<Value, String>>(), size_of::<Value>() + 8);
    }

    #[test]
    fn a_slot_ends_at_its_millisecond_however_far_that_is() {
        for expires in [1, 255, 1 << 32, NEVER - 1, NEVER, NEVER + 1, u64::MAX - 1] {
            let slot = Slot::<_, ()>::new(Ok(1), Millis(expires), 1, None);
            let at = |now| {
                slot.clone()
                    .current(Millis(now), &Clock::manual(Millis(now)))
            };
            assert_eq!((at(expires - 1), at(expires)), (Some(Ok(1)), None));
        }
        let for_ever = Slot::<_, ()>::new(Ok(1), Millis::NEVER, 1, None);
        let at = |now| {
            for_ever
                .clone()
                .current(Millis(now), &Clock::manual(Millis(now)))
        };
        assert_eq!(at(u64::MAX), Some(Ok(1)));
    }

    #[test]
    fn a_slot_weighs_what_it_was_said_to_weigh() {
        for weight in [1, 65_535, 65_536, u32::MAX] {
            let slot = Slot::<_, ()>::new(Ok(1), Millis(9), weight, None);
            assert_eq!(slot.weight(), weight);
            let error = Slot::<u8, _>::new(Err(Arc::new(())), Millis(9), weight, None);
            assert_eq!(error.weight(), weight);
        }
    }
}
