//! A TCP proxy with faults.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use super::ports::listen_beside;
use super::pump::{Line, pump};

/// How long to wait after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(5);

/// A TCP proxy in front of a server, whose network can be broken and mended at run time.
///
/// Faults apply to the connections that are open and to new ones, until the next fault is set. Published
/// messages can be dropped one by one on top of that, see [`set_messages`](Self::set_messages).
///
/// Runs as Tokio tasks that end when the proxy is dropped, with all connections.
///
/// # Examples
/// ```
/// # use tidings::testing::{Direction, Fault, Proxy, RedisServer};
/// # use std::time::Duration;
/// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # if !RedisServer::available() { return Ok(()); }
/// let server = RedisServer::start()?;
/// let proxy = Proxy::start(server.addr())?;
/// let url = proxy.url(); // what the code under test connects to
/// proxy.set(Fault::Freeze { direction: Direction::ToClient }); // commands arrive, replies do not
/// proxy.set(Fault::None);
/// # Ok(()) }
/// ```
pub struct Proxy {
    addr: SocketAddr,
    plan: watch::Sender<Plan>,
    counters: Arc<Counters>,
    accepting: AbortHandle,
}

/// What is wrong with the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Bytes are swallowed and nobody is told, as when the peer lost power or a router forgot the
    /// connection. Connections stay open, new ones are accepted and hang.
    ///
    /// A direction that has lost bytes stays silent for good, also when the fault is lifted: TCP never
    /// delivers a stream with a hole in it. New connections work then. For a partition that heals,
    /// take [`Freeze`](Self::Freeze).
    Blackhole {
        /// Which bytes are swallowed.
        direction: Direction,
    },
    /// Bytes are held back, and delivered when the fault is lifted: a partition that heals, or a peer that
    /// was stopped and goes on.
    Freeze {
        /// Which bytes are held back.
        direction: Direction,
    },
    /// Bytes take longer, without a limit on how many are on their way.
    Delay {
        /// Which bytes take longer.
        direction: Direction,
        /// How much longer.
        delay: Duration,
    },
    /// Each connection is cut after it has carried so many more bytes, which may be in the middle of a
    /// reply. Connections made under the fault as well.
    Truncate {
        /// Which bytes are counted.
        direction: Direction,
        /// How many still pass.
        after_bytes: u64,
    },
    /// Open connections are cut, new ones closed at once.
    Refuse,
}

/// Which of the bytes that pass a [`Proxy`] are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Those that clients send.
    ToServer,
    /// Those that the server sends.
    ToClient,
    /// All.
    Both,
}

/// What happens to published messages on their way to subscribers.
///
/// Whole messages are meant; replies on the same connection are left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MessageFault {
    /// Nothing.
    #[default]
    None,
    /// All are dropped.
    DropAll,
    /// Every n-th is dropped, counted over all connections from the first message the proxy saw. With
    /// 1, all are; with 0, none.
    DropEvery(u64),
    /// Each arrives twice.
    Duplicate,
    /// Pairs arrive in reverse order. The first of a pair waits for the second as long as the fault is
    /// set.
    Swap,
}

/// What is asked of all connections at present.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) fault: Fault,
    pub(crate) messages: MessageFault,
    /// Counts the calls of [`Proxy::set`], so that setting a fault again starts it anew.
    pub(crate) faults_set: u64,
    /// Counts the cuts; a connection ends when the number is not the one it was born with.
    cuts: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    connections: AtomicU64,
    pub(crate) messages_seen: AtomicU64,
    pub(crate) messages_dropped: AtomicU64,
}

impl Proxy {
    /// Starts a proxy in front of `target` on a free loopback port.
    ///
    /// # Errors
    /// If no port can be bound, or outside of a Tokio runtime.
    ///
    /// # Panics
    /// In a Tokio runtime that was built without I/O.
    pub fn start(target: SocketAddr) -> io::Result<Self> {
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        let listener = listen_beside(target)?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let listener = TcpListener::from_std(listener)?;
        let (plan, seen) = watch::channel(Plan::default());
        let counters = Arc::<Counters>::default();
        let accept = accept(listener, target, seen, Arc::clone(&counters));
        let accepting = runtime.spawn(accept).abort_handle();
        Ok(Self {
            addr,
            plan,
            counters,
            accepting,
        })
    }

    /// The address to connect to.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The address to connect to as a `redis://` URL. A password of the server is not in it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// Sets what is wrong with the network from now on; [`Fault::None`] mends it.
    ///
    /// Returns at once. A connection may still pass on what it has read already.
    pub fn set(&self, fault: Fault) {
        self.plan.send_modify(|plan| {
            plan.fault = fault;
            plan.faults_set += 1;
            if fault == Fault::Refuse {
                plan.cuts += 1;
            }
        });
    }

    /// Sets what happens to published messages from now on.
    pub fn set_messages(&self, messages: MessageFault) {
        self.plan.send_modify(|plan| plan.messages = messages);
    }

    /// Cuts all open connections, once.
    pub fn cut_all(&self) {
        self.plan.send_modify(|plan| plan.cuts += 1);
    }

    /// How many connections were accepted so far, refused ones included.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.counters.connections.load(Ordering::SeqCst)
    }

    /// How many published messages came from the server so far.
    #[must_use]
    pub fn messages_seen(&self) -> u64 {
        self.counters.messages_seen.load(Ordering::SeqCst)
    }

    /// How many of them were dropped.
    #[must_use]
    pub fn messages_dropped(&self) -> u64 {
        self.counters.messages_dropped.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The connections are owned by the accepting task and end with it.
        self.accepting.abort();
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("addr", &self.addr)
            .field("plan", &*self.plan.borrow())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl Direction {
    /// Whether `self`, as part of a fault, means the bytes that go in `direction`.
    pub(crate) fn covers(self, direction: Self) -> bool {
        self == Self::Both || self == direction
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    plan: watch::Receiver<Plan>,
    counters: Arc<Counters>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((client, _)) = accepted else {
            // The client is gone already, or we are out of file descriptors: that takes a moment.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        counters.connections.fetch_add(1, Ordering::SeqCst);
        let Plan { fault, cuts, .. } = *plan.borrow();
        if fault != Fault::Refuse {
            connections.spawn(serve(
                client,
                target,
                plan.clone(),
                cuts,
                Arc::clone(&counters),
            ));
        }
    }
}

/// Joins a client to the server until both have said all, one fails, or the proxy cuts them.
async fn serve(
    mut client: TcpStream,
    target: SocketAddr,
    plan: watch::Receiver<Plan>,
    cuts: u64,
    counters: Arc<Counters>,
) {
    let mut watched = plan.clone();
    let relay = async {
        let mut server = TcpStream::connect(target).await?;
        server.set_nodelay(true)?;
        client.set_nodelay(true)?;
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let up = Line::new(Direction::ToServer, plan.clone(), &counters);
        let down = Line::new(Direction::ToClient, plan, &counters);
        tokio::try_join!(
            pump(from_client, to_server, up),
            pump(from_server, to_client, down)
        )
    };
    // However it ends, both streams are closed here; there is nobody to report an error to.
    tokio::select! {
        _ = relay => {}
        _ = watched.wait_for(|plan| plan.cuts != cuts) => {}
    }
}
