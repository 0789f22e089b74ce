//! The conversation with the kernel about addresses, on a thread of its own.
//!
//! The kernel answers within the system call that asks, and that call waits for the lock of all network settings
//! (`rtnl_lock`). Whoever takes a pod's network down holds it, for a tenth of a second and more where pods come and go.
//! Requests must not wait there, so no thread that serves them may ask.

use std::{
    future::ready,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use futures_util::StreamExt;
use rtnetlink::{
    Error, Handle, MulticastGroup, new_multicast_connection,
    packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{RouteNetlinkMessage, address::AddressMessage},
};
use tokio::{
    runtime::{self, Builder},
    sync::watch,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The kernel answers at once, or as soon as others have done with the network's settings.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// How often a list is asked for while changes fall into it. One takes less than a millisecond; pods come and go more
/// slowly.
const LISTS: usize = 10;

/// The thread. It ends when this is dropped, and every connection with it.
#[derive(Debug)]
pub struct Netlink {
    runtime: runtime::Handle,
    _ends: DropGuard,
}

/// Asks the kernel on one connection.
pub(super) struct Asker {
    handle: Handle,
    is_closed: Arc<AtomicBool>,
}

/// What the kernel tells of changes on one connection.
pub(super) struct Changes(watch::Receiver<()>);

/// The kernel did not answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error(transparent)]
    Refused(Box<Error>),
    #[error("the netlink socket was closed")]
    Closed,
    /// It drops an answer where its queue for the socket is full.
    #[error("the kernel gave no answer within {ANSWER_WITHIN:?}")]
    Silent,
    #[error("the addresses changed during each of {LISTS} lists of them")]
    Interrupted,
}

/// A connection that says that it is closed before it is: what was asked on it ends when it is dropped.
struct Connection<C> {
    // Dropped in this order.
    _closing: Closing,
    messages: C,
}

struct Closing(Arc<AtomicBool>);

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
    pub(super) fn connect(&self, groups: &[MulticastGroup]) -> io::Result<(Asker, Changes)> {
        // The socket belongs to that thread's event loop.
        let _context = self.runtime.enter();
        let (connection, handle, messages) = new_multicast_connection(groups)?;
        let is_closed = Arc::new(AtomicBool::new(false));
        let connection = Connection { _closing: Closing(is_closed.clone()), messages: connection };
        let (changed, changes) = watch::channel(());
        // It ends with the socket or with the thread.
        self.runtime.spawn(async move {
            let tell = messages.for_each(|_| {
                changed.send_replace(());
                ready(())
            });
            tokio::select! {
                () = connection => {}
                () = tell => {}
            }
        });
        Ok((Asker { handle, is_closed }, Changes(changes)))
    }
}

impl Asker {
    /// All addresses of the network namespace.
    pub(super) async fn addresses(&self) -> Result<Vec<AddressMessage>, AskError> {
        for _ in 0..LISTS {
            let answers = self.list_addresses().await;
            self.ensure_open()?;
            if let Some(addresses) = listed(answers?)? {
                return Ok(addresses);
            }
        }
        Err(AskError::Interrupted)
    }

    async fn list_addresses(&self) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, AskError> {
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetAddress(AddressMessage::default()));
        request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        match self.handle.clone().request(request) {
            Ok(answers) => Ok(answers.collect().await),
            Err(error) => Err(AskError::Refused(Box::new(error))),
        }
    }

    /// Waits for what was told to be done by way of [`Self::handle`]; unlike a list, which the kernel goes on with, that it
    /// is done is said once.
    pub(super) async fn done<T>(&self, done: impl Future<Output = T>) -> Result<T, AskError> {
        let done = timeout(ANSWER_WITHIN, done).await.map_err(|_| AskError::Silent)?;
        self.ensure_open()?;
        Ok(done)
    }

    /// Cut off, an answer looks as if that were all.
    fn ensure_open(&self) -> Result<(), AskError> {
        if self.is_closed.load(Ordering::Acquire) { Err(AskError::Closed) } else { Ok(()) }
    }

    /// For what [`Self::done`] waits for.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Changes {
    /// Waits for a change, and says whether there was one: `false` when the kernel tells nothing any more.
    ///
    /// A burst of messages is one change. Some of it may have been lost, so whoever hears of a change asks anew for
    /// all there is.
    pub(super) async fn next(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

impl<C: Future<Output = ()> + Unpin> Future for Connection<C> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        Pin::new(&mut self.messages).poll(context)
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// The addresses of a list, unless a change fell into it: then some may be missing, whoever is in it.
///
/// `NLM_F_DUMP_INTR`: <https://docs.kernel.org/userspace-api/netlink/intro.html#dump-consistency>.
fn listed(
    answers: Vec<NetlinkMessage<RouteNetlinkMessage>>,
) -> Result<Option<Vec<AddressMessage>>, AskError> {
    if answers.iter().any(|answer| answer.header.flags & NLM_F_DUMP_INTR != 0) {
        return Ok(None);
    }
    let address = |answer: NetlinkMessage<_>| match answer.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(address)) => Ok(address),
        NetlinkPayload::Error(error) => Err(AskError::Refused(Box::new(Error::NetlinkError(error)))),
        _ => Err(AskError::Refused(Box::new(Error::UnexpectedMessage(answer)))),
    };
    answers.into_iter().map(address).collect::<Result<_, _>>().map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_a_change_fell_into_is_not_all() {
        let answer = || NetlinkMessage::from(RouteNetlinkMessage::NewAddress(AddressMessage::default()));
        assert_eq!(listed(vec![answer(), answer()]).unwrap().map(|all| all.len()), Some(2));
        let mut interrupted = answer();
        interrupted.header.flags |= NLM_F_DUMP_INTR;
        assert_eq!(listed(vec![answer(), interrupted]).unwrap(), None);
    }

    #[test]
    fn what_is_no_address_is_an_error() {
        let other = NetlinkMessage::from(RouteNetlinkMessage::DelAddress(AddressMessage::default()));
        assert!(matches!(listed(vec![other]), Err(AskError::Refused(_))));
    }

    #[tokio::test]
    async fn an_answer_that_is_cut_off_is_no_answer() {
        // Whether it is cut off is up to the threads.
        for _ in 0..300 {
            let netlink = Netlink::start().unwrap();
            let (asker, mut changes) = netlink.connect(&[]).unwrap();
            let ended = thread::spawn(move || drop(netlink));
            if let Ok(found) = asker.addresses().await {
                assert!(!found.is_empty(), "loopback has an address");
            }
            ended.join().unwrap();
            assert!(!changes.next().await);
            assert!(matches!(asker.addresses().await, Err(AskError::Closed)));
        }
    }
}
