//! How a program ends, as whoever started it reads it, and its last words.

use std::io::{self, Write};

/// A probe or a command was answered by no, or by nobody; also a drain that was cut short.
pub const FAILED: u8 = 1;
/// `EX_USAGE`: a flag or a variable has a wrong value; nothing was bound.
pub const USAGE: u8 = 64;
/// `EX_SOFTWARE`: a part of the program ended that must not.
pub const SOFTWARE: u8 = 70;
/// `EX_OSERR`: the system did not give an address, a file or a thread.
pub const OS_ERROR: u8 = 71;

/// Writes a line to standard error, for where there is no log yet.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
