//! A connection between two daemons of a node: whole messages, and file descriptors beside them.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use nix::unistd::geteuid;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::{io::Interest, net::UnixStream};
use zeroize::Zeroizing;

use super::{
    cache::Unreadable,
    message::{MAX_LENGTH, Message},
};

/// Most descriptors beside one message: every listener and the cache.
const MAX_DESCRIPTORS: usize = 64;

/// Bytes in front of each message: its length, the highest first.
const HEAD: usize = 4;

/// Why a connection is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the other process is user {theirs}'s, not {ours}'s; only a daemon of the same user takes over")]
    Stranger { ours: u32, theirs: u32 },
    #[error("a message of {0} bytes is longer than any of ours")]
    TooLong(usize),
    #[error("understand a message")]
    Malformed(#[source] Unreadable),
    #[error("the connection ended in the middle of a message")]
    CutOff,
    #[error("a message did not come with its descriptors")]
    NoDescriptors,
    #[error("the other daemon stands still: it takes nothing in")]
    Stuck,
    #[error("talk to the other daemon")]
    Io(#[from] io::Error),
}

/// The half that is read.
pub(super) struct Reader {
    stream: Arc<UnixStream>,
    /// What has come and is not a whole message yet. It has its full size from the start, so that it leaves no
    /// copies of secrets behind by growing.
    received: Zeroizing<Vec<u8>>,
    descriptors: VecDeque<OwnedFd>,
}

/// The half that is written.
pub(super) struct Writer {
    stream: Arc<UnixStream>,
}

/// Takes a connection whose other end is a process of our own user.
///
/// The kernel says whose it is; the file of the socket can be reached by root alone, but so can a wrong path.
pub(super) fn trusted(stream: UnixStream) -> Result<(Reader, Writer), Error> {
    between(stream, geteuid().as_raw())
}

fn between(stream: UnixStream, ours: u32) -> Result<(Reader, Writer), Error> {
    let theirs = stream.peer_cred()?.uid();
    if ours != theirs {
        return Err(Error::Stranger { ours, theirs });
    }
    let stream = Arc::new(stream);
    let received = Zeroizing::new(Vec::with_capacity(2 * (HEAD + MAX_LENGTH)));
    Ok((Reader { stream: stream.clone(), received, descriptors: VecDeque::new() }, Writer { stream }))
}

impl Reader {
    /// The next message; `None` at the end. It may be dropped and called again.
    pub(super) async fn receive(&mut self) -> Result<Option<Message>, Error> {
        loop {
            if let Some(message) = self.whole_message()? {
                return Ok(Some(message));
            }
            let mut chunk = Zeroizing::new([0; 16 * 1024]);
            let stream = self.stream.clone();
            let (read, descriptors) =
                stream.async_io(Interest::READABLE, || receive(&stream, &mut *chunk)).await?;
            self.descriptors.extend(descriptors);
            if read == 0 {
                return if self.received.is_empty() { Ok(None) } else { Err(Error::CutOff) };
            }
            self.received.extend_from_slice(&chunk[..read]);
        }
    }

    /// The next `count` descriptors, which came with a message that said so.
    pub(super) fn descriptors(&mut self, count: usize) -> Result<Vec<OwnedFd>, Error> {
        if self.descriptors.len() < count {
            return Err(Error::NoDescriptors);
        }
        Ok(self.descriptors.drain(..count).collect())
    }

    fn whole_message(&mut self) -> Result<Option<Message>, Error> {
        let Some((head, rest)) = self.received.split_first_chunk::<HEAD>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        if MAX_LENGTH < length {
            return Err(Error::TooLong(length));
        }
        let Some(document) = rest.get(..length) else { return Ok(None) };
        let message = serde_json::from_slice(document).map_err(|error| Error::Malformed(error.into()))?;
        self.received.drain(..HEAD + length);
        Ok(Some(message))
    }
}

impl Writer {
    /// Sends `message`, with `descriptors` beside it. To be called to its end.
    pub(super) async fn send(
        &mut self,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(HEAD + MAX_LENGTH));
        bytes.extend_from_slice(&[0; HEAD]);
        serde_json::to_writer(&mut *bytes, message).map_err(|error| Error::Malformed(error.into()))?;
        let length = bytes.len() - HEAD;
        match u32::try_from(length) {
            Ok(head) if length <= MAX_LENGTH => bytes[..HEAD].copy_from_slice(&head.to_be_bytes()),
            _ => return Err(Error::TooLong(length)),
        }
        let mut sent = 0;
        while sent < bytes.len() {
            // They go with the first byte, and only once.
            let beside = if sent == 0 { descriptors } else { &[] };
            let stream = &self.stream;
            sent += stream.async_io(Interest::WRITABLE, || send(stream, &bytes[sent..], beside)).await?;
        }
        Ok(())
    }
}

