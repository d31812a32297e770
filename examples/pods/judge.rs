//! Collects what the pods report, and says in the end whether a read was staler than promised.

use super::Result;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Default)]
struct Pod {
    /// By record and version: when the newest read that gave it was asked.
    newest: BTreeMap<(u64, u64), u64>,
    origins: [u64; 3],
    lags_us: Vec<u64>,
    live_lanes: String,
}

/// What is known of all pods.
pub(crate) struct Judge {
    bound_us: u64,
    pods: Vec<Pod>,
    /// By record and version: when its invalidation was acknowledged.
    acked: BTreeMap<(u64, u64), u64>,
    printed: usize,
}

impl Judge {
    pub(crate) fn new(pods: usize) -> Self {
        Self {
            bound_us: 0,
            pods: (0..pods).map(|_| Pod::default()).collect(),
            acked: BTreeMap::new(),
            printed: 0,
        }
    }

    /// Takes one line of a pod's report, or a note for whoever watches.
    pub(crate) fn take(&mut self, pod: usize, line: &str) -> Result<()> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        if verb == "note" {
            println!("--- {rest}");
            self.printed = 0;
            return Ok(());
        }
        let numbers: Vec<u64> = rest
            .split(' ')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map_err(|_| format!("pod {pod} said {line:?}"))?;
        let pod = &mut self.pods[pod];
        match (verb, &*numbers) {
            ("bound", &[bound]) => self.bound_us = self.bound_us.max(bound),
            ("read", &[key, version, asked]) => {
                pod.newest.insert((key, version), asked);
            }
            ("lag", &[lag]) => pod.lags_us.push(lag),
            ("origins", &[local, store, loader, live]) => {
                for (sum, more) in pod.origins.iter_mut().zip([local, store, loader]) {
                    *sum += more;
                }
                pod.live_lanes = live.to_string();
            }
            ("acked", &[key, version, at]) => {
                self.acked.insert((key, version), at);
            }
            _ => return Err(format!("not a report: {line:?}").into()),
        }
        Ok(())
    }

    /// Prints how the pods are doing: over the last table on a terminal, below it elsewhere.
    pub(crate) fn print_table(&mut self, live: bool) {
        if live && self.printed > 0 {
            print!("\x1b[{}A\x1b[J", self.printed);
        }
        self.printed = self.pods.len() + 1;
        println!("pod  from memory  from Redis  loads  live lanes  commit→seen p50     p99");
        for (index, pod) in self.pods.iter_mut().enumerate() {
            let [local, store, loader] = pod.origins;
            let (p50, p99) = (
                quantile(&mut pod.lags_us, 50),
                quantile(&mut pod.lags_us, 99),
            );
            println!(
                "{index:>3}  {local:>11}  {store:>10}  {loader:>5}  {:>10}  {:>12.1} ms  {:>6.1} ms",
                pod.live_lanes,
                p50 as f64 / 1e3,
                p99 as f64 / 1e3,
            );
        }
    }

    /// How long after the acknowledgement of its invalidation each pod last asked for, and got, an old value.
    fn staleness_us(&self, pod: &Pod) -> u64 {
        let staleness = |(&(key, version), &asked)| {
            // Only the first change after `version` that was acknowledged counts.
            let newer = self.acked.range((key, version + 1)..(key + 1, 0));
            let acked = newer.map(|(_, &at)| at).min()?;
            Some(u64::saturating_sub(asked, acked))
        };
        pod.newest.iter().filter_map(staleness).max().unwrap_or(0)
    }

    /// Prints what was found.
    pub(crate) fn verdict(mut self) -> ExitCode {
        self.printed = 0;
        self.print_table(false);
        let staleness: Vec<_> = self.pods.iter().map(|pod| self.staleness_us(pod)).collect();
        let worst = staleness.iter().copied().max().unwrap_or(0);
        let own = staleness.first().copied().unwrap_or(0);
        let shown = |us| Duration::from_micros(us);
        println!("\n{} changes were acknowledged.", self.acked.len());
        println!(
            "The stalest read of any pod came {:?} after the acknowledgement; the bound is {:?}.",
            shown(worst),
            shown(self.bound_us),
        );
        println!(
            "The stalest read of the pod that made the changes: {:?}, must be 0.",
            shown(own)
        );
        if self.acked.is_empty() || worst > self.bound_us || own > 0 {
            println!("Verdict: BROKEN PROMISE");
            return ExitCode::FAILURE;
        }
        println!("Verdict: coherent");
        ExitCode::SUCCESS
    }
}

fn quantile(values: &mut [u64], percent: usize) -> u64 {
    values.sort_unstable();
    let at = values.len() * percent / 100;
    values
        .get(at.min(values.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0)
}
