//! The real parts that Rolecall is tested with: a Kubernetes control plane, a third party's STS, the AWS SDKs.
//!
//! Each part is a child process with a loopback address and a folder of its own. It ends when its handle is
//! dropped, and at the latest with the test process, however that ends. Nothing needs root but the whole cluster.
//!
//! - [`ControlPlane`] is kube-apiserver with etcd, and what kubelets and operators would do to it.
//! - [`Cluster`] is all of Kubernetes, with nodes that run containers; [`isolation`] is where it runs.
//! - [`Moto`] is an STS that was not written by us.
//! - [`Sdk`] is an AWS SDK or the AWS CLI, unmodified, as an application would use it.
//! - [`Daemon`] is the daemon as it ships.
//! - [`Process`] is any other program, such as the daemon; [`binary`] finds those of this workspace.

mod binaries;
pub mod cluster;
mod command;
pub mod control_plane;
pub mod daemon;
pub mod isolation;
mod loopback;
mod moto;
mod plain_http;
mod process;
mod scratch;
pub mod sdk;
mod tools;

pub use binaries::binary;
pub use cluster::Cluster;
pub use control_plane::ControlPlane;
pub use daemon::Daemon;
pub use loopback::{free_port, own_address};
pub use moto::Moto;
pub use process::Process;
pub use scratch::Scratch;
pub use sdk::Sdk;
pub use tools::path as tool;
