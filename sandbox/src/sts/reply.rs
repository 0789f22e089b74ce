//! Answers on the wire: AWS's XML.

use http::header::CONTENT_TYPE;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};

use super::account::IssuedSession;
use super::error::StsError;
use crate::clock;
use crate::listener::Answer;

const S3_NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

/// A successful answer.
pub(super) enum Document {
    WebIdentitySession {
        session: IssuedSession,
        provider: String,
        audience: String,
    },
    Session(IssuedSession),
    CallerIdentity(IssuedSession),
    /// Buckets that are named after the caller: its ARN and its access key id.
    Buckets(IssuedSession),
}

impl Document {
    /// The credentials it hands out, or the ones that the caller has.
    pub(super) fn access_key_id(&self) -> &str {
        match self {
            Self::WebIdentitySession { session, .. }
            | Self::Session(session)
            | Self::CallerIdentity(session)
            | Self::Buckets(session) => &session.access_key_id,
        }
    }

    fn xml(&self, request_id: &str) -> String {
        let (operation, result) = match self {
            Self::WebIdentitySession { session, provider, audience } => (
                "AssumeRoleWithWebIdentity",
                [
                    element("SubjectFromWebIdentityToken", session.subject.as_deref().unwrap_or_default()),
                    element("Audience", audience),
                    assumed_role_user(session),
                    credentials(session),
                    element("Provider", provider),
                ]
                .concat(),
            ),
            Self::Session(session) => {
                ("AssumeRole", [assumed_role_user(session), credentials(session)].concat())
            }
            Self::CallerIdentity(session) => (
                "GetCallerIdentity",
                [
                    element("Arn", &session.assumed_role_arn),
                    element("UserId", &session.assumed_role_id),
                    element("Account", &session.account),
                ]
                .concat(),
            ),
            Self::Buckets(session) => return buckets(session),
        };
        format!(
            "<{operation}Response xmlns=\"{NAMESPACE}\"><{operation}Result>{result}</{operation}Result>\
             <ResponseMetadata>{}</ResponseMetadata></{operation}Response>\n",
            element("RequestId", request_id),
        )
    }
}

/// The reply to a request that was decided.
pub(super) fn document(result: &Result<Document, StsError>, request_id: &str) -> Answer {
    let (status, xml) = match result {
        Ok(document) => (StatusCode::OK, document.xml(request_id)),
        Err(error) => (error.status(), error_xml(error, request_id)),
    };
    let reply = Response::builder()
        .status(status)
        .header("x-amzn-RequestId", request_id)
        .header(CONTENT_TYPE, "text/xml")
        .body(Full::from(xml).boxed_unsync());
    Ok(reply.expect("a request id is a header value"))
}

/// `200`, and nothing in it that STS would say: what a captive portal or a broken proxy puts in its place.
pub(super) fn garbage() -> Answer {
    let reply = Response::builder()
        .header(CONTENT_TYPE, "text/html")
        .body(Full::from("<html><body><h1>It works!</h1></body>").boxed_unsync());
    Ok(reply.expect("the headers are constant"))
}

fn error_xml(error: &StsError, request_id: &str) -> String {
    let fault = if error.status().is_server_error() { "Receiver" } else { "Sender" };
    let parts = [element("Type", fault), element("Code", error.code()), element("Message", error.message())];
    format!(
        "<ErrorResponse xmlns=\"{NAMESPACE}\"><Error>{}</Error>{}</ErrorResponse>\n",
        parts.concat(),
        element("RequestId", request_id),
    )
}

fn assumed_role_user(session: &IssuedSession) -> String {
    let parts =
        [element("AssumedRoleId", &session.assumed_role_id), element("Arn", &session.assumed_role_arn)];
    format!("<AssumedRoleUser>{}</AssumedRoleUser>", parts.concat())
}

fn credentials(session: &IssuedSession) -> String {
    let parts = [
        element("AccessKeyId", &session.access_key_id),
        element("SecretAccessKey", &session.secret_access_key),
        element("SessionToken", &session.session_token),
        element("Expiration", &clock::iso8601(session.expires_at)),
    ];
    format!("<Credentials>{}</Credentials>", parts.concat())
}

fn buckets(session: &IssuedSession) -> String {
    let bucket = |name: &str| {
        let created = element("CreationDate", "2006-03-14T00:00:00.000Z");
        format!("<Bucket>{}{created}</Bucket>", element("Name", name))
    };
    format!(
        "<ListAllMyBucketsResult xmlns=\"{S3_NAMESPACE}\"><Owner>{}</Owner><Buckets>{}{}</Buckets>\
         </ListAllMyBucketsResult>\n",
        element("ID", &session.account),
        bucket(&session.assumed_role_arn),
        bucket(&session.access_key_id),
    )
}

fn element(name: &str, text: &str) -> String {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!("<{name}>{escaped}</{name}>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        assert_eq!(element("Message", "a<b>&c"), "<Message>a&lt;b&gt;&amp;c</Message>");
    }

    #[test]
    fn errors_say_whose_fault_they_are() {
        let xml = error_xml(&StsError::throttling(), "id-1");
        assert_eq!(
            xml,
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
             <Code>Throttling</Code><Message>Rate exceeded</Message></Error><RequestId>id-1</RequestId>\
             </ErrorResponse>\n"
        );
        assert!(error_xml(&StsError::internal_failure(), "id-2").contains("<Type>Receiver</Type>"));
    }
}
