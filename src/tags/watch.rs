//! Those who wait for tags to change.

use super::{Cell, Registry};
use crate::bus::lock;
use crate::key::Tag;
use std::mem;
use std::sync::Arc;
use tokio::sync::Notify;

/// One who wants to know when tags are invalidated.
pub(crate) struct Watch {
    pub(super) registry: Arc<Registry>,
    pub(super) tags: Vec<Tag>,
    pub(super) cells: Vec<[Arc<Cell>; 2]>,
    /// The counts when it last looked.
    pub(super) seen: Vec<[u64; 2]>,
    pub(super) notify: Arc<Notify>,
}

impl Watch {
    pub(crate) fn tags(&self) -> &[Tag] {
        &self.tags
    }

    /// Which of the tags were invalidated since the last call; none is no change.
    pub(crate) fn take_changed(&mut self) -> Vec<Tag> {
        let mut changed = Vec::new();
        // What is invalidated in one go is counted under this lock: it is seen as a whole, or not yet.
        let _whole = lock(&self.registry.tags);
        for ((tag, cells), seen) in self.tags.iter().zip(&self.cells).zip(&mut self.seen) {
            let counts = cells.each_ref().map(|cell| cell.count());
            if mem::replace(seen, counts) != counts {
                changed.push(tag.clone());
            }
        }
        changed
    }

    /// Waits until one of the tags is invalidated, or was since [`take_changed`](Self::take_changed)
    /// looked.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn changed(&mut self) -> Vec<Tag> {
        loop {
            let changed = self.take_changed();
            if !changed.is_empty() {
                return changed;
            }
            self.notify.notified().await;
        }
    }
}
