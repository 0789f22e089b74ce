//! What every Rolecall program is as a process, whatever it does: it logs, starts and ends tasks, says how it is.
//!
//! # Layout
//! Logs ([`telemetry`]) and [`metrics`]; how tasks start and end ([`drain`], [`signal`]); whether the program can
//! serve ([`readiness`]) and still turns ([`liveness`]); where that is told ([`admin`], [`mod@address`]) and asked
//! ([`probe`]), how the file of a socket is made ([`socket`]), and what an error of [`accept`] is about.
//! What is typed ([`value`]) and whether it is valid ([`setting`]); how a [`program`] runs, ends ([`exit`]) and keeps
//! its secrets ([`hardening`]); what time it is ([`time`]). Nothing here knows AWS or Kubernetes.

pub mod accept;
pub mod address;
pub mod admin;
pub mod drain;
pub mod exit;
pub mod hardening;
pub mod liveness;
pub mod metrics;
pub mod probe;
pub mod program;
pub mod readiness;
pub mod setting;
pub mod signal;
pub mod socket;
pub mod telemetry;
pub mod time;
pub mod value;
