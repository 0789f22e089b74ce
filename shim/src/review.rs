//! An `AdmissionReview`, v1 or v1beta1: the API server's question and our answer.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    mutate::Mutation,
    pod::{PodError, PodView},
    wording::{self, quoted},
};

/// A question that can be answered.
#[derive(Debug)]
pub struct Review {
    version: Version,
    uid: String,
    namespace: String,
    /// What asks: only the creation of a pod is our business.
    is_pod_creation: bool,
    object: Value,
}

/// Why a question cannot be answered as asked, in words for whoever asked. What was sent is not repeated: it may
/// hold secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    #[error("the body is no AdmissionReview: {reason} at line {line}, column {column}")]
    Malformed { reason: &'static str, line: usize, column: usize },
    #[error("the body is a {0}, no AdmissionReview")]
    NotAReview(String),
    #[error("the version {0} of AdmissionReview is not known; admission.k8s.io/v1 and v1beta1 are")]
    Version(String),
    #[error("the AdmissionReview holds no request with a uid")]
    NoRequest,
    #[error(
        "pod {pod} in namespace {namespace} cannot be read: {error}; correct it, or label it {} to keep it from this webhook",
        SKIP_LABEL
    )]
    Pod {
        /// The uid of the review.
        uid: String,
        version: Version,
        namespace: String,
        pod: String,
        error: PodError,
    },
}

/// The label by which the shipped configuration lets a pod pass by the shim, as with the EKS webhook.
pub const SKIP_LABEL: &str = "eks.amazonaws.com/skip-pod-identity-webhook";

/// The versions of `AdmissionReview` that are understood; the answer has the version of the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V1Beta1,
}

impl Version {
    /// The version as `apiVersion` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "admission.k8s.io/v1",
            Self::V1Beta1 => "admission.k8s.io/v1beta1",
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Question {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    request: Option<Request>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    #[serde(default)]
    uid: String,
    resource: Option<Resource>,
    sub_resource: Option<String>,
    namespace: Option<String>,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    object: Value,
}

#[derive(Deserialize)]
struct Resource {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resource: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
}

#[derive(Serialize)]
struct Status {
    code: u16,
    message: String,
}

/// Reads a question.
///
/// # Errors
/// It is none, or the pod in it is none: [`ReviewError::answer`] tells what to say.
pub fn parse(body: &[u8]) -> Result<Review, ReviewError> {
    let question: Question = serde_json::from_slice(body).map_err(|error| ReviewError::malformed(&error))?;
    if question.kind != "AdmissionReview" {
        return Err(ReviewError::NotAReview(quoted(&question.kind)));
    }
    let version = [Version::V1, Version::V1Beta1]
        .into_iter()
        .find(|version| version.as_str() == question.api_version)
        .ok_or_else(|| ReviewError::Version(quoted(&question.api_version)))?;
    let request = question.request.filter(|request| !request.uid.is_empty()).ok_or(ReviewError::NoRequest)?;
    let is_pod = request.resource.is_some_and(|of| of.group.is_empty() && of.resource == "pods");
    let is_main = request.sub_resource.is_none_or(|sub| sub.is_empty());
    let namespace = request.namespace.filter(|namespace| !namespace.is_empty());
    let pod = PodView::new(&request.object);
    // Older API servers leave the pod's own namespace empty, so the request's comes first.
    let namespace = namespace.or_else(|| pod.namespace().map(str::to_owned)).unwrap_or_default();
    let is_pod_creation = is_pod && is_main && request.operation == "CREATE";
    if is_pod_creation && let Err(error) = pod.check() {
        return Err(ReviewError::Pod {
            uid: request.uid,
            version,
            namespace: wording::name(&namespace),
            pod: pod.shown_name(),
            error,
        });
    }
    Ok(Review { version, uid: request.uid, namespace, is_pod_creation, object: request.object })
}

impl Review {
    /// The uid of this review, which is none of the pod.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Whether this is the creation of a pod. Everything else is answered with [`Mutation::not_a_pod`].
    pub fn is_pod_creation(&self) -> bool {
        self.is_pod_creation
    }

