//! Conditional requests: a page that has not changed is asked for again, and not sent again.
//!
//! The source is an HTTP server in the same process, as small as one can be. It answers
//! `If-None-Match` with `304 Not Modified`, and says in `Cache-Control` how long a page is good.
//!
//! `cargo run --example etag`

use std::io::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidings::{Cache, Entity, LoadContext, Loaded};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Page {
    etag: String,
    body: String,
}

type Pages = Entity<String, Page, Error>;

/// Asks for a page, or for as much as that the one at hand is still the right one.
async fn load(server: Arc<str>, load: LoadContext<String, Page>) -> Result<Loaded<Page>> {
    let previous = load.previous();
    let etag = previous.map(|page| page.value().etag.as_str());
    let response = request(&server, load.key(), etag).await?;
    let page = match (response.status, previous) {
        (304, Some(page)) => page.not_modified(),
        (200, _) => Loaded::new(Page {
            etag: response.header("etag").unwrap_or_default().to_owned(),
            body: response.body.clone(),
        }),
        (status, _) => return Err(Error::other(format!("status {status}"))),
    };
    // The source knows best how long its answer is good.
    let max_age = response.header("cache-control");
    let max_age = max_age.and_then(|value| value.strip_prefix("max-age=")?.parse().ok());
    Ok(match max_age {
        Some(seconds) => page.ttl(Duration::from_secs(seconds)),
        None => page,
    })
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let site = Arc::new(Site::default());
    let server = site.serve().await?;
    let cache = Cache::builder("etag").build().await?;
    let pages: Pages = cache
        .entity_with("page", move |context| load(Arc::clone(&server), context))
        .grace(Duration::from_secs(600)) // should the server be down
        .build()?;
    let home = "/home".to_owned();

    let first = pages.get_with(&home).await?;
    println!("{:?} from {:?}", first.value.body, first.origin);
    site.sent(1, 0);

    // A second read asks nobody.
    pages.get(&home).await?;
    site.sent(1, 0);

    // Wait until it is stored, so that the next load finds it and not one under way.
    while *pages.refresh(&home).await? != *first.value || site.not_modified.load(SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!("asked again: 304, and the value is kept");
    site.sent(1, 1);

    // A page that has changed is sent.
    site.version.fetch_add(1, SeqCst);
    let changed = loop {
        let page = pages.refresh(&home).await?;
        if page.etag != first.value.etag {
            break page;
        }
    };
    println!("asked again: {:?}", changed.body);
    assert_eq!(changed.body, "version 1 of /home");
    assert_eq!(site.pages.load(SeqCst), 2);
    cache.close().await;
    Ok(())
}

// --- the server ----------------------------------------------------------------------------------

#[derive(Debug, Default)]
struct Site {
    version: AtomicU64,
    /// Pages sent in full.
    pages: AtomicU64,
    not_modified: AtomicU64,
}

impl Site {
    /// Serves on a port of this machine; gives its address.
    async fn serve(self: &Arc<Self>) -> Result<Arc<str>> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string().into();
        let site = Arc::clone(self);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let site = Arc::clone(&site);
                tokio::spawn(async move { site.answer(stream).await });
            }
        });
        Ok(address)
    }

    async fn answer(&self, mut stream: TcpStream) -> Result<()> {
        let request = Message::read(&mut stream).await?;
        let path = request.start.split(' ').nth(1).unwrap_or("/");
        let version = self.version.load(SeqCst);
        let etag = format!("\"{version}\"");
        let common = format!("ETag: {etag}\r\nCache-Control: max-age=60\r\nConnection: close\r\n");
        let response = if request.header("if-none-match") == Some(&etag) {
            self.not_modified.fetch_add(1, SeqCst);
            format!("HTTP/1.1 304 Not Modified\r\n{common}\r\n")
        } else {
            self.pages.fetch_add(1, SeqCst);
            let body = format!("version {version} of {path}");
            let len = body.len();
            format!("HTTP/1.1 200 OK\r\n{common}Content-Length: {len}\r\n\r\n{body}")
        };
        stream.write_all(response.as_bytes()).await?;
        stream.shutdown().await
    }

    /// Checks what the server has sent so far: at least so many 304.
    fn sent(&self, pages: u64, not_modified: u64) {
        assert_eq!(self.pages.load(SeqCst), pages);
        assert!(self.not_modified.load(SeqCst) >= not_modified);
    }
}

// --- as much HTTP as this needs ------------------------------------------------------------------

/// A request or a response.
struct Message {
    start: String,
    headers: Vec<(String, String)>,
    status: u16,
    body: String,
}

impl Message {
    /// Reads up to the end of the headers, and what comes with them if the other side ends there.
    async fn read(stream: &mut TcpStream) -> Result<Self> {
        let (mut bytes, mut buffer) = (Vec::new(), [0; 1024]);
        loop {
            let read = stream.read(&mut buffer).await?;
            bytes.extend_from_slice(&buffer[..read]);
            let is_request = bytes.starts_with(b"GET");
            if read == 0 || (is_request && bytes.ends_with(b"\r\n\r\n")) {
                break;
            }
        }
        let text = String::from_utf8(bytes).map_err(Error::other)?;
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let mut lines = head.lines();
        let start = lines.next().unwrap_or_default().to_owned();
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        Ok(Self {
            headers: headers.collect(),
            status: start
                .split(' ')
                .nth(1)
                .and_then(|status| status.parse().ok())
                .unwrap_or(0),
            body: body.to_owned(),
            start,
        })
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find_map(|(header, value)| (header == name).then_some(value.as_str()))
    }
}

async fn request(server: &str, path: &str, etag: Option<&str>) -> Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let condition = etag.map_or(String::new(), |etag| format!("If-None-Match: {etag}\r\n"));
    let request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\n{condition}\r\n");
    stream.write_all(request.as_bytes()).await?;
    Message::read(&mut stream).await
}
