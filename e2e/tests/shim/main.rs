//! The shim and a real kube-apiserver, which calls it over TLS. All tests share one; a namespace each keeps them apart.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod harness;

mod calls;
mod certificates;
mod creators;
mod daemon;
mod eks;
mod golden;
mod kinds;
mod metrics;
mod missed;
mod outages;
mod replicas;
mod secrecy;
mod sources;
mod start;
mod warnings;
