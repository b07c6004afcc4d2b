//! Nomad's HTTP API as a scenario uses it: what it asks is not what Curfew asks.

use std::sync::Arc;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::Method;
use reqwest::header::HeaderName;
use serde_json::Value;

use crate::certificates::Certificates;

const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

pub fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// What a cluster wants to see of its callers.
#[derive(Clone, Default)]
pub struct Access {
    pub token: Option<String>,
    pub certificates: Option<Arc<Certificates>>,
}

impl Access {
    pub fn client(&self) -> reqwest::ClientBuilder {
        let mut builder = reqwest::Client::builder().no_proxy();
        if let Some(token) = &self.token {
            builder = builder.default_headers([(TOKEN, token.parse().unwrap())].into_iter().collect());
        }
        if let Some(c) = &self.certificates {
            let identity = reqwest::Identity::from_pem(&[c.read("client"), c.read("client-key")].concat()).unwrap();
            let ca = reqwest::Certificate::from_pem(&c.read("ca")).unwrap();
            builder = builder.tls_certs_only([ca]).identity(identity);
        }
        builder
    }
}

pub const TOKEN: HeaderName = HeaderName::from_static("x-nomad-token");

#[derive(Clone)]
pub struct Api {
    http: reqwest::Client,
    pub addr: String,
    pub access: Access,
}

impl Api {
    pub fn new(addr: impl Into<String>) -> Self {
        Self::with(addr, Access::default())
    }

    pub fn with(addr: impl Into<String>, access: Access) -> Self {
        let http = access.client().timeout(Duration::from_secs(20)).build().unwrap();
        Self { http, addr: addr.into(), access }
    }

    /// Status and body, or why there is no answer.
    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<(u16, Value), String> {
        let mut request = self.http.request(method, format!("{}{path}", self.addr));
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|e| format!("{path}: {e:?}"))?;
        let status = answer.status().as_u16();
        let text = answer.text().await.map_err(|e| format!("{path}: {e:?}"))?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok((status, body))
    }

    /// The body of a 200, or a sentence.
    pub async fn try_get(&self, path: &str) -> Result<Value, String> {
        match self.call(Method::GET, path, None).await? {
            (200, body) => Ok(body),
            (status, body) => Err(format!("GET {path}: {status} {body}")),
        }
    }

    pub async fn get(&self, path: &str) -> Value {
        self.try_get(path).await.unwrap_or_else(|e| panic!("{e}"))
    }

    pub async fn put(&self, path: &str, body: &Value) -> Value {
        match self.call(Method::PUT, path, Some(body)).await {
            Ok((200, body)) => body,
            other => panic!("PUT {path}: {other:?}"),
        }
    }

    pub async fn delete(&self, path: &str) -> Value {
        match self.call(Method::DELETE, path, None).await {
            Ok((200, body)) => body,
            other => panic!("DELETE {path}: {other:?}"),
        }
    }

    /// All allocations of a job in the default namespace, the youngest first, with their task states.
    pub async fn allocations(&self, job: &str) -> Result<Vec<Value>, String> {
        self.allocations_in("default", job).await
    }

    pub async fn allocations_in(&self, namespace: &str, job: &str) -> Result<Vec<Value>, String> {
        let path = format!("/v1/job/{}/allocations?all=true&namespace={namespace}", segment(job));
        let list = self.try_get(&path).await?;
        let mut list = list.as_array().cloned().ok_or(format!("{path}: not a list: {list}"))?;
        list.sort_by_key(|a| std::cmp::Reverse(a["CreateIndex"].as_u64()));
        Ok(list)
    }

    pub async fn allocation(&self, id: &str) -> Result<Value, String> {
        self.try_get(&format!("/v1/allocation/{id}")).await
    }
}
