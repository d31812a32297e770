//! How long an outcome lives: in the store, here, and before it is refreshed ahead of its time.

use super::Inner;
use super::outcome::{EarlyRefresh, Outcome};
use crate::key::Key;
use crate::local::Life;
use crate::random::random_part;
use crate::time::Millis;
use crate::ttl::Ttl;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Lives shorter than this are not jittered: their loads do not fall together.
const JITTER_FROM: Duration = Duration::from_secs(10);

/// Lives shorter than this are not refreshed early: they are over before it is worth it.
const EARLY_FROM: Duration = Duration::from_secs(1);
/// A refresh is thought of from this many load times before the end of a life on: earlier, one read in
/// half a thousand million would ask for it …
const EARLY_LOADS: u32 = 20;
/// … and in no more than this part of the life, or the outcome of a slow load would hardly be used.
const EARLY_PART: u32 = 5;

impl<K, V, E> Inner<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// How long to keep an outcome; jittered, so that what was loaded together does not expire
    /// together.
    pub(super) fn ttl_of(&self, key: &K, outcome: &Outcome<V, E>, said: Option<Ttl>) -> Ttl {
        let ttl = match outcome {
            Ok(value) => said.unwrap_or_else(|| (self.options.ttl)(key, value)),
            Err(error) => match &self.options.error_codec {
                Some(codec) => (codec.ttl)(error).map_or(Ttl::NONE, Ttl::For),
                None => Ttl::NONE,
            },
        };
        match ttl {
            Ttl::For(life) if life > JITTER_FROM => {
                let random = random_part();
                let factor = 1.0 + self.options.jitter * (2.0 * random - 1.0);
                Ttl::For(Duration::try_from_secs_f64(life.as_secs_f64() * factor).unwrap_or(life))
            }
            ttl => ttl,
        }
    }

    /// The life that an outcome has here from now on.
    ///
    /// What was `guarded` has to go with its youth, lest the lane should bear it out later:
    ///
    /// 1. A writer begins, and the lane has followed it.
    /// 2. A load reads the old value.
    /// 3. The writer commits, and dies. Nothing more is logged.
    pub(super) fn life_of(
        &self,
        outcome: &Outcome<V, E>,
        ttl: Ttl,
        took: Duration,
        guarded: Option<Millis>,
    ) -> Life {
        let now = self.bus().clock.now();
        let mut local_end = now + self.options.local_ttl;
        if let Some(start) = guarded {
            local_end = local_end.min(start + self.bus().rules.lease);
        }
        let Ttl::For(life) = ttl else {
            return Life::new(Millis::NEVER, Duration::ZERO, local_end);
        };
        let (grace, late) = match outcome {
            Ok(_) => (self.options.grace, self.early_window(life, took)),
            Err(_) => Default::default(),
        };
        Life::new(now + life, late, (now + life + grace).min(local_end))
    }

    /// For how long before its end a life of this length may be ended by a refresh.
    pub(super) fn early_window(&self, life: Duration, took: Duration) -> Duration {
        if life < EARLY_FROM || self.options.early_refresh == EarlyRefresh::Off {
            return Duration::ZERO;
        }
        took.saturating_mul(EARLY_LOADS).min(life / EARLY_PART)
    }
}
