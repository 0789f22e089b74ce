//! Another webhook: it gives every pod a sidecar.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{CertificateParams, KeyPair};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};

/// Serves it, for as long as the test process lives. Returns its URL and its `caBundle`.
pub(crate) fn serve(address: Ipv4Addr) -> (String, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![address.to_string()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind((address, 0)).unwrap();
    let url = format!("https://{}/sidecar", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let config = config.clone();
            std::thread::spawn(move || {
                let tls = StreamOwned::new(ServerConnection::new(config).unwrap(), stream);
                answer_all(BufReader::new(tls))
            });
        }
    });
    (url, certificate.pem().into_bytes())
}

/// Answers until the API server closes the connection.
fn answer_all(mut stream: BufReader<StreamOwned<ServerConnection, TcpStream>>) -> Option<()> {
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).ok()? == 0 {
                return None;
            }
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        let review: Value = serde_json::from_slice(&body).ok()?;
        let answer = answer(&review).to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            answer.len()
        );
        stream.get_mut().write_all((head + &answer).as_bytes()).ok()?;
    }
}

fn answer(review: &Value) -> Value {
    let request = &review["request"];
    let containers = request["object"]["spec"]["containers"].as_array().cloned().unwrap_or_default();
    let mut response = json!({"uid": request["uid"], "allowed": true});
    if !containers.iter().any(|container| container["name"] == "sidecar") {
        let sidecar = json!({"name": "sidecar", "image": "example.test/sidecar"});
        let patch = json!([{"op": "add", "path": "/spec/containers/-", "value": sidecar}]);
        response["patchType"] = json!("JSONPatch");
        response["patch"] = json!(STANDARD.encode(patch.to_string()));
    }
    json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response})
}
