//! The log of credentials: one line per issuance, one per refusal, and no secret.
//!
//! Alone in its process: whether a line is logged at all is remembered for all threads.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::{Duration, UNIX_EPOCH},
};

use rolecall_contract::SessionDuration;
use rolecall_daemon::{
    credentials::{
        Config, CredentialKey, CredentialManager, Issued, Metrics, SessionNameTemplate, SessionNameValues,
        SessionRequest, Sts, StsError, Urgency,
    },
    identity::PodIdentity,
    token::{
        Token,
        volume::{TokenSource, TokenVolume},
    },
};
use rolecall_process::time::Clock;
use zeroize::Zeroizing;

/// Issues `orders` and denies everything else.
struct Orders(Clock);

impl Sts for Orders {
    async fn assume_role_with_web_identity(
        &self,
        request: &SessionRequest,
        _: &Token,
    ) -> Result<Issued, StsError> {
        if request.key.role.name() != "orders" {
            return Err(StsError::Denied {
                code: "AccessDenied".into(),
                message: "Not authorized to perform sts:AssumeRoleWithWebIdentity".into(),
                request_id: Some("request-2".into()),
            });
        }
        Ok(Issued {
            access_key_id: "ASIAEXAMPLE".to_owned(),
            secret_access_key: Zeroizing::new("secret-key".to_owned()),
            session_token: Zeroizing::new("session-token".to_owned()),
            expires_at: self.0.now() + Duration::from_secs(3600),
            assumed_role_arn: None,
            request_id: Some("request-1".to_owned()),
        })
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn request(role: &str) -> SessionRequest {
    let pod = PodIdentity {
        uid: "uid-1".parse().unwrap(),
        namespace: "shop".into(),
        name: "orders-0".into(),
        service_account: "orders".into(),
    };
    let values =
        SessionNameValues { cluster: "", namespace: "shop", pod: "orders-0", service_account: "", node: "" };
    let key = CredentialKey {
        pod: pod.uid.clone(),
        role: format!("arn:aws:iam::111122223333:role/{role}").parse().unwrap(),
        session_name: SessionNameTemplate::default().render(&values),
        duration: SessionDuration::from_seconds(3600).unwrap(),
    };
    let volume = TokenVolume { volume: "rolecall-token".into(), path: "token".into() };
    SessionRequest { key, pod, volumes: [volume].into(), urgency: Urgency::LEAST }
}

#[tokio::test(start_paused = true)]
async fn an_issuance_is_one_line_and_no_secret_is_written() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let pods_dir = tempfile::tempdir().unwrap();
    let volume = pods_dir.path().join("uid-1/volumes/kubernetes.io~projected/rolecall-token");
    std::fs::create_dir_all(&volume).unwrap();
    std::fs::write(volume.join("token"), "token-on-disk").unwrap();
    let clock = Clock::following_tokio(UNIX_EPOCH);
    let tokens = TokenSource::new(pods_dir.path().to_owned());
    let (manager, worker) =
        CredentialManager::new(Config::default(), Orders(clock.clone()), tokens, clock, Metrics::default());
    let asking = async {
        assert!(manager.request(request("orders")).unwrap().outcome().await.is_ok());
        assert!(manager.request(request("billing")).unwrap().outcome().await.is_err());
    };
    worker.run(asking).await;

    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let line_with = |part: &str| {
        let lines: Vec<_> = text.lines().filter(|line| line.contains(part)).collect();
        let [line] = lines[..] else { panic!("not one line with {part} in {text}") };
        line
    };
    let issuance = line_with("rolecall::audit");
    for part in [
        "INFO",
        "assumed role",
        "pod=shop/orders-0",
        "pod_uid=uid-1",
        "service_account=orders",
        "role=arn:aws:iam::111122223333:role/orders",
        "session_name=shop.orders-0",
        "sts_request_id=\"request-1\"",
        "expires_at=1970-01-01T01:00:00Z",
    ] {
        assert!(issuance.contains(part), "no {part} in {issuance}");
    }
    let refusal = line_with("WARN");
    for part in ["pod=shop/orders-0", "role/billing", "AccessDenied", "Not authorized", "request-2"] {
        assert!(refusal.contains(part), "no {part} in {refusal}");
    }
    for secret in ["token-on-disk", "secret-key", "session-token", "ASIAEXAMPLE"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}
