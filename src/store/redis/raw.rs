//! Raw data on Redis: plain commands. Each names keys of one lane only, so that those of a pipeline can
//! be sent to the nodes of their lanes.

use super::keys::RawKey;
use super::link::RedisLink;
use super::numbers::millis;
use super::reply::{self, Reply};
use crate::coherence::Lane;
use crate::store::{BoxFuture, RawFound, RawLink, RawPage, RawPlace, StoreResult};
use ::redis::{Cmd, Pipeline, Value};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;

/// How many keys or fields the server looks at in one step of a walk: half a millisecond or so, during
/// which it answers nothing else.
const COUNT: usize = 1000;
/// Where walks begin, and what the server answers at their end.
const START: &[u8] = b"0";

impl RedisLink {
    /// The answers to `commands`, none of them an error.
    async fn ask(&self, operation: &'static str, commands: &Pipeline) -> StoreResult<Vec<Reply>> {
        if commands.is_empty() {
            return Ok(Vec::new());
        }
        let answers = self.pipeline(operation, commands).await?;
        if answers.len() != commands.len() {
            return Err(Reply::malformed(operation));
        }
        let replies = answers
            .into_iter()
            .map(|answer| Reply::new(operation, answer));
        replies.collect()
    }

    /// The answer to the one command in `commands`.
    async fn ask_one(&self, operation: &'static str, commands: &Pipeline) -> StoreResult<Reply> {
        let replies = self.ask(operation, commands).await?;
        let last = replies.into_iter().last();
        last.ok_or_else(|| Reply::malformed(operation))
    }

    fn scan_command(&self, prefix: &str, cursor: &[u8]) -> Cmd {
        let mut scan = ::redis::cmd("SCAN");
        scan.arg(cursor)
            .arg("MATCH")
            .arg(self.keys.raw_pattern(prefix));
        scan.arg("COUNT").arg(COUNT);
        scan
    }

    fn scanned(&self, prefix: &str, answer: Reply) -> StoreResult<RawPage<RawFound>> {
        let (keys, next) = answer.walked()?;
        let found = |key: Value| self.keys.raw_found(&reply::bytes(key)?, prefix);
        let items = keys.into_iter().filter_map(found).collect();
        Ok(RawPage { items, next })
    }

    /// A step of a walk over the nodes of a cluster, one after the other.
    async fn scan_nodes(
        &self,
        prefix: &str,
        from: Option<&[u8]>,
        removing: &[RawFound],
    ) -> StoreResult<(u64, RawPage<RawFound>)> {
        const SCAN: &str = "raw scan";
        let mut commands = ::redis::pipe();
        let removing = removing.iter().map(|found| found.place(prefix));
        self.unlink(removing, &mut commands)?;
        let removed = total(self.ask(SCAN, &commands).await?)?;
        // A walk that left out what cannot be reached would look like a whole one.
        for lane in 0..self.keys.all_lanes() {
            self.nodes.of_lane(SCAN, Lane(lane))?;
        }
        let nodes = self.nodes.all();
        let life = self.nodes.incarnation().0;
        // A cursor means something to the node that gave it. Are the nodes others now, the walk begins
        // again, and gives some keys twice.
        let begun = from.and_then(|from| WalkCursor::read(from, life));
        let WalkCursor { node, cursor } = begun.unwrap_or(WalkCursor {
            node: 0,
            cursor: START,
        });
        let on = nodes.get(node).ok_or_else(|| Reply::malformed(SCAN))?;
        let answer = on.send(SCAN, &self.scan_command(prefix, cursor)).await?;
        let mut page = self.scanned(prefix, Reply::new(SCAN, answer)?)?;
        let next = match &page.next {
            Some(cursor) => Some(WalkCursor { node, cursor }),
            None => (node + 1 < nodes.len()).then_some(WalkCursor {
                node: node + 1,
                cursor: START,
            }),
        };
        page.next = next.map(|next| next.write(life));
        Ok((removed, page))
    }

    /// Adds one `UNLINK` for each lane that `places` name, and gives their number. `UNLINK` frees what
    /// it removes beside the server's work, however big it is.
    fn unlink<'a>(
        &'a self,
        places: impl IntoIterator<Item = RawPlace<'a>>,
        commands: &mut Pipeline,
    ) -> StoreResult<usize> {
        let mut lanes: BTreeMap<u16, Vec<RawKey<'_>>> = BTreeMap::new();
        for place in places {
            let keys = lanes.entry(place.lane.0).or_default();
            keys.push(self.keys.raw(place)?);
        }
        for keys in lanes.values() {
            commands.cmd("UNLINK").arg(keys);
        }
        Ok(lanes.len())
    }
}

