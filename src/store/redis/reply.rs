//! Taking answers apart. What does not have the expected form is a protocol error, never a panic.

use super::error;
use crate::coherence::{Epoch, Head, LogEntry, Nonce, Position};
use crate::error::{StoreError, StoreErrorKind};
use crate::store::{Found, Guarded, LeaseReply, LeaseState, Logged, StoreResult, TagFloor};
use ::redis::Value;
use bytes::Bytes;
use std::time::Duration;

/// An answer of the server that is not an error, and what was asked.
pub(super) struct Reply {
    operation: &'static str,
    value: Value,
}

impl Reply {
    pub(super) fn new(operation: &'static str, value: Value) -> StoreResult<Self> {
        match value {
            Value::ServerError(refused) => Err(error::of_server(operation, &refused)),
            value => Ok(Self { operation, value }),
        }
    }

    pub(super) fn malformed(operation: &'static str) -> StoreError {
        StoreError::new(StoreErrorKind::Protocol, operation)
            .with_detail("the answer does not have the expected form")
    }

    fn of<T>(operation: &'static str, value: Option<T>) -> StoreResult<T> {
        value.ok_or_else(|| Self::malformed(operation))
    }

    pub(super) fn array(self) -> StoreResult<Vec<Value>> {
        match self.value {
            Value::Array(items) => Ok(items),
            _ => Err(Self::malformed(self.operation)),
        }
    }

    pub(super) fn items<const N: usize>(self) -> StoreResult<[Value; N]> {
        let operation = self.operation;
        Self::of(operation, self.array()?.try_into().ok())
    }

    pub(super) fn text(self) -> StoreResult<String> {
        let bytes = bytes(self.value);
        Self::of(
            self.operation,
            bytes.and_then(|bytes| String::from_utf8(bytes).ok()),
        )
    }

    pub(super) fn flag(self) -> StoreResult<bool> {
        match self.value {
            Value::Int(number) => Ok(number == 1),
            _ => Err(Self::malformed(self.operation)),
        }
    }

    /// How many.
    pub(super) fn count(self) -> StoreResult<u64> {
        Self::of(self.operation, number_of(&self.value))
    }

    /// A value, or that there is none.
    pub(super) fn stored(self) -> StoreResult<Option<Bytes>> {
        match self.value {
            Value::Nil => Ok(None),
            value => Self::of(self.operation, stored(value).map(Some)),
        }
    }

    /// Value, head and floor of one read.
    pub(super) fn found(self) -> StoreResult<Found> {
        let [value, head, floor] = self.items()?;
        Ok(Found {
            head: head_of(&head),
            value: stored(value),
            floor: number_of(&floor),
        })
    }

    /// `[cursor, [item, …]]`, the answer to a step of a walk; no cursor at its end.
    pub(super) fn walked(self) -> StoreResult<(Vec<Value>, Option<Bytes>)> {
        let operation = self.operation;
        let [cursor, items] = self.items()?;
        let cursor = Self::of(operation, stored(cursor))?;
        let items = Self {
            operation,
            value: items,
        }
        .array()?;
        Ok((items, (cursor != "0").then_some(cursor)))
    }

    pub(super) fn head(self) -> StoreResult<Head> {
        let operation = self.operation;
        Self::of(operation, head(self.value))
    }

    /// `epoch 8 · seq 8 · prev nonce 8 · flush after 8`: where it was logged, and after how long to flush.
    pub(super) fn logged(self) -> StoreResult<(Logged, Option<Duration>)> {
        let operation = self.operation;
        let words = bytes(self.value).and_then(|bytes| words::<4>(&bytes));
        Ok(logged(Self::of(operation, words)?))
    }

    /// As [`logged`](Self::logged), then `stood 8`.
    pub(super) fn guarded(self) -> StoreResult<(Guarded, Option<Duration>)> {
        let operation = self.operation;
        let words = bytes(self.value).and_then(|bytes| words::<5>(&bytes));
        let [epoch, seq, prev, flush, stood] = Self::of(operation, words)?;
        let (logged, flush) = logged([epoch, seq, prev, flush]);
        let stood = usize::try_from(stood).unwrap_or(usize::MAX);
        Ok((Guarded { logged, stood }, flush))
    }

    /// How many entries were published; `None` if somebody else is the relay.
    pub(super) fn flushed(self) -> StoreResult<Option<u64>> {
        match self.value {
            Value::Int(number) => Ok(u64::try_from(number).ok()),
            _ => Err(Self::malformed(self.operation)),
        }
    }

