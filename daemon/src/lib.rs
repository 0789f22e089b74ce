//! The Rolecall daemon: every pod of a node gets its own AWS credentials.
//!
//! # Layout
//! In reading order: who a pod is ([`identity`]) and what the API server says of it ([`pods`], through
//! [`kubernetes`]); which token it has on disk and whether to believe one ([`token`]); the session to ask for
//! ([`sessions`]) and the credentials it yields ([`credentials`]) through AWS's door ([`sts`]); who is asking and
//! what is answered ([`server`]); the machine underneath ([`node`]), and who may reach its metadata service
//! ([`exemptions`]); what the authors of pods are told ([`events`]); how the next daemon takes over ([`handover`]).
//!
//! Around them: what was typed ([`args`]) and what it means ([`config`]). What any program of ours is as a process
//! (logs, drain, readiness, admin doors) is the crate `rolecall-process`. [`app`] is where all of it meets.

pub mod app;

pub mod identity;
pub mod kubernetes;
pub mod node;
pub mod pods;
pub mod token;

pub mod credentials;
pub mod sessions;
pub mod sts;

pub mod server;

pub mod events;
pub mod exemptions;
pub mod handover;

pub mod args;
pub mod config;
