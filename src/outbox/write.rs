//! Writing rows, in the caller's transaction.

use super::{Outbox, OutboxError, row};
use crate::entity::Entity;
use crate::key::{Key, Tag};
use std::borrow::Borrow;
use tokio_postgres::GenericClient;
use tokio_postgres::types::Type;

impl Outbox {
    /// Invalidates `keys` of `entity` if and when `transaction` commits. One round trip, whatever the
    /// number of keys; none without keys.
    ///
    /// Given a client instead of a transaction, it commits at once.
    ///
    /// # Errors
    /// [`OutboxError::Tag`] for a key of more than 8 KiB: nothing was sent. [`OutboxError::Database`] if the
    /// database refuses the rows: as after any failed statement, the transaction can only be rolled back.
    ///
    /// # Cancel safety
    /// Dropped, it has written the rows or not: roll the transaction back.
    ///
    /// # Consistency
    /// Nothing is invalidated here, not even in this pod, before the commit and the delivery. See
    /// [`Outbox`].
    pub async fn invalidate<K, V, E>(
        &self,
        transaction: &(impl GenericClient + Sync),
        entity: &Entity<K, V, E>,
        keys: impl IntoIterator<Item = impl Borrow<K>>,
    ) -> Result<(), OutboxError>
    where
        K: Key,
    {
        let tag = |key: &K| Tag::of(entity.shared_name(), key);
        let tags = keys.into_iter().map(|key| tag(key.borrow())).collect();
        self.write(transaction, tags).await
    }

    /// Invalidates `tags` if and when `transaction` commits: what
    /// [`Cache::invalidate`](crate::Cache::invalidate) takes, a whole entity by its name among them. One
    /// round trip.
    ///
    /// # Errors
    /// As [`invalidate`](Self::invalidate); [`OutboxError::Tag`] also for a name that is empty, longer than
    /// 1 KiB, or has a zero byte.
    ///
    /// # Cancel safety
    /// As [`invalidate`](Self::invalidate).
    ///
    /// # Consistency
    /// As [`invalidate`](Self::invalidate).
    pub async fn invalidate_tags<T: Into<Tag>>(
        &self,
        transaction: &(impl GenericClient + Sync),
        tags: impl IntoIterator<Item = T>,
    ) -> Result<(), OutboxError> {
        let tags = tags.into_iter().map(Into::into).collect();
        self.write(transaction, tags).await
    }

    async fn write(
        &self,
        client: &(impl GenericClient + Sync),
        tags: Vec<Tag>,
    ) -> Result<(), OutboxError> {
        for tag in &tags {
            row::check(tag).map_err(|reason| OutboxError::Tag { reason })?;
        }
        if tags.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = tags.iter().map(Tag::name).collect();
        let keys: Vec<Option<&[u8]>> = tags.iter().map(Tag::key).collect();
        let columns: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
            [(&names, Type::TEXT_ARRAY), (&keys, Type::BYTEA_ARRAY)];
        client.execute_typed(&self.table.insert(), &columns).await?;
        Ok(())
    }
}
