//! Calls that are dropped halfway.

use crate::bed::{Bed, Numbers, PATIENCE, Pod, eventually, soon};
use crate::dropped::dropped_after;
use crate::lab::{MS, SECOND};
use crate::source::{Refused, Source};
use crate::surface;
use crate::wire::Wire;
use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tidings::presence::{self, Presence};
use tidings::script::{self, Script};
use tidings::{
    Cache, CacheError, InvalidateError, LoadContext, Loaded, Memo, MemoOnce, Origin, Raw,
    ReadOptions, Refresh, StoreState,
};

/// Longer than any test, so that nothing goes by itself.
const LONG: Duration = Duration::from_secs(3600);
/// Keys of one call lie so far apart that no other call has them.
const HALF: u64 = 1 << 32;

type Called<'w> = Pin<Box<dyn Future<Output = ()> + 'w>>;

/// A call of the public interface, for a key of its own: `Type::function`, and what there is to say of it.
#[derive(Clone)]
struct Call {
    name: &'static str,
    run: for<'w> fn(&'w World, u64) -> Called<'w>,
}

/// A [`Call`] for each `name => |world, key| future`.
macro_rules! calls {
    ($($name:literal => |$world:ident, $key:ident| $call:expr),* $(,)?) => {{
        fn call(name: &'static str, run: for<'w> fn(&'w World, u64) -> Called<'w>) -> Call {
            Call { name, run }
        }
        fn over<T>(_outcome: T) {}
        vec![$(call($name, |$world, $key| Box::pin(async move { over($call) }))),*]
    }};
}

/// Everything that has calls, on one pod, and another pod that needs the same keys.
struct World {
    a: Pod,
    b: Pod,
    on_a: Numbers,
    on_b: Numbers,
    /// As `on_a`, with a loader of many.
    listed: Numbers,
    /// Its values are stale as soon as they are there.
    stale: Numbers,
    /// Its loader listens for its own end.
    told: Numbers,
    memo: Memo<u64, u64, Refused>,
    script: Script<(script::Key,), i64>,
    once: MemoOnce<u64, Refused>,
    raw: Raw,
    room: Presence<u64>,
    seen_by_b: Presence<u64>,
    held: presence::Lease<u64>,
    /// Tasks of each pod when nothing is called.
    tasks: [usize; 2],
}

impl World {
    async fn new(bed: &Bed) -> Self {
        let source = Source::new();
        let (a, b) = (bed.pod().await, bed.pod().await);
        let many = source.clone();
        let listed = a.cache.entity("listed", source.clone());
        let listed = listed.loader_many(move |keys| {
            let many = many.clone();
            async move { Ok::<_, Refused>(many.ask_many(keys).await) }
        });
        let stale = a.cache.entity("stale", source.clone()).ttl(MS);
        let stale = stale.grace(LONG).refresh(Refresh::Ahead);
        let once = source.clone();
        let once = a.cache.memo_once("once", move || {
            let once = once.clone();
            async move { once.ask(0).await }
        });
        let told = a.cache.entity_with("told", listening);
        let room = a.cache.presence("room").ttl(LONG).build().unwrap();
        let world = Self {
            on_a: a.numbers(&source),
            on_b: b.numbers(&source),
            listed: listed.build().unwrap(),
            stale: stale.soft_timeout(SECOND).build().unwrap(),
            told: told.build().unwrap(),
            script: Script::new("exists", "return redis.call('EXISTS', KEYS[1])"),
            memo: a.cache.memo("memo", source.clone()).build().unwrap(),
            once: once.ttl(MS).build().unwrap(),
            raw: a.cache.raw("raw").unwrap(),
            held: room.join("held", &0).await.unwrap(),
            seen_by_b: b.cache.presence("room").ttl(LONG).build().unwrap(),
            room,
            tasks: [0; 2],
            a,
            b,
        };
        let tasks = [&world.a, &world.b].map(|pod| pod.cache.under_way().tasks);
        Self { tasks, ..world }
    }

    /// Nothing is under way any more in either pod: no task, no flight, no lease, no invalidation.
    async fn is_quiet(&self, what: &str) {
        for (pod, tasks) in [&self.a, &self.b].into_iter().zip(self.tasks) {
            let began = Instant::now();
            loop {
                let (now, leases) = (pod.cache.under_way(), pod.wire.leases());
                let left = (
                    now.tasks.saturating_sub(tasks),
                    now.flights,
                    now.invalidations,
                );
                let health = pod.cache.health();
                let up =
                    matches!(health.store, StoreState::Up) && health.live_lanes == health.lanes;
                if up && (left, leases) == ((0, 0, 0), 0) {
                    break;
                }
                assert!(
                    began.elapsed() < PATIENCE,
                    "{what}: {now:?}, {leases} leases"
                );
                tokio::time::sleep(MS).await;
            }
        }
    }

    /// Nothing reaches the store from the first pod until this is dropped.
    fn cut_off_a(&self) -> impl Drop + use<> {
        struct Cut(Wire);
        impl Drop for Cut {
            fn drop(&mut self) {
                self.0.cut(false);
            }
        }
        self.a.wire.cut(true);
        Cut(self.a.wire.clone())
    }

    /// Everything answers, and of `key` what was loaded is stored.
    async fn serves(&self, bed: &Bed, key: u64) {
        let (on_a, on_b) = (&self.on_a, &self.on_b);
        soon("the key serves here", on_a.get(&key)).await.unwrap();
        soon("the key serves there", on_b.get(&key)).await.unwrap();
        on_b.invalidate(&key).await.unwrap();
        on_b.get(&key).await.unwrap();
        on_a.local().clear();
        let served = on_a.get_with(&key).await.unwrap();
        assert_eq!(served.origin, Origin::Store, "fills of this key are taken");
        let (hand, at) = (bed.hand().await, self.a.wire.last_place());
        eventually("a value stands there", async || {
            hand.look(&at).await.is_some_and(|bytes| bytes.len() > 28)
        })
        .await;
        soon("the memo serves", self.memo.get(&key)).await.unwrap();
        soon("the list serves", self.listed.get(&key))
            .await
            .unwrap();
    }

    /// Whoever is not held any more has left the room, as everybody sees.
    async fn room_is_as_before(&self, what: &str) {
        for room in [&self.room, &self.seen_by_b] {
            eventually(what, async || {
                let members = room.list().await.unwrap();
                members.len() == 1 && members[0].name == "held"
            })
            .await;
        }
    }
}

/// Loads a key, and listens meanwhile whether it is still wanted.
async fn listening(load: LoadContext<u64, u64>) -> Result<Loaded<u64>, Refused> {
    let unwanted = load.cancellation();
    tokio::select! {
        () = unwanted.cancelled() => unreachable!("then this is dropped"),
        () = tokio::task::yield_now() => Ok(Loaded::new(*load.key())),
    }
}

fn reads() -> Vec<Call> {
    calls![
        "Entity::get" => |w, key| w.on_a.get(&key).await,
        "Entity::get_with" => |w, key| w.on_a.get_with(&key).await,
        "Entity::get_or_load" => |w, key| w.on_a.get_or_load(&key, async || {
            tokio::task::yield_now().await;
            Ok::<_, Refused>(0)
        }).await,
        "Entity::get_strict" => |w, key| w.on_a.get_strict(&key).await,
        "Entity::get_at_least" => |w, key| {
            let stamp = w.on_b.invalidate(&key).await.unwrap();
            w.on_a.get_at_least(&key, &stamp).await
        },
        "Entity::get_many" => |w, key| w.on_a.get_many(&[key, key + HALF, key + 2 * HALF]).await,
        "Entity::get_many by a batch" => |w, key| w.listed.get_many(&[key, key + HALF]).await,
        "Entity::get of what is stale" => |w, key| {
            w.stale.get(&key).await.unwrap();
            w.stale.get(&key).await
        },
        "Entity::get_many of what is stale" => |w, key| {
            w.stale.get_many(&[key, key + HALF]).await;
            w.stale.get_many(&[key, key + HALF]).await
        },
        "Entity::refresh" => |w, key| w.on_a.refresh(&key).await,
        "Entity::refresh of what is there" => |w, key| {
            w.on_a.get(&key).await.unwrap();
            w.on_a.refresh(&key).await
        },
        "EntityView::get" => |w, key| w.on_a.with(ReadOptions::new().skip_local()).get(&key).await,
        "EntityView::get_with" => |w, key| {
            w.on_a.with(ReadOptions::new().skip_store()).get_with(&key).await
        },
        "EntityView::get with a deadline" => |w, key| {
            w.on_a.with(ReadOptions::new().deadline(LONG).max_stale(MS)).get(&key).await
        },
        "EntityView::get_many" => |w, key| {
            let options = ReadOptions::new().skip_local().deadline(LONG);
            w.listed.with(options).get_many(&[key, key + HALF]).await
        },
        "Memo::get" => |w, key| w.memo.get(&key).await,
        "Memo::refresh" => |w, key| w.memo.refresh(&key).await,
        "MemoOnce::get" => |w, _key| w.once.get().await,
        "MemoOnce::refresh" => |w, _key| w.once.refresh().await,
        "Cancellation::cancelled" => |w, key| w.told.get(&key).await,
    ]
}

fn invalidations() -> Vec<Call> {
    calls![
        "Entity::invalidate" => |w, key| w.on_a.invalidate(&key).await,
        "Entity::invalidate_many" => |w, key| w.on_a.invalidate_many(&[key, key + HALF]).await,
        "Cache::clear" => |w, _key| w.a.cache.clear().await,
        "Entity::clear" => |w, _key| w.on_a.clear().await,
        // Of another entity: this one's loader states no version, and would fill nothing for a minute.
        "Entity::invalidate_at" => |w, key| w.told.invalidate_at(&key, 1).await,
        "Entity::put_versioned" => |w, key| w.on_a.put_versioned(&key, 0, 1).await,
        "WriteGuard::finish" => |w, key| w.on_a.begin_write(&key).await.unwrap().finish().await,
        "WriteGuard::finish of many" => |w, key| {
            w.on_a.begin_write_many(&[key, key + HALF]).await.unwrap().finish().await
        },
        "Entity::begin_write" => |w, key| {
            w.on_a.begin_write(&key).await.unwrap().abort();
        },
        "Entity::begin_write_many" => |w, key| {
            w.on_a.begin_write_many(&[key, key + HALF]).await.unwrap().abort();
        },
        "Invalidation::settled" => |w, key| w.on_a.invalidate(&key).settled().await,
        "Pending::settled" => |w, key| {
            let cut = w.cut_off_a();
            let failed = w.on_a.invalidate(&key).await;
            drop(cut);
            match failed {
                Err(InvalidateError::Pending(pending)) => pending.settled().await.is_ok(),
                other => panic!("it is cut off: {other:?}"),
            }
        },
        "Reactivity::invalidate" => |w, key| {
            w.a.cache.reactivity().invalidate([w.on_a.tag(&key)]).await
        },
        "Events::next" => |w, key| {
            let mut events = w.a.cache.events();
            tokio::join!(w.on_a.invalidate(&key), events.next())
        },
        "Stamp::settled" => |w, key| {
            let stamp = w.on_b.invalidate(&key).await.unwrap();
            stamp.settled(&w.a.cache).await;
        },
        "Cache::invalidate" => |w, key| w.a.cache.invalidate([w.on_a.tag(&key)]).await,
        "Reactivity::batch" => |w, key| {
            let tag = w.on_a.tag(&key);
            let inside = async {
                w.a.cache.invalidate([tag]).await.unwrap();
                tokio::task::yield_now().await;
            };
            w.a.cache.reactivity().batch(inside).await
        },
        "Reactivity::mutation" => |w, key| {
            let change = async {
                tokio::task::yield_now().await;
                Ok::<_, Refused>(key)
            };
            w.a.cache.reactivity().mutation([w.on_a.tag(&key)], change).await
        },
        "Query::next" => |w, key| {
            let memo = w.memo.clone();
            let compute = move || {
                let memo = memo.clone();
                async move { memo.get(&key).await.map(drop).is_ok() }
            };
            w.a.cache.reactivity().query([w.on_a.tag(&key)], compute).next().await
        },
        "Live::next" => |w, key| {
            let compute = || w.on_a.get(&key);
            w.a.cache.reactivity().stream([w.on_a.tag(&key)], compute).next().await
        },
    ]
}

fn raw_calls() -> Vec<Call> {
    calls![
        "Raw::set" => |w, key| w.raw.set(name(key), "v", LONG).await,
        "Raw::set_many" => |w, key| w.raw.set_many([(name(key), "v"), (name(key + 1), "v")], LONG).await,
        "Raw::get" => |w, key| w.raw.get(name(key)).await,
        "Raw::get_many" => |w, key| w.raw.get_many([name(key), name(key + 1)]).await,
        "Raw::expire" => |w, key| w.raw.expire(name(key), LONG).await,
        "RawKeys::next" => |w, _key| w.raw.scan().next().await,
        "Raw::remove" => |w, key| w.raw.remove(name(key)).await,
        "Raw::remove_many" => |w, key| w.raw.remove_many([name(key), name(key + 1)]).await,
        "Raw::hset" => |w, key| w.raw.hset(hash(key), "f", "v").await,
        "Raw::hset_many" => |w, key| w.raw.hset_many(hash(key), [("f", "v"), ("g", "v")]).await,
        "Raw::hget" => |w, key| w.raw.hget(hash(key), "f").await,
        "Raw::hgetall" => |w, key| w.raw.hgetall(hash(key)).await,
        "Raw::hlen" => |w, key| w.raw.hlen(hash(key)).await,
        "Raw::hdel" => |w, key| w.raw.hdel(hash(key), "f").await,
        "Raw::clear" => |w, _key| w.raw.clear().await,
        "RedisCommands::send" => |w, key| match w.a.cache.redis() {
            Some(redis) => redis.send::<i64>("EXISTS", [name(key)]).await.map(drop).is_ok(),
            None => true,
        },
        "Call::run" => |w, key| match w.a.cache.redis() {
            Some(redis) => redis.script(&w.script).run((name(key),)).await.map(drop).is_ok(),
            None => true,
        },
    ]
}

fn room_calls() -> Vec<Call> {
    calls![
        "Presence::join" => |w, key| w.room.join(&name(key), &key).await,
        "Presence::join_many" => |w, key| {
            let names = [name(key), name(key + HALF)];
            w.room.join_many(names.iter().map(|name| (&**name, &key))).await
        },
        "Lease::leave" => |w, key| w.room.join(&name(key), &key).await.unwrap().leave().await,
        "Lease::update" => |w, key| w.held.update(&key).await,
        "Presence::get" => |w, _key| w.room.get("held").await,
        "Presence::page" => |w, _key| w.room.page(None, 10).await,
        "Presence::list" => |w, _key| w.room.list().await,
        "Presence::count" => |w, _key| w.room.count().await,
        "Watch::next" => |w, _key| w.room.watch().next().await,
    ]
}

fn name(key: u64) -> String {
    format!("k{key}")
}

fn hash(key: u64) -> String {
    format!("h{key}")
}

/// Drops each call after its first poll, its second, and so on to its end; `after` looks at what is left
/// each time.
async fn dropped_at_every_poll(world: &World, calls: Vec<Call>, after: impl AsyncFn(&str, u64)) {
    let mut key = 0;
    for Call { name, run } in calls {
        for polls in 0.. {
            key += 1;
            let what = format!("{name} that was dropped after {polls} polls");
            let ended = dropped_after(polls, soon(&what, run(world, key))).await;
            world.is_quiet(&what).await;
            after(&what, key).await;
            // Or the next call might cut off what still goes on behind.
            world.is_quiet(&what).await;
            if ended {
                break;
            }
        }
    }
}

/// What has a test of its own, and which.
const BY_THEMSELVES: [&str; 2] = [
    "CacheBuilder::build", // a_build_that_is_dropped_leaves_nothing_behind
    "Cache::close",        // a_close_that_is_dropped_at_any_poll_can_be_made_up_for
];

/// What is not dropped at every poll: it is a part of a transaction, or has a database behind it. The suite
/// `outbox` has the servers that can be killed.
const OF_A_DATABASE: [&str; 4] = [
    "Delivery::stop",
    "Outbox::create_table",
    "Outbox::invalidate",
    "Outbox::invalidate_tags",
];

#[test]
fn every_public_async_function_is_among_the_calls_that_are_dropped() {
    let calls = [reads(), invalidations(), raw_calls(), room_calls()].concat();
    let names = calls.iter().map(|call| call.name);
    // What comes after a space is said of the call.
    let names = names.map(|name| name.split(' ').next().unwrap_or(name));
    let dropped: BTreeSet<_> = names
        .chain(BY_THEMSELVES)
        .chain(OF_A_DATABASE)
        .map(str::to_owned)
        .collect();
    assert_eq!(dropped, surface::asynchronous());
}

async fn a_read_that_is_dropped_at_any_poll_leaves_nothing_behind(bed: Bed) {
    let world = World::new(&bed).await;
    let serves = async |_: &str, key| world.serves(&bed, key).await;
    dropped_at_every_poll(&world, reads(), serves).await;
}

async fn an_invalidation_that_is_dropped_at_any_poll_leaves_nothing_behind(bed: Bed) {
    let world = World::new(&bed).await;
    let serves = async |_: &str, key| world.serves(&bed, key).await;
    dropped_at_every_poll(&world, invalidations(), serves).await;
}

async fn a_raw_call_that_is_dropped_at_any_poll_mixes_up_no_answers(bed: Bed) {
    let world = World::new(&bed).await;
    let answers = async |what: &str, key| {
        let raw = &world.raw;
        raw.set(name(key), key.to_string(), LONG).await.unwrap();
        let got = soon(what, raw.get(name(key))).await.unwrap();
        assert_eq!(got.as_deref(), Some(key.to_string().as_bytes()));
    };
    dropped_at_every_poll(&world, raw_calls(), answers).await;
}

async fn a_room_s_call_that_is_dropped_at_any_poll_leaves_nobody_behind(bed: Bed) {
    let world = World::new(&bed).await;
    let as_before = async |what: &str, _| world.room_is_as_before(what).await;
    dropped_at_every_poll(&world, room_calls(), as_before).await;
}

/// 1. a pod loads, and its loader never answers;
/// 2. a caller on another pod is served while the loader still hangs: it waits no longer than the lease;
/// 3. the load is dropped with its lead, callers of the first pod are served, and nothing is left.
async fn a_loader_that_hangs_for_ever_keeps_its_key_from_nobody_and_leaves_nothing(bed: Bed) {
    let (a, b) = (bed.pod().await, bed.pod().await);
    let hung = Arc::new(());
    let loads = Arc::new(AtomicUsize::new(0));
    let entity = |pod: &Pod| {
        let (hung, loads) = (Arc::clone(&hung), Arc::clone(&loads));
        let load = move |key: u64| {
            let (hung, loads) = (Arc::clone(&hung), Arc::clone(&loads));
            async move {
                if loads.fetch_add(1, SeqCst) == 0 {
                    let _hung = Arc::downgrade(&hung);
                    std::future::pending::<()>().await;
                }
                Ok::<_, Refused>(key)
            }
        };
        let entity = pod.cache.entity("number", load);
        entity.load_timeout(3 * SECOND).build().unwrap()
    };
    let (on_a, on_b) = (entity(&a), entity(&b));
    let first = tokio::spawn({
        let on_a = on_a.clone();
        async move { on_a.get(&1).await.map(|value| *value) }
    });
    eventually("it hangs", async || Arc::weak_count(&hung) == 1).await;
    assert_eq!(*soon("the other pod", on_b.get(&1)).await.unwrap(), 1);
    assert_eq!(Arc::weak_count(&hung), 1, "while it still hangs");
    let first = soon("the first caller", first).await.unwrap();
    assert!(matches!(first, Ok(1) | Err(CacheError::Timeout { .. })));
    assert_eq!(*soon("the next one", on_a.get(&1)).await.unwrap(), 1);
    eventually("it was dropped", async || Arc::weak_count(&hung) == 0).await;
    for pod in [&a, &b] {
        eventually("nothing is left", async || {
            let left = pod.cache.under_way();
            (left.tasks, left.flights, pod.wire.leases()) == (0, 0, 0)
        })
        .await;
    }
}

/// 1. a load runs, somebody waits for it, an invalidation is pending, and a member is in a room;
/// 2. closing is given up after any number of polls;
/// 3. whoever closes again is told that it is closed, and nothing is left then.
async fn a_close_that_is_dropped_at_any_poll_can_be_made_up_for(bed: Bed) {
    let source = Source::new();
    let other = bed.pod().await;
    let seen = other.cache.presence::<u64>("room").build().unwrap();
    for polls in 0.. {
        let pod = bed.pod().await;
        let numbers = pod.numbers(&source);
        let room = pod.cache.presence("room").ttl(LONG).build().unwrap();
        let lease = room.join("ada", &0).await.unwrap();
        source.hold();
        let waiting = tokio::spawn({
            let numbers = numbers.clone();
            async move { numbers.get(&polls).await.map(drop) }
        });
        eventually("a load runs", async || source.running() == 1).await;
        let ended = dropped_after(polls as usize, pod.cache.close()).await;
        soon("closing again", pod.cache.close()).await;
        source.let_go();
        let waited = soon("who waits", waiting).await.unwrap();
        assert!(matches!(waited, Err(CacheError::Closed)), "{waited:?}");
        assert!(matches!(numbers.get(&1).await, Err(CacheError::Closed)));
        let left = pod.cache.under_way();
        assert_eq!((left.tasks, left.flights, pod.wire.leases()), (0, 0, 0));
        assert_eq!(source.running(), 0);
        drop((numbers, room, lease));
        eventually("no link is left", async || pod.wire.links() == 0).await;
        eventually("the room is empty", async || {
            seen.count().await.unwrap() == 0
        })
        .await;
        if ended {
            return;
        }
    }
}

async fn an_invalidation_that_was_polled_once_happens(bed: Bed) {
    let source = Source::new();
    let (a, b) = (bed.pod().await, bed.pod().await);
    let (on_a, on_b) = (a.numbers(&source), b.numbers(&source));
    on_a.get(&1).await.unwrap();
    on_b.get(&1).await.unwrap();
    source.commit(1, 1);
    dropped_after(1, on_a.invalidate(&1)).await;
    assert_eq!(*on_a.get(&1).await.unwrap(), 1);
    eventually("the other pod follows", async || {
        *on_b.get(&1).await.unwrap() == 1
    })
    .await;
    eventually("it is acknowledged", async || a.cache.health().pending == 0).await;
}

async fn an_invalidation_that_was_never_polled_does_nothing(bed: Bed) {
    let source = Source::new();
    let pod = bed.pod().await;
    let numbers = pod.numbers(&source);
    numbers.get(&1).await.unwrap();
    drop(numbers.invalidate(&1));
    assert!(numbers.peek(&1).is_some());
    assert_eq!(pod.wire.calls("invalidate"), 0);
}

async fn a_build_that_is_dropped_leaves_nothing_behind(bed: Bed) {
    for polls in 0..20 {
        let wire = Wire::new(Arc::clone(&bed.store));
        let build = Cache::builder(&*bed.namespace).store(wire.clone()).build();
        let ended = dropped_after(polls, build).await;
        eventually("no link is left", async || wire.links() == 0).await;
        if ended {
            return;
        }
    }
    panic!("it never ended");
}

on_both_stores!(
    a_read_that_is_dropped_at_any_poll_leaves_nothing_behind,
    an_invalidation_that_is_dropped_at_any_poll_leaves_nothing_behind,
    a_raw_call_that_is_dropped_at_any_poll_mixes_up_no_answers,
    a_room_s_call_that_is_dropped_at_any_poll_leaves_nobody_behind,
    a_loader_that_hangs_for_ever_keeps_its_key_from_nobody_and_leaves_nothing,
    a_close_that_is_dropped_at_any_poll_can_be_made_up_for,
    an_invalidation_that_was_polled_once_happens,
    an_invalidation_that_was_never_polled_does_nothing,
    a_build_that_is_dropped_leaves_nothing_behind,
);
