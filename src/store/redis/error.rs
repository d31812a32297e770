//! What the server or the connection says, as an error of the port.
//!
//! The texts of the server are passed on only where they cannot hold arguments: an argument may be a
//! value or part of one.

use crate::error::{StoreError, StoreErrorKind};
use ::redis::{ErrorKind, RedisError, ServerError};
#[cfg(feature = "tls")]
use std::{error::Error, io, sync::Arc};

/// The longest first word of an error that is taken for its code.
const LONGEST_CODE: usize = 32;

/// An error of the connection, or of a command that it sent by itself.
pub(super) fn of_client(operation: &'static str, error: &RedisError) -> StoreError {
    if let Some(code) = error.code() {
        return of_code(operation, code, error.detail().unwrap_or_default());
    }
    let (kind, detail) = match error.kind() {
        ErrorKind::AuthenticationFailed => (StoreErrorKind::Auth, None),
        ErrorKind::Io if error.is_timeout() => (StoreErrorKind::Timeout, None),
        ErrorKind::Io if is_of_tls(error) => (StoreErrorKind::Tls, Some(error.to_string())),
        ErrorKind::Io => (StoreErrorKind::Unavailable, Some(error.to_string())),
        ErrorKind::InvalidClientConfig => (StoreErrorKind::Config, None),
        _ => (StoreErrorKind::Protocol, None),
    };
    with_detail(StoreError::new(kind, operation), detail)
}

/// An error in opening a connection to the server that an address names, where TLS may be spoken on one
/// side alone: neither understands the other, and the server says nothing of it.
pub(super) fn of_opening(error: &RedisError, over_tls: bool) -> StoreError {
    let found = of_client("connect", error);
    let is_cut_off = error.is_connection_dropped() && !error.is_connection_refusal();
    match found.kind() {
        StoreErrorKind::Timeout => of_silence(over_tls),
        StoreErrorKind::Unavailable if is_cut_off && !over_tls => found.with_detail(format!(
            "{error}; ports that speak TLS do that where the address is not rediss://"
        )),
        _ => found,
    }
}

/// The error of a server that does not answer who connects.
pub(super) fn of_silence(over_tls: bool) -> StoreError {
    let silence = StoreError::new(StoreErrorKind::Timeout, "connect");
    match over_tls {
        true => {
            silence.with_detail("ports that speak no TLS do that where the address is rediss://")
        }
        false => silence,
    }
}

/// Whether it is TLS that failed. The client library keeps what the network said behind a pointer.
#[cfg(feature = "tls")]
fn is_of_tls(error: &RedisError) -> bool {
    type Cause = Arc<dyn Error + Send + Sync>;
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<Cause>());
    let io = cause.and_then(|cause| cause.downcast_ref::<io::Error>());
    let inner = io.and_then(io::Error::get_ref);
    inner.is_some_and(|inner| inner.is::<rustls::Error>())
}

#[cfg(not(feature = "tls"))]
fn is_of_tls(_: &RedisError) -> bool {
    false
}

/// An error that the server answered with.
pub(super) fn of_server(operation: &'static str, error: &ServerError) -> StoreError {
    of_code(operation, error.code(), error.details().unwrap_or_default())
}

/// An error that a command of the user was answered with. Its text, and even its code, may be of the
/// user's making: the code is given if it looks like one and `repeats` no argument.
pub(super) fn of_command(
    operation: &'static str,
    command: &str,
    error: &ServerError,
    repeats: impl FnOnce(&str) -> bool,
) -> StoreError {
    let code = error.code();
    let kind = kind_of(code, error.details().unwrap_or_default());
    let in_code = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let shown = (1..=LONGEST_CODE).contains(&code.len()) && code.chars().all(in_code);
    let detail = match shown && !repeats(code) {
        true => format!("{command} answered {code}"),
        false => format!("{command} answered an error"),
    };
    StoreError::new(kind, operation).with_detail(detail)
}

fn of_code(operation: &'static str, code: &str, text: &str) -> StoreError {
    let kind = kind_of(code, text);
    let detail = if is_harmless(code, text) {
        format!("{code} {text}")
    } else {
        code.to_owned()
    };
    with_detail(StoreError::new(kind, operation), Some(detail))
}

fn with_detail(error: StoreError, detail: Option<String>) -> StoreError {
    match detail {
        Some(detail) => error.with_detail(detail),
        None => error,
    }
}

