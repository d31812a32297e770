//! Commands of the user on the connection of the cache.

use super::error;
use super::link::RedisLink;
use crate::store::{Link, StoreResult};
use ::redis::{Arg, Cmd, ServerErrorKind, Value};
use std::any::Any;

impl RedisLink {
    /// The link behind the port, if it is one to Redis.
    pub(crate) fn of(link: &dyn Link) -> Option<&Self> {
        let link: &dyn Any = link;
        link.downcast_ref()
    }

    /// Sends one command of the user and gives what the server answered, errors inside of it included.
    pub(crate) async fn command(&self, operation: &'static str, cmd: &Cmd) -> StoreResult<Value> {
        checked(operation, cmd, self.nodes.send(operation, cmd).await?)
    }

    /// As [`command`](Self::command), of a call of a script; `load` makes the server know it, if it does
    /// not.
    pub(crate) async fn evaluate(
        &self,
        operation: &'static str,
        call: &Cmd,
        load: impl FnOnce() -> Cmd,
    ) -> StoreResult<Value> {
        let answer = self.nodes.send(operation, call).await?;
        if !is_unknown(&answer) {
            return checked(operation, call, answer);
        }
        let load = load();
        // Of its owner, whose refusal of the script itself is to be told as that.
        let node = self.nodes.of(operation, call)?;
        checked(operation, &load, node.send(operation, &load).await?)?;
        let mut answer = self.nodes.send(operation, call).await?;
        if is_unknown(&answer) {
            // It went on to the next node of a slot that moves.
            answer = self.nodes.send_behind(operation, Some(&load), call).await?;
        }
        checked(operation, call, answer)
    }
}

fn is_unknown(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(refused) if refused.kind() == Some(ServerErrorKind::NoScript))
}

/// The answer, unless it is an error or holds one.
fn checked(operation: &'static str, cmd: &Cmd, answer: Value) -> StoreResult<Value> {
    let Some(refused) = error_in(&answer) else {
        return Ok(answer);
    };
    let mut words = cmd.args_iter().map(|word| match word {
        Arg::Simple(bytes) => bytes,
        _ => b"",
    });
    let name = String::from_utf8_lossy(words.next().unwrap_or_default());
    let repeats = |code: &str| {
        let code = code.as_bytes();
        words.any(|word| word.windows(code.len()).any(|part| part == code))
    };
    Err(error::of_command(operation, &name, refused, repeats))
}

fn error_in(answer: &Value) -> Option<&::redis::ServerError> {
    match answer {
        Value::ServerError(refused) => Some(refused),
        Value::Array(items) => items.iter().find_map(error_in),
        _ => None,
    }
}
