//! One connection of a pod that delivers, or would.

use super::protection::Protection;
use super::row::{Rubbish, Waiting};
use super::schema::Table;
use super::{Outbox, OutboxError};
use crate::store::BoxFuture;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Config, Row, Socket};

/// How long a pod may be silent before the server ends its session, and with it the lock that makes it
/// the one that delivers. Beyond every wait of a pod that is alive.
pub(super) const LEASE: Duration = Duration::from_secs(10);
/// How long an answer is waited for: longer than a table that is being vacuumed or locked for a change of
/// its columns makes one wait as a rule.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Opens a connection. The notify is woken by each notification and by the end of the connection, for as
/// long as the future that comes with the client runs.
pub(super) type Connect = Arc<
    dyn Fn(Arc<Notify>) -> BoxFuture<'static, Result<(Client, Driver), tokio_postgres::Error>>
        + Send
        + Sync,
>;
type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(super) fn connector<T>(config: Config, tls: T) -> Connect
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::Stream: Send + 'static,
    T::TlsConnect: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    Arc::new(move |wake| {
        let (config, tls) = (config.clone(), tls.clone());
        Box::pin(async move {
            let (client, mut connection) = config.connect(tls).await?;
            let driver: Driver = Box::pin(async move {
                loop {
                    match poll_fn(|cx| connection.poll_message(cx)).await {
                        Some(Ok(AsyncMessage::Notification(_))) => wake.notify_one(),
                        Some(Ok(_)) => {}
                        // Whoever waits finds out what is wrong by asking.
                        Some(Err(_)) | None => return wake.notify_one(),
                    }
                }
            });
            Ok((client, driver))
        })
    })
}

/// A connection in use. Dropped, it is closed, and with it goes the lock.
pub(super) struct Session {
    table: Arc<Table>,
    client: Client,
    driver: AbortHandle,
    pub(super) wake: Arc<Notify>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Session {
    pub(super) async fn open(connect: &Connect, outbox: &Outbox) -> Result<Self, OutboxError> {
        let wake = Arc::new(Notify::new());
        let (client, driver) = answer(connect(Arc::clone(&wake))).await?;
        let session = Self {
            table: Arc::clone(&outbox.table),
            client,
            driver: tokio::spawn(driver).abort_handle(),
            wake,
        };
        let lease = match outbox.protections.on(Protection::Lease) {
            true => LEASE.as_millis(),
            false => 0, // for ever
        };
        // What waits for somebody else's lock does not see that its client is gone.
        let limits = format!(
            "SET idle_session_timeout = {lease}; SET statement_timeout = {}",
            ANSWER_LIMIT.as_millis()
        );
        answer(session.client.batch_execute(&limits)).await?;
        Ok(session)
    }

    /// Whether this is now the session that delivers; it stays so until it ends.
    pub(super) async fn lock(&self) -> Result<bool, OutboxError> {
        let rows = self.query(&self.table.lock()).await?;
        Ok(match rows.first() {
            Some(row) => row.try_get(0)?,
            None => false,
        })
    }

    pub(super) async fn listen(&self) -> Result<(), OutboxError> {
        answer(self.client.batch_execute(&self.table.listen())).await
    }

    /// What waits, the oldest first.
    pub(super) async fn look(&self) -> Result<Vec<Waiting>, OutboxError> {
        let rows = self.query(&self.table.look()).await?;
        let rows = rows.iter().map(Waiting::read);
        Ok(rows.collect::<Result<_, _>>()?)
    }

    pub(super) async fn delete(&self, ids: &[i64]) -> Result<(), OutboxError> {
        let ids: (&(dyn ToSql + Sync), _) = (&ids, Type::INT8_ARRAY);
        self.execute(&self.table.delete(), &[ids]).await
    }

    /// Sets rows aside that nobody can carry out.
    pub(super) async fn refuse(&self, rows: &[(i64, Rubbish)]) -> Result<(), OutboxError> {
        let (ids, reasons): (Vec<i64>, Vec<Rubbish>) = rows.iter().copied().unzip();
        let columns: [(&(dyn ToSql + Sync), _); 2] =
            [(&ids, Type::INT8_ARRAY), (&reasons, Type::TEXT_ARRAY)];
        self.execute(&self.table.refuse(), &columns).await
    }

    async fn query(&self, sql: &str) -> Result<Vec<Row>, OutboxError> {
        answer(self.client.query_typed(sql, &[])).await
    }

    async fn execute(
        &self,
        sql: &str,
        params: &[(&(dyn ToSql + Sync), Type)],
    ) -> Result<(), OutboxError> {
        answer(self.client.execute_typed(sql, params))
            .await
            .map(drop)
    }
}

async fn answer<T>(
    asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, OutboxError> {
    let after = ANSWER_LIMIT;
    match timeout(after, asked).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(OutboxError::Timeout { after }),
    }
}
