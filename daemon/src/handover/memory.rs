//! Memory that is written once, sealed, and handed to another process.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create},
    io::Errno,
};
use zeroize::Zeroizing;

/// Largest content that is read: far more than the pods of a node have.
const MAX_LENGTH: u64 = 64 * 1024 * 1024;

/// What must be sealed before another's memory is read: it could change or shrink under the reader.
const SEALS: SealFlags =
    SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::SEAL);

/// Puts `content` into sealed memory that has no name and is on no disk.
pub(super) fn sealed(content: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know the flag, and those that are told to (vm.memfd_noexec) demand it.
    let memory = memfd_create("rolecall-cache", flags | MemfdFlags::NOEXEC_SEAL).or_else(|error| {
        if error == Errno::INVAL { memfd_create("rolecall-cache", flags) } else { Err(error) }
    })?;
    let mut file = File::from(memory);
    file.write_all(content)?;
    fcntl_add_seals(&file, SEALS)?;
    Ok(file.into())
}

/// The content of sealed memory.
///
/// # Errors
/// When it is not sealed, or cannot be read.
pub(super) fn read(memory: OwnedFd) -> io::Result<Zeroizing<Vec<u8>>> {
    if !fcntl_get_seals(memory.as_fd())?.contains(SEALS) {
        return Err(io::Error::other("the memory is not sealed"));
    }
    let file = File::from(memory);
    let length = file.metadata()?.len();
    if MAX_LENGTH < length {
        return Err(io::Error::other(format!("the memory has {length} bytes, which is more than any cache")));
    }
    let length = usize::try_from(length).map_err(io::Error::other)?;
    let mut content = Zeroizing::new(vec![0; length]);
    file.read_exact_at(&mut content, 0)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_is_read_and_cannot_be_changed() {
        let memory = sealed(b"secret").unwrap();
        let writer = File::from(memory.try_clone().unwrap());
        assert!(
            writer.write_at(b"S", 0).is_err() && writer.set_len(0).is_err() && writer.set_len(99).is_err()
        );
        assert!(fcntl_add_seals(&writer, SealFlags::FUTURE_WRITE).is_err());
        assert_eq!(*read(memory).unwrap(), b"secret");
    }

    #[test]
    fn memory_that_its_maker_could_change_is_not_read() {
        for seals in
            [SealFlags::empty(), SEALS.difference(SealFlags::WRITE), SEALS.difference(SealFlags::SEAL)]
        {
            let memory = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
            fcntl_add_seals(&memory, seals).unwrap();
            assert_eq!(read(memory).unwrap_err().to_string(), "the memory is not sealed", "{seals:?}");
        }
        let pipe = File::open("/dev/null").unwrap();
        assert!(read(pipe.into()).is_err());
    }
}
