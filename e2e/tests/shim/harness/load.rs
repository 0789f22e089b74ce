//! Pods without a pause.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::join_all;

use super::{Deployed, is_injected};

/// How many pods are under way at a time.
const AT_A_TIME: usize = 4;

/// How many more pods are made after the change is over.
const AFTERWARDS: usize = 100;

/// Makes pods without a pause while `change` goes on, and some more. Each has to be let in and injected: with
/// `failurePolicy: Fail`, one call that fails is one pod too few.
pub(crate) async fn under_load<T>(deployed: &Deployed, change: impl Future<Output = T>) -> T {
    let made = AtomicUsize::new(0);
    let enough = AtomicUsize::new(usize::MAX);
    let load = join_all((0..AT_A_TIME).map(|_| async {
        while made.load(Ordering::Relaxed) < enough.load(Ordering::Relaxed) {
            assert!(is_injected(&deployed.try_out("orders").await.unwrap()));
            made.fetch_add(1, Ordering::Relaxed);
        }
    }));
    let change = async {
        let changed = change.await;
        enough.store(made.load(Ordering::Relaxed) + AFTERWARDS, Ordering::Relaxed);
        changed
    };
    tokio::join!(load, change).1
}
