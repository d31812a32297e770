//! Ports for servers that go away and come back.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below what systems hand out by themselves (from 32768 on Linux, from 49152 elsewhere): the port of a
/// server that is down would else go to the next connection, or to the next that asks for any port.
const RANGE: Range<u16> = 10_000..30_000;
/// Has no divisor in common with the length of the range, so that its multiples come by every port.
const STRIDE: u32 = 7_919;

/// A port that is free and that nobody in this process was given before.
pub(super) fn free_port() -> io::Result<u16> {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let ports = RANGE.len() as u32;
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..ports {
        let turn = GIVEN.fetch_add(1, Ordering::Relaxed) % ports;
        let port = RANGE.start + ((first() + turn * STRIDE) % ports) as u16;
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// Another number in each process, so that two of them seldom ask for the same ports.
fn first() -> u32 {
    static FIRST: LazyLock<u32> = LazyLock::new(|| {
        let random = RandomState::new().build_hasher().finish();
        (random % RANGE.len() as u64) as u32
    });
    *FIRST
}

/// A listener on any port but that of `target`, which is free if the target is down: a proxy there would
/// be its own client, until no file descriptor is left.
pub(super) fn listen_beside(target: SocketAddr) -> io::Result<TcpListener> {
    let any = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let listener = any()?;
    if listener.local_addr()? != target {
        return Ok(listener);
    }
    // While the first is held, nobody else gets its port.
    any()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_port_is_given_twice_and_none_is_one_that_the_system_hands_out() {
        let given: Vec<_> = (0..500).map(|_| free_port().unwrap()).collect();
        assert_eq!(given.iter().collect::<HashSet<_>>().len(), given.len());
        assert!(given.iter().all(|port| RANGE.contains(port)));
        // Where a system says what it hands out.
        let Ok(range) = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range") else {
            return;
        };
        let lowest: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
        assert!(lowest >= RANGE.end, "the system hands out {range}");
    }
}
