//! Something else answers on the server's port.

use crate::fleet::Fleet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A server that does `act` to every client, until it is dropped.
struct Impostor {
    gone: Arc<AtomicBool>,
    addr: SocketAddr,
    accepting: Option<std::thread::JoinHandle<()>>,
}

impl Impostor {
    fn start(addr: SocketAddr, act: fn(TcpStream)) -> Self {
        let deadline = Instant::now() + Duration::from_secs(5);
        let listener = loop {
            match TcpListener::bind(addr) {
                Ok(listener) => break listener,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        };
        let gone = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&gone);
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(stream) = stream {
                    std::thread::spawn(move || act(stream));
                }
            }
        });
        Self {
            gone,
            addr,
            accepting: Some(accepting),
        }
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.addr);
        if let Some(accepting) = self.accepting.take() {
            accepting.join().unwrap();
        }
    }
}

fn speak_http(mut stream: TcpStream) {
    let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    let _ = stream.read(&mut [0; 1024]);
}

/// Well-formed answers that answer nothing.
fn babble(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(1..) = stream.read(&mut buffer) {
        let nonsense = b"*2\r\n$-1\r\n:7\r\n$5\r\nhello\r\n+OK\r\n*0\r\n-ERR what\r\n:-1\r\n";
        if stream.write_all(nonsense).is_err() {
            return;
        }
    }
}

/// Says yes to everything, once for each line that looks like a command.
fn agree(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        let commands = buffer[..n].iter().filter(|&&byte| byte == b'*').count();
        if stream.write_all(&b"+OK\r\n".repeat(commands)).is_err() {
            return;
        }
    }
}

fn hang_up(_stream: TcpStream) {}

fn hang(mut stream: TcpStream) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
    while let Ok(1..) = stream.read(&mut [0; 4096]) {}
}

async fn replaced_by(act: fn(TcpStream)) {
    let mut fleet = Fleet::start().await;
    fleet.work(400).await;
    fleet.server.kill();
    let impostor = Impostor::start(fleet.server.addr(), act);
    fleet.work(1400).await;
    drop(impostor);
    fleet.pods.iter().for_each(|pod| pod.proxy().cut_all());
    fleet.server.restart().unwrap();
    fleet.heals().await;
    fleet.work(300).await;
    fleet.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_server() {
    replaced_by(speak_http).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense() {
    replaced_by(babble).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_agrees_to_everything() {
    replaced_by(agree).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_up() {
    replaced_by(hang_up).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_never_answers() {
    replaced_by(hang).await;
}
