//! A node, its pods and what is behind it, each in a network namespace of its own.

use std::{
    fs,
    fs::File,
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    panic,
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;

/// Directories of system programs, which an ordinary user's path may lack.
pub const PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin";

pub const METADATA: [&str; 2] = ["169.254.169.254", "fd00:ec2::254"];
pub const ENDPOINT: [&str; 2] = ["169.254.170.23", "fd00:ec2::23"];

/// Other addresses behind the node, which nobody blocks.
const BEHIND: [&str; 2] = ["192.0.2.2", "2001:db8::2"];

/// The host's end of every veth pair has it, as with Calico.
const MAC: &str = "ee:ee:ee:ee:ee:ee";

/// What is not there after this time will not come: a dropped packet has no other sign.
const SILENCE: Duration = Duration::from_millis(400);

/// Longer than anything that is to come takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A network namespace.
#[derive(Debug)]
pub struct Namespace(File);

/// A pod's.
#[derive(Debug)]
pub struct Pod {
    namespace: Namespace,
    pub v4: String,
    pub v6: String,
}

/// How a pod is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// A port of a bridge, as of the bridge plug-in.
    Bridge,
    /// A veth pair of its own and a route to it, as of the VPC CNI and Calico.
    Routed,
}

/// The node that the calling thread is on.
#[derive(Debug)]
pub struct Node {
    _behind: Namespace,
}

/// What became of an attempt to talk to the metadata service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// It answered, and saw this peer.
    Seen(IpAddr),
    /// Refused at once.
    Refused,
    /// No sign.
    Silence,
}

/// Where a program is, in the path of an administrator.
pub fn find(program: &str) -> Option<PathBuf> {
    PATH.split(':').map(|directory| PathBuf::from(directory).join(program)).find(|path| path.exists())
}

/// Runs `test` in a fresh network namespace, which is the node.
pub fn on_a_node(test: fn()) {
    Namespace::new().enter(test);
}

