//! Loaders that read a replica of PostgreSQL which lags: what versions are for, on the real thing.
//!
//! `TIDINGS_LAG_MS` is how far the replica is behind.
#![cfg(feature = "redis")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[macro_use]
#[expect(dead_code, reason = "others need more of it")]
#[path = "../support/mod.rs"]
mod support;

mod bed;
mod loads;

use bed::{Account, Bed, Reads};
use loads::{Loads, Versions};

const WRITES: i64 = 3;

/// One pod writes, and it and two others read all the time.
async fn reads(bed: &Bed, loads: Loads) -> Reads {
    let write_and_read = async |account: Account| {
        let readers = account.read_everywhere(WRITES);
        for balance in 1..=WRITES {
            // By then the readers have the one before.
            tokio::time::sleep(bed::lag() / 4).await;
            account.write(balance).await;
        }
        Reads::of(readers).await
    };
    bed.with_an_account(loads, write_and_read).await
}

async fn gives_no_stale_read_with_versions(bed: Bed) {
    let no_read_is_stale = async |what: &str, loads: Loads| {
        let reads = reads(&bed, loads).await;
        let seen = (reads.stale, &*reads.last);
        assert_eq!(seen, (0, &[Some(WRITES); 3][..]), "{what}");
    };
    let (row, log) = (Versions::Row, Versions::Log);
    tokio::join!(
        no_read_is_stale("the row's, from the replica", Loads::from_the_replica(row)),
        no_read_is_stale(
            "the row's, or from the primary",
            Loads::or_from_the_primary(row)
        ),
        no_read_is_stale("the log's, from the replica", Loads::from_the_replica(log)),
        no_read_is_stale(
            "the log's, or from the primary",
            Loads::or_from_the_primary(log)
        ),
    );
}

/// A row that is gone has no version; the log has a position.
async fn gives_no_row_that_was_deleted(bed: Bed) {
    let delete = async |account: Account| {
        for pod in 0..3 {
            assert_eq!(account.read(pod).await, Some(0));
        }
        let stamp = account.delete().await;
        let reads = (0..3).map(|pod| account.read_at_least(pod, &stamp));
        futures_util::future::join_all(reads).await
    };
    let (again, primary) = tokio::join!(
        bed.with_an_account(Loads::from_the_replica(Versions::Log), delete),
        bed.with_an_account(Loads::or_from_the_primary(Versions::Log), delete),
    );
    assert_eq!([again, primary], [[None; 3], [None; 3]]);
}

/// What the others are for. The replica has all of it when they read last.
async fn gives_stale_reads_without_versions_long_after_it_caught_up(bed: Bed) {
    let reads = reads(&bed, Loads::from_the_replica(Versions::None)).await;
    let is_old = |last: &Option<i64>| *last < Some(WRITES);
    assert!(
        reads.stale > 0 && reads.last.iter().any(is_old),
        "{reads:?}"
    );
}

on_both_stores!(
    gives_no_stale_read_with_versions,
    gives_no_row_that_was_deleted,
    gives_stale_reads_without_versions_long_after_it_caught_up,
);
