//! Options that cannot be used are refused by name, with a reason.

use crate::bed::{Bed, Refused};
use std::time::Duration;
use tidings::MemoBuilder;

type Builder = MemoBuilder<u64, u64, Refused>;

#[tokio::test]
async fn a_build_error_names_the_option() {
    let bed = Bed::new().await;
    let refused = |with: fn(Builder) -> Builder| {
        let error = with(bed.builder()).build().unwrap_err();
        assert!(error.to_string().len() > 25, "with a reason: {error}");
        error.option()
    };
    assert_eq!(refused(|b| b.capacity(0)), "capacity");
    assert_eq!(refused(|b| b.load_timeout(Duration::ZERO)), "load_timeout");
    assert_eq!(refused(|b| b.load_timeout(Duration::MAX)), "load_timeout");
    assert_eq!(refused(|b| b.weight_capacity(9)), "weight_capacity");
    assert_eq!(refused(|b| b.weigher(|_, _| 1)), "weigher");
    assert_eq!(
        refused(|b| b.weigher(|_, _| 1).weight_capacity(0)),
        "weight_capacity"
    );
    assert_eq!(
        refused(|b| b.capacity(9).weigher(|_, _| 1).weight_capacity(9)),
        "capacity"
    );
}

#[tokio::test]
async fn a_name_that_could_not_appear_in_logs_is_refused() {
    let bed = Bed::new().await;
    for name in ["", "a b", "käse", &"x".repeat(65)] {
        let error = bed
            .cache
            .memo(name, bed.source.clone())
            .build()
            .unwrap_err();
        assert_eq!(error.option(), "memo", "{name:?}");
    }
    let longest = "x".repeat(64);
    assert!(bed.cache.memo(longest, bed.source.clone()).build().is_ok());
}

#[tokio::test]
async fn debug_output_names_the_memo() {
    let bed = Bed::new().await;
    let debug = format!("{:?} {:?}", bed.builder(), bed.numbers());
    assert_eq!(
        debug,
        r#"MemoBuilder { name: "number", .. } Memo { name: "number", .. }"#
    );
}
