//! The serving certificate: made and rotated here, or read from files; swapped without a pause.
//!
//! In the self-managed mode every replica runs the same [`keeper`], and none leads. What they share is a Secret
//! ([`stored`]), changed only against the version that was read, so that of two that act at once one is refused and
//! takes over what the other wrote. What is due is decided by [`plan`], without clock and without I/O; keys and
//! certificates come from [`mint`]; [`bundle`] says what the API server has to trust meanwhile.
//!
//! There is no gap in a rotation because its steps wait for one another: the next authority is written to the Secret,
//! then published in `caBundle`, then, once every API server has had the time to see it, a serving certificate is
//! signed by it; each replica serves with that only when it has seen its authority published itself. The former
//! authority stays published until no replica can be serving with a certificate of it.

pub mod bundle;
pub mod files;
pub mod keeper;
pub mod mint;
pub mod plan;
pub mod serving;
pub mod stored;

pub use self::{
    files::FilesConfig, keeper::SelfManagedConfig, mint::Names, plan::Lifetimes, serving::Serving,
};