impl RawLink for RedisLink {
    fn get<'a>(
        &'a self,
        places: &'a [RawPlace<'a>],
    ) -> BoxFuture<'a, StoreResult<Vec<Option<Bytes>>>> {
        Box::pin(async move {
            let mut commands = ::redis::pipe();
            for &place in places {
                // Not `MGET`, which takes a hash for nothing.
                commands.cmd("GET").arg(self.keys.raw(place)?);
            }
            let values = self.ask("raw get", &commands).await?;
            values.into_iter().map(Reply::stored).collect()
        })
    }

    fn set<'a>(
        &'a self,
        entries: &'a [(RawPlace<'a>, &'a [u8])],
        ttl: Option<Duration>,
    ) -> BoxFuture<'a, StoreResult<()>> {
        Box::pin(async move {
            let mut commands = ::redis::pipe();
            for &(place, value) in entries {
                let set = commands.cmd("SET").arg(self.keys.raw(place)?).arg(value);
                if let Some(ttl) = ttl {
                    set.arg("PX").arg(millis(ttl));
                }
            }
            self.ask("raw set", &commands).await.map(|_all_set| ())
        })
    }

    fn remove<'a>(&'a self, places: &'a [RawPlace<'a>]) -> BoxFuture<'a, StoreResult<u64>> {
        Box::pin(async move {
            let mut commands = ::redis::pipe();
            self.unlink(places.iter().copied(), &mut commands)?;
            total(self.ask("raw remove", &commands).await?)
        })
    }

    fn expire<'a>(
        &'a self,
        place: RawPlace<'a>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'a, StoreResult<bool>> {
        Box::pin(async move {
            let key = self.keys.raw(place)?;
            let mut commands = ::redis::pipe();
            match ttl {
                Some(ttl) => commands.cmd("PEXPIRE").arg(key).arg(millis(ttl)),
                // `PERSIST` alone does not tell a key without an end from one that is not there.
                None => commands.cmd("PERSIST").arg(key).cmd("EXISTS").arg(key),
            };
            self.ask_one("raw expire", &commands).await?.flag()
        })
    }

    fn scan<'a>(
        &'a self,
        prefix: &'a str,
        from: Option<&'a [u8]>,
        removing: &'a [RawFound],
    ) -> BoxFuture<'a, StoreResult<(u64, RawPage<RawFound>)>> {
        Box::pin(async move {
            if self.keys.is_sharded() {
                return self.scan_nodes(prefix, from, removing).await;
            }
            let mut commands = ::redis::pipe();
            let removing = removing.iter().map(|found| found.place(prefix));
            self.unlink(removing, &mut commands)?;
            commands.add_command(self.scan_command(prefix, from.unwrap_or(START)));
            let mut replies = self.ask("raw scan", &commands).await?;
            let scanned = replies.pop().ok_or_else(|| Reply::malformed("raw scan"))?;
            let page = self.scanned(prefix, scanned)?;
            Ok((total(replies)?, page))
        })
    }

    fn hash_get<'a>(
        &'a self,
        place: RawPlace<'a>,
        field: &'a [u8],
    ) -> BoxFuture<'a, StoreResult<Option<Bytes>>> {
        Box::pin(async move {
            let mut commands = ::redis::pipe();
            commands.cmd("HGET").arg(self.keys.raw(place)?).arg(field);
            self.ask_one("raw hget", &commands).await?.stored()
        })
    }

    fn hash_set<'a>(
        &'a self,
        place: RawPlace<'a>,
        fields: &'a [(&'a [u8], &'a [u8])],
    ) -> BoxFuture<'a, StoreResult<u64>> {
        Box::pin(async move {
            if fields.is_empty() {
                return Ok(0);
            }
            let mut commands = ::redis::pipe();
            commands.cmd("HSET").arg(self.keys.raw(place)?).arg(fields);
            self.ask_one("raw hset", &commands).await?.count()
        })
    }

    fn hash_remove<'a>(
        &'a self,
        place: RawPlace<'a>,
        field: &'a [u8],
    ) -> BoxFuture<'a, StoreResult<bool>> {
        Box::pin(async move {
            let mut commands = ::redis::pipe();
            commands.cmd("HDEL").arg(self.keys.raw(place)?).arg(field);
            self.ask_one("raw hdel", &commands).await?.flag()
        })
    }

    fn hash_len<'a>(&'a self, place: RawPlace<'a>) -> BoxFuture<'a, StoreResult<u64>> {
        Box::pin(async move {
            let mut commands = ::redis::pipe();
            commands.cmd("HLEN").arg(self.keys.raw(place)?);
            self.ask_one("raw hlen", &commands).await?.count()
        })
    }

    fn hash_scan<'a>(
        &'a self,
        place: RawPlace<'a>,
        from: Option<&'a [u8]>,
    ) -> BoxFuture<'a, StoreResult<RawPage<(Bytes, Bytes)>>> {
        Box::pin(async move {
            let mut commands = ::redis::pipe();
            let scan = commands.cmd("HSCAN").arg(self.keys.raw(place)?);
            scan.arg(from.unwrap_or(START)).arg("COUNT").arg(COUNT);
            let (items, next) = self.ask_one("raw hgetall", &commands).await?.walked()?;
            let mut items = items.into_iter();
            let mut fields = Vec::with_capacity(items.len() / 2);
            while let (Some(field), Some(value)) = (items.next(), items.next()) {
                let pair = reply::stored(field).zip(reply::stored(value));
                fields.push(pair.ok_or_else(|| Reply::malformed("raw hgetall"))?);
            }
            Ok(RawPage {
                items: fields,
                next,
            })
        })
    }
}

/// Where a walk over the nodes of a cluster is: `life:node:cursor`, the first two in hexadecimal.
struct WalkCursor<'a> {
    node: usize,
    cursor: &'a [u8],
}

impl<'a> WalkCursor<'a> {
    /// Reads a cursor; `None` if it is not of these nodes in this life of theirs.
    fn read(bytes: &'a [u8], life: u64) -> Option<Self> {
        let mut parts = bytes.splitn(3, |&byte| byte == b':');
        let mut number = || u64::from_str_radix(std::str::from_utf8(parts.next()?).ok()?, 16).ok();
        let (theirs, node) = (number()?, usize::try_from(number()?).ok()?);
        let cursor = parts.next()?;
        (theirs == life).then_some(Self { node, cursor })
    }

    fn write(&self, life: u64) -> Bytes {
        let mut bytes = format!("{life:x}:{:x}:", self.node).into_bytes();
        bytes.extend(self.cursor);
        bytes.into()
    }
}

fn total(counts: Vec<Reply>) -> StoreResult<u64> {
    counts.into_iter().map(Reply::count).sum()
}