    /// The namespace of the pod.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The ServiceAccount of the pod.
    pub fn service_account(&self) -> &str {
        self.pod().service_account()
    }

    /// The pod.
    pub fn pod(&self) -> PodView<'_> {
        PodView::new(&self.object)
    }

    /// The pod's raw JSON.
    pub fn pod_json(&self) -> &Value {
        &self.object
    }

    /// A number that differs from pod to pod: of the pod's uid where it has one, else of the review's.
    pub fn seed(&self) -> u64 {
        fnv1a(self.pod().uid().unwrap_or(&self.uid).as_bytes())
    }

    /// The answer that lets the pod in, with its patch and warnings.
    pub fn answer(&self, mutation: &Mutation) -> Vec<u8> {
        let patch = (!mutation.patch.is_empty()).then(|| {
            let json = serde_json::to_vec(&mutation.patch).expect("a patch has only string keys");
            STANDARD.encode(json)
        });
        let place = format!("{}/{}", wording::name(&self.namespace), self.pod().shown_name());
        let response = Response {
            uid: &self.uid,
            allowed: true,
            patch_type: patch.is_some().then_some("JSONPatch"),
            patch,
            warnings: shown(&place, &mutation.warnings),
            status: None,
        };
        write(self.version, response)
    }
}

impl ReviewError {
    /// The answer that refuses the pod; `None` where there is nobody to answer but by the status of HTTP (400).
    pub fn answer(&self) -> Option<Vec<u8>> {
        let Self::Pod { uid, version, .. } = self else { return None };
        let status = Some(Status { code: 400, message: format!("rolecall: {self}") });
        let response =
            Response { uid, allowed: false, patch_type: None, patch: None, warnings: Vec::new(), status };
        Some(write(*version, response))
    }

    fn malformed(error: &serde_json::Error) -> Self {
        // The error's own text repeats values.
        let reason = match error.classify() {
            serde_json::error::Category::Io => "it could not be read",
            serde_json::error::Category::Syntax => "it is no JSON",
            serde_json::error::Category::Data => "a field has a value of the wrong kind",
            serde_json::error::Category::Eof => "it ends too early",
        };
        Self::Malformed { reason, line: error.line(), column: error.column() }
    }
}

/// Most bytes of all warnings together: beyond 4096 characters the API server cuts and drops them.
const MAX_WARNINGS: usize = 4096;

/// Most characters of one: of the first that are too long together, the API server keeps as many.
///
/// <https://github.com/kubernetes/enhancements/tree/master/keps/sig-api-machinery/1693-warnings>
const MAX_WARNING: usize = 256;

/// Room for the last one, which says how many have no room.
const LAST: usize = MAX_WARNING + 64;

/// What of `warnings` the API server will pass on; none goes without a word.
fn shown(place: &str, warnings: &[String]) -> Vec<String> {
    let texts: Vec<String> = warnings.iter().map(|warning| warning_of(place, warning)).collect();
    if texts.iter().map(String::len).sum::<usize>() <= MAX_WARNINGS {
        return texts;
    }
    let (mut kept, left_out) = wording::fitting(texts, MAX_WARNINGS - LAST);
    kept.push(warning_of(
        place,
        &format!("{left_out} more warnings have no room here; the shim's log has them"),
    ));
    kept
}

/// A warning that is not too long. The place is cut first, for whoever reads it knows what they have just made.
fn warning_of(place: &str, warning: &str) -> String {
    let (prefix, between) = ("rolecall: ", ": ");
    let others = prefix.len() + between.len() + warning.chars().count();
    // One for the sign that something was cut.
    let place = wording::cut(place, MAX_WARNING.saturating_sub(others + 1).max(32));
    let text = format!("{prefix}{place}{between}{warning}");
    if text.chars().count() <= MAX_WARNING { text } else { wording::cut(&text, MAX_WARNING - 1) }
}

fn write(version: Version, response: Response<'_>) -> Vec<u8> {
    let answer = Answer { api_version: version.as_str(), kind: "AdmissionReview", response };
    serde_json::to_vec(&answer).expect("an answer has only string keys")
}

/// <http://www.isthe.com/chongo/tech/comp/fnv/>: small, and the same in every process.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests;
