//! Speaks HTTP on one connection: by hyper what is answered at once, without it what takes time.
//!
//! hyper keeps 16 KiB of buffers for each connection, and there may be a thousand requests that wait for a slow STS.
//! So a request that has to wait takes its connection out of hyper, which has nothing left to write by then; its answer
//! is written here, and the next request goes to hyper again.

use std::{
    convert::Infallible,
    error::Error,
    future::{poll_fn, ready},
    io,
    pin::{Pin, pin},
    sync::{Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use futures_util::{FutureExt, StreamExt, future::Either};
use http::{HeaderValue, Request, Response, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tracing::debug;

use super::{
    endpoint::{Answer, Endpoint, Later, Peer},
    reply::{self, Terms},
    slow::{Drips, ReplyBody},
    stream::ClientStream,
};
use rolecall_process::drain;

/// Largest head that is read at all; the endpoint refuses from half of it on, with words.
const READ_BUFFER: usize = 32 * 1024;

/// What a connection is served by and until when.
pub(super) struct Service<'a> {
    pub(super) endpoint: &'a Endpoint,
    pub(super) peer: Peer,
    /// It is one too many of its pod: it is told so and ends.
    pub(super) too_many: bool,
    /// Time for a request's head to arrive, and for an idle connection to stay.
    pub(super) header_timeout: Duration,
    /// Begins when connections are to end with what they are at.
    pub(super) drain: &'a drain::Watch,
    /// Begins when another daemon accepts, which a client finds in its own time.
    pub(super) has_handed_over: &'a drain::Watch,
}

/// A request that waits, taken out of hyper.
struct SetAside<'a> {
    later: Later<'a>,
    terms: Terms,
}

/// How hyper's part of a connection ended.
enum Spoken<'a> {
    ToTheEnd,
    /// Up to a request that waits.
    Until(SetAside<'a>, ClientStream),
}

impl Service<'_> {
    /// Answers the requests of `stream` to its end.
    pub(super) async fn speak(&self, stream: ClientStream) {
        if let Err(error) = self.speak_to_the_end(stream).await {
            debug!(error, peer = %self.peer.address, "a connection ended early");
        }
    }

    async fn speak_to_the_end(&self, mut stream: ClientStream) -> Result<(), Box<dyn Error + Send + Sync>> {
        // Boxed, both: most connections never have a request that waits, and those that wait need no room for hyper.
        while let Spoken::Until(waiting, parted) = Box::pin(self.speak_hyper(stream)).await? {
            stream = parted;
            if !Box::pin(self.answer_slowly(waiting, &mut stream)).await? {
                stream.discard_input();
                stream.shutdown().await?;
                break;
            }
        }
        Ok(())
    }

    async fn speak_hyper(&self, stream: ClientStream) -> Result<Spoken<'_>, hyper::Error> {
        let set_aside: Mutex<Option<SetAside<'_>>> = Mutex::new(None);
        let waiting = || set_aside.lock().unwrap_or_else(PoisonError::into_inner);
        let service = service_fn(|request: Request<Incoming>| match self.answer(&request) {
            Answer::Now(response) => Either::Left(ready(Ok::<_, Infallible>(self.with_last_words(response)))),
            Answer::Later(later) => {
                let mut later = Some(SetAside { later, terms: Terms::of(&request) });
                // Often it need not wait after all.
                Either::Right(poll_fn(move |context| {
                    let Some(mut first_look) = later.take() else { return Poll::Pending };
                    let response = first_look.later.as_mut().poll(context);
                    if response.is_pending() {
                        *waiting() = Some(first_look);
                    }
                    response.map(|response| Ok(self.with_last_words(response)))
                }))
            }
        });
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
            .max_buf_size(READ_BUFFER)
            .keep_alive(!self.too_many)
            .serve_connection(TokioIo::new(stream), service);
        let mut drain = pin!(self.drain.begun());
        let mut is_draining = false;
        let set_aside_or_served = poll_fn(|context| {
            loop {
                // First, for a request that has come is answered, however late.
                if let Poll::Ready(served) = Pin::new(&mut connection).poll(context) {
                    return Poll::Ready(Err(served));
                }
                if let Some(set_aside) = waiting().take() {
                    return Poll::Ready(Ok(set_aside));
                }
                if is_draining || drain.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                is_draining = true;
                if !self.has_handed_over.has_begun() {
                    Pin::new(&mut connection).graceful_shutdown();
                }
            }
        })
        .await;
        let set_aside = match set_aside_or_served {
            Ok(set_aside) => set_aside,
            Err(served) => return served.map(|()| Spoken::ToTheEnd),
        };
        let parts = connection.into_parts();
        let mut stream = parts.io.into_inner();
        stream.put_back(parts.read_buf);
        Ok(Spoken::Until(set_aside, stream))
    }

    fn answer(&self, request: &Request<Incoming>) -> Answer<'_> {
        if self.too_many {
            Answer::Now(self.endpoint.refuse_connection(&self.peer))
        } else {
            self.endpoint.answer(request, &self.peer)
        }
    }

    /// Tells the client to go to the daemon that has taken over, if one has.
    fn with_last_words(&self, mut response: Response<ReplyBody>) -> Response<ReplyBody> {
        if self.has_handed_over.has_begun() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Writes the answer of a request that waits; whether the connection goes on.
    async fn answer_slowly(&self, waiting: SetAside<'_>, stream: &mut ClientStream) -> io::Result<bool> {
        if stream.is_stalled() {
            // hyper reads no request before its last answer is written; should it ever, that answer is lost with it.
            self.peer.reset.press();
            return Err(io::ErrorKind::WriteZero.into());
        }
        let SetAside { later, mut terms } = waiting;
        let response = tokio::select! {
            biased;
            response = later => response,
            () = stream.hung_up() => return Ok(false),
        };
        terms.closes |= self.drain.has_begun() || self.has_handed_over.has_begun();
        let (head, body) = response.into_parts();
        let date = self.endpoint.clock.now();
        match body {
            ReplyBody::Full(document) => {
                stream.write_all(&reply::whole(&head, &document.unwrap_or_default(), terms, date)).await?;
            }
            ReplyBody::Drip(drips) => {
                if !drip(drips, reply::begin(&head, terms, date), stream).await? {
                    return Ok(false);
                }
            }
        }
        let ends = self.drain.has_begun() && !self.has_handed_over.has_begun();
        Ok(!terms.closes && !ends)
    }
}

/// Writes a begun answer after `bytes`, as it comes; whether it came to its end.
async fn drip(mut drips: Drips, mut bytes: Vec<u8>, stream: &mut ClientStream) -> io::Result<bool> {
    loop {
        let mut next = drips.next();
        // What is there at once is written together: the head with the first space, the document with the end.
        let drop = match (&mut next).now_or_never() {
            Some(drop) => drop,
            None => {
                stream.write_all(&bytes).await?;
                bytes.clear();
                tokio::select! {
                    biased;
                    drop = next => drop,
                    () = stream.hung_up() => return Ok(false),
                }
            }
        };
        match drop {
            Some(Ok(drop)) => reply::chunk(&mut bytes, &drop),
            Some(Err(_)) => return Ok(false),
            None => {
                reply::end(&mut bytes);
                stream.write_all(&bytes).await?;
                return Ok(true);
            }
        }
    }
}
