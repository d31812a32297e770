//! The clock that liveness is judged by.
//!
//! The coherence rules need a clock that keeps running while the process is stopped and that can be
//! read on every local hit. A ticker thread that publishes the time cannot serve: it is stopped with
//! the process, readers resume before it, and see an old time (hole H10 of the protocol). So each read
//! asks the kernel's coarse monotonic clock, which costs about 3 ns and is at most [`Clock::slack`] behind.

use std::fmt;
use std::ops::Add;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A point in local monotonic time, in milliseconds since an arbitrary origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// A point in time that is never reached.
    pub const NEVER: Self = Self(u64::MAX);

    /// The time that passed from `earlier` to `self`, zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Millis {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(millis(rhs)))
    }
}

/// Whole milliseconds of a duration, saturating.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Where the local time comes from: the kernel, or a test.
#[derive(Clone, Default)]
pub struct Clock(Source);

#[derive(Clone, Default)]
enum Source {
    #[default]
    Kernel,
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// A clock that stands still until [`advance`](Self::advance) moves it.
    #[must_use]
    pub fn manual(start: Millis) -> Self {
        Self(Source::Manual(Arc::new(AtomicU64::new(start.0))))
    }

    /// The current local time.
    #[inline]
    #[must_use]
    pub fn now(&self) -> Millis {
        match &self.0 {
            Source::Kernel => kernel_now(),
            Source::Manual(at) => Millis(at.load(Ordering::SeqCst)),
        }
    }

    /// How far [`now`](Self::now) may lag behind the true time: two ticks of the kernel, 8 ms on most
    /// Linux systems. Part of the staleness bound.
    #[must_use]
    pub fn slack(&self) -> Duration {
        match &self.0 {
            Source::Kernel => kernel_slack(),
            Source::Manual(_) => Duration::ZERO,
        }
    }

    /// Moves a manual clock forward; the kernel's clock is not ours to move and ignores it.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(at) = &self.0 {
            at.fetch_add(millis(by), Ordering::SeqCst);
        }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Kernel => f.write_str("Clock::Kernel"),
            Source::Manual(at) => write!(f, "Clock::Manual({})", at.load(Ordering::SeqCst)),
        }
    }
}

#[cfg(target_os = "linux")]
#[inline]
fn kernel_now() -> Millis {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    Millis(at.tv_sec.unsigned_abs() * 1000 + at.tv_nsec.unsigned_abs() / 1_000_000)
}

/// Two ticks, not one: the processor that keeps the time may go to sleep, and the next that takes over has
/// its tick up to a whole one later.
#[cfg(target_os = "linux")]
fn kernel_slack() -> Duration {
    let tick = rustix::time::clock_getres(rustix::time::ClockId::MonotonicCoarse);
    let secs = Duration::from_secs(tick.tv_sec.unsigned_abs());
    2 * (secs + Duration::from_nanos(tick.tv_nsec.unsigned_abs()))
}

/// Whole milliseconds are counted, so that much may be missing.
#[cfg(not(target_os = "linux"))]
fn kernel_slack() -> Duration {
    Duration::from_millis(1)
}

#[cfg(not(target_os = "linux"))]
fn kernel_now() -> Millis {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Millis(at.tv_sec as u64 * 1000 + at.tv_nsec as u64 / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manual_clock_moves_only_when_told() {
        let clock = Clock::manual(Millis(5));
        assert_eq!(clock.now(), Millis(5));
        clock.clone().advance(Duration::from_millis(7));
        assert_eq!(clock.now(), Millis(12));
    }

    #[test]
    fn kernel_clock_lags_the_precise_one_by_no_more_than_the_stated_slack() {
        let clock = Clock::default();
        let slack = clock.slack();
        assert!(
            slack > Duration::ZERO && slack <= Duration::from_millis(20),
            "{slack:?}"
        );
        let lags = |_: &i32| {
            let precise = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            let precise = Duration::new(precise.tv_sec.unsigned_abs(), 0)
                + Duration::from_nanos(precise.tv_nsec.unsigned_abs());
            // Whole milliseconds are counted: up to one more is cut off.
            let coarse = Duration::from_millis(clock.now().0 + 1);
            coarse + slack < precise
        };
        // A host that takes the processor away from the guest's timer delays the clock by as long.
        // Such a moment outlasts thousands of looks in a row, so they are spread.
        let spread = |_: &i32| std::thread::sleep(Duration::from_millis(2));
        let late = (0..100).inspect(spread).filter(lags).count();
        assert!(late < 50, "{late} of 100");
    }
}
