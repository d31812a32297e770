//! The bound.

use crate::bed::{Answer, Bed};
use std::convert::Infallible;
use std::time::Duration;
use tidings::{DEFAULT_CAPACITY, LocalEngine};

const ENGINES: [LocalEngine; 2] = [LocalEngine::Quick, LocalEngine::Moka];

#[tokio::test]
async fn the_number_of_entries_stays_within_the_capacity() {
    let bed = Bed::new().await;
    for engine in ENGINES {
        for capacity in [1, 10, 100] {
            let numbers = bed.builder().engine(engine).capacity(capacity).build();
            let numbers = numbers.unwrap();
            for key in 0..500 {
                numbers.get(&key).await.unwrap();
            }
            let stats = numbers.stats();
            assert!((1..=capacity).contains(&stats.entries), "{stats:?}");
            assert_eq!(stats.weight, stats.entries);
            let readable = (0..500).filter(|key| numbers.peek(key).is_some());
            assert_eq!(readable.count() as u64, stats.entries);
        }
    }
}

#[tokio::test]
async fn the_default_bounds_it_too() {
    let bed = Bed::new().await;
    let numbers = bed.numbers();
    for key in 0..DEFAULT_CAPACITY + 1_000 {
        numbers.get(&key).await.unwrap();
    }
    assert!(numbers.stats().entries <= DEFAULT_CAPACITY);
}

#[tokio::test]
async fn the_weight_stays_within_the_capacity() {
    let bed = Bed::new().await;
    for engine in ENGINES {
        let text = |n: usize| async move { Ok::<_, Infallible>("x".repeat(n)) };
        let texts = bed.cache.memo("text", text).engine(engine);
        let texts = texts
            .weight_capacity(10_000)
            .weigher(|_, text| text.len() as u32);
        let texts = texts.build().unwrap();
        for n in 1..300 {
            texts.get(&n).await.unwrap();
        }
        let weight = texts.stats().weight;
        assert!((5_000..=10_000).contains(&weight), "{weight}");
        assert_eq!(texts.get(&10_001).await.unwrap().len(), 10_001);
        let _ = texts.stats(); // moka makes room late, or when it is asked
        assert!(texts.peek(&10_001).is_none(), "too heavy to be kept");
    }
}

#[tokio::test]
async fn remembered_errors_have_a_weight() {
    let bed = Bed::new().await;
    let numbers = bed.builder().weight_capacity(6_400).weigher(|_, _| 1);
    let numbers = numbers.error_ttl(|_| Some(Duration::from_secs(1)));
    let numbers = numbers.build().unwrap();
    for key in 0..500 {
        bed.source.answer(key, Answer::Refusal(1));
        numbers.get(&key).await.unwrap_err();
    }
    assert!(numbers.stats().entries <= 100);
}

#[tokio::test]
async fn every_promise_of_the_level_holds_on_either_engine() {
    for engine in ENGINES {
        let bed = Bed::new().await;
        let numbers = bed.builder().engine(engine);
        let numbers = numbers.ttl(Duration::from_millis(100)).build().unwrap();
        bed.source.commit(1, 11);
        assert_eq!(numbers.get(&1).await.unwrap(), 11);
        bed.source.commit(1, 12);
        assert_eq!(numbers.get(&1).await.unwrap(), 11);
        assert_eq!(numbers.refresh(&1).await.unwrap(), 12);
        numbers.invalidate(&1);
        assert_eq!(numbers.peek(&1), None);
        numbers.get(&1).await.unwrap();
        bed.pass(100);
        assert_eq!(numbers.peek(&1), None);
        numbers.clear();
        assert_eq!(numbers.stats().entries, 0);
    }
}
