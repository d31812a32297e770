//! Coming to terms with the namespace's record, before anything else is done on a link.

use super::Bus;
use crate::coherence::{Epoch, Head, Lane};
use crate::error::{StoreError, StoreErrorKind};
use crate::registration::{Mismatch, Verdict};
use crate::store::together::together;
use crate::store::{Finding, Link, Opening, StoreResult};
use std::sync::Arc;

/// How often the record is looked at before this counts as failed: each look but the last means that
/// somebody else wrote it meanwhile.
const LOOKS: usize = 16;

/// Has the server's settings looked at; one round trip.
///
/// # Errors
/// `Denied` if this user may not do what every cache needs.
pub(super) async fn inspect(bus: &Bus, link: &Arc<dyn Link>) -> StoreResult<()> {
    let report = bus
        .within(bus.timing.touch_timeout, "inspect", link.inspect())
        .await?;
    let told = bus.observed.server();
    let is_new = |finding: &&Finding| {
        told.as_ref()
            .is_none_or(|told| !told.findings.contains(finding))
    };
    for finding in report.findings.iter().filter(is_new) {
        tracing::warn!(namespace = %bus.namespace.name, store = %bus.store.describe(), %finding,
            "a setting of the server");
    }
    bus.observed.inspected(report);
    Ok(())
}

/// Has the namespace's record read, and written where it is this pod's turn. One round trip as a rule.
///
/// # Errors
/// `Config` with the [`Mismatch`] as its source if this pod must keep out.
pub(super) async fn join(bus: &Bus, link: &Arc<dyn Link>) -> StoreResult<()> {
    if bus.observed.has_joined() && !link.serves(Lane(0)) {
        // The record is out of reach for everybody, and others of the lanes are not. We have agreed before.
        return Ok(());
    }
    let (settings, limit) = (bus.space.settings(), bus.timing.touch_timeout);
    let offered = bus.opening().epoch;
    let mut found = None;
    for _ in 0..LOOKS {
        let record = match settings.judge(found.as_deref(), offered) {
            Verdict::Join => {
                bus.observed.joined();
                return Ok(());
            }
            Verdict::Refuse(mismatch) => return Err(refused(mismatch)),
            Verdict::Propose(record) => record,
            Verdict::Settle(epoch, record) => {
                bring_to(bus, link, epoch).await?;
                record
            }
        };
        let register = link.register(found.as_deref(), &record);
        found = bus.within(limit, "register", register).await?;
    }
    Err(StoreError::new(StoreErrorKind::Busy, "register"))
}

/// What a driver that is refused reports.
pub(super) fn refused(mismatch: Mismatch) -> StoreError {
    StoreError::new(StoreErrorKind::Config, "register").with_source(mismatch)
}

/// Ends every epoch but `epoch`: what was loaded before is dead, and no pod that goes by another record
/// has an invalidation acknowledged before it has polled, and so read the record.
///
/// Pods that do this at once have the same epoch in mind, so that they undo nothing of each other's.
async fn bring_to(bus: &Bus, link: &Arc<dyn Link>, epoch: Epoch) -> StoreResult<()> {
    let limit = bus.timing.touch_timeout;
    let opening = || Opening {
        epoch,
        nonce: bus.nonce(),
    };
    // What is out of reach for us is so for others: it counts when it is back.
    let lanes = bus.namespace.lanes().filter(|&lane| link.serves(lane));
    let lanes: Vec<_> = lanes.map(|lane| (lane, opening())).collect();
    let heads = bus.within(limit, "touch", link.touch(&lanes)).await?;
    let old = lanes.iter().zip(heads);
    let fences = old
        .filter(|(_, head)| head.at.epoch != epoch)
        .map(|(&(lane, opening), head)| link.fence(lane, head.at.epoch, opening));
    let all = async { together(fences).await.into_iter().collect() };
    let fenced: Vec<Head> = bus.within(limit, "fence", all).await?;
    tracing::debug!(namespace = %bus.namespace.name, lanes = fenced.len(), "brought to another epoch");
    Ok(())
}
