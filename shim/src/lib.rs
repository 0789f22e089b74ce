//! The Rolecall shim: a mutating admission webhook that points pods at the daemon.
//!
//! # Layout
//! The core decides and does nothing else. In reading order: the operator's settings ([`policy`]) and what people
//! write ([`annotations`], [`config_map`], [`identities`]); a pod as raw JSON ([`pod`]); which role it is bound to
//! ([`binding`]); what that changes in it ([`mutate`], [`patch`], [`session_name`]); the question and its answer
//! ([`review`]).
//!
//! Around it: what the API server knows ([`kubernetes`], [`cache`], [`mod@file`]), by which certificate it believes us
//! ([`certificate`]), where it asks ([`server`]), and what it let in while nobody answered ([`missed`]).
//! [`args`], [`config`] and [`app`] are as in the daemon.

pub mod app;
pub mod args;
pub mod config;

pub mod policy;

pub mod annotations;
pub mod config_map;
pub mod identities;

pub mod pod;

pub mod binding;
pub mod mutate;
pub mod patch;
pub mod session_name;

pub mod review;

pub mod cache;
pub mod certificate;
pub mod file;
pub mod kubernetes;
pub mod missed;
pub mod server;
mod wording;
