//! A server that is full, forgetful, forbidding or busy.

use super::{Admin, OPENING, Pod, connect, place};
use tidings::coherence::Lane;
use tidings::error::StoreErrorKind;
use tidings::store::LeaseState;

#[tokio::test]
async fn scripts_are_loaded_again_after_the_server_forgot_them() {
    let pod = Pod::open().await;
    pod.store("k").await;
    pod.server.run("SCRIPT FLUSH");
    pod.invalidate("k", 5).await.unwrap();
    pod.server.run("SCRIPT FLUSH");
    pod.touch().await;
    pod.server.run("SCRIPT FLUSH");
    pod.store("k").await;
}

#[tokio::test]
async fn a_full_server_takes_invalidations_and_refuses_fills() {
    let mut pod = Pod::open().await;
    pod.lease("leased", 1).await;
    pod.store("k").await;
    pod.server.run("CONFIG SET maxmemory-policy noeviction");
    pod.server.run("CONFIG SET maxmemory 1");

    let full = |kind| assert_eq!(kind, Some(StoreErrorKind::Full));
    let fill = pod.try_fill("leased", 1, OPENING.epoch, b"value").await;
    full(fill.err().map(|error| error.kind()));
    let lease = pod.lease_over("new", 2, None).await;
    full(lease.err().map(|error| error.kind()));

    let logged = pod.invalidate("k", 5).await.unwrap();
    assert_eq!(pod.hint().await.at(), logged.at);
    assert_eq!(pod.link.read(place("k")).await.unwrap().value, None);
    let logged = pod.clear(6).await.unwrap();
    assert_eq!(pod.hint().await.at(), logged.at);
    pod.link.release(place("leased"), 1).await.unwrap();
    assert_eq!(pod.head().await.unwrap().at, logged.at);
    pod.touch().await;

    pod.server.run("CONFIG SET maxmemory 0");
    assert_eq!(pod.lease("leased", 3).await.state, LeaseState::Granted);
}

#[tokio::test]
async fn invalidations_open_a_lane_on_a_full_server() {
    let pod = Pod::start().await;
    pod.server.run("CONFIG SET maxmemory 1");
    assert_eq!(pod.invalidate("k", 5).await.unwrap().at.seq, 2);
}

#[tokio::test]
async fn what_the_user_may_not_do_is_denied() {
    let pod = Pod::open().await;
    let secret = "hunter2";
    pod.server.run(&format!(
        "ACL SETUSER limited on >{secret} ~{{ns* &{{ns* +@all -xadd -unlink"
    ));
    let url = format!("redis://limited:{secret}@127.0.0.1:{}", pod.server.port());
    let (link, _hints) = connect(&url).await.unwrap();
    let limited = Pod { link, ..pod };
    let by_command = limited.link.poll().await.unwrap_err();
    let by_script = limited.invalidate("k", 5).await.unwrap_err();
    limited.server.run("ACL SETUSER limited resetkeys ~other*");
    let by_key = limited.link.read(place("k")).await.unwrap_err();
    for error in [by_command, by_script, by_key] {
        assert_eq!(error.kind(), StoreErrorKind::Denied, "{error}");
        assert!(!format!("{error:?}").contains(secret));
    }
}

#[tokio::test]
async fn a_channel_out_of_reach_is_denied_when_connecting() {
    let pod = Pod::open().await;
    pod.server
        .run("ACL SETUSER deaf on nopass ~* resetchannels +@all");
    let url = format!("redis://deaf:x@127.0.0.1:{}", pod.server.port());
    assert_eq!(super::refusal(&url).await, StoreErrorKind::Denied);
}

#[tokio::test]
async fn a_server_that_runs_a_long_script_is_busy() {
    let pod = Pod::open().await;
    pod.server.run("CONFIG SET busy-reply-threshold 1");
    let mut admin = pod.server.admin();
    let busy = std::thread::spawn(move || {
        let forever = redis::Script::new("while true do end");
        forever.invoke::<()>(&mut admin)
    });
    let error = loop {
        match pod.link.read(place("k")).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), StoreErrorKind::Busy, "{error}");
    pod.server.run("SCRIPT KILL");
    assert!(busy.join().unwrap().is_err());
    pod.link.poll().await.unwrap();
}

#[tokio::test]
async fn a_lane_outside_the_namespace_is_a_config_error() {
    let pod = Pod::open().await;
    let error = pod.link.touch(&[(Lane(2), OPENING)]).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Config);
}

#[tokio::test]
async fn dropped_calls_do_not_mix_up_the_answers_of_others() {
    let pod = Pod::open().await;
    let first = pod.store("a").await;
    pod.server.run("SET {ns:00}v:b other");
    for _ in 0..200 {
        let dropped = pod.link.read(place("b"));
        let kept = pod.link.read(place("a"));
        let found = tokio::select! {
            biased;
            _ = async { poll_once(dropped).await; std::future::pending::<()>().await } => {
                unreachable!()
            }
            found = kept => found.unwrap(),
        };
        assert_eq!(found.value.as_deref(), Some(&first[..]));
    }
}

/// Polls a future once and drops it.
async fn poll_once<F: Future + Unpin>(mut future: F) {
    std::future::poll_fn(|cx| {
        let _ = std::pin::Pin::new(&mut future).poll(cx);
        std::task::Poll::Ready(())
    })
    .await;
}
