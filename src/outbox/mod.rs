//! Outbox: invalidations that are rows of the database they are about, written in the transaction that
//! changes it.
//!
//! ```text
//! your transaction ── change ── row ──▶ commit
//!                                          │ NOTIFY, or the next look
//!        one pod of many, by a lock ── look ──▶ cache.invalidate ──▶ acknowledged ──▶ row deleted
//! ```
//!
//! [`write`] puts rows in, [`deliver`] takes them out over one [`session`]; [`row`] is what both agree
//! on, [`schema`] where they are kept. `docs/decisions/outbox.md` argues for the order and the lock.

mod deliver;
mod health;
mod protection;
mod row;
mod schema;
mod session;
mod write;

pub use deliver::Delivery;
pub use health::{DeliveryHealth, DeliveryState};
pub use protection::Protection;

use crate::cache::Cache;
use crate::error::{BuildError, StoreError};
use protection::Protections;
use schema::Table;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Config, NoTls, Socket};

/// The table, unless [`Outbox::builder`] is given another name.
pub const DEFAULT_TABLE: &str = "tidings_outbox";
/// How often the table is looked at, unless [`OutboxBuilder::poll`] says otherwise: as often as the bus asks
/// for the heads of the log. Notifications come sooner; this is for those that do not come.
pub const DEFAULT_POLL: Duration = Duration::from_millis(250);
/// The server ends the session of a pod that is silent for [`LEASE`](session::LEASE).
const MAX_POLL: Duration = Duration::from_secs(2);
const MIN_POLL: Duration = Duration::from_millis(1);

/// Invalidations that are part of a PostgreSQL transaction: they happen if it commits, and then for
/// certain, whoever dies in between.
///
/// Any pod, and any program that writes SQL, puts rows into one table; one pod at a time takes them out,
/// carries them out on its [`Cache`] and deletes them once the store has acknowledged them. Cheap to
/// clone; holds no connection. PostgreSQL 14 or later.
///
/// # Consistency
/// **At least once.** A row that was committed is delivered until the store has acknowledged it, though it may
/// be delivered again after that: invalidating twice is harmless. **Not before.** A row is delivered after its
/// commit, when every read of the primary sees what was committed with it. **In the order of commits**, in
/// batches: all that one look at the table finds is a batch, carried out in the order of the rows' ids, and a
/// batch is acknowledged before the next look. So a row whose transaction had committed before another's is
/// never delivered after it, unless both were found by the same look; of more than 10,000 rows that
/// wait, a look finds those of the smallest ids. A transaction that is still open holds up no other.
///
/// What is invalid between the commit and the acknowledgement is served as before; the bound counts from
/// the acknowledgement. For reads of one's own writes call [`Entity::invalidate`](crate::Entity::invalidate)
/// after the commit as well.
///
/// # Examples
/// ```no_run
/// # async fn doc(users: tidings::Entity<u64, String, std::io::Error>, cache: tidings::Cache) -> Result<(), Box<dyn std::error::Error>> {
/// use tidings::outbox::Outbox;
/// use tokio_postgres::{Config, NoTls};
///
/// let config: Config = "postgresql://app@db/shop".parse()?;
/// let (mut client, connection) = config.connect(NoTls).await?;
/// tokio::spawn(connection);
///
/// let outbox = Outbox::default();
/// outbox.create_table(&client).await?; // or put `outbox.sql()` into your migrations
/// let delivery = outbox.deliver(&cache, config); // in some pods, or all
///
/// let transaction = client.transaction().await?;
/// transaction.execute("UPDATE users SET name = 'Ada' WHERE id = 42", &[]).await?;
/// outbox.invalidate(&transaction, &users, [42]).await?;
/// transaction.commit().await?; // from here on nothing can keep it from happening
///
/// delivery.stop().await; // when the pod ends
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Outbox {
    table: Arc<Table>,
    poll: Duration,
    protections: Protections,
}

