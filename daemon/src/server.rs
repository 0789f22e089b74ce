//! The container credentials endpoint: who asks, what is answered, and how.

pub mod caller;
// endpoint
pub mod limits;
// listener
pub mod observe;
pub mod refusal;
mod reply;
pub mod request;
pub mod slow;
