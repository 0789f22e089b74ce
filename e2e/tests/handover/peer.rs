//! The other side of a hand-over, played by the test, which stops and dies at whatever step it likes.

use std::{
    io::{IoSlice, Read, Write},
    net::TcpListener,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::Path,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};

/// A connection with a real daemon.
pub struct Peer(UnixStream);

impl Peer {
    /// As a daemon that would take over.
    pub fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(super::node::LIMIT)).unwrap();
        Self(stream)
    }

    /// As the daemon that serves: waits for a real one to say hello. Those that only look are let go.
    pub fn accept(listener: &UnixListener) -> Self {
        loop {
            let (stream, _) = listener.accept().unwrap();
            let mut peer = Self(stream);
            if let Some(hello) = peer.hear() {
                assert_eq!(hello["Hello"]["protocol"], 1, "{hello}");
                return peer;
            }
        }
    }

    pub fn say_hello(&mut self, protocol: u32) {
        let origin = json!({
            "region": "us-east-1", "endpoint": null, "fips": false, "dual_stack": false, "audience": "another",
        });
        self.say(&json!({"Hello": {"protocol": protocol, "version": "0.0.0", "origin": origin}}));
    }

    /// Offers these listening sockets, in the form of version 1, and no cache.
    pub fn offer(&mut self, doors: &[(&str, &TcpListener)]) {
        let names: Vec<&str> = doors.iter().map(|(name, _)| *name).collect();
        let bytes = frame(&json!({"Offer": {"version": "0.0.0", "doors": names, "has_cache": false}}));
        let descriptors: Vec<RawFd> = doors.iter().map(|(_, listener)| listener.as_raw_fd()).collect();
        let beside = [ControlMessage::ScmRights(&descriptors)];
        let sent =
            sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&bytes)], &beside, MsgFlags::empty(), None);
        assert_eq!(sent.unwrap(), bytes.len());
    }

    pub fn say(&mut self, message: &Value) {
        self.0.write_all(&frame(message)).unwrap();
    }

    /// The next message; `None` at the end. Descriptors beside it are closed.
    pub fn hear(&mut self) -> Option<Value> {
        let mut head = [0; 4];
        self.0.read_exact(&mut head).ok()?;
        let mut document = vec![0; u32::from_be_bytes(head) as usize];
        self.0.read_exact(&mut document).ok()?;
        Some(serde_json::from_slice(&document).unwrap())
    }
}

fn frame(message: &Value) -> Vec<u8> {
    let document = serde_json::to_vec(message).unwrap();
    let mut bytes = u32::try_from(document.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(document);
    bytes
}
