//! The pods of a run, as processes: started, watched, stopped, killed and replaced.

use crate::event::now;
use crate::options::Options;
use crate::pod::{ANSWER, Orders, Sample};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// How long something that must happen may take.
const PATIENCE: Duration = Duration::from_secs(60);
const GLANCE: Duration = Duration::from_millis(50);
/// For how long all pods must have been whole without a break to count as healed.
pub(crate) const STEADY: Duration = Duration::from_secs(2);
/// The one that is killed now and then; the others live from the beginning to the end.
const MORTAL: usize = 2;

/// A pod in a process; killed on drop.
struct Pod {
    number: usize,
    process: Child,
    commands: ChildStdin,
    answers: mpsc::UnboundedReceiver<String>,
    samples: Arc<Mutex<Vec<Sample>>>,
}

impl Pod {
    fn start(orders: &Orders) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "pod", "--nocapture"]);
        command.envs(orders.env());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.kill_on_drop(true).spawn().unwrap();
        let commands = process.stdin.take().unwrap();
        let samples = Arc::default();
        let (told, answers) = mpsc::unbounded_channel();
        let lines = process.stdout.take().unwrap();
        tokio::spawn(listen(lines, Arc::clone(&samples), told));
        Self {
            number: orders.number,
            process,
            commands,
            answers,
            samples,
        }
    }

    async fn tell(&mut self, command: &str) {
        let line = format!("{command}\n");
        self.commands.write_all(line.as_bytes()).await.unwrap();
    }

    async fn answer(&mut self) -> String {
        let answer = timeout(PATIENCE, self.answers.recv()).await;
        let answer = answer.unwrap_or_else(|_| panic!("no answer: {}", self.state()));
        answer.unwrap_or_else(|| panic!("pod {} ended by itself", self.number))
    }

    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.process.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// Since when the pod is whole; `None` if it is not, or says nothing.
    fn whole_since(&self) -> Option<u64> {
        let samples = self.samples.lock().unwrap();
        let whole = samples.iter().rev().take_while(|sample| sample.is_whole());
        let newest = samples.last()?.at;
        let speaks = now() - newest < STEADY.as_nanos() as u64;
        speaks.then(|| whole.last().map(|sample| sample.at))?
    }

    fn state(&self) -> String {
        let samples = self.samples.lock().unwrap();
        format!("pod {}: {:?}", self.number, samples.last())
    }
}

async fn listen(
    lines: ChildStdout,
    samples: Arc<Mutex<Vec<Sample>>>,
    answers: mpsc::UnboundedSender<String>,
) {
    let mut lines = BufReader::new(lines).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        // The test harness may have begun the line.
        let Some((_, answer)) = line.split_once(ANSWER) else {
            continue;
        };
        match answer.strip_prefix("sample ") {
            Some(sample) => samples.lock().unwrap().push(sample.parse().unwrap()),
            // However it ends, there is nobody left to tell.
            None => drop(answers.send(answer.to_owned())),
        }
    }
}

pub(crate) struct Crew {
    name: &'static str,
    store: String,
    source: String,
    folder: PathBuf,
    pods: Vec<Pod>,
    /// How many pods there ever were.
    born: usize,
    /// The number of the first one's options; the others' go on from it.
    options: usize,
    pub(crate) killed: BTreeSet<usize>,
}

impl Crew {
    /// Starts `pods` pods, and waits until they are at work. The first one's options have the number
    /// `options`.
    pub(crate) async fn start(
        name: &'static str,
        store: &str,
        source: &str,
        folder: PathBuf,
        pods: usize,
        options: usize,
    ) -> Self {
        let mut crew = Self {
            name,
            store: store.to_owned(),
            source: source.to_owned(),
            folder,
            pods: Vec::new(),
            born: 0,
            options,
            killed: BTreeSet::new(),
        };
        for _ in 0..pods {
            let pod = crew.another();
            crew.pods.push(pod);
        }
        crew.whole_since(now()).await;
        crew
    }

    fn another(&mut self) -> Pod {
        let number = self.born;
        self.born += 1;
        println!("{}: pod {number}: {}", self.name, self.options(number));
        Pod::start(&Orders {
            number,
            options: self.options + number,
            store: self.store.clone(),
            source: self.source.clone(),
            history: self.history(number),
        })
    }

    pub(crate) fn options(&self, number: usize) -> Options {
        Options::number(self.options + number)
    }

    pub(crate) fn history(&self, number: usize) -> PathBuf {
        self.folder.join(format!("pod-{number}"))
    }

    /// How many pods there ever were; they are numbered from 0.
    pub(crate) fn born(&self) -> usize {
        self.born
    }

    /// Waits until all pods are fully at work, and stay it for a while; gives how long after `since` that
    /// began.
    pub(crate) async fn whole_since(&self, since: u64) -> Duration {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let whole: Option<Vec<_>> = self.pods.iter().map(Pod::whole_since).collect();
            let began = whole.and_then(|whole| whole.into_iter().max());
            if let Some(began) = began.map(|began| began.max(since))
                && now() - began >= STEADY.as_nanos() as u64
            {
                return Duration::from_nanos(began - since);
            }
            let states: Vec<_> = self.pods.iter().map(Pod::state).collect();
            assert!(Instant::now() < deadline, "not whole again: {states:#?}");
            sleep(GLANCE).await;
        }
    }

    /// One pod is stopped for a while, or killed and replaced: another thing each turn.
    pub(crate) async fn trouble(&mut self, turn: usize) -> &'static str {
        let stop = async |pod: &Pod, millis| {
            pod.signal(Signal::STOP);
            sleep(Duration::from_millis(millis)).await;
            pod.signal(Signal::CONT);
        };
        match turn % 3 {
            0 => stop(&self.pods[0], 2500).await,
            1 => {
                let replacement = self.another();
                let mut killed = std::mem::replace(&mut self.pods[MORTAL], replacement);
                killed.process.kill().await.unwrap();
                self.killed.insert(killed.number);
                return "a pod was killed and replaced";
            }
            _ => stop(&self.pods[1], 700).await,
        }
        "a pod was stopped for a while"
    }

    /// Ends all writes, and waits until they are acknowledged.
    pub(crate) async fn quiet(&mut self) {
        for pod in &mut self.pods {
            pod.tell("quiet").await;
        }
        for pod in &mut self.pods {
            assert_eq!(pod.answer().await, "quiet");
        }
    }

    /// Has each pod read everything once more and end; none may leave a task behind.
    pub(crate) async fn end(&mut self) {
        for pod in &mut self.pods {
            pod.tell("end").await;
        }
        for pod in &mut self.pods {
            assert_eq!(pod.answer().await, "ended 0", "tasks are left");
            let ended = timeout(PATIENCE, pod.process.wait()).await;
            assert!(ended.expect("it ends").unwrap().success());
        }
    }

    /// Pods that live since the beginning, and what they were like.
    pub(crate) fn survivors(&self) -> Vec<(usize, Vec<Sample>)> {
        let old = self.pods.iter().enumerate().filter(|(at, _)| *at != MORTAL);
        old.map(|(_, pod)| (pod.number, pod.samples.lock().unwrap().clone()))
            .collect()
    }
}
