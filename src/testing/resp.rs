//! As much of the Redis protocol as a test needs: write a command, tell where a reply ends.

use bytes::{Bytes, BytesMut};

/// The bytes are not the Redis protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the redis protocol")]
pub(crate) struct NotResp;

/// Encodes a command as an array of bulk strings.
pub(crate) fn command(args: &[&str]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// One step through a reply.
enum Element<'a> {
    /// A value; nil is an empty one.
    Leaf(&'a [u8]),
    /// So many elements follow.
    Group(u64),
}

/// Reads the element at the start of `bytes` and its length; `None` if it is not all there yet.
fn element(bytes: &[u8]) -> Result<Option<(Element<'_>, usize)>, NotResp> {
    let Some((&kind, rest)) = bytes.split_first() else {
        return Ok(None);
    };
    if !b"+-:_#,($!=*~>%|".contains(&kind) {
        return Err(NotResp);
    }
    let Some(end) = rest.windows(2).position(|pair| pair == b"\r\n") else {
        return Ok(None);
    };
    let line = &rest[..end];
    let head = 1 + end + 2;
    match kind {
        b'$' | b'!' | b'=' => {
            let Some(len) = length(line)? else {
                return Ok(Some((Element::Leaf(b""), head)));
            };
            let len = usize::try_from(len).map_err(|_| NotResp)?;
            let whole = head
                .checked_add(len)
                .and_then(|n| n.checked_add(2))
                .ok_or(NotResp)?;
            if bytes.len() < whole {
                return Ok(None);
            }
            Ok(Some((Element::Leaf(&bytes[head..head + len]), whole)))
        }
        b'*' | b'~' | b'>' => Ok(Some((Element::Group(length(line)?.unwrap_or(0)), head))),
        b'%' => {
            let pairs = length(line)?.unwrap_or(0);
            Ok(Some((
                Element::Group(pairs.checked_mul(2).ok_or(NotResp)?),
                head,
            )))
        }
        // Attributes come before the value they speak of, which is one element more.
        b'|' => {
            let pairs = length(line)?.unwrap_or(0);
            let group = pairs
                .checked_mul(2)
                .and_then(|n| n.checked_add(1))
                .ok_or(NotResp)?;
            Ok(Some((Element::Group(group), head)))
        }
        _ => Ok(Some((Element::Leaf(line), head))),
    }
}

/// A length as a header states it; `None` stands for nil.
fn length(line: &[u8]) -> Result<Option<u64>, NotResp> {
    if line == b"-1" {
        return Ok(None);
    }
    let text = std::str::from_utf8(line).map_err(|_| NotResp)?;
    text.parse().map(Some).map_err(|_| NotResp)
}

/// The values of a whole reply, outermost first, without its nesting.
pub(crate) fn leaves(mut frame: &[u8]) -> Vec<&[u8]> {
    let mut leaves = Vec::new();
    while let Ok(Some((element, len))) = element(frame) {
        if let Element::Leaf(value) = element {
            leaves.push(value);
        }
        frame = &frame[len..];
    }
    leaves
}

/// Whether a whole frame is a published message, as against a reply or a confirmation.
pub(crate) fn is_message(frame: &[u8]) -> bool {
    if !matches!(frame.first(), Some(b'*' | b'>')) {
        return false;
    }
    let Ok(Some((Element::Group(len), head))) = element(frame) else {
        return false;
    };
    let Ok(Some((Element::Leaf(kind), _))) = element(&frame[head..]) else {
        return false;
    };
    matches!(
        (len, kind),
        (3, b"message" | b"smessage") | (4, b"pmessage")
    )
}

/// Cuts a stream of bytes into whole replies and pushes.
///
/// Each byte is looked at once however the stream is split, except a header that is not complete.
#[derive(Debug)]
pub(crate) struct Framer {
    buffer: BytesMut,
    /// How much of the buffer is known to belong to the frame under way.
    scanned: usize,
    /// How many elements that frame still lacks.
    missing: u64,
}

impl Framer {
    pub(crate) fn new() -> Self {
        Self {
            buffer: BytesMut::new(),
            scanned: 0,
            missing: 1,
        }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame; `None` until more bytes are pushed.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Bytes>, NotResp> {
        while self.missing > 0 {
            let Some((element, len)) = element(&self.buffer[self.scanned..])? else {
                return Ok(None);
            };
            self.missing -= 1;
            if let Element::Group(members) = element {
                self.missing = self.missing.checked_add(members).ok_or(NotResp)?;
            }
            self.scanned += len;
        }
        self.missing = 1;
        Ok(Some(
            self.buffer
                .split_to(std::mem::take(&mut self.scanned))
                .freeze(),
        ))
    }

    /// All that was pushed and has not come out as a frame.
    pub(crate) fn into_rest(self) -> Bytes {
        self.buffer.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b"+OK\r\n*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n$-1\r\n\
        *2\r\n*1\r\n:7\r\n$0\r\n\r\n%1\r\n+a\r\n:1\r\n*-1\r\n|1\r\n+ttl\r\n:9\r\n:5\r\n-ERR no\r\n";
    const FRAMES: [&[u8]; 8] = [
        b"+OK\r\n",
        b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$2\r\nhi\r\n",
        b"$-1\r\n",
        b"*2\r\n*1\r\n:7\r\n$0\r\n\r\n",
        b"%1\r\n+a\r\n:1\r\n",
        b"*-1\r\n",
        b"|1\r\n+ttl\r\n:9\r\n:5\r\n",
        b"-ERR no\r\n",
    ];

    #[test]
    fn frames_are_the_same_however_the_stream_is_split() {
        for size in 1..=STREAM.len() {
            let mut framer = Framer::new();
            let mut frames = Vec::new();
            for piece in STREAM.chunks(size) {
                framer.push(piece);
                while let Some(frame) = framer.next_frame().unwrap() {
                    frames.push(frame);
                }
            }
            assert_eq!(frames, FRAMES, "split into pieces of {size}");
            assert!(framer.into_rest().is_empty());
        }
    }

    #[test]
    fn only_published_messages_are_messages() {
        let messages: Vec<_> = FRAMES.iter().filter(|frame| is_message(frame)).collect();
        assert_eq!(messages, [&FRAMES[1]]);
        assert!(is_message(b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nx\r\n"));
        assert!(!is_message(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"));
        assert!(!is_message(b"$7\r\nmessage\r\n"));
    }

    #[test]
    fn foreign_bytes_are_told_apart_and_kept() {
        let mut framer = Framer::new();
        framer.push(b"\x16\x03\x01");
        assert_eq!(framer.next_frame(), Err(NotResp));
        assert_eq!(framer.into_rest(), &b"\x16\x03\x01"[..]);
    }
}
