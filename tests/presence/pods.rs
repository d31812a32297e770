//! Pods as processes of their own, killed and stopped by signals.
//!
//! A pod is this very program, run again for the one test [`pod`] with its part in the environment. It
//! takes commands line by line, and answers in lines that begin with [`ANSWER`].

use crate::bed::{Account, PATIENCE};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tidings::Cache;
use tidings::presence::Presence;
use tidings::testing::RedisServer;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

const VARIABLE: &str = "TIDINGS_TEST_PRESENCE_POD";
const ANSWER: &str = "pod> ";
const TTL: Duration = Duration::from_secs(3);
const BEAT: Duration = Duration::from_secs(1);
const PODS: usize = 3;
const MEMBERS: usize = 200;

fn member(n: usize) -> String {
    format!("m{n:03}")
}

/// A quarter of a room's members is held by one pod each, and a quarter by all.
fn holds(pod: usize, member: usize) -> bool {
    member % 4 == pod || member % 4 == PODS
}

/// The members that go with a pod.
fn exclusive(pod: usize) -> impl Iterator<Item = String> {
    (0..MEMBERS)
        .filter(move |member| member % 4 == pod)
        .map(member)
}

/// The pod. As a test of its own, it does nothing.
#[test]
fn pod() {
    let Ok(part) = std::env::var(VARIABLE) else {
        return;
    };
    let [url, pod, rooms] = part.split(' ').collect::<Vec<_>>()[..] else {
        panic!("no part: {part}");
    };
    let (pod, rooms) = (pod.parse().unwrap(), rooms.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(serve(url, pod, rooms));
}

async fn serve(url: &str, pod: usize, rooms: usize) {
    let cache = Cache::builder("pods").store_url(url).build().await.unwrap();
    let names: Vec<_> = (0..MEMBERS)
        .filter(|&n| holds(pod, n))
        .map(member)
        .collect();
    let word = format!("held by {pod}");
    let (mut leases, mut accounts) = (Vec::new(), Vec::new());
    for n in 0..rooms {
        let room: Presence<String> = cache
            .presence(format!("room-{n}"))
            .ttl(TTL)
            .build()
            .unwrap();
        accounts.push(Account::of(&room));
        let members = names.iter().map(|name| (&**name, &word));
        leases.extend(room.join_many(members).await.unwrap());
    }
    println!("{ANSWER}ready");
    let mut commands = BufReader::new(tokio::io::stdin()).lines();
    while let Ok(Some(command)) = commands.next_line().await {
        for (n, account) in accounts.iter_mut().enumerate() {
            match &*command {
                "all" => {
                    let all = |account: &Account| account.members.len() == MEMBERS;
                    account
                        .until("all", |account| account.synced && all(account))
                        .await;
                    account.news();
                }
                // What has been told by now.
                "left" => {
                    while tokio::time::timeout(Duration::from_millis(1), account.take())
                        .await
                        .is_ok()
                    {}
                }
                _ => panic!("unknown command {command}"),
            }
            for told in account
                .news()
                .iter()
                .filter_map(|told| told.strip_prefix('-'))
            {
                println!("{ANSWER}{n} {told}");
            }
        }
        println!("{ANSWER}end");
    }
    drop(leases);
}

/// A pod in another process; killed on drop.
struct Pod {
    process: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Pod {
    async fn start(server: &RedisServer, pod: usize, rooms: usize) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "pods::pod", "--nocapture"]);
        command.env(VARIABLE, format!("{} {pod} {rooms}", server.url()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.kill_on_drop(true).spawn().unwrap();
        let commands = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut pod = Self {
            process,
            commands,
            answers,
        };
        assert_eq!(pod.answer().await, "ready");
        pod
    }

    async fn answer(&mut self) -> String {
        loop {
            let line = tokio::time::timeout(PATIENCE, self.answers.next_line()).await;
            let line = line
                .expect("an answer in time")
                .unwrap()
                .expect("the pod lives");
            // The test harness writes to the same line.
            if let Some((_, answer)) = line.split_once(ANSWER) {
                return answer.to_owned();
            }
        }
    }

    /// The lines of an answer.
    async fn ask(&mut self, command: &str) -> Vec<String> {
        self.commands
            .write_all(format!("{command}\n").as_bytes())
            .await
            .unwrap();
        let mut lines = Vec::new();
        loop {
            match self.answer().await {
                end if end == "end" => return lines,
                line => lines.push(line),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = self
            .process
            .id()
            .and_then(|pid| Pid::from_raw(pid.cast_signed()));
        kill_process(pid.unwrap(), signal).unwrap();
    }

    /// Asks who left until there are as many as expected.
    async fn until_left(&mut self, count: usize) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut left = Vec::new();
        while left.len() < count {
            assert!(
                Instant::now() < deadline,
                "{} of {count} have left",
                left.len()
            );
            left.extend(self.ask("left").await);
        }
        left
    }
}

fn evalshas(server: &RedisServer) -> u64 {
    let stats = server.cli(&["INFO", "commandstats"]).unwrap();
    let line = stats
        .lines()
        .find(|line| line.starts_with("cmdstat_evalsha:"));
    let calls = line.unwrap().split(['=', ',']).nth(1);
    calls.unwrap().parse().unwrap()
}

async fn start(server: &RedisServer, rooms: usize) -> Vec<Pod> {
    let mut pods = Vec::new();
    for pod in 0..PODS {
        pods.push(Pod::start(server, pod, rooms).await);
    }
    for pod in &mut pods {
        assert!(pod.ask("all").await.is_empty(), "nobody left");
    }
    pods
}

/// All that go with pod 0: room and member.
fn gone(rooms: usize) -> BTreeSet<String> {
    let gone = |room| exclusive(0).map(move |member| format!("{room} {member}"));
    (0..rooms).flat_map(gone).collect()
}

/// Who left, as a pod tells it. On a busy machine a pod may lose its connection meanwhile: then it finds
/// out by comparing, and cannot say why.
fn told(left: impl IntoIterator<Item = String>) -> BTreeSet<String> {
    let told = left.into_iter().map(|line| {
        let (who, reason) = line.rsplit_once(' ').unwrap();
        assert!(["Expired", "Missed"].contains(&reason), "{line}");
        who.to_owned()
    });
    told.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_killed_is_missed_once_by_everybody() {
    const ROOMS: usize = 30;
    let server = RedisServer::start().unwrap();
    let mut pods = start(&server, ROOMS).await;

    // One heartbeat for each pod and interval, whatever the number of rooms and members. A pod's
    // rooms have fallen into step by then.
    tokio::time::sleep(2 * BEAT).await;
    let (before, began) = (evalshas(&server), Instant::now());
    tokio::time::sleep(6 * BEAT).await;
    let (beats, took) = (evalshas(&server) - before, began.elapsed());
    let most = PODS as f64 * (took.as_secs_f64() / (0.9 * BEAT.as_secs_f64()) + 1.0);
    assert!(beats as f64 <= most, "{beats} in {took:?}");
    assert!(beats > 0);

    pods[0].signal(Signal::KILL);
    for pod in &mut pods[1..] {
        let expected = gone(ROOMS);
        let mut left = pod.until_left(expected.len()).await;
        tokio::time::sleep(BEAT).await;
        left.extend(pod.ask("left").await);
        assert_eq!(left.len(), expected.len(), "each once");
        assert_eq!(told(left), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_was_stopped_for_longer_than_its_ttl_brings_its_members_again() {
    const ROOMS: usize = 3;
    let server = RedisServer::start().unwrap();
    let mut pods = start(&server, ROOMS).await;
    pods[0].signal(Signal::STOP);
    for pod in &mut pods[1..] {
        let left = pod.until_left(gone(ROOMS).len()).await;
        assert_eq!(told(left), gone(ROOMS));
    }
    pods[0].signal(Signal::CONT);
    for pod in pods.iter_mut().skip(1) {
        assert!(pod.ask("all").await.is_empty(), "they are all there again");
    }
    // Of itself it may have been told either: that it went and came, or nothing.
    pods[0].ask("left").await;
    pods[0].ask("all").await;
    for pod in &mut pods {
        assert!(pod.ask("left").await.is_empty(), "nobody left");
    }
}
