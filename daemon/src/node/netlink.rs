//! The conversation with the kernel about addresses, on a thread of its own.
//!
//! The kernel answers within the system call that asks, and that call waits for the lock of all network settings
//! (`rtnl_lock`). Whoever takes a pod's network down holds it, for a tenth of a second and more where pods come and go.
//! Requests must not wait there, so no thread that serves them may ask.

use std::{io, thread};

use futures_util::{FutureExt, StreamExt, stream::BoxStream};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The thread. It ends when this is dropped, and every connection with it.
#[derive(Debug)]
pub struct Netlink {
    runtime: Handle,
    _ends: DropGuard,
}

/// What the kernel tells of changes on one connection.
pub(super) struct Changes(BoxStream<'static, ()>);

impl Netlink {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has none to give.
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let end = CancellationToken::new();
        let ended = end.clone().cancelled_owned();
        thread::Builder::new().name("netlink".to_owned()).spawn(move || runtime.block_on(ended))?;
        Ok(Self { runtime: handle, _ends: end.drop_guard() })
    }

    /// Opens a connection, and hears of changes in `groups`.
    ///
    /// # Errors
    /// When netlink cannot be had.
    pub(super) fn connect(&self, groups: &[MulticastGroup]) -> io::Result<(rtnetlink::Handle, Changes)> {
        // The socket belongs to that thread's event loop.
        let _context = self.runtime.enter();
        let (connection, handle, messages) = new_multicast_connection(groups)?;
        self.runtime.spawn(connection);
        Ok((handle, Changes(messages.map(drop).boxed())))
    }
}

impl Changes {
    /// Waits for a change, and says whether there was one: `false` when the kernel tells nothing any more.
    ///
    /// A burst of messages is one change. Some of it may have been lost, so whoever hears of a change asks anew for
    /// all there is.
    pub(super) async fn next(&mut self) -> bool {
        let changed = self.0.next().await.is_some();
        while changed && self.0.next().now_or_never().flatten().is_some() {}
        changed
    }
}
