//! Room for the bodies of reviews, so that whoever reaches the port cannot take all the memory.

use std::pin::pin;

use bytes::Buf;
use http_body_util::BodyExt;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Largest review. The API server takes no request above 3 MiB, and sends a new pod once.
pub(super) const MAX_BODY: usize = 4 * 1024 * 1024;

/// Bytes of all the bodies that are in memory at a time. Whoever reaches the port can send some.
const MAX_BODIES: usize = 24 * 1024 * 1024;

/// Bytes of all that is read from them at a time, as [`weight`] estimates it: a body of many small objects takes a
/// hundred times its length.
const MAX_READ: usize = 256 * 1024 * 1024;

/// Bytes that the tree of JSON takes for each of these at most: an object with its first fields, an array with its first
/// values, another field or value, and half a string. Measured, and held to it, by `tests/review_memory.rs`.
const OBJECT: usize = 672;
const ARRAY: usize = 176;
const ANOTHER: usize = 112;
const QUOTE: usize = 16;

/// Room for bodies, in bytes. A body takes what has arrived of it, not what it announces: otherwise a few callers who
/// announce much and send nothing would keep everybody out.
pub struct Bodies {
    bytes: Semaphore,
    read: Semaphore,
}

/// What a body takes of it.
pub(super) type Room<'a> = (SemaphorePermit<'a>, SemaphorePermit<'a>);

/// Why a body is not read.
pub(super) enum BodyError {
    TooLarge,
    NoRoom,
    EndedEarly,
}

impl Bodies {
    pub(super) async fn read<B>(&self, body: B) -> Result<(Vec<u8>, Room<'_>), BodyError>
    where
        B: hyper::body::Body,
    {
        let mut body = pin!(body);
        let mut room = room(&self.bytes, 0)?;
        let mut read = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| BodyError::EndedEarly)?;
            let Ok(mut data) = frame.into_data() else { continue };
            if MAX_BODY - read.len() < data.remaining() {
                return Err(BodyError::TooLarge);
            }
            room.merge(self::room(&self.bytes, data.remaining())?);
            while data.has_remaining() {
                let chunk = data.chunk();
                read.extend_from_slice(chunk);
                let length = chunk.len();
                data.advance(length);
            }
        }
        let weight = weight(&read);
        if MAX_READ < weight {
            return Err(BodyError::TooLarge);
        }
        Ok((read, (room, self::room(&self.read, weight)?)))
    }
}

impl Default for Bodies {
    fn default() -> Self {
        Self { bytes: Semaphore::new(MAX_BODIES), read: Semaphore::new(MAX_READ) }
    }
}

fn room(all: &Semaphore, bytes: usize) -> Result<SemaphorePermit<'_>, BodyError> {
    let bytes = u32::try_from(bytes).map_err(|_| BodyError::TooLarge)?;
    all.try_acquire_many(bytes).map_err(|_| BodyError::NoRoom)
}

/// What the tree of this JSON takes at most, in bytes. What stands in strings counts too, so it may be less.
#[must_use]
pub fn weight(json: &[u8]) -> usize {
    let of = |byte: &u8| match byte {
        b'{' => OBJECT,
        b'[' => ARRAY,
        b',' => ANOTHER,
        b'"' => QUOTE,
        _ => 1,
    };
    json.iter().map(of).sum()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::Full;

    use super::*;

    #[tokio::test]
    async fn bodies_take_room_as_long_as_they_are_needed_and_no_more_than_there_is() {
        let bodies = Bodies::default();
        let largest = || Full::new(Bytes::from(vec![b' '; MAX_BODY]));
        let mut held = Vec::new();
        for _ in 0..MAX_BODIES / MAX_BODY {
            held.push(bodies.read(largest()).await.ok().unwrap());
        }
        assert!(matches!(bodies.read(Full::new(Bytes::from_static(b"{}"))).await, Err(BodyError::NoRoom)));
        held.pop();
        assert_eq!(bodies.read(largest()).await.ok().unwrap().0.len(), MAX_BODY);
        // Nothing stays taken by a body that is refused.
        let too_large = Full::new(Bytes::from(vec![b' '; MAX_BODY + 1]));
        assert!(matches!(bodies.read(too_large).await, Err(BodyError::TooLarge)));
        assert_eq!(bodies.bytes.available_permits(), MAX_BODY);
    }

    #[tokio::test]
    async fn a_body_takes_room_for_what_is_read_of_it_too() {
        let bodies = Bodies::default();
        let of = |count: usize| Full::new(Bytes::from(br#"{"":0},"#.repeat(count)));
        let half = MAX_READ / 2 / (OBJECT + ANOTHER + 2 * QUOTE + 3);
        let held = [bodies.read(of(half)).await.ok().unwrap(), bodies.read(of(half)).await.ok().unwrap()];
        assert!(matches!(bodies.read(of(half)).await, Err(BodyError::NoRoom)));
        drop(held);
        assert!(matches!(bodies.read(of(2 * half + 2)).await, Err(BodyError::TooLarge)));
        assert_eq!(
            (bodies.bytes.available_permits(), bodies.read.available_permits()),
            (MAX_BODIES, MAX_READ)
        );
    }
}
