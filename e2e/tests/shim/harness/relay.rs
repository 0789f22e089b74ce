//! A way between programs that can be paused, cut and led elsewhere, as a network and a Service can.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

/// Takes connections for as long as the test process lives, and leads them to its targets in turn.
pub(crate) struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    way: Mutex<Way>,
    changed: Condvar,
}

struct Way {
    targets: Vec<SocketAddr>,
    is_paused: bool,
    /// Both ends of each connection since the last cut.
    open: Vec<TcpStream>,
    taken: usize,
}

impl Relay {
    /// A way to one target, at the target's own address, for which its certificate is good.
    pub(crate) fn to(target: SocketAddr) -> Self {
        let SocketAddr::V4(v4) = target else { panic!("no IPv6 here") };
        let relay = Self::at(*v4.ip());
        relay.lead_to(&[target]);
        relay
    }

    /// A way to nobody yet.
    pub(crate) fn at(address: Ipv4Addr) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let way = Way { targets: Vec::new(), is_paused: false, open: Vec::new(), taken: 0 };
        let shared = Arc::new(Shared { way: Mutex::new(way), changed: Condvar::new() });
        let accepting = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Whoever is led nowhere sees the connection end.
                let _ = accepting.connect(stream);
            }
        });
        Self { address, shared }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Leads connections from now on to these; those that are open stay.
    pub(crate) fn lead_to(&self, targets: &[SocketAddr]) {
        self.shared.way().targets = targets.to_vec();
    }

    /// Holds back every byte until [`Relay::resume`].
    pub(crate) fn pause(&self) {
        self.shared.way().is_paused = true;
    }

    pub(crate) fn resume(&self) {
        self.shared.way().is_paused = false;
        self.shared.changed.notify_all();
    }

    /// Ends every connection.
    pub(crate) fn cut(&self) {
        for stream in self.shared.way().open.drain(..) {
            // It may have ended by itself.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn way(&self) -> MutexGuard<'_, Way> {
        self.way.lock().unwrap()
    }

    fn connect(self: &Arc<Self>, near: TcpStream) -> std::io::Result<()> {
        let target = {
            let mut way = self.way();
            way.taken += 1;
            let index = way.taken.checked_rem(way.targets.len());
            index.map(|index| way.targets[index]).ok_or(std::io::ErrorKind::NotConnected)?
        };
        let far = TcpStream::connect(target)?;
        self.way().open.extend([near.try_clone()?, far.try_clone()?]);
        for (from, to) in [(near.try_clone()?, far.try_clone()?), (far, near)] {
            from.set_nodelay(true)?;
            let shared = self.clone();
            thread::spawn(move || shared.copy(from, to));
        }
        Ok(())
    }

    fn copy(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            drop(self.changed.wait_while(self.way(), |way| way.is_paused).unwrap());
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        // The other end has gone already, or learns that this one has.
        let _ = to.shutdown(Shutdown::Write);
    }
}
