//! The Rolecall daemon: every pod of a node gets its own AWS credentials.
//!
//! # Layout
//! In reading order: who a pod is ([`identity`]), which token it has on disk ([`token`]), which credentials it
//! holds ([`credentials`]).

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
