//! What tests do to the control plane in the place of operators, controllers, the scheduler and the kubelet.

use anyhow::{Context, Result};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::ControlPlane;

/// Who a server-side apply is by.
const FIELD_MANAGER: &str = "rolecall-e2e";

impl ControlPlane {
    /// Makes a namespace with its `default` ServiceAccount.
    pub async fn create_namespace(&self, name: &str) -> Result<Namespace> {
        let namespaces: Api<Namespace> = Api::all(self.client().await?);
        let namespace = create(&namespaces, &json!({"metadata": {"name": name}})).await?;
        self.create_service_account(name, "default").await?;
        Ok(namespace)
    }

    /// Makes a ServiceAccount.
    pub async fn create_service_account(&self, namespace: &str, name: &str) -> Result<ServiceAccount> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, namespace);
        create(&accounts, &json!({"metadata": {"name": name}})).await
    }

    /// Makes a node, which pods can be bound to without, but which their tokens name with its uid.
    pub async fn create_node(&self, name: &str) -> Result<Node> {
        create(&Api::all(self.client().await?), &json!({"metadata": {"name": name}})).await
    }

    /// Makes a pod from a manifest with at least `metadata.name` and `spec`. With `spec.nodeName` it is bound from
    /// the start, as a DaemonSet's once were.
    pub async fn create_pod(&self, namespace: &str, manifest: &Value) -> Result<Pod> {
        create(&self.pods(namespace).await?, manifest).await
    }

    /// Binds a pod to a node, as the scheduler does.
    pub async fn bind_pod(&self, namespace: &str, name: &str, node: &str) -> Result<()> {
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let pods = self.pods(namespace).await?;
        pods.create_subresource::<Value, Value>("binding", name, &PostParams::default(), &binding)
            .await
            .with_context(|| format!("bind pod {namespace}/{name}"))?;
        Ok(())
    }

    /// Sets fields of a pod's status, as the kubelet does: for example
    /// `{"phase": "Running", "podIP": "10.0.0.7", "podIPs": [{"ip": "10.0.0.7"}]}`.
    pub async fn set_pod_status(&self, namespace: &str, name: &str, status: &Value) -> Result<Pod> {
        let patch = Patch::Merge(json!({"status": status}));
        let pods = self.pods(namespace).await?;
        pods.patch_status(name, &PatchParams::default(), &patch)
            .await
            .with_context(|| format!("set the status of pod {namespace}/{name}"))
    }

    /// Asks for a pod's deletion. With a grace period of zero it is gone at once; otherwise it is terminating
    /// until somebody asks again with zero, as the kubelet does once the containers have ended.
    pub async fn delete_pod(&self, namespace: &str, name: &str, grace_seconds: u32) -> Result<()> {
        let params = DeleteParams::default().grace_period(grace_seconds);
        let pods = self.pods(namespace).await?;
        pods.delete(name, &params).await.with_context(|| format!("delete pod {namespace}/{name}"))?;
        Ok(())
    }

    /// A ServiceAccount's token for an audience, bound to `pod` if given by name and uid: what the kubelet asks for
    /// to fill a projected volume. At least 600 seconds.
    pub async fn token_request(
        &self,
        namespace: &str,
        service_account: &str,
        pod: Option<(&str, &str)>,
        audience: &str,
        seconds: i64,
    ) -> Result<String> {
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: vec![audience.to_owned()],
                bound_object_ref: pod.map(|(name, uid)| BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(name.to_owned()),
                    uid: Some(uid.to_owned()),
                }),
                expiration_seconds: Some(seconds),
            },
            ..TokenRequest::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, namespace);
        let answer = accounts
            .create_token_request(service_account, &PostParams::default(), &request)
            .await
            .with_context(|| format!("request a token for {namespace}/{service_account}"))?;
        Ok(answer.status.context("the answer has no token")?.token)
    }

    /// The public keys of the cluster, as the API server publishes them.
    pub async fn jwks(&self) -> Result<String> {
        let request = http::Request::get("/openid/v1/jwks").body(Vec::new())?;
        Ok(self.client().await?.request_text(request).await?)
    }

    /// Applies every document of a YAML manifest, on the server's side. What is namespaced and names no namespace
    /// goes into `namespace`.
    pub async fn apply(&self, manifest: &str, namespace: &str) -> Result<()> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(manifest).context("read the manifest")?;
        for document in documents.into_iter().filter(|document| !document.is_null()) {
            self.apply_one(document, namespace).await?;
        }
        Ok(())
    }

    async fn apply_one(&self, document: Value, namespace: &str) -> Result<()> {
        let object: DynamicObject =
            serde_json::from_value(document).context("read an object of the manifest")?;
        let kind = object.types.as_ref().context("an object of the manifest has no kind")?;
        let name = object.metadata.name.clone().context("an object of the manifest has no name")?;
        let described = format!("{} {name}", kind.kind);

        let client = self.client().await?;
        let (resource, capabilities) =
            kube::discovery::pinned_kind(&client, &GroupVersionKind::try_from(kind)?).await?;
        let namespace = object.metadata.namespace.as_deref().unwrap_or(namespace);
        let objects: Api<DynamicObject> = match capabilities.scope {
            kube::discovery::Scope::Cluster => Api::all_with(client, &resource),
            kube::discovery::Scope::Namespaced => Api::namespaced_with(client, namespace, &resource),
        };
        let params = PatchParams::apply(FIELD_MANAGER).force();
        objects
            .patch(&name, &params, &Patch::Apply(&object))
            .await
            .with_context(|| format!("apply {described}"))?;
        Ok(())
    }

    async fn pods(&self, namespace: &str) -> Result<Api<Pod>> {
        Ok(Api::namespaced(self.client().await?, namespace))
    }
}

async fn create<K>(objects: &Api<K>, manifest: &Value) -> Result<K>
where
    K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let object: K = serde_json::from_value(manifest.clone()).context("read the manifest")?;
    objects
        .create(&PostParams::default(), &object)
        .await
        .with_context(|| format!("create {}", manifest["metadata"]["name"]))
}
