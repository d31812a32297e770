//! What can go wrong with a test server.

use std::io;
use std::path::PathBuf;

/// Why a [`RedisServer`](super::RedisServer) or [`PostgresServer`](super::PostgresServer) could not do what
/// it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The program could not be run; it is probably not installed.
    #[error("cannot run {}", program.display())]
    Run {
        /// What was to be run.
        program: PathBuf,
        /// Why it was not.
        source: io::Error,
    },
    /// The process ended, or did not answer in time.
    #[error("the server did not start: {reason}; end of its log:\n{log}")]
    Start {
        /// What was seen last.
        reason: String,
        /// The end of what it logged.
        log: String,
    },
    /// The server was killed and not started again.
    #[error("the server is not running")]
    NotRunning,
    /// The server refused a command.
    #[error("the server replied {0}")]
    Reply(String),
    /// A file, a signal or the connection failed.
    #[error("{doing} failed")]
    Io {
        /// What was under way.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// For `map_err`: names what was under way.
pub(crate) fn failed(doing: &'static str) -> impl FnOnce(io::Error) -> ServerError {
    move |source| ServerError::Io { doing, source }
}
