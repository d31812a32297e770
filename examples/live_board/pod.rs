//! One pod: a web server on one cache.

use crate::Result;
use crate::board::{Board, Note, TAGS};
use crate::page;
use axum::extract::{Form, Query, State};
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Redirect};
use axum::routing::{get, post};
use axum::{Router, response};
use futures_util::{Stream, StreamExt, stream};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};
use tidings::presence::{self, Presence};
use tidings::{Cache, Reactivity};

/// What is known of somebody who is here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Visitor {
    pod: String,
}

#[derive(Clone)]
pub(crate) struct Pod {
    name: String,
    board: Board,
    room: Presence<Visitor>,
    reactivity: Reactivity,
}

#[derive(Deserialize)]
struct Who {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct Change {
    id: u64,
    text: String,
    by: String,
}

/// What a handler fails with: the visitor learns no more than that.
struct Trouble(Box<dyn std::error::Error + Send + Sync>);

impl<E: Into<Box<dyn std::error::Error + Send + Sync>>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> response::Response {
        eprintln!("{}", self.0);
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "The board is out of reach; try again.",
        )
            .into_response()
    }
}

impl Pod {
    pub(crate) async fn new(cache: Cache) -> Result<Self> {
        static PODS: AtomicU32 = AtomicU32::new(1);
        let number = PODS.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            name: format!("pod {}-{number}", std::process::id()),
            board: Board::new(&cache).await?,
            room: cache.presence("board").build()?,
            reactivity: cache.reactivity(),
        })
    }

    pub(crate) fn router(self) -> Router {
        let style = || async { ([(header::CONTENT_TYPE, "text/css")], page::STYLE) };
        Router::new()
            .route("/", get(show))
            .route("/style.css", get(style))
            .route("/events", get(events))
            .route("/notes", post(change))
            .with_state(self)
    }
}

async fn show(State(pod): State<Pod>, Query(who): Query<Who>) -> Result<Html<String>, Trouble> {
    let board = page::board(&pod.board.notes().await?);
    // The events bring the people, the visitor among them, as soon as the page is there.
    let people = page::people(std::iter::empty());
    Ok(Html(page::page(&who.name, &people, &board)))
}

async fn change(State(pod): State<Pod>, Form(change): Form<Change>) -> Result<Redirect, Trouble> {
    let note = Note {
        text: change.text,
        by: change.by,
    };
    pod.board.rename(change.id, note).await?;
    Ok(Redirect::to("/"))
}

/// What the page follows. As long as the browser holds this connection, its visitor is here.
async fn events(
    State(pod): State<Pod>,
    Query(who): Query<Who>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Trouble> {
    let lease = match &*who.name {
        "" => None,
        name => {
            let visitor = Visitor {
                pod: pod.name.clone(),
            };
            Some(pod.room.join(name, &visitor).await?)
        }
    };
    let board = pod.board.clone();
    let notes = pod.reactivity.stream(TAGS, move || {
        let board = board.clone();
        async move { board.notes().await }
    });
    let notes = notes.filter_map(|notes| async {
        // While the store is away the page stays as it is.
        Some(
            Event::default()
                .event("board")
                .data(page::board(&notes.ok()?)),
        )
    });
    let people = people(&pod.room);
    let events = stream::select(notes, people).map(move |event| {
        let _here = &lease;
        Ok(event)
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()))
}

/// The list of who is here, whenever it changes.
fn people(room: &Presence<Visitor>) -> impl Stream<Item = Event> + use<> {
    let here = BTreeMap::<String, String>::new();
    let shown = room.watch().scan(here, |here, event| {
        match event {
            presence::Event::Joined(member) | presence::Event::Updated(member) => {
                let pod = member
                    .meta
                    .map_or_else(|_| "another version".to_owned(), |it| it.pod);
                here.insert(member.name, pod);
            }
            presence::Event::Left { member, .. } => {
                here.remove(&member);
            }
            _ => {}
        }
        let html = page::people(here.iter().map(|(name, pod)| (&**name, &**pod)));
        std::future::ready(Some(html))
    });
    shown.map(|html| Event::default().event("people").data(html))
}
