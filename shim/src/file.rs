//! Reads small files that others change, without stopping the event loop.

use std::{
    fs::File,
    io::{self, Read},
    path::PathBuf,
};

/// Largest file that is read, in bytes.
pub const MAX_LENGTH: usize = 4 * 1024 * 1024;

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it has more than {MAX_LENGTH} bytes")]
    TooLong,
}

/// Reads the whole file.
///
/// # Errors
/// When it is not there, not readable, or longer than [`MAX_LENGTH`].
pub async fn read(path: PathBuf) -> Result<Vec<u8>, Error> {
    let read = tokio::task::spawn_blocking(move || {
        let mut content = Vec::new();
        // Not more than one byte beyond what is allowed is read of whatever is there.
        File::open(path)?.take(MAX_LENGTH as u64 + 1).read_to_end(&mut content)?;
        if MAX_LENGTH < content.len() { Err(Error::TooLong) } else { Ok(content) }
    });
    read.await.unwrap_or_else(|_| Err(io::Error::other("the reading thread ended").into()))
}
