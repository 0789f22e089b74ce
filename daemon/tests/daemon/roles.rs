//! Nothing that is written tells a secret.
