//! Who is warmed first when many are to be.

use std::time::{SystemTime, UNIX_EPOCH};

/// How badly a pod would miss credentials that are not there yet; greater is more urgent.
///
/// It matters after a cold start, when every pod of the node is to be warmed at once. A container that has not run yet
/// is about to make its first request, which some SDKs never repeat. One that has run got its credentials from the
/// daemon's predecessor, and asks again within the hour. The younger of two alike has had less time to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Urgency {
    pub need: Need,
    /// When the pod was created.
    pub created_at: SystemTime,
}

/// What a pod is about to do with credentials, the least urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// It is being deleted.
    Leaves,
    /// Its containers run.
    Runs,
    /// No container of it has run.
    Starts,
}

impl Urgency {
    /// Less urgent than every other, or as urgent.
    pub const LEAST: Self = Self { need: Need::Leaves, created_at: UNIX_EPOCH };
}
