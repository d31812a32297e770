//! The dashboard of `docs/grafana`: a real Prometheus scrapes the pods of the example `pods`, on a real
//! Redis, and has data for every query of every panel.
//!
//! A pod is this very program, run again for the one test [`pod`].
#![cfg(all(feature = "metrics", feature = "redis"))]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "../examples/pods/pod.rs"]
mod pods_pod;
#[path = "../examples/pods/source.rs"]
mod source;

use pods_pod as example;
use serde_json::Value;
use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tidings::testing::RedisServer;

// What the example's files find in its `main.rs`.
type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;
const RECORDS: u64 = 8;

const POD_VARIABLE: &str = "TIDINGS_TEST_DASHBOARD_POD";
const PODS: usize = 2;
/// How long it may take until there is data for everything.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pod. As a test of its own, it does nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod() {
    if let Ok(index) = std::env::var(POD_VARIABLE) {
        example::run(index.parse().unwrap()).await.unwrap();
    }
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Free now; should somebody take it, what was to listen there does not start and the test says so.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn start_pod(index: usize, redis: &RedisServer, source: &str, metrics: u16) -> Running {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "pod", "--nocapture"])
        .env(POD_VARIABLE, index.to_string())
        .env(example::SOURCE_VARIABLE, source)
        .env(example::METRICS_VARIABLE, metrics.to_string())
        .env(tidings::STORE_VARIABLE, redis.url())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn();
    Running(child.unwrap())
}

/// A Prometheus that scrapes these ports four times a second.
struct Prometheus {
    port: u16,
    folder: PathBuf,
    _process: Running,
}

impl Prometheus {
    fn start(targets: &[u16]) -> Self {
        let port = free_port();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("prometheus-{port}"));
        fs::create_dir_all(&folder).unwrap();
        let targets = targets.iter().map(|port| format!("'127.0.0.1:{port}'"));
        let targets = targets.collect::<Vec<_>>().join(", ");
        let config = format!(
            "global: {{ scrape_interval: 250ms, scrape_timeout: 250ms }}\n\
             scrape_configs: [{{ job_name: pods, static_configs: [{{ targets: [{targets}] }}] }}]\n"
        );
        fs::write(folder.join("prometheus.yml"), config).unwrap();
        let process = Command::new("prometheus")
            .arg(format!(
                "--config.file={}",
                folder.join("prometheus.yml").display()
            ))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.join("data").display()
            ))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--log.level=error")
            .spawn()
            .expect("prometheus starts: `sh tests/run.sh` installs it");
        Self {
            port,
            folder,
            _process: Running(process),
        }
    }

    /// The body of its answer; `None` if it gives none.
    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        Some(body.to_owned())
    }

    /// Whether a query gives any number.
    ///
    /// # Panics
    /// If it is no query.
    fn has_data(&self, query: &str) -> bool {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let Some(body) = self.get(&format!("/api/v1/query?query={encoded}")) else {
            return false;
        };
        // While it starts it answers in plain words.
        let Ok(answer) = serde_json::from_str::<Value>(&body) else {
            return false;
        };
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let series = answer["data"]["result"].as_array().unwrap();
        series.iter().any(|series| {
            let number = series["value"][1].as_str().unwrap();
            number.parse::<f64>().unwrap().is_finite()
        })
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self._process.0.kill();
        let _ = self._process.0.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn dashboard() -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/grafana/tidings.json");
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

fn panels(dashboard: &Value) -> Vec<&Value> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    panels.filter(|panel| panel["type"] != "row").collect()
}

/// Panel and query, as Grafana sends it with everything chosen.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for panel in panels(dashboard) {
        for target in panel["targets"].as_array().unwrap() {
            let mut query = target["expr"].as_str().unwrap().to_owned();
            for (variable, value) in [
                ("$__rate_interval", "10s"),
                ("$cache", ".*"),
                ("$entity", ".*"),
            ] {
                query = query.replace(variable, value);
            }
            assert!(!query.contains('$'), "an unknown variable: {query}");
            queries.push((panel["title"].as_str().unwrap().to_owned(), query));
        }
    }
    queries
}

#[test]
fn each_panel_says_what_it_shows_and_in_which_unit() {
    let dashboard = dashboard();
    let mut ids = BTreeSet::new();
    for panel in panels(&dashboard) {
        assert!(ids.insert(panel["id"].as_u64()), "an id twice: {panel}");
        assert!(panel["title"].is_string(), "{panel}");
        assert!(panel["description"].is_string(), "{}", panel["title"]);
        assert!(
            panel["fieldConfig"]["defaults"]["unit"].is_string(),
            "{}",
            panel["title"]
        );
        assert!(
            !panel["targets"].as_array().unwrap().is_empty(),
            "{}",
            panel["title"]
        );
    }
    assert!(ids.len() > 20, "has the form changed?");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prometheus_that_scrapes_pods_has_data_for_every_query_of_the_dashboard() {
    let redis = tokio::task::spawn_blocking(|| RedisServer::start().unwrap())
        .await
        .unwrap();
    let source = source::start().await.unwrap();
    let ports: Vec<_> = (0..PODS).map(|_| free_port()).collect();
    let start = |(index, &port)| start_pod(index, &redis, &source, port);
    let _pods: Vec<_> = ports.iter().enumerate().map(start).collect();
    let prometheus = Prometheus::start(&ports);
    let mut wanted = queries(&dashboard());
    assert!(wanted.len() > 40, "has the form changed?");
    let mut named = Vec::new();
    for variable in dashboard()["templating"]["list"].as_array().unwrap() {
        if let Some(query) = variable["query"]["query"].as_str() {
            let (metric, _) = query
                .trim_start_matches("label_values(")
                .rsplit_once(", ")
                .unwrap();
            named.push((query.to_owned(), metric.replace("$cache", ".*")));
        }
    }
    assert_eq!(named.len(), 2);
    wanted.extend(named);
    let waiting = tokio::task::spawn_blocking(move || {
        let began = Instant::now();
        while !wanted.is_empty() {
            wanted.retain(|(_, query)| !prometheus.has_data(query));
            assert!(began.elapsed() < PATIENCE, "no data for {wanted:#?}");
            std::thread::sleep(Duration::from_millis(100));
        }
        let bad = "sum(rate(tidings_no_such_thing_total[10s]))";
        assert!(!prometheus.has_data(bad), "what is not there has no data");
    });
    waiting.await.unwrap();
}
