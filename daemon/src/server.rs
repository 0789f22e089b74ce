//! The container credentials endpoint: who asks, what is answered, and how.

pub mod caller;
mod connection;
pub mod endpoint;
mod handed_out;
pub mod limits;
pub mod listener;
pub mod observe;
pub mod refusal;
mod reply;
pub mod request;
pub mod slow;
mod stream;
