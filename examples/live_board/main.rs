//! A page that updates itself: `cargo run --example live_board [PORT]`.
//!
//! Starts two pods, which are two web servers that know nothing of each other and share one store. Open
//! a page of each: it shows who else is here (presence) and a board of notes (an entity), and follows
//! what happens on the *other* pod through server-sent events (reactivity), without reloading.
//!
//! With a PORT it starts one pod there, so that pods can be processes of their own on a real store:
//!
//! ```sh
//! TIDINGS_STORE=redis://127.0.0.1 cargo run --example live_board 3001
//! TIDINGS_STORE=redis://127.0.0.1 cargo run --example live_board 3002
//! ```

mod board;
mod page;
mod pod;

use pod::Pod;
use std::error::Error;
use std::net::SocketAddr;
use tidings::Cache;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Set where somebody only wants to know that it works.
const QUICK_VARIABLE: &str = "TIDINGS_EXAMPLE_QUICK";

#[tokio::main]
async fn main() -> Result<()> {
    let quick = std::env::var_os(QUICK_VARIABLE).is_some();
    let ports: Vec<u16> = match std::env::args().nth(1) {
        Some(port) => vec![port.parse().map_err(|_| "usage: live_board [PORT]")?],
        None if quick => vec![0, 0],
        None => vec![3001, 3002],
    };
    let mut pods = Vec::new();
    for port in ports {
        // The same URL is the same store, also the embedded one, which is used if none is named.
        let cache = Cache::builder("live-board").build().await?;
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let address = listener.local_addr()?;
        println!("a pod at http://{address}");
        pods.push(address);
        let pod = Pod::new(cache).await?;
        tokio::spawn(async move { axum::serve(listener, pod.router()).await });
    }
    if quick {
        for pod in pods {
            println!("{pod} answers {}", status(pod).await?);
        }
        return Ok(());
    }
    println!("open them in two windows; Ctrl-C ends");
    tokio::signal::ctrl_c().await?;
    Ok(())
}

/// The first line of what a pod answers.
async fn status(pod: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect(pod).await?;
    let request = "GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    if !answer.contains("</html>") {
        return Err(format!("not a page: {answer}").into());
    }
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}
