//! A go-between of two real daemons, which decides what either hears, and when.

use std::{
    io::{IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde_json::Value;

use super::node::LIMIT;

/// More descriptors than a node without IPv6 has listeners, and the cache.
const MOST_DESCRIPTORS: usize = 8;

/// Where the new daemon looks for the old one, and finds the go-between.
pub struct Meeting {
    listener: UnixListener,
    path: PathBuf,
}

/// The connections with both. Dropping it is, to either, the end of the other.
pub struct Between {
    new: UnixStream,
    old: UnixStream,
    _meeting: UnixListener,
}

/// A message on its way, and what comes with it.
pub struct Parcel {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Meeting {
    pub fn at(path: PathBuf) -> Self {
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        Self { listener: UnixListener::bind(&path).unwrap(), path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the new daemon's hello, which the old one at `old` has not heard yet.
    pub fn begins(self, old: &Path) -> (Between, Parcel) {
        loop {
            let (new, _) = self.listener.accept().unwrap();
            new.set_read_timeout(Some(LIMIT)).unwrap();
            // Some only look whether anybody is there.
            let Some(hello) = receive(&new) else { continue };
            assert_eq!(hello.kind(), "Hello");
            let old = UnixStream::connect(old).unwrap();
            old.set_read_timeout(Some(LIMIT)).unwrap();
            return (Between { new, old, _meeting: self.listener }, hello);
        }
    }
}

impl Between {
    /// What the old daemon says, once it is a `kind`; what it says before is passed on.
    pub fn of_old(&self, kind: &str) -> Parcel {
        next(&self.old, &self.new, kind)
    }

    /// What the new daemon says, once it is a `kind`; what it says before is passed on.
    pub fn of_new(&self, kind: &str) -> Parcel {
        next(&self.new, &self.old, kind)
    }

    pub fn to_old(&self, parcel: &Parcel) {
        send(&self.old, parcel);
    }

    pub fn to_new(&self, parcel: &Parcel) {
        send(&self.new, parcel);
    }
}

impl Parcel {
    fn kind(&self) -> String {
        match serde_json::from_slice(&self.bytes[4..]).unwrap() {
            Value::String(kind) => kind,
            Value::Object(tagged) => tagged.keys().next().unwrap().clone(),
            other => panic!("{other}"),
        }
    }
}

fn next(from: &UnixStream, to: &UnixStream, kind: &str) -> Parcel {
    loop {
        let parcel = receive(from).unwrap_or_else(|| panic!("the end before {kind}"));
        if parcel.kind() == kind {
            return parcel;
        }
        send(to, &parcel);
    }
}

/// The next message; `None` at the end.
fn receive(mut from: &UnixStream) -> Option<Parcel> {
    let mut bytes = vec![0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    // Descriptors come with the first byte. No child of ours is to have them.
    let mut into = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(from.as_fd(), &mut into, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?.bytes;
    let mut descriptors = Vec::new();
    for beside in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = beside {
            descriptors.extend(rights);
        }
    }
    if received == 0 {
        return None;
    }
    from.read_exact(&mut bytes[received..]).ok()?;
    let length = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    bytes.resize(4 + length, 0);
    from.read_exact(&mut bytes[4..]).ok()?;
    Some(Parcel { bytes, descriptors })
}

fn send(mut to: &UnixStream, Parcel { bytes, descriptors }: &Parcel) {
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    let sent = sendmsg(to.as_fd(), &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
    to.write_all(&bytes[sent..]).unwrap();
}
