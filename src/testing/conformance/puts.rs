//! Claims on values that come with the invalidation of their key. A store may always leave nothing.

use super::harness::{ENTITY_HASH, Harness, KEY, LONG, Lease, Probe};
use crate::coherence::{Epoch, Kind};
use crate::store::memory::layout::{Front, State};
use crate::store::{Logged, Place, Put};
use bytes::Bytes;

/// The bytes of a usable value: `flags` 8 says that it has a version.
fn bytes(lease: Lease, flags: u16, tags: u16, version: u64) -> Bytes {
    let front = Front {
        state: State::Value,
        token: lease.token,
        epoch: lease.head.at.epoch,
        seq: lease.head.at.seq,
    };
    let mut bytes = [&front.write()[..], &[0; 32]].concat();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(tags.to_be_bytes());
    bytes.extend(version.to_be_bytes());
    bytes.extend(vec![b't'; 16 * usize::from(tags)]);
    bytes.extend(b"payload");
    bytes.into()
}

impl Probe<'_> {
    /// Stores a value of `version`, as a loader would.
    async fn load_version(
        &self,
        place: Place<'_>,
        flags: u16,
        tags: u16,
        version: u64,
    ) -> (Lease, Bytes) {
        let lease = self.lease(place).await;
        let stored = bytes(lease, flags, tags, version);
        assert!(self.fill(place, lease, &stored).await, "fill was refused");
        (lease, stored)
    }

    /// Puts a value of `version` that looks as if it was loaded under `lease`.
    async fn put_version(&self, lease: Lease, epoch: Epoch, version: u64) -> (Logged, Bytes) {
        let envelope = bytes(lease, 8, 0, version);
        let put = Put {
            version,
            epoch,
            envelope: &envelope,
            ttl: Some(LONG),
        };
        let (nonce, opening) = (self.names.nonce(), self.opening());
        let hashes = [ENTITY_HASH, KEY.hash];
        let logged = self.link.put(KEY, put, &hashes, nonce, opening).await;
        (logged.expect("put"), envelope)
    }

    async fn stands(&self) -> Option<Bytes> {
        self.read(KEY).await.value
    }
}

/// A put takes the place of a value with a lower version, and of no other.
pub async fn a_put_never_takes_the_place_of_a_value_that_is_not_older(harness: &Harness) {
    let probe = harness.probe().await;
    // Greater than a number of 53 bits can tell apart, and in either half of the word.
    let ladder = [
        0,
        1,
        255,
        256,
        1 << 32,
        (1 << 32) + 1,
        u64::MAX - 1,
        u64::MAX,
    ];
    for there in ladder {
        for version in ladder {
            let (lease, stored) = probe.load_version(KEY, 8, 0, there).await;
            let (_, put) = probe.put_version(lease, lease.head.at.epoch, version).await;
            let allowed = if version > there { put } else { stored };
            let found = probe.stands().await;
            assert!(
                found.is_none() || found == Some(allowed),
                "{version} over {there}"
            );
            probe.invalidate(&[KEY]).await;
        }
    }
}

/// Where nothing shows that it is newer, a put leaves nothing: neither itself nor what stood there.
pub async fn a_put_without_a_version_to_compare_with_only_invalidates(harness: &Harness) {
    let probe = harness.probe().await;
    let lease = probe.lease(KEY).await;
    let epoch = lease.head.at.epoch;
    probe.put_version(lease, epoch, 9).await;
    assert_eq!(probe.stands().await, None, "a lease");
    assert!(!probe.fill(KEY, lease, &bytes(lease, 8, 0, 1)).await);
    probe.put_version(lease, epoch, 9).await;
    assert_eq!(probe.stands().await, None, "nothing");
    for (flags, tags) in [(0, 0), (8, 1)] {
        probe.load_version(KEY, flags, tags, 1).await;
        probe.put_version(lease, epoch, 9).await;
        assert_eq!(probe.stands().await, None, "no version, or tags");
    }
    probe.load_version(KEY, 8, 0, 1).await;
    probe.invalidate(&[KEY]).await;
    probe.put_version(lease, epoch, 9).await;
    assert_eq!(probe.stands().await, None, "invalidated");
    probe.load_version(KEY, 8, 0, 1).await;
    probe.clear().await;
    probe.put_version(lease, epoch, 9).await;
    assert_eq!(probe.stands().await, None, "cleared");
}

/// A put of another epoch, or over a value of a dead one, leaves nothing.
pub async fn a_put_does_not_outlive_its_epoch(harness: &Harness) {
    let probe = harness.probe().await;
    let (lease, _) = probe.load_version(KEY, 8, 0, 1).await;
    let (old, epoch) = (
        lease.head.at.epoch,
        probe.fence(lease.head.at.epoch).await.at.epoch,
    );
    probe.put_version(lease, epoch, 2).await;
    assert_eq!(probe.stands().await, None, "over a value of a dead epoch");
    let (lease, _) = probe.load_version(KEY, 8, 0, 1).await;
    probe.put_version(lease, old, 2).await;
    assert_eq!(probe.stands().await, None, "made in an epoch that is over");
    let (lease, _) = probe.load_version(KEY, 8, 0, 2).await;
    probe.put_version(lease, old, 1).await;
    assert_eq!(probe.stands().await, None, "the same, of a lower version");
}

/// A put is logged as the invalidation of its key, whatever it leaves.
pub async fn a_put_is_logged_as_an_invalidation(harness: &Harness) {
    let probe = harness.probe().await;
    for version in [1, 3, 2] {
        let lease = match version {
            1 => probe.load_version(KEY, 8, 0, 0).await.0,
            _ => Lease {
                token: 1,
                head: probe.touch(KEY.lane).await,
            },
        };
        let (logged, _) = probe.put_version(lease, lease.head.at.epoch, version).await;
        let entry = probe.log().await.pop().expect("it is logged");
        assert_eq!((entry.seq, entry.kind), (logged.at.seq, Kind::Invalidate));
        assert_eq!(entry.prev, logged.prev);
        assert_eq!(entry.hashes, [ENTITY_HASH, KEY.hash]);
    }
}
