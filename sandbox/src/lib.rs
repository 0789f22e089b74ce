//! The world around the Rolecall daemon, in one process and on loopback ports: for demo, tests and benchmarks.
//!
//! Nothing here is linked into the daemon. Each part is a handle: a clone is cheap and names the same thing, and
//! when the last one is dropped its tasks end and its temporary files go.
//!
//! - [`World`] is all of it together, wired as a cluster with IAM roles for ServiceAccounts would be.
//! - [`Issuer`] signs the ServiceAccount tokens and publishes the keys.
//! - [`KubeletDir`] is the kubelet's pods directory, where those tokens lie.
//! - [`Cluster`] lists and watches pods over HTTP as a kube-apiserver does.
//! - [`StsServer`] exchanges tokens for credentials with AWS's protocol, checks and errors, and fails on demand.
//! - [`Authority`] signs the certificates of the last two, where they speak TLS.

mod authority;
mod clock;
pub mod cluster;
mod gate;
mod ids;
pub mod issuer;
mod jws;
pub mod kubelet;
mod listener;
pub mod sts;
pub mod world;

pub use authority::Authority;
pub use cluster::Cluster;
pub use cluster::pod::PodBuilder;
pub use gate::Gate;
pub use issuer::{Algorithm, Issuer, TokenClaims};
pub use kubelet::KubeletDir;
pub use sts::{Behavior, StsConfig, StsServer, TrustPolicy};
pub use world::{World, WorldPod};
