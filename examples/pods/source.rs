//! The source of truth: what would be your database. A version for each record, behind a line protocol
//! on loopback: `get 3` and `commit 3` are both answered by `version microseconds`.

use super::{RECORDS, Result};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// How long a load takes.
const QUERY: Duration = Duration::from_millis(3);

type Rows = Arc<Mutex<Vec<(u64, u64)>>>;

/// Starts serving; gives the address.
pub(crate) async fn start() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let rows: Rows = Arc::new(Mutex::new(vec![(1, now_us()); RECORDS as usize]));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Arc::clone(&rows)));
        }
    });
    Ok(address)
}

async fn serve(stream: TcpStream, rows: Rows) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let (verb, key) = line.trim().split_once(' ').ok_or("no key")?;
    let key: usize = key.parse()?;
    let (version, committed_us) = {
        let mut rows = rows.lock().expect("not poisoned");
        let row = rows.get_mut(key).ok_or("no such record")?;
        if verb == "commit" {
            *row = (row.0 + 1, now_us());
        }
        *row
    };
    if verb == "get" {
        // Slow only after it has looked: the load that is overtaken by a change is the hard case.
        tokio::time::sleep(QUERY).await;
    }
    stream
        .write_all(format!("{version} {committed_us}\n").as_bytes())
        .await?;
    Ok(())
}

/// Asks the source; gives the version and when it was committed.
pub(crate) async fn ask(address: &str, verb: &str, key: u64) -> std::io::Result<(u64, u64)> {
    let mut stream = BufReader::new(TcpStream::connect(address).await?);
    stream
        .write_all(format!("{verb} {key}\n").as_bytes())
        .await?;
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let mut numbers = line
        .split_whitespace()
        .map_while(|number| number.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(version), Some(committed_us)) => Ok((version, committed_us)),
        _ => Err(std::io::Error::other("the source gave no answer")),
    }
}

/// The wall clock, which all processes of one host share.
pub(crate) fn now_us() -> u64 {
    SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |since| since.as_micros() as u64)
}
