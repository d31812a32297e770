//! What pods may differ in: no two that work side by side have the same options.

use std::fmt;
use std::time::Duration;
use tidings::store::{Acknowledge, Publish, Redis};

/// The options of one pod. Each number has others than the two before it, and all come in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    publish: Publish,
    pub(crate) acknowledge: Acknowledge,
    pub(crate) reads_replicas: bool,
}

impl Options {
    pub(crate) fn number(number: usize) -> Self {
        let pace = Duration::from_millis(20);
        Self {
            publish: match number % 3 {
                0 => Publish::Immediate,
                1 => Publish::Adaptive { within: pace },
                _ => Publish::Relay { every: pace },
            },
            acknowledge: match number % 2 {
                0 => Acknowledge::Primary,
                _ => Acknowledge::Replicated(1),
            },
            // In step with neither.
            reads_replicas: matches!(number % 5, 1 | 4),
        }
    }

    pub(crate) fn store(self, url: &str) -> Redis {
        let store = Redis::new(url).unwrap();
        let store = store.publish(self.publish).acknowledge(self.acknowledge);
        match self.reads_replicas {
            true => store.read_from_replicas(),
            false => store,
        }
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {:?}", self.publish, self.acknowledge)?;
        match self.reads_replicas {
            true => f.write_str(", reads from replicas"),
            false => Ok(()),
        }
    }
}
