//! Strict reads: of everything that was acknowledged before the call began.
//!
//! Two sources of a value can show that, and no third is asked:
//!
//! - **a value of the store**, read after the call began, if the node proves with a write after the read
//!   that it has not been deposed. An invalidation that it had acknowledged by then had removed the value,
//!   and with it every right to bring an older one back (a lease, or the value that a refresh replaces);
//! - **a load that began after the call did**, under a lease or without: the loader sees everything that
//!   was committed before it starts, and invalidations come after their commits.
//!
//! So the local level is not looked at, and no flight is joined: it may have begun before the call.
//!
//! 1. a load begins, and reads version 1 from the source;
//! 2. version 2 is committed and invalidated on another pod, which has its acknowledgement;
//! 3. that pod tells this one, and a strict read begins here. Nothing was heard of the invalidation yet,
//!    so nothing has detached the load;
//! 4. the load ends, with version 1.
//!
//! The flight that a strict read starts if it must load takes the place of such a load. Readers of the
//! usual kind may join it.

use super::Inner;
use super::course::{Boarding, Course, Skips, Waiter};
use super::load::LoadRun;
use super::outcome::Landed;
use super::seek::{Next, Want};
use super::target::Target;
use crate::error::CacheError;
use crate::flight::Flown;
use crate::key::Key;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use tokio::time::{Instant, timeout_at};

impl<K, V, E> Inner<K, V, E>
where
    K: Key,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    pub(super) async fn read_strict(
        self: &Arc<Self>,
        key: &K,
        hash: u64,
    ) -> Result<Landed<V, E>, CacheError<E>> {
        self.level.telemetry.missed(1);
        let limit = self.options.load_timeout;
        let end = Instant::now() + limit;
        let target = Arc::new(self.target(key, hash));
        while !self.bus().closing.is_cancelled() {
            let next = timeout_at(end, self.seek(&target, None, Want::Strict)).await;
            let run = match next {
                Ok(Next::Land(landed)) => {
                    self.level.telemetry.store_hit();
                    return Ok(landed);
                }
                Ok(Next::Load(run)) => {
                    self.level.telemetry.store_missed(1);
                    run
                }
                Ok(Next::Leave) => continue,
                Err(_) => return Err(CacheError::Timeout { after: limit }),
            };
            let mut waiter = self.take_off(&target, run);
            match timeout_at(end, waiter.wait()).await {
                Ok(Flown::Landed(landing)) => return Ok(self.landed(landing)),
                // The load took longer than its lead. Another one, if there is time for it.
                Ok(Flown::Lead(guard)) => {
                    drop(guard);
                    // Or its task was dropped as the runtime shuts down, which waits for this one.
                    tokio::task::yield_now().await;
                }
                Err(_) => {
                    // The caller gives up, the load does not: it may still fill.
                    waiter.leave_running();
                    return Err(CacheError::Timeout { after: limit });
                }
            }
        }
        Err(CacheError::Closed)
    }

    /// Loads in a flight that joins no other.
    ///
    /// The right to load was granted before the flight began. An invalidation between the two does not
    /// detach it; but the load begins after both, and so reflects it.
    fn take_off(self: &Arc<Self>, target: &Arc<Target<K>>, run: LoadRun<V>) -> Waiter<K, V, E> {
        let course = Course {
            meta: self.began(target.lane).meta(),
            skips: Skips::NONE,
        };
        let (hash, key) = (target.hash, &target.key);
        match self.level.flights.board(hash, key, course, |_| false) {
            Boarding::Leader(guard, waiter) => {
                self.load_in_task(target, guard, run);
                waiter
            }
            Boarding::Waiter(waiter) => waiter,
        }
    }
}
