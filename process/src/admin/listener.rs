//! An accept loop that no error ends.

use std::{io, time::Duration};

use tokio::{task::JoinSet, time};
use tokio_util::sync::CancellationToken;

use crate::accept::is_of_the_connection;

/// How long to wait after an accept error that is about this process, such as too many open files: at once it
/// would only come again.
const BACK_OFF: Duration = Duration::from_millis(200);

/// Accepts connections until `closed` and serves up to `max` of them at a time; the next one waits to be accepted.
///
/// What has been accepted by the end is served to its own end; the listener goes before.
pub(super) async fn run<S, F>(
    max: usize,
    mut accept: impl AsyncFnMut() -> io::Result<S>,
    serve: impl Fn(S) -> F,
    closed: CancellationToken,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        while max <= connections.len() {
            connections.join_next().await;
        }
        let accepted = tokio::select! {
            () = closed.cancelled() => break,
            accepted = accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok(stream) => {
                connections.spawn(serve(stream));
            }
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "accept an admin connection");
                time::sleep(BACK_OFF).await;
            }
        }
    }
    drop(accept);
    while connections.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        future,
        sync::{
            Arc, Mutex,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use nix::errno::Errno;
    use tokio::{sync::mpsc, time::Instant};

    use super::*;

    /// An accept that gives what is listed and then nothing ever.
    fn accepting(list: impl IntoIterator<Item = io::Result<u32>>) -> impl AsyncFnMut() -> io::Result<u32> {
        let mut list: VecDeque<_> = list.into_iter().collect();
        async move || match list.pop_front() {
            Some(accepted) => accepted,
            None => future::pending().await,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn accept_errors_back_off_and_never_end_the_loop() {
        let accept = accepting([
            Err(Errno::EMFILE.into()),
            Err(Errno::EMFILE.into()),
            Err(Errno::ECONNABORTED.into()),
            Ok(1),
            Err(Errno::ENOMEM.into()),
            Ok(2),
        ]);
        let (served, mut was_served) = mpsc::unbounded_channel();
        let began = Instant::now();
        let serve = move |n| {
            let served = served.clone();
            async move { served.send((n, began.elapsed())).unwrap() }
        };
        let listening = run(8, accept, serve, CancellationToken::new());
        let watching = async { [was_served.recv().await.unwrap(), was_served.recv().await.unwrap()] };
        tokio::select! {
            () = listening => unreachable!("the loop ended"),
            served = watching => assert_eq!(served, [(1, BACK_OFF * 2), (2, BACK_OFF * 3)]),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_the_limit_are_served_at_a_time_and_all_in_the_end() {
        let (now, most, served) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let serve = {
            let (now, most, served) = (now.clone(), most.clone(), served.clone());
            move |n: u32| {
                let (now, most, served) = (now.clone(), most.clone(), served.clone());
                async move {
                    most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                    time::sleep(Duration::from_secs(1)).await;
                    now.fetch_sub(1, Ordering::Relaxed);
                    // A connection that panics must not take the loop with it.
                    assert_ne!(n, 3, "as it should");
                    served.lock().unwrap().push(n);
                }
            }
        };
        let ended = time::timeout(
            Duration::from_secs(60),
            run(2, accepting((1..=7).map(Ok)), serve, CancellationToken::new()),
        )
        .await;
        assert!(ended.is_err());
        assert_eq!(most.load(Ordering::Relaxed), 2);
        assert_eq!(*served.lock().unwrap(), [1, 2, 4, 5, 6, 7]);
    }
}
