//! The Rolecall daemon: every pod of a node gets its own AWS credentials.
//!
//! # Layout
//! In reading order: who a pod is ([`identity`]), which token it has on disk ([`token`]), which credentials it
//! holds ([`credentials`]).
//!
//! Around them the process: what was typed ([`args`]) and what it means ([`config`]), logs ([`telemetry`]) and
//! [`metrics`], how tasks start and end ([`drain`], [`signal`]), how the daemon says that it is well
//! ([`readiness`], [`liveness`], [`admin`]) and how it is asked ([`probe`]). [`app`] is where they meet.

pub mod app;

pub mod credentials;
pub mod identity;
pub mod kubernetes;
pub mod node;
pub mod pods;
pub mod server;
// sessions
// sts
pub mod time;
pub mod token;

pub mod admin;
pub mod args;
pub mod config;
pub mod drain;
pub mod liveness;
pub mod metrics;
pub mod probe;
pub mod readiness;
pub mod signal;
pub mod telemetry;
