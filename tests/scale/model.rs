//! What a server spends, by the model that was fitted to Redis 7.0.15 and Valkey 8.0.1 on loopback.
//!
//! `CPU = subscribers · (4.5 µs · ticks + 0.2 µs · messages + 1.2 ns · bytes)` for fan-out. A tick is a turn
//! of the server's event loop in which a subscriber is sent something: one write to its socket. Scripts
//! and polls come on top. The constants were measured when the protocol was designed, not on the machine
//! that runs this; `benches/publishing.rs` measures what the ways to publish cost beside each other.

/// What one subscriber costs in nanoseconds: a write to its socket, a message, a byte.
pub(crate) const PER_TICK: f64 = 4_500.0;
pub(crate) const PER_MESSAGE: f64 = 200.0;
pub(crate) const PER_BYTE: f64 = 1.2;

/// An invalidation's script, without publishing: the upper end of 7 to 10 µs.
pub(crate) const SCRIPT: f64 = 10_000.0;
/// A flush, and each entry that it reads and packs.
pub(crate) const FLUSH: f64 = 10_000.0;
pub(crate) const FLUSH_ENTRY: f64 = 2_000.0;
/// A poll of one node of a cluster: 65 µs over eight.
pub(crate) const POLL: f64 = 8_000.0;
/// A read of the log, and each entry of it: 16 to 23 µs for a hundred.
pub(crate) const LOG: f64 = 5_000.0;
pub(crate) const LOG_ENTRY: f64 = 180.0;

/// What a server writes to one subscriber in one turn of its loop.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

impl Sent {
    /// A message as a push of RESP3 on a channel of a cluster, `{scale:0a:1f}c`.
    pub(crate) fn add(&mut self, payload: usize) {
        let digits = payload.to_string().len();
        self.messages += 1;
        self.bytes +=
            ">3\r\n$8\r\nsmessage\r\n$14\r\n{scale:0a:1f}c\r\n$\r\n\r\n".len() + digits + payload;
    }

    /// Nanoseconds for each subscriber.
    pub(crate) fn cost(self) -> f64 {
        PER_TICK + PER_MESSAGE * self.messages as f64 + PER_BYTE * self.bytes as f64
    }
}

/// Where the time of a server went, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    pub(crate) fan_out: f64,
    pub(crate) scripts: f64,
    pub(crate) flushes: f64,
    pub(crate) polls: f64,
    pub(crate) log_reads: f64,
    /// Bytes sent to subscribers.
    pub(crate) egress: f64,
}

impl Spent {
    pub(crate) fn all(&self) -> f64 {
        self.fan_out + self.scripts + self.flushes + self.polls + self.log_reads
    }
}
