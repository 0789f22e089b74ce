//! The Rolecall daemon: every pod of a node gets its own AWS credentials.
//!
//! # Layout
//! In reading order: who a pod is ([`identity`]), which token it has on disk ([`token`]), which credentials it
//! holds ([`credentials`]) and how AWS is asked for them ([`sts`]).

pub mod credentials;
pub mod identity;
pub mod sts;
pub mod time;
pub mod token;
