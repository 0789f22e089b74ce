//! One fetch: the token from disk, an exchange with STS, a second one beside it where STS is silent.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tracing::debug;

use super::{
    Credentials, SessionRequest,
    exchange::{FetchError, Issued, Sts, StsError},
    metrics::Metrics,
    pace::{Pace, Place},
    table::Fetched,
};
use crate::token::{
    Token,
    volume::{ReadError, TokenSource},
};
use rolecall_process::time::Clock;

/// Fetches credentials for whoever's turn it is.
pub(super) struct Fetcher<S> {
    pub(super) sts: S,
    pub(super) tokens: TokenSource,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) pace: Arc<Pace>,
    pub(super) hedge_after: Duration,
}

impl<S: Sts> Fetcher<S> {
    /// Fetches credentials once, in the place `place` among the exchanges.
    ///
    /// The token is read for each exchange, because it rotates. When STS refuses it and there is a newer one on
    /// disk by then, that is tried at once.
    pub(super) async fn fetch(&self, request: &SessionRequest, place: Place) -> Fetched {
        let _place = place;
        let token = match self.read_token(request).await {
            Err(ReadError::Missing) => return Fetched::TokenMissing,
            Err(error) => return Fetched::Failed(FetchError::TokenUnusable(error)),
            Ok(token) => token,
        };
        debug!(pod = %request.pod, role = %request.key.role, "read the pod's token");
        let mut result = self.exchange(request, &token).await;
        if let Err(StsError::TokenRefused { .. }) = result
            && let Ok(newer) = self.read_token(request).await
            && newer != token
        {
            result = self.exchange(request, &newer).await;
        }
        match result {
            Ok(issued) => match Credentials::new(issued, &request.key.role, self.clock.now()) {
                Ok(credentials) => Fetched::Issued(Arc::new(credentials)),
                Err(malformed) => Fetched::Failed(FetchError::unreachable(malformed.to_string())),
            },
            Err(error) => Fetched::Failed(error.into()),
        }
    }

    /// Waits until the pod's token is on disk, or cannot be read for another reason.
    pub(super) async fn wait_for_token(&self, request: &SessionRequest) {
        drop(self.tokens.wait(&request.key.pod, &request.volumes).await);
    }

    async fn read_token(&self, request: &SessionRequest) -> Result<Token, ReadError> {
        self.tokens.read(&request.key.pod, &request.volumes).await
    }

    /// One attempt, and after a silence a second beside it. The first answer wins; no answer is none.
    async fn exchange(&self, request: &SessionRequest, token: &Token) -> Result<Issued, StsError> {
        let mut first = pin!(self.attempt(request, token));
        tokio::select! {
            biased;
            result = &mut first => return result,
            () = sleep(self.hedge_after) => {}
        }
        let Some(place) = self.pace.spare(Instant::now()) else {
            return first.await;
        };
        let mut second = pin!(async {
            let _place = place;
            self.attempt(request, token).await
        });
        tokio::select! {
            biased;
            result = &mut first => match result {
                Err(StsError::Unreachable { .. }) => second.await,
                answer => answer,
            },
            result = &mut second => match result {
                Err(StsError::Unreachable { .. }) => first.await,
                answer => answer,
            },
        }
    }

    async fn attempt(&self, request: &SessionRequest, token: &Token) -> Result<Issued, StsError> {
        let in_flight = self.metrics.begin_attempt();
        let began = Instant::now();
        let result = self.sts.assume_role_with_web_identity(request, token).await;
        drop(in_flight);
        self.metrics.attempted(&result, began.elapsed());
        match &result {
            Ok(_) | Err(StsError::Denied { .. } | StsError::TokenRefused { .. }) => self.pace.answered(began),
            Err(StsError::Throttled { .. }) => self.pace.throttled(began, Instant::now(), fastrand::f64()),
            Err(StsError::Unreachable { .. }) => {}
        }
        result
    }
}