    /// `[head, floor, server ms, (state or present value, minimum version or nothing), …]`, as `lease.lua`
    /// gives it for `count` keys.
    pub(super) fn leases(self, count: usize) -> StoreResult<Vec<LeaseReply>> {
        let operation = self.operation;
        let mut items = self.array()?.into_iter();
        let mut read = || {
            let head = head(items.next()?)?;
            let floor = number(items.next()?)?;
            let server_ms = number(items.next()?)?;
            let state = |item| match item {
                Value::Int(1) => Some(LeaseState::Granted),
                Value::Int(2) => Some(LeaseState::Held),
                Value::Int(3) => Some(LeaseState::Guarded),
                item => Some(LeaseState::Present(bytes(item)?.into())),
            };
            let minimum = |item| match bytes(item)? {
                none if none.is_empty() => Some(None),
                version => Some(Some(words::<1>(&version)?[0])),
            };
            let mut replies = Vec::with_capacity(count);
            while let Some(first) = items.next() {
                replies.push(LeaseReply {
                    head,
                    floor,
                    server_ms,
                    state: state(first)?,
                    minimum: minimum(items.next()?)?,
                });
            }
            (replies.len() == count).then_some(replies)
        };
        Self::of(operation, read())
    }

    /// `[head, floor, …]` for `count` tags, as `tags.lua` gives it; nothing if there is no head.
    pub(super) fn tag_floors(self, count: usize) -> StoreResult<Vec<Option<TagFloor>>> {
        let operation = self.operation;
        let mut items = self.array()?.into_iter();
        let Some(first) = items.next() else {
            return Ok(vec![None; count]);
        };
        let read = || {
            let head = head(first)?;
            let floor = |item| {
                Some(Some(TagFloor {
                    head,
                    floor: number(item)?,
                }))
            };
            let floors: Option<Vec<_>> = items.map(floor).collect();
            floors.filter(|floors| floors.len() == count)
        };
        Self::of(operation, read())
    }

    /// `[1 or 0, …]` for `count` questions.
    pub(super) fn flags(self, count: usize) -> StoreResult<Vec<bool>> {
        let operation = self.operation;
        let flag = |item| match item {
            Value::Int(number) => Some(number == 1),
            _ => None,
        };
        let flags: Option<Vec<_>> = self.array()?.into_iter().map(flag).collect();
        Self::of(operation, flags.filter(|flags| flags.len() == count))
    }

    /// The answer to `TIME`, in milliseconds.
    pub(super) fn time(self) -> StoreResult<u64> {
        let operation = self.operation;
        let [seconds, micros] = self.items()?;
        let read = || {
            let millis = number(seconds)?.checked_mul(1000)?;
            millis.checked_add(number(micros)? / 1000)
        };
        Self::of(operation, read())
    }

    /// The answer to `XRANGE`, without what is not ours.
    pub(super) fn entries(self) -> StoreResult<Vec<LogEntry>> {
        Ok(self.array()?.into_iter().filter_map(entry).collect())
    }

    /// The answers to a pipeline of `N` commands, none of them an error.
    pub(super) fn pipeline<const N: usize>(
        operation: &'static str,
        answers: Vec<Value>,
    ) -> StoreResult<[Self; N]> {
        let replies = answers
            .into_iter()
            .map(|answer| Self::new(operation, answer));
        let replies = replies.collect::<StoreResult<Vec<_>>>()?;
        Self::of(operation, replies.try_into().ok())
    }
}

/// The bytes of a string.
pub(super) fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}

/// A stored value, without copying it.
pub(super) fn stored(value: Value) -> Option<Bytes> {
    bytes(value).map(Bytes::from)
}

/// A head, if that is what the bytes are.
pub(super) fn head(value: Value) -> Option<Head> {
    head_of(&value)
}

/// As [`head`], of a value that is needed again.
pub(super) fn head_of(value: &Value) -> Option<Head> {
    match value {
        Value::BulkString(bytes) => Head::decode(bytes),
        _ => None,
    }
}

/// A number that is not negative: an integer, or a string of decimal digits.
pub(super) fn number(value: Value) -> Option<u64> {
    number_of(&value)
}