impl Default for Outbox {
    /// The table [`DEFAULT_TABLE`], looked at every [`DEFAULT_POLL`].
    fn default() -> Self {
        let table = Table::parse(DEFAULT_TABLE).expect("the name is a good one");
        Self {
            table: Arc::new(table),
            poll: DEFAULT_POLL,
            protections: Protections::default(),
        }
    }
}

impl Outbox {
    /// An outbox in `table`, or in `schema.table`. Both names are 1 to 48 of a–z 0–9 _, and begin with
    /// no digit. Caches of different namespaces need tables of their own.
    #[must_use]
    pub fn builder(table: &str) -> OutboxBuilder {
        OutboxBuilder {
            table: table.to_owned(),
            poll: DEFAULT_POLL,
            protections: Protections::default(),
        }
    }

    /// Delivers the rows to `cache` while the result lives, whenever no other pod does: in a task of this
    /// Tokio runtime, over a connection of its own, which is made again whenever it breaks.
    ///
    /// The connection must lead to the primary, and past poolers that hand sessions around (pgbouncer's
    /// transaction mode): the pod that delivers is the one whose session holds a lock. Of pods that do
    /// not, each keeps a connection and asks for that lock once for every [poll](OutboxBuilder::poll),
    /// so two or three pods that deliver are enough for a fleet. One that dies is replaced within a poll
    /// of its connection's end, or within 10 s if that is not noticed (a pod that was stopped, a cable
    /// that was pulled).
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn deliver(&self, cache: &Cache, config: Config) -> Delivery {
        self.deliver_tls(cache, config, NoTls)
    }

    /// As [`deliver`](Self::deliver), over TLS: `tls` is what `tokio_postgres` takes, such as that of
    /// `tokio-postgres-rustls`.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn deliver_tls<T>(&self, cache: &Cache, config: Config, tls: T) -> Delivery
    where
        T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
        T::Stream: Send + 'static,
        T::TlsConnect: Send,
        <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
    {
        Delivery::begin(self, cache, session::connector(config, tls))
    }
}

/// Options of an [`Outbox`].
#[derive(Clone, Debug)]
pub struct OutboxBuilder {
    table: String,
    poll: Duration,
    protections: Protections,
}

impl OutboxBuilder {
    /// How often the pod that delivers looks at the table when no notification comes, and the others
    /// whether it is still there: 1 ms to 2 s. Default: [`DEFAULT_POLL`] (250 ms).
    #[must_use]
    pub fn poll(mut self, every: Duration) -> Self {
        self.poll = every;
        self
    }

    /// Switches a protection off, so that a test can show what it is for.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn without(mut self, protection: Protection) -> Self {
        self.protections.off = Some(protection);
        self
    }

    /// The outbox. Connects to nothing.
    ///
    /// # Errors
    /// [`BuildError`] naming `table` or `poll`, if it is out of bounds.
    pub fn build(self) -> Result<Outbox, BuildError> {
        if !(MIN_POLL..=MAX_POLL).contains(&self.poll) {
            let reason = format!("{:?} is not {MIN_POLL:?} to {MAX_POLL:?}", self.poll);
            return Err(BuildError::new("poll", reason));
        }
        Ok(Outbox {
            table: Arc::new(Table::parse(&self.table)?),
            poll: self.poll,
            protections: self.protections,
        })
    }
}

/// Why rows could not be written or delivered.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutboxError {
    /// The database refused a statement, or cannot be reached. A transaction in which it happened is lost.
    #[error("the database of the outbox failed")]
    Database(#[source] Arc<tokio_postgres::Error>),
    /// The database did not answer.
    #[error("the database of the outbox did not answer within {after:?}")]
    Timeout {
        /// How long it was waited for.
        after: Duration,
    },
    /// The store did not acknowledge. The rows stay where they are, and are delivered again.
    #[error("the store did not acknowledge what was in the outbox")]
    Store(#[source] StoreError),
    /// The tag cannot be a row. Nothing was written; the transaction can go on.
    #[error("cannot be put into the outbox: {reason}")]
    Tag {
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl From<tokio_postgres::Error> for OutboxError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Database(Arc::new(error))
    }
}
