//! Where a test server keeps its files.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::server_error::{ServerError, failed};

/// How much of the end of a server's log goes into an error.
const LOG_TAIL_BYTES: usize = 2048;

/// A directory that is removed on drop.
#[derive(Debug)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    /// `server` is part of its name.
    pub(crate) fn create(server: &str) -> Result<Self, ServerError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("tidings-{server}-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            match fs::create_dir(&path) {
                Ok(()) => {
                    let dir = Self(path);
                    dir.clear_data()?;
                    return Ok(dir);
                }
                // Left over from an earlier process with our id.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(failed("creating a directory")(source)),
            }
        }
    }

    /// Where the server keeps what it keeps.
    pub(crate) fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    /// What a server reads at its start, and writes at `SAVE`.
    pub(crate) fn snapshot(&self) -> PathBuf {
        self.data().join("dump.rdb")
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("server.log")
    }

    /// The end of the log, for an error.
    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        let tail = &log[log.len().saturating_sub(LOG_TAIL_BYTES)..];
        String::from_utf8_lossy(tail).into_owned()
    }

    /// Leaves an empty data directory.
    pub(crate) fn clear_data(&self) -> Result<(), ServerError> {
        match fs::remove_dir_all(self.data()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("removing the data")(error));
            }
            _ => {}
        }
        fs::create_dir(self.data()).map_err(failed("creating a directory"))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // It lies among the temporary files: there is nobody to tell, and little is lost.
        let _ = fs::remove_dir_all(&self.0);
    }
}
