//! What is written is read again, with nothing lost that saves an exchange.

use super::*;
use crate::credentials::{SessionNameTemplate, SessionNameValues};
use rolecall_contract::SessionDuration;

const NOW: SystemTime = UNIX_EPOCH;

pub(in crate::handover) fn key() -> CredentialKey {
    let values = SessionNameValues {
        cluster: "",
        namespace: "shop",
        pod: "orders-0",
        service_account: "orders",
        node: "n",
    };
    CredentialKey {
        pod: "0b6f0a8e-8f0f".parse().unwrap(),
        role: "arn:aws:iam::111122223333:role/team/orders".parse().unwrap(),
        session_name: SessionNameTemplate::default().render(&values),
        duration: SessionDuration::from_seconds(3600).unwrap(),
    }
}

pub(in crate::handover) fn credentials() -> Arc<Credentials> {
    let issued = Issued {
        access_key_id: "ASIAEXAMPLE".to_owned(),
        secret_access_key: Zeroizing::new("sEcReT/+=".to_owned()),
        session_token: Zeroizing::new("FwoG/+=".to_owned()),
        expires_at: NOW + Duration::from_secs(3600),
        assumed_role_arn: Some("arn:aws:sts::444455556666:assumed-role/orders/x".to_owned()),
        request_id: Some("id-1".to_owned()),
    };
    Arc::new(Credentials::new(issued, &key().role, NOW + Duration::from_millis(1500)).unwrap())
}

pub(in crate::handover) fn inherited() -> Inherited {
    let denied =
        FetchError::Denied { code: "AccessDenied".into(), message: "no \"x\"\n".into(), request_id: None };
    Inherited {
        key: key(),
        is_under_way: true,
        credentials: Some(credentials()),
        is_best: true,
        refresh_at: NOW + Duration::from_secs(1800),
        failure: Some(FetchError::Unreachable { cause: "silence".into() }),
        remembered: Some((denied, Duration::from_secs(7))),
        failures: 3,
        refusals: 2,
        retry_in: Duration::from_millis(250),
        due_in: Some(Duration::from_secs(60)),
    }
}

#[test]
fn a_cache_is_read_as_it_was_written() {
    let two = [inherited(), Inherited { credentials: None, failure: None, due_in: None, ..inherited() }];
    let read = read(&write(&two).unwrap()).unwrap();
    let [first, second] = &read[..] else { panic!("{} keys", read.len()) };
    assert_eq!((&first.key, &second.key), (&key(), &key()));
    let (is, was) = (first.credentials.as_ref().unwrap(), credentials());
    assert_eq!(
        (is.reply(), is.issued_at(), is.expires_at()),
        (was.reply(), was.issued_at(), was.expires_at())
    );
    assert_eq!((is.account_id(), is.request_id()), ("444455556666", Some("id-1")));
    assert!(first.is_under_way && first.is_best);
    assert_eq!(first.refresh_at, NOW + Duration::from_secs(1800));
    assert!(matches!(&first.failure, Some(FetchError::Unreachable { cause }) if &**cause == "silence"));
    let Some((FetchError::Denied { code, message, .. }, left)) = &first.remembered else {
        panic!("no denial")
    };
    assert_eq!((&**code, &**message, *left), ("AccessDenied", "no \"x\"\n", Duration::from_secs(7)));
    assert_eq!((first.failures, first.refusals), (3, 2));
    assert_eq!(first.retry_in, Duration::from_millis(250));
    assert_eq!((first.due_in, second.due_in), (Some(Duration::from_secs(60)), None));
    assert!(second.credentials.is_none() && second.failure.is_none());
}

#[test]
fn what_says_nothing_of_sts_does_not_travel() {
    for error in [FetchError::TokenMissing, FetchError::PodGone] {
        assert!(WireOutcome::of(&Err(error)).is_none());
    }
}

#[test]
fn credentials_that_have_expired_on_the_way_are_left_out() {
    let wire = WireCredentials {
        issued_at: unix_millis(NOW + Duration::from_secs(3600)),
        ..WireCredentials::of(&credentials())
    };
    assert!(wire.read(&key()).is_none());
}

#[test]
fn a_line_that_is_none_of_ours_is_told_without_its_content() {
    for line in ["{\"secret\":\"hunter2\"}", "{\"key\":\"hunter2\"}", "\"hunter2\"", "{\"key\":{\"hunter2"] {
        let mut bytes = write(&[inherited()]).unwrap();
        bytes.extend_from_slice(line.as_bytes());
        let error = read(&bytes).err().unwrap();
        let told = format!("{} {error:?}", rolecall_process::telemetry::chain(&error));
        assert!(told.contains("line 2") && !told.contains("hunter2"), "{told}");
    }
}
