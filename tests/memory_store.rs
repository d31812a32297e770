//! The embedded store keeps the contract of the port.

use std::sync::Arc;
use tidings::store::{Memory, Store};

async fn fresh() -> Arc<dyn Store> {
    Arc::new(Memory::new())
}

tidings::store_conformance!(fresh_memory, fresh);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_store_serves_every_claim_from_many_threads() {
    let store = Memory::new();
    tidings::testing::conformance::run(async || Arc::new(store.clone()) as Arc<dyn Store>).await;
}
