//! What went wrong when a connection was not accepted.

use std::io;

/// Whether `error` is of the connection that was to be accepted, not of the listener or the process: the next one may
/// well succeed, at once.
#[must_use]
pub fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn what_would_come_again_at_once_is_not_of_the_connection() {
        for (error, expect) in [
            (Errno::ECONNABORTED, true),
            (Errno::ECONNRESET, true),
            (Errno::EINTR, true),
            (Errno::EMFILE, false),
            (Errno::ENFILE, false),
            (Errno::ENOMEM, false),
        ] {
            assert_eq!(is_of_the_connection(&error.into()), expect, "{error}");
        }
    }
}
