//! The memo of one value.

use crate::bed::{Answer, Bed, Refused, eventually};
use std::time::Duration;
use tidings::{CacheError, Loader, MemoOnce, MemoOnceBuilder, Ttl};

fn builder(bed: &Bed) -> MemoOnceBuilder<u64, Refused> {
    let source = bed.source.clone();
    bed.cache.memo_once("one", move || {
        let source = source.clone();
        async move { source.load(&1).await }
    })
}

fn one(bed: &Bed) -> MemoOnce<u64, Refused> {
    builder(bed).build().unwrap()
}

#[tokio::test]
async fn one_value_is_computed_once() {
    let bed = Bed::new().await;
    let one = one(&bed);
    bed.source.commit(1, 11);
    assert_eq!(one.peek(), None);
    bed.source.hold();
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let one = one.clone();
            tokio::spawn(async move { one.get().await })
        })
        .collect();
    eventually("all have come", async || one.stats().joins == 99).await;
    bed.source.let_go();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), 11);
    }
    assert_eq!((one.get().await.unwrap(), one.peek()), (11, Some(11)));
    let stats = one.stats();
    assert_eq!((bed.source.begun(), stats.hits, stats.entries), (1, 1, 1));
}

#[tokio::test]
async fn it_expires_is_refreshed_and_invalidated_as_any_other() {
    let bed = Bed::new().await;
    let ttl = |version: &u64| Ttl::For(Duration::from_millis(*version));
    let one = builder(&bed).ttl_with(ttl).build().unwrap();
    bed.source.commit(1, 11);
    one.get().await.unwrap();
    bed.pass(11);
    assert_eq!(one.peek(), None);
    one.get().await.unwrap();
    bed.source.commit(1, 12);
    assert_eq!(one.get().await.unwrap(), 11);
    assert_eq!(one.refresh().await.unwrap(), 12);
    assert_eq!(one.get().await.unwrap(), 12);
    bed.source.commit(1, 13);
    one.invalidate();
    assert_eq!(one.get().await.unwrap(), 13);
}

#[tokio::test(start_paused = true)]
async fn its_options_are_those_of_a_memo() {
    let bed = Bed::embedded().await;
    let one = builder(&bed)
        .ttl(Ttl::Forever)
        .error_ttl(|_| Some(Duration::from_millis(5)))
        .load_timeout(Duration::from_secs(1))
        .build()
        .unwrap();
    bed.source.answer(1, Answer::Refusal(4));
    one.get().await.unwrap_err();
    bed.source.commit(1, 11);
    one.get().await.unwrap_err();
    bed.pass(5);
    assert_eq!(one.get().await.unwrap(), 11);
    bed.source.hold();
    let error = one.refresh().await.unwrap_err();
    assert!(matches!(error, CacheError::Timeout { after } if after.as_secs() == 1));
    bed.clock.advance(Duration::from_secs(1 << 30));
    assert_eq!(one.peek(), Some(11));
    let refused = bed.cache.memo_once("a b", || async { Ok::<_, Refused>(1) });
    assert_eq!(refused.build().unwrap_err().option(), "memo");
}
