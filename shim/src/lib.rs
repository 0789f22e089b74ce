//! The Rolecall shim: a mutating admission webhook that points pods at the daemon.