/// Runs a program on the node, which must succeed, and returns what it wrote.
#[track_caller]
pub fn run(line: &str) -> String {
    let mut words = line.split(' ');
    let program = find(words.next().unwrap()).unwrap();
    let output = Command::new(program).args(words).env("PATH", PATH).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Waits for what has to come.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = std::time::Instant::now() + LIMIT;
    while !holds() {
        assert!(std::time::Instant::now() < until, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

impl Namespace {
    /// A new one, with a loopback interface that is up.
    pub fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            run("ip link set lo up");
            Self(File::open("/proc/thread-self/ns/net").unwrap())
        };
        thread::spawn(make).join().unwrap()
    }

    /// Does `work` in it, in a thread of its own. Sockets made there stay there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| panic::resume_unwind(panic))
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

impl Node {
    /// The node, with the stand-in for the metadata service behind it.
    pub fn new() -> Self {
        for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{switch}"), "1").unwrap();
        }
        let behind = Namespace::new();
        run(&format!("ip link add up0 type veth peer name eth0 netns {}", behind.path()));
        run("ip address add 192.0.2.1/24 dev up0");
        run("ip address add 2001:db8::1/64 dev up0 nodad");
        run("ip link set up0 up");
        behind.enter(|| {
            for line in [
                "ip address add 192.0.2.2/24 dev eth0",
                "ip address add 2001:db8::2/64 dev eth0 nodad",
                "ip address add 169.254.169.254/32 dev lo",
                "ip address add fd00:ec2::254/128 dev lo nodad",
                "ip link set eth0 up",
                "ip route add default via 192.0.2.1",
                "ip route add default via 2001:db8::1",
            ] {
                run(line);
            }
            for address in METADATA.into_iter().chain(BEHIND) {
                serve(TcpListener::bind((address.parse::<IpAddr>().unwrap(), 80)).unwrap());
            }
        });
        run("ip route add 169.254.169.254 via 192.0.2.2");
        run("ip route add fd00:ec2::254 via 2001:db8::2");
        run("ip link add br0 type bridge");
        run("ip address add 10.244.0.1/24 dev br0");
        run("ip address add fd10:244::1/64 dev br0 nodad");
        run("ip link set br0 up");
        // As on a node of Kubernetes: netfilter sees what crosses a bridge too.
        for family in ["iptables", "ip6tables"] {
            let _ = fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{family}"), "1");
        }
        Self { _behind: behind }
    }

    /// A pod with the `number`th address of its kind of network.
    pub fn pod(&self, link: Link, number: u8) -> Pod {
        let namespace = Namespace::new();
        let (host, v4, v6) = match link {
            Link::Bridge => {
                (format!("veth-b{number}"), format!("10.244.0.{number}"), format!("fd10:244::{number}"))
            }
            Link::Routed => {
                (format!("veth-r{number}"), format!("10.245.0.{number}"), format!("fd10:245::{number}"))
            }
        };
        run(&format!("ip link add {host} address {MAC} type veth peer name eth0 netns {}", namespace.path()));
        run(&format!("ip link set {host} up"));
        match link {
            Link::Bridge => {
                run(&format!("ip link set {host} master br0"));
            }
            Link::Routed => {
                run(&format!("ip address add fe80::1/64 dev {host} nodad"));
                run(&format!("ip route add {v4}/32 dev {host}"));
                run(&format!("ip route add {v6}/128 dev {host}"));
            }
        }
        namespace.enter(|| match link {
            Link::Bridge => {
                run(&format!("ip address add {v4}/24 dev eth0"));
                run(&format!("ip address add {v6}/64 dev eth0 nodad"));
                run("ip link set eth0 up");
                run("ip route add default via 10.244.0.1");
                run("ip route add default via fd10:244::1");
            }
            Link::Routed => {
                run(&format!("ip address add {v4}/32 dev eth0"));
                run(&format!("ip address add {v6}/128 dev eth0 nodad"));
                run("ip link set eth0 up");
                run("ip route add 169.254.1.1 dev eth0 scope link");
                run("ip route add default via 169.254.1.1");
                run(&format!("ip neighbor add 169.254.1.1 lladdr {MAC} dev eth0"));
                run("ip route add default via fe80::1 dev eth0");
            }
        });
        let pod = Pod { namespace, v4, v6 };
        // A link that has just come up loses packets.
        for address in BEHIND {
            wait_until("a pod's network is up", || {
                pod.namespace.enter(|| attempt((address.parse::<IpAddr>().unwrap(), 80).into()).is_ok())
            });
        }
        pod
    }

    /// What the node itself gets of the metadata service.
    pub fn reaches(&self, address: &str) -> Reach {
        reach(address)
    }
}

impl Pod {
    pub fn reaches(&self, address: &str) -> Reach {
        self.namespace.enter(|| reach(address))
    }

    /// A connection that stays open.
    pub fn connect(&self, address: &str) -> TcpStream {
        let to = (address.parse::<IpAddr>().unwrap(), 80).into();
        self.namespace.enter(|| TcpStream::connect_timeout(&to, LIMIT).unwrap())
    }

    /// The outcome of a request to the endpoint: status and role or code.
    pub fn asks(&self, address: &str, token: Option<&str>) -> String {
        self.namespace.enter(|| ask(address, token))
    }

    /// The same, at another path.
    pub fn asks_at(&self, address: &str, path: &str, token: Option<&str>) -> String {
        self.namespace.enter(|| ask_at(address, path, token))
    }
}

/// The outcome of a request of whoever is on the calling thread's network.
pub fn ask(address: &str, token: Option<&str>) -> String {
    ask_at(address, "/v1/credentials", token)
}

fn ask_at(address: &str, path: &str, token: Option<&str>) -> String {
    let to: SocketAddr = (address.parse::<IpAddr>().unwrap(), 80).into();
    let authorization = token.map(|token| format!("Authorization: {token}\r\n")).unwrap_or_default();
    let text = exchange(to, &format!("GET {path} HTTP/1.1\r\nHost: {to}\r\n{authorization}"));
    let status = text.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {text:?}"));
    // Chunked or not, the document is one piece.
    let (from, to) = (text.find('{').unwrap(), text.rfind('}').unwrap());
    let document: Value = serde_json::from_str(&text[from..=to]).unwrap();
    let what = match document["RoleArn"].as_str() {
        Some(role) => role.rsplit('/').next(),
        None => document["code"].as_str(),
    };
    format!("{status} {}", what.unwrap())
}

/// Sends the head of a request, and returns all that is answered.
pub fn exchange(to: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect_timeout(&to, LIMIT).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Whether an open connection to the metadata service still carries `word` there and back.
pub fn carries(mut stream: &TcpStream, word: &str) -> bool {
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    let (mut received, mut buffer) = (String::new(), [0; 64]);
    if stream.write_all(word.as_bytes()).is_err() {
        return false;
    }
    while !received.contains(word) {
        match stream.read(&mut buffer) {
            Ok(length) if 0 < length => received += std::str::from_utf8(&buffer[..length]).unwrap(),
            Ok(_) | Err(_) => return false,
        }
    }
    true
}

fn reach(address: &str) -> Reach {
    let mut line = String::new();
    let to = (address.parse::<IpAddr>().unwrap(), 80).into();
    let answer = attempt(to).and_then(|stream| BufReader::new(stream).read_line(&mut line));
    match answer {
        Ok(_) => Reach::Seen(line.trim().parse().unwrap()),
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Reach::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Reach::Silence,
            _ => panic!("{address}: {error}"),
        },
    }
}

fn attempt(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, SILENCE)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Tells each peer its address, then echoes.
fn serve(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let peer = stream.peer_addr().unwrap().ip();
                let _ = writeln!(stream, "{peer}");
                let mut other = stream.try_clone().unwrap();
                let _ = io::copy(&mut other, &mut stream);
            });
        }
    });
}
