//! The example `live_board`, in real browsers on two pods that share a real Redis.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

#[path = "../examples/live_board/board.rs"]
mod board;
#[path = "../examples/live_board/page.rs"]
mod page;
#[path = "../examples/live_board/pod.rs"]
mod pod;

use fantoccini::{Client, ClientBuilder, Locator};
use pod::Pod;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tidings::Cache;
use tidings::testing::RedisServer;
use tokio::net::TcpListener;
use tokio::time::sleep;

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// How long the page may take to show what must show.
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts browsers; ends with the test, and they with it.
struct Driver {
    process: Child,
    port: u16,
}

impl Driver {
    async fn start() -> Self {
        // The port is free now; should somebody take it, the browser does not start and the test says so.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let process = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver starts: `sh tests/run.sh` installs it");
        Self { process, port }
    }

    async fn browser(&self) -> Client {
        let options = serde_json::json!({
            "goog:chromeOptions": { "args": [
                "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--window-size=900,700",
            ] }
        });
        let capabilities = options.as_object().unwrap().clone();
        let (began, url) = (Instant::now(), format!("http://127.0.0.1:{}", self.port));
        loop {
            let mut builder =
                ClientBuilder::new(hyper_util::client::legacy::connect::HttpConnector::new());
            match builder
                .capabilities(capabilities.clone())
                .connect(&url)
                .await
            {
                Ok(client) => return client,
                Err(error) if began.elapsed() > PATIENCE => panic!("no browser: {error}"),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // It takes its browsers along.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn start_pod(redis: &RedisServer) -> String {
    let cache = Cache::builder("live-board").store_url(redis.url());
    let pod = Pod::new(cache.build().await.unwrap()).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, pod.router()).await });
    format!("http://{address}/")
}

/// Waits until a part of the page shows `text`, or shows it no more.
async fn shows(browser: &Client, part: &str, text: &str, wanted: bool) {
    let began = Instant::now();
    loop {
        // Between two pages there is no such part, or it goes while it is read: look again.
        let shown = match browser.find(Locator::Css(part)).await {
            Ok(element) => element.text().await.ok(),
            Err(_) => None,
        };
        if shown
            .as_ref()
            .is_some_and(|shown| shown.contains(text) == wanted)
        {
            return;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "{text:?} is {wanted} in {part}: {shown:?}"
        );
        sleep(Duration::from_millis(20)).await;
    }
}

/// Keeps a picture of the page beside what was built.
async fn picture(browser: &Client, name: &str) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("live_board");
    std::fs::create_dir_all(&folder).unwrap();
    let file: PathBuf = folder.join(name);
    std::fs::write(&file, browser.screenshot().await.unwrap()).unwrap();
    println!("kept {}", file.display());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_follows_what_happens_on_another_pod_without_reload() {
    let redis = RedisServer::start().unwrap();
    let (one, two) = (start_pod(&redis).await, start_pod(&redis).await);
    let driver = Driver::start().await;
    let (ada, other) = (driver.browser().await, driver.browser().await);

    other.goto(&two).await.unwrap();
    shows(&other, "#state", "Live", true).await;
    shows(&other, "#board", "Order tea", true).await;
    shows(&other, "#people", "nobody", true).await;
    // Would be gone after a reload.
    other
        .execute("window.loadedOnce = true", vec![])
        .await
        .unwrap();

    ada.goto(&one).await.unwrap();
    let name = ada.find(Locator::Id("name")).await.unwrap();
    name.send_keys("Ada <3").await.unwrap();
    ada.find(Locator::Css("#here ~ form button"))
        .await
        .unwrap()
        .click()
        .await
        .unwrap();
    shows(&ada, "#people", "Ada <3", true).await;
    shows(&other, "#people", "Ada <3", true).await;

    let id = ada.find(Locator::Id("id")).await.unwrap();
    id.clear().await.unwrap();
    id.send_keys("2").await.unwrap();
    let text = ada.find(Locator::Id("text")).await.unwrap();
    text.send_keys("Order coffee & cake").await.unwrap();
    ada.find(Locator::Css("#change button"))
        .await
        .unwrap()
        .click()
        .await
        .unwrap();
    shows(&ada, "#board", "Order coffee & cake", true).await;
    shows(&other, "#board", "Order coffee & cake by Ada <3", true).await;
    shows(&other, "#board", "Order tea", false).await;
    picture(&other, "renamed.png").await;

    ada.find(Locator::Id("leave"))
        .await
        .unwrap()
        .click()
        .await
        .unwrap();
    shows(&other, "#people", "Ada <3", false).await;
    shows(&other, "#people", "nobody", true).await;
    picture(&other, "left.png").await;

    let same = other.execute("return window.loadedOnce === true", vec![]);
    assert_eq!(same.await.unwrap(), true, "the page was never loaded again");
    ada.close().await.unwrap();
    other.close().await.unwrap();
}
