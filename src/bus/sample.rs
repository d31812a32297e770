//! Looking four times a second at what changes without anybody doing anything: lanes that lapse, ages
//! that grow; and letting what was counted be exported.

use super::Bus;
use crate::coherence::{Hint, Kind};
use crate::telemetry::Event;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

/// Time between two looks: as often as lanes are polled, so that the lapse of one is seen.
const SAMPLE_EVERY: Duration = Duration::from_millis(250);

/// Runs until the cache shuts down; then there are no more events.
pub(super) async fn sample(bus: Arc<Bus>) {
    let mut was_live = vec![false; bus.lanes.len()];
    loop {
        tokio::select! {
            () = bus.shutdown.cancelled() => break,
            () = sleep(SAMPLE_EVERY) => {}
        }
        bus.look_at_lanes(&mut was_live);
        bus.telemetry.sample(|| bus.health(), || bus.presence());
    }
    bus.telemetry.sample(|| bus.health(), || bus.presence());
    bus.telemetry.close();
}

impl Bus {
    /// Tells which lanes have become live or lapsed since the last look.
    fn look_at_lanes(&self, was_live: &mut [bool]) {
        let now = self.clock.now();
        for (lane, was_live) in self.namespace.lanes().zip(was_live) {
            let live = now < self.live_until(lane);
            if live != std::mem::replace(was_live, live) {
                self.telemetry.tell(|| match live {
                    true => Event::LaneLive { lane: lane.0 },
                    false => Event::LaneLapsed { lane: lane.0 },
                });
            }
        }
    }

    /// Notes how long ago an invalidation was published that has just come.
    pub(super) fn note_lag(&self, hint: &Hint) {
        if matches!(hint.entry.kind, Kind::Invalidate | Kind::Clear)
            && let Some(server_now) = self.server_now()
        {
            let lag = server_now.saturating_sub(hint.server_ms);
            self.telemetry.lagged(Duration::from_millis(lag));
        }
    }
}
