//! One command on a connection of its own.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::Bytes;

use super::resp::{self, Framer};
use super::server_error::{ServerError, failed};

/// Sends a command and returns the reply as text. Each read and write waits up to `timeout`.
pub(crate) fn ask(
    addr: SocketAddr,
    password: Option<&str>,
    args: &[&str],
    timeout: Duration,
) -> Result<String, ServerError> {
    let mut stream = connect(addr, timeout).map_err(failed("connecting"))?;
    if let Some(password) = password {
        exchange(&mut stream, &["AUTH", password])?;
    }
    exchange(&mut stream, args)
}

fn connect(addr: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&addr, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream, args: &[&str]) -> Result<String, ServerError> {
    stream
        .write_all(&resp::command(args))
        .map_err(failed("sending a command"))?;
    let reply = read_reply(stream).map_err(failed("reading a reply"))?;
    let leaves: Vec<_> = resp::leaves(&reply)
        .into_iter()
        .map(|leaf| String::from_utf8_lossy(leaf))
        .collect();
    let text = leaves.join("\n");
    if reply.starts_with(b"-") {
        Err(ServerError::Reply(text))
    } else {
        Ok(text)
    }
}

fn read_reply(stream: &mut TcpStream) -> io::Result<Bytes> {
    let mut framer = Framer::new();
    let mut chunk = [0; 4096];
    loop {
        if let Some(frame) = framer.next_frame().map_err(io::Error::other)? {
            return Ok(frame);
        }
        match stream.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => framer.push(&chunk[..n]),
            // A signal came, such as that a child was stopped: with a timeout the kernel does not go on
            // by itself.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
