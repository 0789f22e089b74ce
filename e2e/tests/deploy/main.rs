//! What `deploy/` and `make image` install: the manifests as text and on a real API server, the images as containers.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod manifests;

mod architecture;
mod cluster;
mod container;
mod image;
mod metrics;
mod rendering;
