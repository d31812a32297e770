//! Handles, listeners and faults of the embedded store.

use super::*;
use crate::Millis;
use crate::coherence::{Epoch, Lane, Nonce};
use crate::error::StoreErrorKind;
use crate::store::{Fill, LeaseReply, LeaseRequest, LeaseState, Link, Opening, Place, Replaces};
use std::future::poll_fn;
use std::time::Duration;

const PLACE: Place<'static> = Place {
    lane: Lane(0),
    hash: 1,
    entity: "user",
    key: b"user/1",
};
const OPENING: Opening = Opening {
    epoch: Epoch(5),
    nonce: Nonce(5),
};

fn namespace() -> Namespace {
    Namespace {
        name: "n".to_owned(),
        lanes: 1,
    }
}

async fn ask(link: &Arc<dyn Link>, key: &[u8], token: u64) -> StoreResult<LeaseReply> {
    let request = LeaseRequest {
        token,
        ttl: Duration::from_millis(10),
        unusable: None,
        opening: OPENING,
    };
    link.lease(Place { key, ..PLACE }, request).await
}

async fn touch(link: &Arc<dyn Link>) -> StoreResult<()> {
    link.touch(&[(Lane(0), OPENING)]).await.map(drop)
}

#[tokio::test]
async fn a_name_is_one_store_while_any_handle_or_link_is_alive() {
    let (link, _hints) = Memory::named("alive").connect(&namespace()).await.unwrap();
    touch(&link).await.unwrap();
    let (again, _hints) = Memory::named("alive").connect(&namespace()).await.unwrap();
    assert!(again.poll().await.unwrap().heads[0].is_some());
    drop((link, again));
    let (fresh, _hints) = Memory::named("alive").connect(&namespace()).await.unwrap();
    assert!(fresh.poll().await.unwrap().heads[0].is_none());
    let (other, _hints) = Memory::named("other").connect(&namespace()).await.unwrap();
    touch(&fresh).await.unwrap();
    assert!(other.poll().await.unwrap().heads[0].is_none());
}

#[tokio::test]
async fn leases_end_by_the_clock_that_was_given() {
    let clock = Clock::manual(Millis(100));
    let memory = Memory::new().with_clock(clock.clone());
    let (link, _hints) = memory.connect(&namespace()).await.unwrap();
    let state = async |token| ask(&link, b"k", token).await.unwrap().state;
    assert_eq!(state(1).await, LeaseState::Granted);
    clock.advance(Duration::from_millis(9));
    assert_eq!(state(2).await, LeaseState::Held);
    clock.advance(Duration::from_millis(1));
    assert_eq!(state(3).await, LeaseState::Granted);
    let mut polled = link.poll().await.unwrap();
    assert_eq!((polled.server_ms, polled.clock_of(Lane(1))), (110, 110));
    // As a store of several servers has them.
    polled.clocks = vec![110, 90];
    assert_eq!(polled.clock_of(Lane(1)), 90);
}

#[tokio::test]
async fn a_namespace_keeps_no_more_than_its_bound() {
    let memory = Memory::new().max_entries(3);
    let (link, _hints) = memory.connect(&namespace()).await.unwrap();
    for token in 0..20 {
        let key = token.to_string();
        ask(&link, key.as_bytes(), token).await.unwrap();
    }
    let mut kept = 0;
    memory.faults().with_state(|state| kept = state.len());
    assert_eq!(kept, 3);
}

#[tokio::test]
async fn a_listener_that_lags_loses_hints_and_holds_up_nobody() {
    let (link, mut hints) = Memory::new().connect(&namespace()).await.unwrap();
    for _ in 0..2 * HINT_QUEUE {
        let call = link.invalidate(Lane(0), &[], &[1], Nonce(1), OPENING);
        call.await.unwrap();
    }
    drop(link);
    let mut heard = 0;
    while poll_fn(|cx| hints.poll_next(cx)).await.is_some() {
        heard += 1;
    }
    assert_eq!(heard, HINT_QUEUE);
}

#[tokio::test]
async fn going_down_breaks_links_and_streams_and_keeps_the_data() {
    let memory = Memory::new();
    let (link, mut hints) = memory.connect(&namespace()).await.unwrap();
    touch(&link).await.unwrap();
    let faults = memory.faults();
    faults.set_down(true);
    assert!(poll_fn(|cx| hints.poll_next(cx)).await.is_some());
    assert_eq!(poll_fn(|cx| hints.poll_next(cx)).await, None);
    let unavailable = |error: crate::error::StoreError| error.kind() == StoreErrorKind::Unavailable;
    assert!(link.read(PLACE).await.is_err_and(unavailable));
    assert!(memory.connect(&namespace()).await.is_err());
    faults.set_down(false);
    assert!(link.read(PLACE).await.is_err_and(unavailable), "for good");
    let (link, _hints) = memory.connect(&namespace()).await.unwrap();
    assert!(link.read(PLACE).await.unwrap().head.is_some());
}

#[tokio::test]
async fn a_store_that_takes_no_writes_can_be_read_and_fails_polls() {
    let memory = Memory::new();
    let (link, _hints) = memory.connect(&namespace()).await.unwrap();
    memory.faults().set_error(Some(StoreErrorKind::ReadOnly));
    assert!(link.read(PLACE).await.is_ok());
    let unproven = link.read_proven(PLACE).await.unwrap_err();
    assert_eq!(unproven.kind(), StoreErrorKind::ReadOnly);
    assert_eq!(
        link.poll().await.unwrap_err().kind(),
        StoreErrorKind::ReadOnly
    );
    assert!(touch(&link).await.is_err());
    memory.faults().set_error(None);
    assert!(
        link.poll().await.unwrap().heads[0].is_none(),
        "nothing was done"
    );
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_has_no_effect_before_the_store_answers_again() {
    let memory = Memory::new();
    let (link, _hints) = memory.connect(&namespace()).await.unwrap();
    memory.faults().hang(true);
    let mut call = Box::pin(touch(&link));
    let hour = Duration::from_secs(3600);
    assert!(tokio::time::timeout(hour, &mut call).await.is_err());
    let mut opened = true;
    let look = |state: &mut MemoryState| opened = state.head(Lane(0)).is_some();
    memory.faults().with_state(look);
    assert!(!opened);
    memory.faults().hang(false);
    call.await.unwrap();
}

#[tokio::test]
async fn hints_are_lost_and_reads_are_damaged_on_demand() {
    let memory = Memory::new();
    let (link, mut hints) = memory.connect(&namespace()).await.unwrap();
    memory.faults().drop_hints(true);
    let head = ask(&link, PLACE.key, 1).await.unwrap().head;
    let fill = Fill {
        token: 1,
        replaces: Replaces::Lease,
        epoch: head.at.epoch,
        envelope: &[1, 2],
        ttl: None,
    };
    assert!(link.fill(PLACE, fill).await.unwrap());
    memory.faults().corrupt_next_read();
    let read = async || link.read(PLACE).await.unwrap().value.unwrap();
    assert_eq!(read().await[..], [1, !2]);
    assert_eq!(read().await[..], [1, 2]);
    memory.faults().set_down(true);
    assert_eq!(poll_fn(|cx| hints.poll_next(cx)).await, None);
}
