//! A signal that is given once, and that every task of the process waits for.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Waker},
};

use tokio_util::sync::CancellationToken;

/// A [`CancellationToken`] that costs those who wait no lock each time they are woken for something else, as a
/// connection is for each request: all connections of all threads would meet at that lock. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signal {
    /// Set before the token, so that whoever it wakes sees it.
    is_given: Arc<AtomicBool>,
    token: CancellationToken,
}

impl Signal {
    pub(crate) fn give(&self) {
        self.is_given.store(true, Ordering::Release);
        self.token.cancel();
    }

    pub(crate) fn is_given(&self) -> bool {
        self.is_given.load(Ordering::Acquire)
    }

    /// Completes once it is given.
    pub(crate) async fn given(&self) {
        let mut cancelled = pin!(self.token.cancelled());
        // Who the token wakes: as long as that is the same, there is nothing to tell it.
        let mut registered: Option<Waker> = None;
        poll_fn(|context| {
            if self.is_given() {
                return Poll::Ready(());
            }
            if registered.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                return Poll::Pending;
            }
            registered = Some(context.waker().clone());
            cancelled.as_mut().poll(context)
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::AtomicUsize,
        task::{Context, Wake},
    };

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn whoever_looked_last_is_woken_and_sees_it() {
        let signal = Signal::default();
        let mut given = pin!(signal.given());
        let (first, last) = (Arc::<Woken>::default(), Arc::<Woken>::default());
        for woken in [&first, &first, &last, &last] {
            let waker = Waker::from(woken.clone());
            assert!(given.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        signal.give();
        assert_eq!((first.0.load(Ordering::Relaxed), last.0.load(Ordering::Relaxed)), (0, 1));
        let waker = Waker::from(last);
        assert!(given.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
        assert!(signal.is_given());
    }

    #[test]
    fn nobody_waits_for_what_was_given_before() {
        let signal = Signal::default();
        signal.clone().give();
        let given = pin!(signal.given());
        assert!(given.poll(&mut Context::from_waker(Waker::noop())).is_ready());
    }
}
