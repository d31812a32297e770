//! The notes: kept in the store's raw part, which stands for a database; read through an entity.

use crate::Result;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tidings::{Cache, Entity, Raw, StoreError};

/// A note on the board.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) text: String,
    pub(crate) by: String,
}

/// What is invalidated as a whole, and what the page follows.
pub(crate) const TAGS: [&str; 2] = ["note", "board"];

const TABLE: &str = "notes";
const FIRST: [(u64, &str); 3] = [
    (1, "Fix the lift"),
    (2, "Order tea"),
    (3, "Water the plants"),
];

#[derive(Clone)]
pub(crate) struct Board {
    cache: Cache,
    database: Raw,
    notes: Entity<u64, Option<Note>, StoreError>,
    ids: Entity<&'static str, Vec<u64>, StoreError>,
}

impl Board {
    pub(crate) async fn new(cache: &Cache) -> Result<Self> {
        let database = cache.raw("board")?;
        for (id, text) in FIRST {
            let by = "somebody".to_owned();
            let note = encode(&Note {
                text: text.to_owned(),
                by,
            });
            if database.hget(TABLE, id.to_string()).await?.is_none() {
                database.hset(TABLE, id.to_string(), note).await?;
            }
        }
        let source = database.clone();
        let notes = cache.entity("note", move |id: u64| {
            let source = source.clone();
            async move {
                Ok(source
                    .hget(TABLE, id.to_string())
                    .await?
                    .and_then(|b| decode(&b)))
            }
        });
        let source = database.clone();
        let ids = cache.entity("board", move |_: &'static str| {
            let source = source.clone();
            async move {
                let all = source.hgetall(TABLE).await?;
                let number = |id: &[u8]| std::str::from_utf8(id).ok()?.parse().ok();
                let mut ids: Vec<u64> = all.keys().filter_map(|id| number(id)).collect();
                ids.sort_unstable();
                Ok(ids)
            }
        });
        Ok(Self {
            cache: cache.clone(),
            database,
            notes: notes.build()?,
            ids: ids.build()?,
        })
    }

    /// Every note, in order.
    pub(crate) async fn notes(&self) -> Result<Vec<(u64, Note)>> {
        let mut notes = Vec::new();
        for &id in self.ids.get(&"all").await?.iter() {
            let note: Arc<Option<Note>> = self.notes.get(&id).await?;
            notes.extend(note.as_ref().clone().map(|note| (id, note)));
        }
        Ok(notes)
    }

    /// Changes a note, and tells every pod once it is changed.
    pub(crate) async fn rename(&self, id: u64, note: Note) -> Result<()> {
        let change = self.database.hset(TABLE, id.to_string(), encode(&note));
        let reactivity = self.cache.reactivity();
        let tags = [self.notes.tag(&id), "board:all".into()];
        reactivity.mutation(tags, change).await?.acknowledged()?;
        Ok(())
    }
}

fn encode(note: &Note) -> Vec<u8> {
    [&note.by, "\n", &note.text].concat().into_bytes()
}

fn decode(bytes: &[u8]) -> Option<Note> {
    let (by, text) = std::str::from_utf8(bytes).ok()?.split_once('\n')?;
    Some(Note {
        text: text.to_owned(),
        by: by.to_owned(),
    })
}
