//! A pod's connection: how it ends, and that it ends when its client does not read.

use std::{
    io, mem,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use nix::{
    libc::linger,
    sys::socket::{setsockopt, sockopt},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use super::slow::ResetSwitch;

/// How often input is discarded before a connection is closed: a client that never ends is not waited for.
const MAX_DISCARDED: usize = 16;

/// A stream that ends with a reset while its switch is pressed and with a close otherwise, and that ends when its
/// client does not read.
pub(super) struct ClientStream {
    stream: TcpStream,
    /// Read before, and to be read again.
    unread: Bytes,
    reset: ResetSwitch,
    /// What the socket was last told of the switch.
    lingers_for_zero: bool,
    write_timeout: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl ClientStream {
    pub(super) fn new(stream: TcpStream, reset: ResetSwitch, write_timeout: Duration) -> Self {
        Self { stream, unread: Bytes::new(), reset, lingers_for_zero: false, write_timeout, stalled: None }
    }

    /// Gives back what was read too much, before what has not been read again since the last time.
    pub(super) fn put_back(&mut self, unread: Bytes) {
        // A copy, so that it does not keep the larger buffer that it was read into.
        self.unread = [unread, mem::take(&mut self.unread)].concat().into();
    }

    /// Takes what the client has sent beside its request. Bytes that nobody read would make the kernel send a reset
    /// with the close, which may cost the client the end of its answer (RFC 1122, section 4.2.2.13).
    pub(super) fn discard_input(&self) {
        let mut discarded = [0; 4096];
        for _ in 0..MAX_DISCARDED {
            if !matches!(self.stream.try_read(&mut discarded), Ok(1..)) {
                return;
            }
        }
    }

    /// Whether the last write waits for the client to read.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    /// Completes when the client has ended the connection. Once the client has sent more, it is not looked at any
    /// further: that is for whoever reads it.
    pub(super) async fn hung_up(&self) {
        let has_ended = self.unread.is_empty() && !matches!(self.stream.peek(&mut [0]).await, Ok(1..));
        if !has_ended {
            std::future::pending().await
        }
    }

    /// Closing a socket that lingers for zero seconds sends RST in place of FIN (socket(7)). It is told so with the
    /// bytes, not at the end, for the end may be the process's own.
    fn follow_switch(&mut self) {
        let pressed = self.reset.is_pressed();
        if pressed != self.lingers_for_zero {
            let linger = linger { l_onoff: pressed.into(), l_linger: 0 };
            let _ = setsockopt(&self.stream, sockopt::Linger, &linger);
            self.lingers_for_zero = pressed;
        }
    }

    /// Lets a write wait for the client to read, but not for ever.
    fn within_time<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let write_timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(write_timeout)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        self.follow_switch();
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.unread.len().min(buffer.remaining());
        buffer.put_slice(&self.unread[..length]);
        self.unread.advance(length);
        if self.unread.is_empty() {
            // An empty rest would keep all of it.
            self.unread = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.follow_switch();
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.within_time(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.follow_switch();
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.within_time(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.reset.is_pressed() {
            // A FIN now would reach the client before the reset does.
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
