//! The pods of this node: what the API server says of them, indexed by uid and by address.

pub mod object;
mod pod;
mod table;
pub mod watch;

pub use pod::{Pod, Stage};
pub use table::{AddressOwner, Change, Event, PodTable, UidLookup, Writer};
