//! Real pods on a real Redis: `cargo run --example pods [PODS] [--kill-redis] [--metrics]`.
//!
//! Starts three processes (or as many as you say) that read the same eight records in a loop. The first
//! of them also changes one every 20 ms: it commits to the source, then invalidates. This process
//! plays the source, prints how the pods are doing, and is the judge in the end: no pod may have read a value
//! longer than the bound after its invalidation was acknowledged. If one has, the exit code is 1.
//!
//! The Redis is the one that `REDIS_URL` names, or else a server of its own, if `redis-server` is
//! installed. `--kill-redis` kills that one halfway and starts it again, empty, 1.5 s later.
//!
//! With `--features metrics` and `--metrics`, each pod shows its metrics on a port that is printed, for a
//! Prometheus; the dashboard is `docs/grafana/tidings.json`. `--seconds 600` makes it last.

mod judge;
mod pod;
mod source;

use judge::Judge;
use std::error::Error;
use std::io::IsTerminal;
use std::process::{ExitCode, Stdio};
use std::time::Duration;
use tidings::testing::RedisServer;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, sleep, timeout};

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// Set for the processes that are pods.
const POD_VARIABLE: &str = "TIDINGS_EXAMPLE_POD";
/// Shortens the run, for whoever only wants to know that it works.
const QUICK_VARIABLE: &str = "TIDINGS_EXAMPLE_QUICK";
const USAGE: &str = "usage: pods [PODS] [--kill-redis] [--metrics] [--seconds N]";
/// How many records there are.
const RECORDS: u64 = 8;
/// How long Redis stays dead.
const REDIS_DEAD: Duration = Duration::from_millis(1500);

#[tokio::main]
async fn main() -> Result<ExitCode> {
    if let Ok(index) = std::env::var(POD_VARIABLE) {
        pod::run(index.parse()?).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let quick = std::env::var_os(QUICK_VARIABLE).is_some();
    let mut length = Duration::from_secs(if quick { 3 } else { 10 });
    let (mut pods, mut kill, mut metrics) = (3, false, false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--kill-redis" => kill = true,
            "--metrics" => metrics = true,
            "--seconds" => {
                let seconds = args.next().and_then(|seconds| seconds.parse().ok());
                length = Duration::from_secs(seconds.ok_or(USAGE)?);
            }
            number => pods = number.parse().map_err(|_| USAGE)?,
        }
    }
    let (url, server) = match std::env::var("REDIS_URL") {
        Ok(url) => (url, None),
        Err(_) if RedisServer::available() => {
            let server = tokio::task::spawn_blocking(RedisServer::start).await??;
            (server.url(), Some(server))
        }
        Err(_) => {
            eprintln!(
                "This example needs Redis 7 or later. Install redis-server (apt install redis-server,"
            );
            eprintln!(
                "brew install redis), or name a server that runs: REDIS_URL=redis://host:6379"
            );
            // A quick run asks "does the example work", and this is no answer to that.
            return Ok(if quick {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
    };
    let server = match (kill, server) {
        (true, None) => {
            return Err("--kill-redis kills no server but its own: unset REDIS_URL".into());
        }
        (_, server) => server,
    };
    let judge = run(pods, &url, metrics, (server, kill), length).await?;
    Ok(judge.verdict())
}

/// Lets the pods run for `length`; kills the server halfway if asked to.
async fn run(
    pods: usize,
    url: &str,
    metrics: bool,
    (server, kill): (Option<RedisServer>, bool),
    length: Duration,
) -> Result<Judge> {
    let source = source::start().await?;
    println!(
        "{pods} pods, each a process, read {RECORDS} records for {length:?}; pod 0 changes one every 20 ms."
    );
    let (reports, mut inbox) = mpsc::unbounded_channel();
    let mut children = Vec::new();
    for index in 0..pods {
        let metrics = match metrics {
            true => Some(free_port()?),
            false => None,
        };
        if let Some(port) = metrics {
            println!("pod {index} shows its metrics at http://127.0.0.1:{port}/metrics");
        }
        children.push(start_pod(index, url, &source, metrics, reports.clone())?);
    }
    let outage = tokio::spawn(outage(server, kill, length / 2, reports));

    let mut judge = Judge::new(pods);
    let live = std::io::stdout().is_terminal();
    let (end, mut tick) = (Instant::now() + length, interval(Duration::from_secs(1)));
    tick.tick().await;
    while Instant::now() < end {
        tokio::select! {
            Some((pod, line)) = inbox.recv() => judge.take(pod, &line)?,
            _ = tick.tick() => judge.print_table(live),
            () = sleep(end - Instant::now()) => {}
        }
    }
    // A pod ends when its standard input does, with a last report.
    for child in &mut children {
        drop(child.stdin.take());
    }
    let rest = async {
        while let Some((pod, line)) = inbox.recv().await {
            judge.take(pod, &line)?;
        }
        Ok::<_, Box<dyn Error + Send + Sync>>(())
    };
    timeout(Duration::from_secs(10), rest).await??;
    for mut child in children {
        if !child.wait().await?.success() {
            return Err("a pod failed".into());
        }
    }
    outage.await??;
    Ok(judge)
}

fn start_pod(
    index: usize,
    url: &str,
    source: &str,
    metrics: Option<u16>,
    reports: mpsc::UnboundedSender<(usize, String)>,
) -> Result<Child> {
    let metrics = metrics.map(|port| (pod::METRICS_VARIABLE, port.to_string()));
    let mut child = Command::new(std::env::current_exe()?)
        .envs(metrics)
        .env(POD_VARIABLE, index.to_string())
        .env(pod::SOURCE_VARIABLE, source)
        // Read by `Cache::builder`: the pods need no code to choose their store.
        .env(tidings::STORE_VARIABLE, url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let lines = child.stdout.take().ok_or("no standard output")?;
    tokio::spawn(async move {
        let mut lines = BufReader::new(lines).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if reports.send((index, line)).is_err() {
                break;
            }
        }
    });
    Ok(child)
}

/// Free now; should somebody take it, the pod does not start and says so.
fn free_port() -> Result<u16> {
    let free = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(free.local_addr()?.port())
}

/// Kills the server after `after` and starts it again; gives it back so that it lives to the end.
async fn outage(
    server: Option<RedisServer>,
    kill: bool,
    after: Duration,
    notes: mpsc::UnboundedSender<(usize, String)>,
) -> Result<Option<RedisServer>> {
    let Some(mut server) = server else {
        return Ok(None);
    };
    if !kill {
        return Ok(Some(server));
    }
    sleep(after).await;
    notes.send((0, "note Redis is killed".to_owned()))?;
    server.kill();
    sleep(REDIS_DEAD).await;
    let server = tokio::task::spawn_blocking(move || server.restart().map(|()| server)).await??;
    notes.send((0, "note Redis is back, and empty".to_owned()))?;
    Ok(Some(server))
}
