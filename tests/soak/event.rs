//! What a pod did, a line each, appended before it goes on: a pod that is killed takes nothing along.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::str::FromStr;
use std::sync::Mutex;
use tidings::Origin;

/// Nanoseconds of the clock that all processes of a machine share; the one of `Instant`.
pub(crate) fn now() -> u64 {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    at.tv_sec.unsigned_abs() * 1_000_000_000 + at.tv_nsec.unsigned_abs()
}

/// What happened; times are those of [`now`].
#[derive(Debug)]
pub(crate) enum Event {
    /// A read gave a value. One of a list says neither where it was nor how old it may be.
    Read {
        key: u64,
        start: u64,
        took: u64,
        version: u64,
        served: Option<(Origin, u64)>,
    },
    /// A version was committed at the source, and will be invalidated by this tag.
    Committed {
        call: u64,
        key: u64,
        version: u64,
        tag: String,
    },
    /// This tag, which no other call has, will be invalidated.
    Marked { call: u64, tag: String },
    /// The call that invalidates returned, acknowledged or pending.
    Returned { call: u64, at: u64 },
    /// It was acknowledged.
    Acknowledged { call: u64, at: u64, stamp: String },
    /// A call failed that should not.
    Failed { what: String },
}

fn letter(origin: Origin) -> char {
    match origin {
        Origin::Local => 'l',
        Origin::Store => 's',
        Origin::Loader => 'o',
    }
}

fn origin(letter: &str) -> Option<Origin> {
    let all = [Origin::Local, Origin::Store, Origin::Loader];
    all.into_iter()
        .find(|&origin| letter.chars().eq([self::letter(origin)]))
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read {
                key,
                start,
                took,
                version,
                served,
            } => {
                write!(f, "R {key} {start} {took} {version}")?;
                match served {
                    Some((origin, bound)) => write!(f, " {} {bound}", letter(*origin)),
                    None => Ok(()),
                }
            }
            Self::Committed {
                call,
                key,
                version,
                tag,
            } => write!(f, "C {call} {key} {version} {tag}"),
            Self::Marked { call, tag } => write!(f, "M {call} {tag}"),
            Self::Returned { call, at } => write!(f, "T {call} {at}"),
            Self::Acknowledged { call, at, stamp } => write!(f, "A {call} {at} {stamp}"),
            Self::Failed { what } => write!(f, "F {}", what.replace('\n', " ")),
        }
    }
}

impl FromStr for Event {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split(' ');
        let kind = words.next().unwrap_or_default();
        let rest: Vec<_> = words.collect();
        let number = |at: usize| {
            let word = rest.get(at).and_then(|word| word.parse::<u64>().ok());
            word.ok_or_else(|| format!("no number in {line:?}"))
        };
        let text = |at: usize| {
            let word = rest.get(at).map(|&word| word.to_owned());
            word.ok_or_else(|| format!("too short: {line:?}"))
        };
        Ok(match kind {
            "R" => Self::Read {
                key: number(0)?,
                start: number(1)?,
                took: number(2)?,
                version: number(3)?,
                served: match rest.get(4) {
                    Some(letter) => Some((origin(letter).ok_or("no origin")?, number(5)?)),
                    None => None,
                },
            },
            "C" => Self::Committed {
                call: number(0)?,
                key: number(1)?,
                version: number(2)?,
                tag: text(3)?,
            },
            "M" => Self::Marked {
                call: number(0)?,
                tag: text(1)?,
            },
            "T" => Self::Returned {
                call: number(0)?,
                at: number(1)?,
            },
            "A" => Self::Acknowledged {
                call: number(0)?,
                at: number(1)?,
                stamp: text(2)?,
            },
            "F" => Self::Failed {
                what: rest.join(" "),
            },
            _ => return Err(format!("not an event: {line:?}")),
        })
    }
}

/// The file of one pod.
#[derive(Debug)]
pub(crate) struct EventLog(Mutex<File>);

impl EventLog {
    pub(crate) fn create(path: &Path) -> Self {
        let file = OpenOptions::new().create_new(true).append(true).open(path);
        Self(Mutex::new(file.unwrap()))
    }

    /// Once this returned, the kernel has the line, whatever becomes of the process.
    pub(crate) fn add(&self, event: &Event) {
        let mut line = String::new();
        writeln!(line, "{event}").unwrap();
        self.0.lock().unwrap().write_all(line.as_bytes()).unwrap();
    }
}

/// What a pod wrote, up to the line that it was killed in.
pub(crate) fn events_of(path: &Path) -> Vec<Event> {
    let text = std::fs::read_to_string(path).unwrap();
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    text[..whole]
        .lines()
        .map(|line| line.parse().unwrap())
        .collect()
}

#[test]
fn an_event_is_read_as_it_was_written() {
    let events = [
        "R 7 100 20 3 s 1004000000",
        "R 7 100 20 3",
        "C 1 7 4 record:7",
        "M 2 mark:1-2",
        "T 1 300",
        "A 1 301 b.1.2",
        "F no answer",
    ];
    for text in events {
        assert_eq!(text.parse::<Event>().unwrap().to_string(), text);
    }
    assert!("R 7 100".parse::<Event>().is_err());
}
