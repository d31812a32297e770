//! What `docs/operations.md` tells operators is enough.
#![cfg(feature = "redis")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use tidings::Cache;
use tidings::store::{Redis, Store};
use tidings::testing::{RedisServer, conformance};

/// The rule of the page, for a namespace of any name: the suite makes up its own.
fn acl() -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    let page = fs::read_to_string(page).expect("the page is there");
    let rule = page.lines().find(|line| line.starts_with("ACL SETUSER"));
    let rule = rule.expect("the page has a rule").replace("{shop:*", "{*");
    let words = rule.replace("{shop}", "{*}");
    words.split(' ').map(str::to_owned).collect()
}

fn server_with_rule() -> (RedisServer, String) {
    let server = RedisServer::start().expect("redis-server starts");
    let rule = acl();
    let words: Vec<_> = rule.iter().map(String::as_str).collect();
    server.cli(&words).expect("the rule is one");
    let url = format!("redis://tidings:secret@{}/1", server.addr());
    (server, url)
}

#[tokio::test]
async fn the_access_rule_in_the_docs_lets_a_cache_start_and_work() {
    let (_server, url) = server_with_rule();
    let cache = Cache::builder("shop").store_url(url).build().await;
    let cache = cache.expect("the cache starts");
    let entity = cache.entity("user", |id: u64| async move { Ok::<_, String>(id) });
    let users = entity.build().expect("options are fine");
    users.get(&1).await.expect("a value");
    users.invalidate(&1).await.expect("acknowledged");
    users.clear().await.expect("acknowledged");
    cache.close().await;
}

#[tokio::test]
async fn the_access_rule_in_the_docs_is_enough_for_every_call_of_the_port() {
    let (_server, url) = server_with_rule();
    conformance::run(async || Arc::new(Redis::new(&url).expect("an address")) as Arc<dyn Store>)
        .await;
}
