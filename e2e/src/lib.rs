//! Placeholder while the workspace builds its dependencies.
