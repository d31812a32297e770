//! Commands that one caller must not send on a connection that everybody shares.

use super::args::Words;

/// Waits for others on the server, and everything behind it waits too: reads, polls, invalidations.
const BLOCKING: &[&str] = &[
    "BLMOVE",
    "BLMPOP",
    "BLPOP",
    "BRPOP",
    "BRPOPLPUSH",
    "BZMPOP",
    "BZPOPMAX",
    "BZPOPMIN",
    "WAIT",
    "WAITAOF",
];
/// Changes what the connection is, or what answers come on it, for all who use it.
const STATEFUL: &[&str] = &[
    "ASKING",
    "AUTH",
    "DISCARD",
    "EXEC",
    "HELLO",
    "MONITOR",
    "MULTI",
    "PSUBSCRIBE",
    "PSYNC",
    "PUNSUBSCRIBE",
    "QUIT",
    "READONLY",
    "READWRITE",
    "REPLCONF",
    "RESET",
    "SELECT",
    "SSUBSCRIBE",
    "SUBSCRIBE",
    "SUNSUBSCRIBE",
    "SYNC",
    "UNSUBSCRIBE",
    "UNWATCH",
    "WATCH",
];
/// As [`STATEFUL`], of commands whose others do no harm.
const STATEFUL_PARTS: &[[&str; 2]] = &[
    ["CLIENT", "CACHING"],
    ["CLIENT", "REPLY"],
    ["CLIENT", "TRACKING"],
    ["SCRIPT", "DEBUG"],
];

/// Why a command is not sent; `None` if it may be.
pub(super) fn why(words: &Words) -> Option<&'static str> {
    let mut words = words.iter();
    let Some(command) = words.next() else {
        return Some("there is no command");
    };
    let is = |word: &[u8], name: &str| word.eq_ignore_ascii_case(name.as_bytes());
    let of = |names: &[&str]| names.iter().any(|name| is(command, name));
    if of(BLOCKING) {
        return Some("it would hold up everybody on the shared connection");
    }
    if of(STATEFUL) {
        return Some("it would change the shared connection for everybody");
    }
    if of(&["XREAD", "XREADGROUP"]) {
        let mut options = words.take_while(|word| !is(word, "STREAMS"));
        return options
            .any(|word| is(word, "BLOCK"))
            .then_some("it would hold up everybody on the shared connection");
    }
    let part = words.next().unwrap_or_default();
    STATEFUL_PARTS
        .iter()
        .any(|[whole, name]| is(command, whole) && is(part, name))
        .then_some("it would change the shared connection for everybody")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> bool {
        let mut words = Words::default();
        line.split_whitespace()
            .for_each(|word| words.push(word.as_bytes()));
        why(&words).is_some()
    }

    #[test]
    fn what_would_harm_the_shared_connection_is_refused_and_nothing_else() {
        for harm in [
            "",
            "blpop q 0",
            "MULTI",
            "SUBSCRIBE c",
            "SELECT 1",
            "XREAD COUNT 1 block 0 STREAMS s $",
            "XREADGROUP GROUP g c BLOCK 0 STREAMS s >",
            "CLIENT REPLY OFF",
            "script debug yes",
        ] {
            assert!(refused(harm), "{harm}");
        }
        for fine in [
            "GET BLPOP",
            "LPOP q",
            "XREAD COUNT 1 STREAMS block 0",
            "CLIENT ID",
            "SCRIPT LOAD x",
            "PUBLISH c m",
            "EVAL return 0",
        ] {
            assert!(!refused(fine), "{fine}");
        }
    }
}