fn receive(stream: &UnixStream, chunk: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(stream.as_fd(), &mut [IoSliceMut::new(chunk)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for beside in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = beside {
            descriptors.extend(rights);
        }
    }
    Ok((received.bytes, descriptors))
}

fn send(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other(format!(
            "pass {} descriptors; there is room for {MAX_DESCRIPTORS}",
            descriptors.len()
        )));
    }
    Ok(sendmsg(stream.as_fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
    };

    use super::*;

    fn pair() -> ((Reader, Writer), (Reader, Writer)) {
        let (one, other) = UnixStream::pair().unwrap();
        (trusted(one).unwrap(), trusted(other).unwrap())
    }

    #[tokio::test]
    async fn messages_and_descriptors_arrive_in_order_and_belong_together() {
        let ((_, mut writer), (mut reader, _)) = pair();
        let (mut pipe_reader, pipe_writer) = io::pipe().unwrap();
        let long = "x".repeat(MAX_LENGTH / 2);
        writer.send(&Message::Refuse { reason: long.clone() }, &[]).await.unwrap();
        writer.send(&Message::Commit, &[pipe_writer.as_fd()]).await.unwrap();
        writer.send(&Message::Release, &[]).await.unwrap();
        drop((writer, pipe_writer));
        assert!(matches!(reader.receive().await, Ok(Some(Message::Refuse { reason })) if reason == long));
        assert!(matches!(reader.receive().await, Ok(Some(Message::Commit))));
        File::from(reader.descriptors(1).unwrap().remove(0)).write_all(b"through").unwrap();
        let mut text = String::new();
        pipe_reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert!(matches!(reader.receive().await, Ok(Some(Message::Release))));
        assert!(matches!(reader.descriptors(1), Err(Error::NoDescriptors)));
    }

    #[tokio::test]
    async fn a_process_of_another_user_is_not_talked_to() {
        let (one, mut other) = UnixStream::pair().unwrap();
        let theirs = geteuid().as_raw();
        let error = between(one, theirs + 1).err().unwrap();
        assert!(
            matches!(error, Error::Stranger { ours, theirs: seen } if ours == theirs + 1 && seen == theirs)
        );
        assert_eq!(
            tokio::io::AsyncReadExt::read(&mut other, &mut [0]).await.unwrap(),
            0,
            "the connection ends"
        );
    }

    #[tokio::test]
    async fn the_end_is_an_end_and_half_a_message_is_none() {
        let ((reader, writer), (mut other, _writer)) = pair();
        drop((reader, writer));
        assert!(matches!(other.receive().await, Ok(None)));
        for (bytes, is_expected) in [
            (&[0, 0, 0, 9, b'"'][..], (|error| matches!(error, Error::CutOff)) as fn(&Error) -> bool),
            (&[0xff; 4], |error| matches!(error, Error::TooLong(_))),
            (&[0, 0, 0, 2, b'{', b'}'], |error| matches!(error, Error::Malformed(_))),
            (b"\0\0\0\x14{\"Refuse\":\"hunter2\"}", |error| matches!(error, Error::Malformed(_))),
        ] {
            let (one, stream) = UnixStream::pair().unwrap();
            let (mut reader, _writer) = trusted(one).unwrap();
            stream.into_std().unwrap().write_all(bytes).unwrap();
            let error = reader.receive().await.err().unwrap();
            assert!(is_expected(&error) && !format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