fn kind_of(code: &str, text: &str) -> StoreErrorKind {
    let says = |words: &str| text.contains(words);
    match code {
        "OOM" => StoreErrorKind::Full,
        "READONLY" | "MISCONF" | "NOREPLICAS" | "MASTERDOWN" => StoreErrorKind::ReadOnly,
        "NOPERM" => StoreErrorKind::Denied,
        "NOAUTH" | "WRONGPASS" => StoreErrorKind::Auth,
        // The last three: the slot is elsewhere, or about to be, for the next attempt or the next link.
        "LOADING" | "BUSY" | "TRYAGAIN" | "ASK" | "MOVED" => StoreErrorKind::Busy,
        "CLUSTERDOWN" => StoreErrorKind::Unavailable,
        "WRONGTYPE" => StoreErrorKind::WrongType,
        "CROSSSLOT" | "NOPROTO" => StoreErrorKind::Unsupported,
        "ERR" if says("max number of clients") => StoreErrorKind::Unavailable,
        "ERR" if says("DB index is out of range") => StoreErrorKind::Config,
        "ERR" if says("unknown command") || says("Unknown Redis command") => {
            StoreErrorKind::Unsupported
        }
        // How scripts report what the user may not do.
        "ERR" if says("can't run this command") || says("can't access at least one") => {
            StoreErrorKind::Denied
        }
        _ => StoreErrorKind::Protocol,
    }
}

fn is_harmless(code: &str, text: &str) -> bool {
    match code {
        "NOPERM" => text.contains("permissions to run"),
        "OOM" | "READONLY" | "MISCONF" | "NOREPLICAS" | "MASTERDOWN" | "NOAUTH" | "WRONGPASS"
        | "LOADING" | "BUSY" | "CLUSTERDOWN" => true,
        // Errors of our own scripts name a line and no data.
        _ => text.contains("@user_script") || text.contains("max number of clients"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::redis::{Value, parse_redis_value};

    fn of(line: &str) -> StoreError {
        match parse_redis_value(format!("-{line}\r\n").as_bytes()) {
            Ok(Value::ServerError(refused)) => of_server("read", &refused),
            other => panic!("{line} is no error: {other:?}"),
        }
    }

    #[test]
    fn answers_of_the_server_have_the_kind_that_tells_what_to_do() {
        use StoreErrorKind::{
            Auth, Busy, Config, Denied, Full, Protocol, ReadOnly, Unavailable, Unsupported,
            WrongType,
        };
        for (line, kind) in [
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                Full,
            ),
            (
                "READONLY You can't write against a read only replica.",
                ReadOnly,
            ),
            (
                "MISCONF Redis is configured to save RDB snapshots",
                ReadOnly,
            ),
            ("NOREPLICAS Not enough good replicas to write.", ReadOnly),
            (
                "NOPERM this user has no permissions to run the 'get' command",
                Denied,
            ),
            ("NOAUTH Authentication required.", Auth),
            ("WRONGPASS invalid username-password pair", Auth),
            ("LOADING Redis is loading the dataset in memory", Busy),
            ("BUSY Redis is busy running a script.", Busy),
            ("TRYAGAIN Multiple keys request during rehashing", Busy),
            ("CLUSTERDOWN The cluster is down", Unavailable),
            ("ERR max number of clients reached", Unavailable),
            ("ERR DB index is out of range", Config),
            (
                "ERR unknown command 'XADD', with args beginning with: ",
                Unsupported,
            ),
            ("MOVED 3999 127.0.0.1:6381", Busy),
            ("ASK 3999 127.0.0.1:6381", Busy),
            (
                "CROSSSLOT Keys in request don't hash to the same slot",
                Unsupported,
            ),
            ("WRONGTYPE Operation against a key", WrongType),
            ("ERR anything", Protocol),
            ("RUBBISH", Protocol),
        ] {
            assert_eq!(of(line).kind(), kind, "{line}");
        }
    }

    #[test]
    fn texts_that_may_hold_arguments_are_left_out() {
        let error = of("ERR unknown command 'GEET', with args beginning with: 'hunter2'");
        assert_eq!(
            error.to_string(),
            "store is of an unsupported kind in read: ERR"
        );
        let error = of("NOPERM No permissions to access the 'hunter2' key");
        assert!(!format!("{error:?}").contains("hunter2"), "{error}");
        let error = of("OOM command not allowed");
        assert!(
            error.to_string().ends_with("OOM command not allowed"),
            "{error}"
        );
    }

    #[test]
    fn broken_connections_and_rubbish_are_told_apart() {
        use std::io::{
            Error,
            ErrorKind::{BrokenPipe, TimedOut},
        };
        let kind = |error: RedisError| of_client("read", &error).kind();
        assert_eq!(
            kind(Error::from(BrokenPipe).into()),
            StoreErrorKind::Unavailable
        );
        assert_eq!(kind(Error::from(TimedOut).into()), StoreErrorKind::Timeout);
        let rubbish = parse_redis_value(b"HTTP/1.1 400 Bad Request\r\n").expect_err("rubbish");
        assert_eq!(kind(rubbish), StoreErrorKind::Protocol);
    }
}
