//! What loaders ask of the two databases, and what writers do to one of them. The SQL of `docs/versions.md`.

use std::sync::Arc;
use tidings::{LoadContext, Loaded};
use tokio_postgres::{Client, Error};

/// What versions are.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Versions {
    None,
    /// A column that each `UPDATE` counts up.
    Row,
    /// Positions in the log.
    Log,
}

#[derive(Clone, Copy)]
pub(crate) struct Loads {
    pub(crate) versions: Versions,
    /// Whether a load that finds the replica behind asks the primary, or is made again.
    asks_the_primary: bool,
}

impl Loads {
    pub(crate) fn from_the_replica(versions: Versions) -> Self {
        Self {
            versions,
            asks_the_primary: false,
        }
    }

    pub(crate) fn or_from_the_primary(versions: Versions) -> Self {
        Self {
            versions,
            asks_the_primary: true,
        }
    }
}

/// Where something is read.
#[derive(Clone, Copy)]
enum At<'a> {
    Primary(&'a Client),
    Replica(&'a Client),
}

/// Connections to both.
#[derive(Clone)]
pub(crate) struct Databases {
    pub(crate) primary: Arc<Client>,
    pub(crate) replica: Arc<Client>,
}

impl Databases {
    pub(crate) async fn load(
        &self,
        context: &LoadContext<i64, Option<i64>>,
        loads: Loads,
    ) -> Result<Loaded<Option<i64>>, Error> {
        let (id, versions) = (*context.key(), loads.versions);
        let (mut balance, mut version) = read(At::Replica(&self.replica), id, versions).await?;
        if loads.asks_the_primary && version < context.minimum_version() {
            (balance, version) = read(At::Primary(&self.primary), id, versions).await?;
        }
        let loaded = Loaded::new(balance);
        Ok(match version {
            Some(version) => loaded.version(version),
            None => loaded,
        })
    }

    /// What the replica shows at present.
    pub(crate) async fn replicated(&self, id: i64) -> Option<i64> {
        let row = row(&self.replica, id).await.unwrap();
        row.map(|(balance, _)| balance)
    }

    /// Gives the version that this commit made, if there are versions.
    pub(crate) async fn write(&self, id: i64, balance: i64, versions: Versions) -> Option<u64> {
        let update = "UPDATE accounts SET balance = $2, version = version + 1 WHERE id = $1 RETURNING version";
        let row = self.primary.query_one(update, &[&id, &balance]).await;
        let version: i64 = row.unwrap().get(0);
        match versions {
            Versions::None => None,
            Versions::Row => Some(version.cast_unsigned()),
            Versions::Log => Some(self.committed().await),
        }
    }

    pub(crate) async fn delete(&self, id: i64) -> u64 {
        let delete = "DELETE FROM accounts WHERE id = $1";
        assert_eq!(self.primary.execute(delete, &[&id]).await.unwrap(), 1);
        self.committed().await
    }

    async fn committed(&self) -> u64 {
        position(At::Primary(&self.primary)).await.unwrap()
    }
}

async fn read(
    at: At<'_>,
    id: i64,
    versions: Versions,
) -> Result<(Option<i64>, Option<u64>), Error> {
    let (At::Primary(client) | At::Replica(client)) = at;
    // Before the row, and in a statement of its own: else it could be newer than what the row is read from.
    let position = match versions {
        Versions::Log => Some(position(at).await?),
        _ => None,
    };
    let Some((balance, version)) = row(client, id).await? else {
        return Ok((None, position));
    };
    let of_row = (versions == Versions::Row).then_some(version);
    Ok((Some(balance), of_row.or(position)))
}

async fn position(at: At<'_>) -> Result<u64, Error> {
    let (client, function) = match at {
        At::Primary(client) => (client, "pg_current_wal_flush_lsn"),
        At::Replica(client) => (client, "pg_last_wal_replay_lsn"),
    };
    let query = format!("SELECT ({function}() - '0/0')::bigint");
    let position: i64 = client.query_one(&query, &[]).await?.get(0);
    Ok(position.cast_unsigned())
}

async fn row(client: &Client, id: i64) -> Result<Option<(i64, u64)>, Error> {
    let query = "SELECT balance, version FROM accounts WHERE id = $1";
    let row = client.query_opt(query, &[&id]).await?;
    Ok(row.map(|row| (row.get(0), row.get::<_, i64>(1).cast_unsigned())))
}