/// As [`number`], of a value that is needed again.
pub(super) fn number_of(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        Value::BulkString(digits) => decimal(digits),
        _ => None,
    }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    // `parse` alone would take a sign.
    let digits = digits.first()?.is_ascii_digit().then_some(digits)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn logged([epoch, seq, prev, flush]: [u64; 4]) -> (Logged, Option<Duration>) {
    let at = Position {
        epoch: Epoch(epoch),
        seq,
    };
    let prev = Nonce(prev);
    let flush = (flush > 0).then(|| Duration::from_millis(flush));
    (Logged { at, prev }, flush)
}

fn words<const N: usize>(bytes: &[u8]) -> Option<[u64; N]> {
    let (words, rest) = bytes.as_chunks::<8>();
    let words: &[[u8; 8]; N] = words.try_into().ok()?;
    rest.is_empty().then(|| words.map(u64::from_be_bytes))
}

/// `[id, [field, value, …]]` with the id `seq-0` and the field `e`.
fn entry(value: Value) -> Option<LogEntry> {
    let Value::Array(pair) = value else {
        return None;
    };
    let [id, fields] = <[Value; 2]>::try_from(pair).ok()?;
    let seq = decimal(bytes(id)?.strip_suffix(b"-0")?)?;
    let Value::Array(fields) = fields else {
        return None;
    };
    let mut fields = fields.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        if bytes(name)? == b"e" {
            return LogEntry::decode(seq, &bytes(value)?);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coherence::{HEAD_LEN, Kind};

    fn bulk(bytes: impl AsRef<[u8]>) -> Value {
        Value::BulkString(bytes.as_ref().to_vec())
    }

    fn reply(value: Value) -> Reply {
        Reply::new("read", value).expect("no error of the server")
    }

    #[test]
    fn rubbish_of_any_form_is_a_protocol_error() {
        let rubbish = [
            Value::Nil,
            Value::Okay,
            Value::Int(-1),
            bulk([]),
            bulk([0xFF; HEAD_LEN + 1]),
            Value::SimpleString("PONG".to_owned()),
            Value::Array(Vec::new()),
            Value::Array(vec![Value::Nil, Value::Int(-1), bulk("x")]),
            Value::Array(vec![bulk([0; HEAD_LEN]), Value::Int(1), Value::Int(1)]),
            Value::Array(vec![
                bulk([0; HEAD_LEN]),
                Value::Int(1),
                Value::Int(1),
                Value::Int(9),
            ]),
            Value::Array(vec![Value::Int(1), Value::Nil]),
        ];
        for value in rubbish {
            let kinds = [
                reply(value.clone()).head().err(),
                reply(value.clone()).logged().err(),
                reply(value.clone()).guarded().err(),
                reply(value.clone()).leases(1).err(),
                reply(value.clone()).flags(1).err(),
                reply(value.clone()).time().err(),
            ];
            for error in kinds {
                let error = error.unwrap_or_else(|| panic!("{value:?} was taken"));
                assert_eq!(error.kind(), StoreErrorKind::Protocol);
            }
        }
    }

    #[test]
    fn numbers_are_decimal_and_not_negative() {
        assert_eq!(number(bulk("18446744073709551615")), Some(u64::MAX));
        assert_eq!(number(Value::Int(7)), Some(7));
        for rubbish in [
            "",
            "+7",
            "-7",
            " 7",
            "7 ",
            "0x7",
            "1e3",
            "18446744073709551616",
        ] {
            assert_eq!(number(bulk(rubbish)), None, "{rubbish:?}");
        }
    }

    #[test]
    fn log_entries_that_are_not_ours_are_passed_over() {
        let ours = LogEntry {
            seq: 7,
            kind: Kind::Clear,
            prev: Nonce(1),
            nonce: Nonce(2),
            hashes: vec![3],
        };
        let row = |id: &str, field: &str, bytes: &[u8]| {
            let fields = Value::Array(vec![bulk("x"), bulk("y"), bulk(field), bulk(bytes)]);
            Value::Array(vec![bulk(id), fields])
        };
        let answer = Value::Array(vec![
            row("7-0", "e", &ours.encode()),
            row("8-1", "e", &ours.encode()),
            row("9-0", "f", &ours.encode()),
            row("10-0", "e", b"short"),
            row("rubbish", "e", &ours.encode()),
            Value::Nil,
            Value::Array(vec![bulk("11-0"), Value::Nil]),
        ]);
        assert_eq!(reply(answer).entries().expect("an array"), [ours]);
    }
}
