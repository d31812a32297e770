//! Whether something that is looked at again and again grows.

use std::fmt;

/// What a median may grow by, beside what the figure itself allows.
const FACTOR: f64 = 1.25;

/// Figures over time, of which the second quarter is compared with the last: the first is for warming
/// up.
#[derive(Debug)]
pub(crate) struct Trend {
    of: String,
    before: f64,
    after: f64,
    allowed: f64,
}

impl Trend {
    /// `slack` is what the figure may differ by for reasons of the moment.
    pub(crate) fn new(of: String, figures: &[u64], slack: f64) -> Self {
        let quarter = figures.len() / 4;
        let before = median(&figures[quarter..2 * quarter]);
        let after = median(&figures[figures.len() - quarter..]);
        Self {
            of,
            before,
            after,
            allowed: before * FACTOR + slack,
        }
    }

    pub(crate) fn grows(&self) -> bool {
        self.after > self.allowed
    }
}

impl fmt::Display for Trend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            of, before, after, ..
        } = self;
        write!(f, "{of}: {before} → {after}")
    }
}

fn median(figures: &[u64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable();
    let middle = sorted.get(sorted.len() / 2).copied();
    middle.expect("long enough for a quarter") as f64
}

#[test]
fn what_grows_all_the_time_is_found_and_what_only_moves_is_not() {
    let trend = |figure: fn(u64) -> u64| {
        let figures: Vec<u64> = (0..100).map(figure).collect();
        Trend::new("figure".to_owned(), &figures, 8.0)
    };
    assert!(trend(|at| 100 + at).grows());
    assert!(!trend(|at| 100 + at % 10).grows());
    assert!(!trend(|at| 100 + at.min(25)).grows(), "warming up");
    assert!(trend(|at| 10 + at / 2).grows(), "a connection at a time");
}
