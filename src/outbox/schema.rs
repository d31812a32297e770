//! The table, and each statement about it.

use super::row::{MAX_KEY, MAX_NAME};
use super::{Outbox, OutboxError};
use crate::error::BuildError;
use tokio_postgres::GenericClient;
use tokio_postgres::types::Type;

/// Rows that one look takes at most: a few megabytes, delivered in well under a second.
const BATCH: usize = 10_000;
/// Leaves room in PostgreSQL's 63 bytes for the names that are made of it.
const MAX_IDENTIFIER: usize = 48;
/// The first half of advisory locks that are about outboxes, "tidi"; the second is the table's number.
const LOCKS: i32 = 0x7469_6469;

/// The name of the table.
#[derive(Debug)]
pub(super) struct Table {
    schema: Option<String>,
    name: String,
}

impl Table {
    pub(super) fn parse(text: &str) -> Result<Self, BuildError> {
        let (schema, name) = match text.split_once('.') {
            Some((schema, name)) => (Some(schema), name),
            None => (None, text),
        };
        if ![schema.unwrap_or(name), name]
            .into_iter()
            .all(is_identifier)
        {
            let reason = format!(
                "{text:?} is not 1 to {MAX_IDENTIFIER} of a–z 0–9 _ without a leading digit, \
                 with a schema of the same kind and a dot before it at most"
            );
            return Err(BuildError::new("table", reason));
        }
        Ok(Self {
            schema: schema.map(str::to_owned),
            name: name.to_owned(),
        })
    }

    /// Quoted, because a name may be a word of SQL; `suffix` makes another name of it.
    fn quoted(&self, suffix: &str) -> String {
        let name = &self.name;
        match &self.schema {
            Some(schema) => format!("\"{schema}\".\"{name}{suffix}\""),
            None => format!("\"{name}{suffix}\""),
        }
    }

    /// The channel of its notifications. Tables of one name in several schemas share it: whoever is
    /// woken for another one looks once more than needed.
    fn channel(&self) -> &str {
        &self.name
    }

    fn create(&self) -> String {
        let (table, function) = (self.quoted(""), self.quoted("_notify"));
        let (trigger, channel) = (format!("\"{}_notify\"", self.name), self.channel());
        format!(
            "CREATE TABLE IF NOT EXISTS {table} (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tag text NOT NULL,
    key bytea,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    refused text
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_notify('{channel}', ''); RETURN NULL; END $$;
CREATE OR REPLACE TRIGGER {trigger} AFTER INSERT ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION {function}();
"
        )
    }

    /// Takes names and keys, as arrays of the same length.
    pub(super) fn insert(&self) -> String {
        let table = self.quoted("");
        format!("INSERT INTO {table} (tag, key) SELECT * FROM unnest($1::text[], $2::bytea[])")
    }

    /// What is too long for a tag is cut to one more than is allowed, and need not be read to be refused.
    pub(super) fn look(&self) -> String {
        let (table, name, key) = (self.quoted(""), MAX_NAME + 1 + MAX_KEY + 1, MAX_KEY + 1);
        format!(
            "SELECT id::int8 AS id, left(tag, {name}) AS tag, substring(key FROM 1 FOR {key}) AS key, \
             extract(epoch FROM clock_timestamp() - created_at)::float8 AS age \
             FROM {table} WHERE refused IS NULL ORDER BY id LIMIT {BATCH}"
        )
    }

    pub(super) fn delete(&self) -> String {
        format!("DELETE FROM {} WHERE id = ANY($1)", self.quoted(""))
    }

    /// Takes ids and reasons, as arrays of the same length.
    pub(super) fn refuse(&self) -> String {
        let table = self.quoted("");
        format!(
            "UPDATE {table} SET refused = why FROM unnest($1::int8[], $2::text[]) AS bad (row, why) \
             WHERE id = row"
        )
    }

    pub(super) fn listen(&self) -> String {
        format!("LISTEN \"{}\"", self.channel())
    }

    /// Gives true to the one session that may deliver, until it ends. By the table's number, so that
    /// pods which name it differently agree.
    pub(super) fn lock(&self) -> String {
        let table = self.quoted("");
        format!("SELECT pg_try_advisory_lock({LOCKS}, '{table}'::regclass::oid::int4)")
    }
}

fn is_identifier(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (1..=MAX_IDENTIFIER).contains(&text.len())
        && text.bytes().all(allowed)
        && !text.as_bytes()[0].is_ascii_digit()
}

impl Outbox {
    /// The statements that create the table, for your migrations: they change nothing when run again. The
    /// trigger sends a notification for each statement that inserts rows; without it rows are found by
    /// [polling](super::OutboxBuilder::poll).
    #[must_use]
    pub fn sql(&self) -> String {
        self.table.create()
    }

    /// Creates the table, its trigger and the trigger's function, if there is no such table. Three
    /// round trips; pods that start at the same time wait for each other. Needs the right to create in the
    /// schema; to write rows takes `INSERT` on the table, to deliver them `SELECT`, `UPDATE` and `DELETE`.
    ///
    /// # Errors
    /// [`OutboxError::Database`] if the database refuses.
    ///
    /// # Cancel safety
    /// The table is there or not; call it again.
    pub async fn create_table(
        &self,
        client: &(impl GenericClient + Sync),
    ) -> Result<(), OutboxError> {
        let there = "SELECT to_regclass($1) IS NOT NULL";
        let name = self.table.quoted("");
        let found = client.query_typed(there, &[(&name, Type::TEXT)]).await?;
        // To create what is there would wait for every open transaction that has written rows.
        if found.first().is_some_and(|row| row.get(0)) {
            return Ok(());
        }
        // One message is one transaction, unless it is part of a larger one.
        let alone = format!("SELECT pg_advisory_xact_lock({LOCKS}, 0);\n");
        client.batch_execute(&(alone + &self.sql())).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names_that_could_end_a_statement_are_refused() {
        for good in ["outbox", "_o1", "app.outbox", "user"] {
            assert!(Table::parse(good).is_ok(), "{good}");
        }
        let long = "o".repeat(49);
        for bad in [
            "", "a.", ".a", "a.b.c", "1a", "Outbox", "o\"", "o;", "o'", "o ", &long,
        ] {
            assert!(Table::parse(bad).is_err(), "{bad}");
        }
    }
}
