//! A `redis-server` of a test's own: free port, directory of its own, stopped on drop.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub(crate) struct Server {
    child: Child,
    pub(crate) port: u16,
    dir: PathBuf,
    args: Vec<String>,
}

impl Server {
    pub(crate) fn start(args: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("tidings-redis-{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let port = TcpListener::bind(("127.0.0.1", 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let child = spawn(port, &dir, &args);
        let server = Self {
            child,
            port,
            dir,
            args,
        };
        server.await_ready();
        server
    }

    /// Saves the data, ends the process and starts another one with it.
    pub(crate) fn restart(&mut self) {
        let _ = redis::cmd("SHUTDOWN").arg("SAVE").exec(&mut self.admin());
        self.child.wait().unwrap();
        self.child = spawn(self.port, &self.dir, &self.args);
        self.await_ready();
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// A connection that is not the store's.
    pub(crate) fn admin(&self) -> redis::Connection {
        redis::Client::open(self.url())
            .unwrap()
            .get_connection()
            .unwrap()
    }

    pub(crate) fn ask<T: redis::FromRedisValue>(&self, command: &[&[u8]]) -> T {
        let mut cmd = redis::Cmd::new();
        for word in command {
            cmd.arg(*word);
        }
        cmd.query(&mut self.admin()).unwrap()
    }

    pub(crate) fn run(&self, command: &str) {
        let words: Vec<_> = command.split(' ').map(str::as_bytes).collect();
        let _: redis::Value = self.ask(&words);
    }

    fn await_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let expected = format!("process_id:{}\r", self.child.id());
        loop {
            let client = redis::Client::open(self.url()).unwrap();
            let info = client.get_connection().and_then(|mut connection| {
                redis::cmd("INFO")
                    .arg("server")
                    .query::<String>(&mut connection)
            });
            match info {
                // Somebody else's server on the port would have another process id.
                Ok(info) if info.contains(&expected) => return,
                Err(error) if error.code() == Some("NOAUTH") => return,
                _ => {}
            }
            assert!(Instant::now() < deadline, "redis-server did not come up");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn spawn(port: u16, dir: &std::path::Path, args: &[String]) -> Child {
    Command::new("redis-server")
        .args([
            "--port",
            &port.to_string(),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
        ])
        .arg("--dir")
        .arg(dir)
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed")
}
