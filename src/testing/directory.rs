//! Where a test server keeps its files.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::server_error::{ServerError, failed};

/// A directory that is removed on drop.
#[derive(Debug)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn create() -> Result<Self, ServerError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("tidings-redis-{}-{number}", std::process::id());
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
        self.0.join("redis.log")
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
