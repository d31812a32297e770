//! One direction of one proxied connection: what the faults make of its bytes.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::proxy::{Counters, Direction, Fault, MessageFault, Plan};
use super::resp::{Framer, is_message};

/// How much is read at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// Carries bytes from one side to the other until the end of the stream. An error means that the whole
/// connection is to be cut.
pub(crate) async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut line: Line<'_>,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    let mut ended = false;
    loop {
        buffer.reserve(CHUNK_BYTES);
        let flows = !line.is_frozen();
        tokio::select! {
            // A fault that was set counts for all that happens after.
            biased;
            changed = line.plan.changed() => {
                // An error: the proxy is gone.
                changed.map_err(|_| cut())?;
                line.replan();
            }
            () = due(line.parcels.front()), if flows && !line.parcels.is_empty() => {
                match line.deliver() {
                    Some(Delivery::Bytes(bytes)) => to.write_all(&bytes).await?,
                    Some(Delivery::LastBytes(bytes)) => {
                        to.write_all(&bytes).await?;
                        return Err(cut());
                    }
                    None => return to.shutdown().await,
                }
            }
            read = from.read_buf(&mut buffer), if flows && !ended => {
                ended = read? == 0;
                // What is read after a fault was set comes under it, also when both happened just now.
                line.replan();
                line.accept(buffer.split().freeze());
            }
        }
    }
}

fn cut() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

async fn due(parcel: Option<&Parcel>) {
    // Not `sleep_until(now)`: timers round up to the next millisecond.
    if let Some(due) = parcel.and_then(|parcel| parcel.due) {
        sleep_until(due).await;
    }
}

/// What is under way in one direction.
pub(crate) struct Line<'a> {
    direction: Direction,
    plan: watch::Receiver<Plan>,
    current: Plan,
    counters: &'a Counters,
    parcels: VecDeque<Parcel>,
    /// Finds the messages in what the server sends; `None` if it does not speak the Redis protocol.
    framer: Option<Framer>,
    /// The first of a pair that is to be swapped.
    held: Option<Bytes>,
    /// Bytes were swallowed: nothing can follow them.
    lost: bool,
    /// How many bytes were delivered under the present fault.
    delivered: u64,
}

/// Bytes under way; none stand for the end of the stream.
struct Parcel {
    due: Option<Instant>,
    bytes: Bytes,
}

enum Delivery {
    Bytes(Bytes),
    /// The connection is to be cut after them.
    LastBytes(Bytes),
}

impl<'a> Line<'a> {
    pub(crate) fn new(
        direction: Direction,
        mut plan: watch::Receiver<Plan>,
        counters: &'a Counters,
    ) -> Self {
        let current = *plan.borrow_and_update();
        let framer = (direction == Direction::ToClient).then(Framer::new);
        let parcels = VecDeque::new();
        Self {
            direction,
            plan,
            current,
            counters,
            parcels,
            framer,
            held: None,
            lost: false,
            delivered: 0,
        }
    }

    fn is_frozen(&self) -> bool {
        matches!(self.current.fault, Fault::Freeze { direction } if direction.covers(self.direction))
    }

    fn is_blackhole(&self) -> bool {
        matches!(self.current.fault, Fault::Blackhole { direction } if direction.covers(self.direction))
    }

    fn delay(&self) -> Option<Duration> {
        match self.current.fault {
            Fault::Delay { direction, delay } if direction.covers(self.direction) => Some(delay),
            _ => None,
        }
    }

    /// How many more bytes may be delivered.
    fn allowance(&self) -> Option<u64> {
        match self.current.fault {
            Fault::Truncate {
                direction,
                after_bytes,
            } if direction.covers(self.direction) => {
                Some(after_bytes.saturating_sub(self.delivered))
            }
            _ => None,
        }
    }

    /// Takes note of a plan that changed.
    fn replan(&mut self) {
        let plan = *self.plan.borrow_and_update();
        if plan.faults_set != self.current.faults_set {
            self.delivered = 0;
        }
        self.current = plan;
        if self.is_blackhole() && !self.parcels.is_empty() {
            self.lose();
        }
        if plan.messages != MessageFault::Swap {
            self.release();
        }
    }

    fn lose(&mut self) {
        self.lost = true;
        self.parcels.clear();
    }

    /// Takes in what was read; nothing stands for the end of the stream.
    fn accept(&mut self, bytes: Bytes) {
        if self.lost || self.is_blackhole() {
            return self.lose();
        }
        let ended = bytes.is_empty();
        match self.framer.take() {
            Some(framer) if !ended => self.accept_frames(framer, &bytes),
            Some(framer) => {
                self.release();
                self.send(framer.into_rest());
            }
            None => self.send(bytes),
        }
        if ended {
            self.parcels.push_back(Parcel {
                due: self.due(),
                bytes: Bytes::new(),
            });
        }
    }

    fn accept_frames(&mut self, mut framer: Framer, bytes: &[u8]) {
        framer.push(bytes);
        loop {
            match framer.next_frame() {
                Ok(Some(frame)) if is_message(&frame) => self.accept_message(frame),
                Ok(Some(frame)) => self.send(frame),
                Ok(None) => {
                    self.framer = Some(framer);
                    return;
                }
                Err(_) => return self.send(framer.into_rest()),
            }
        }
    }

    fn accept_message(&mut self, message: Bytes) {
        let number = self.counters.messages_seen.fetch_add(1, Ordering::SeqCst) + 1;
        match self.current.messages {
            MessageFault::None => self.send(message),
            MessageFault::DropAll => self.drop_message(),
            MessageFault::DropEvery(n) if number.is_multiple_of(n) => self.drop_message(),
            MessageFault::DropEvery(_) => self.send(message),
            MessageFault::Duplicate => {
                self.send(message.clone());
                self.send(message);
            }
            MessageFault::Swap if self.held.is_none() => self.held = Some(message),
            MessageFault::Swap => {
                self.send(message);
                self.release();
            }
        }
    }

    fn drop_message(&self) {
        self.counters
            .messages_dropped
            .fetch_add(1, Ordering::SeqCst);
    }

    /// Sends the message that waits for another one to go first.
    fn release(&mut self) {
        if let Some(message) = self.held.take() {
            self.send(message);
        }
    }

    fn send(&mut self, bytes: Bytes) {
        if !self.lost && !bytes.is_empty() {
            self.parcels.push_back(Parcel {
                due: self.due(),
                bytes,
            });
        }
    }

    fn due(&self) -> Option<Instant> {
        self.delay().map(|delay| Instant::now() + delay)
    }

    /// The bytes that arrive next; `None` at the end of the stream.
    fn deliver(&mut self) -> Option<Delivery> {
        let mut bytes = self.parcels.pop_front()?.bytes;
        if bytes.is_empty() {
            return None;
        }
        let len = bytes.len() as u64;
        if let Some(allowance) = self.allowance()
            && let Ok(allowance) = usize::try_from(allowance)
            && allowance <= bytes.len()
        {
            bytes.truncate(allowance);
            return Some(Delivery::LastBytes(bytes));
        }
        self.delivered += len;
        Some(Delivery::Bytes(bytes))
    }
}
