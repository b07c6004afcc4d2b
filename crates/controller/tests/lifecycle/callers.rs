//! Who may call the RPC: each proof, each way in which one proves nothing, and what nobody may take too much of.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use curfew_controller::{Controller, tokens};
use curfew_core::access::{Grant, NewToken, Proof, Scope, WorkloadRule, Workloads};
use curfew_core::audit::Action;
use curfew_core::operation::{By, Kind};
use curfew_core::{Clock, JobKey, OpId};
use curfew_store::{AuditFilter, MemoryStore, Store};
use futures::{FutureExt, StreamExt, future};
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::kit::{Lab, hangs, stop_of, until};

struct House {
    lab: Lab,
    store: Arc<MemoryStore>,
    controller: Controller,
    http: reqwest::Client,
    scheme: &'static str,
}

fn client() -> reqwest::ClientBuilder {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30))
}

impl House {
    /// A controller that runs, with what a test sets in its configuration.
    async fn new(lab: Lab) -> Self {
        let scheme = if lab.config.tls_cert.is_empty() { "http" } else { "https" };
        let store = MemoryStore::new();
        let its: Arc<dyn Store> = store.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let controller = curfew_controller::start(lab.parts(future::ready(Ok(its)).boxed(), Some(listener))).unwrap();
        assert!(controller.started().await.is_ok());
        Self { lab, store, controller, http: client().build().unwrap(), scheme }
    }

    fn addr(&self) -> SocketAddr {
        self.controller.addr().unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.addr())
    }

    /// A new token; its id and its text.
    async fn token(&self, name: &str, scopes: &[Scope], namespaces: &[&str], lasts: Option<Duration>) -> (String, String) {
        let at = self.lab.clock.now();
        let namespaces = namespaces.iter().map(|n| (*n).into()).collect();
        let grant = Grant { scopes: scopes.iter().copied().collect(), namespaces };
        let new = NewToken { name: name.into(), grant, by: "test".into(), at, expires_at: lasts.map(|d| at + d) };
        let (token, text) = tokens::create(&*self.store, new, None).await.unwrap();
        (token.id, text)
    }

    async fn ask(&self, method: reqwest::Method, path: &str, token: Option<&str>, body: Option<Value>) -> (u16, String, Value) {
        let mut request = self.http.request(method, self.url(path));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let value: Value = answer.json().await.unwrap_or(Value::Null);
        let kind = value["type"].as_str().and_then(|t| t.rsplit(':').next()).unwrap_or_default().to_owned();
        (status, kind, value)
    }

    async fn get(&self, path: &str, token: Option<&str>) -> (u16, String) {
        let (status, kind, _) = self.ask(reqwest::Method::GET, path, token, None).await;
        (status, kind)
    }

    async fn post(&self, path: &str, token: &str, body: Value) -> (u16, String) {
        let (status, kind, _) = self.ask(reqwest::Method::POST, path, Some(token), Some(body)).await;
        (status, kind)
    }

    async fn refused(&self, token: &str, why: &str) {
        let (status, kind, value) = self.ask(reqwest::Method::GET, "/v1/operations", Some(token), None).await;
        let detail = value["detail"].as_str().unwrap_or_default();
        assert!(status == 401 && kind == "unauthenticated" && detail.contains(why), "{why}: {status} {value}");
    }

    /// How often somebody was refused because of this.
    async fn counted(&self, why: &str, token: Option<&str>) -> u64 {
        let mut request = self.http.get(self.url("/metrics"));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let text = request.send().await.unwrap().text().await.unwrap();
        let start = format!("curfew_rpc_refused_total{{why=\"{why}\"}} ");
        text.lines().find_map(|l| l.strip_prefix(&start)).unwrap_or_else(|| panic!("{text}")).parse().unwrap()
    }
}

fn lab(config: impl FnOnce(&mut curfew_core::config::Config)) -> Lab {
    let mut lab = Lab::new(Box::new(|line| line.starts_with("DELETE").then(hangs)));
    config(&mut lab.config);
    lab
}

fn asking_for_tokens() -> Lab {
    lab(|c| c.auth = vec![Proof::Tokens])
}

#[tokio::test]
async fn without_a_token_that_is_known_nobody_is_let_in() {
    let house = House::new(asking_for_tokens()).await;
    let (_, good) = house.token("ci", &[Scope::Read], &[], None).await;
    assert_eq!(house.get("/v1/operations", Some(&good)).await, (200, String::new()));
    for path in ["/healthz", "/readyz", "/openapi.json"] {
        assert_eq!(house.http.get(house.url(path)).send().await.unwrap().status(), 200, "{path}");
    }
    for path in ["/v1/operations", "/v1/status", "/metrics", "/v1/tokens", "/v1/clocks"] {
        let answer = house.http.get(house.url(path)).send().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["www-authenticate"]),
            (401, &"Bearer".parse().unwrap()),
            "{path}"
        );
    }
    let other = format!("{}{}", &good[..good.len() - 1], if good.ends_with('0') { '1' } else { '0' });
    house.refused(&other, "not known").await;
    house.refused("sesame", "not one of Curfew's").await;
    let basic = house.http.get(house.url("/v1/status")).basic_auth("a", Some("b")).send().await.unwrap();
    assert_eq!(basic.status(), 401);
    assert_eq!(house.counted("unauthenticated", Some(&good)).await, 8);
}

#[tokio::test]
async fn a_token_that_expired_or_was_revoked_proves_nothing_from_then_on() {
    let house = House::new(asking_for_tokens()).await;
    let (_, short) = house.token("short", &[Scope::Read], &[], Some(Duration::from_millis(300))).await;
    let (id, good) = house.token("good", &[Scope::Read], &[], Some(Duration::from_secs(3600))).await;
    assert_eq!(house.get("/v1/operations", Some(&good)).await.0, 200);
    until("it to expire", async || house.get("/v1/operations", Some(&short)).await.0 == 401).await;
    house.refused(&short, "has expired").await;
    let by = By { actor: "test".into(), reason: None, at: house.lab.clock.now() };
    tokens::revoke(&*house.store, &id, by).await.unwrap();
    house.refused(&good, "was revoked").await;
}

#[tokio::test]
async fn a_scope_is_for_what_it_says_and_the_trail_names_who_had_it() {
    let house = House::new(asking_for_tokens()).await;
    let (_, read) = house.token("reader", &[Scope::Read], &[], None).await;
    let (_, stop) = house.token("stopper", &[Scope::Stop], &[], None).await;
    let (_, admin) = house.token("boss", &[Scope::Admin], &[], None).await;
    let forbidden = (403, "forbidden".to_owned());
    let spec = json!({"spec": {"json": {"ID": "a", "TaskGroups": [{}]}}});
    let drain = json!({"selection": {"datacenter": "dc1"}});
    for (path, body) in [
        ("/v1/jobs", spec.clone()),
        ("/v1/jobs/plan", spec.clone()),
        ("/v1/jobs/a/stop", json!({})),
        ("/v1/nodes/drain", drain.clone()),
        ("/v1/nodes/undrain", drain.clone()),
        ("/v1/gc", json!({"dry_run": true})),
        ("/v1/kinds/stop/pause", json!({})),
        ("/v1/tokens", json!({"name": "x", "scopes": ["admin"]})),
        ("/v1/tokens/0000000000000000/revoke", json!({})),
    ] {
        assert_eq!(house.post(path, &read, body).await, forbidden, "{path}");
    }
    assert_eq!(house.get("/v1/tokens", Some(&read)).await, forbidden);
    assert_eq!(house.get("/v1/operations", Some(&stop)).await, forbidden);
    assert_eq!(house.post("/v1/nodes/drain", &stop, drain).await, forbidden);
    // What an operation is decides who may step in.
    let id = house.lab.ask(&*house.store, "a").await;
    let touch = |what: &str| format!("/v1/operations/{id}/{what}");
    assert_eq!(house.post(&touch("pause"), &read, json!({})).await, forbidden);
    let said = json!({"actor": "alice", "reason": "a match runs"});
    assert_eq!(house.post(&touch("pause"), &stop, said).await, (200, String::new()));
    assert_eq!(house.post("/v1/kinds/submit/pause", &admin, json!({})).await.0, 200);
    let rows = house.store.audit(AuditFilter::default()).await.unwrap();
    let actor = |action| rows.iter().find(|r| r.entry.action == action).map(|r| r.entry.actor.as_str());
    assert_eq!((actor(Action::Paused), actor(Action::KindPaused)), (Some("token stopper, for alice"), Some("token boss")));
    let all = serde_json::to_string(&rows).unwrap();
    for secret in [&read, &stop, &admin] {
        assert!(!all.contains(secret.rsplit('_').next().unwrap()), "a secret is in the trail");
    }
    assert!(house.counted("forbidden", Some(&admin)).await >= 12);
}

#[tokio::test]
async fn a_token_for_one_namespace_sees_nothing_of_the_others() {
    let house = House::new(asking_for_tokens()).await;
    let (_, prod) = house.token("prod", &[Scope::Read, Scope::Stop, Scope::Submit], &["prod"], None).await;
    let id = house.lab.ask(&*house.store, "a").await;
    let hidden = (404, "no-such-operation".to_owned());
    assert_eq!(house.get(&format!("/v1/operations/{id}"), Some(&prod)).await, hidden);
    assert_eq!(house.get(&format!("/v1/operations/{id}/events"), Some(&prod)).await, hidden);
    assert_eq!(house.get(&format!("/v1/audit?operation={id}"), Some(&prod)).await, hidden);
    assert_eq!(house.post(&format!("/v1/operations/{id}/cancel"), &prod, json!({})).await, hidden);
    let (status, _, list) = house.ask(reqwest::Method::GET, "/v1/operations", Some(&prod), None).await;
    assert_eq!((status, list), (200, json!([])));
    let forbidden = (403, "forbidden".to_owned());
    for path in ["/v1/audit", "/v1/nodes", "/v1/doctor", "/v1/jobs/a", "/v1/jobs?namespace=default"] {
        assert_eq!(house.get(path, Some(&prod)).await, forbidden, "{path}");
    }
    assert_eq!(house.post("/v1/jobs/a/stop", &prod, json!({})).await, forbidden);
    let job =
        json!({"ID": "a", "Namespace": "default", "TaskGroups": [{"Name": "g", "Tasks": [{"Name": "t", "Driver": "exec"}]}]});
    assert_eq!(house.post("/v1/jobs", &prod, json!({"spec": {"json": job}})).await, forbidden);
}

#[tokio::test]
async fn what_a_token_may_see_is_found_behind_however_many_others() {
    let house = House::new(asking_for_tokens()).await;
    let at = house.lab.clock.now();
    let by = By { actor: "test".into(), reason: None, at };
    house.store.pause_kind(Kind::Stop, by).await.unwrap();
    let (_, prod) = house.token("prod", &[Scope::Read], &["prod"], None).await;
    let mine = stop_of(&*house.store, JobKey::new("prod", "mine"), at - Duration::from_secs(1)).await;
    for i in 0..20_000 {
        house.lab.ask(&*house.store, &format!("another-{i}")).await;
    }
    let (status, _, list) = house.ask(reqwest::Method::GET, "/v1/operations?limit=10", Some(&prod), None).await;
    assert_eq!((status, list.as_array().map(Vec::len), &list[0]["id"]), (200, Some(1), &json!(mine.to_string())));
}

#[tokio::test]
async fn a_token_made_through_the_rpc_is_told_once_and_works() {
    let house = House::new(asking_for_tokens()).await;
    let (_, admin) = house.token("boss", &[Scope::Admin], &[], None).await;
    let body = json!({"name": "ci", "scopes": ["read"], "expires_in": "1h", "actor": "alice"});
    let (status, _, made) = house.ask(reqwest::Method::POST, "/v1/tokens", Some(&admin), Some(body)).await;
    let text = made["token"].as_str().unwrap();
    assert_eq!((status, &made["created_by"]), (201, &json!("token boss, for alice")));
    assert_eq!(house.get("/v1/operations", Some(text)).await.0, 200);
    let (_, _, all) = house.ask(reqwest::Method::GET, "/v1/tokens", Some(&admin), None).await;
    assert!(
        all.as_array().unwrap().len() == 2 && !all.to_string().contains(text) && !all.to_string().contains("digest"),
        "{all}"
    );
    let end = format!("/v1/tokens/{}/revoke", made["id"].as_str().unwrap());
    assert_eq!(house.post(&end, &admin, json!({})).await.0, 200);
    assert_eq!(house.get("/v1/operations", Some(text)).await.0, 401);
    for bad in [json!({"name": "a b", "scopes": ["read"]}), json!({"name": "a", "scopes": ["drain"], "namespaces": ["x"]})] {
        assert_eq!(house.post("/v1/tokens", &admin, bad).await, (422, "bad-token".into()));
    }
    assert_eq!(house.post("/v1/tokens/0000000000000000/revoke", &admin, json!({})).await.0, 404);
}

fn base64url(bytes: &[u8]) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let six = |chunk: &[u8], n: usize| {
        let word = (0..3).fold(0, |w: u32, i| w << 8 | u32::from(chunk.get(i).copied().unwrap_or(0)));
        char::from(LETTERS[(word >> (18 - 6 * n)) as usize & 63])
    };
    bytes.chunks(3).flat_map(|chunk| (0..=chunk.len()).map(move |n| six(chunk, n))).collect()
}

/// A key of Nomad's, or of somebody who says so.
struct Signer {
    key: EncodingKey,
    jwk: Jwk,
}

impl Signer {
    fn new(kid: &str) -> Self {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let key = EncodingKey::from_ed_der(&pair.serialize_der());
        let x = base64url(pair.public_key_raw());
        let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": kid, "x": x });
        Self { key, jwk: serde_json::from_value(jwk).unwrap() }
    }

    fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: self.jwk.common.key_id.clone(), ..Header::new(Algorithm::EdDSA) };
        encode(&header, claims, &self.key).unwrap()
    }
}

#[tokio::test]
async fn a_workload_identity_is_nomads_for_us_and_still_good() {
    let (nomad, forger) = (Signer::new("k1"), Signer::new("k1"));
    let keys = serde_json::to_string(&JwkSet { keys: vec![nomad.jwk.clone()] }).unwrap();
    let script = move |line: &str| {
        let keys = keys.clone();
        line.ends_with("/.well-known/jwks.json").then(|| async move { keys }.boxed())
    };
    let mut lab = Lab::new(Box::new(script));
    lab.config.auth = vec![Proof::Workloads];
    let claims = [("nomad_namespace".to_owned(), "prod".to_owned()), ("nomad_job_id".to_owned(), "deployer".to_owned())].into();
    let rule = WorkloadRule { claims, scopes: [Scope::Read, Scope::Submit].into(), namespaces: ["prod".into()].into() };
    lab.config.workloads = Workloads { rules: vec![rule], ..Workloads::default() };
    let house = House::new(lab).await;
    let now = house.lab.clock.now().as_micros() / 1_000_000;
    let claims = |change: &dyn Fn(&mut Value)| {
        let mut claims = json!({
            "aud": ["curfew"], "exp": now + 600, "nbf": now - 60, "iat": now - 60, "sub": "global:prod:deployer:g:t:curfew",
            "nomad_namespace": "prod", "nomad_job_id": "deployer", "nomad_task": "t", "nomad_allocation_id": "a1",
        });
        change(&mut claims);
        claims
    };
    let good = nomad.sign(&claims(&|_| {}));
    assert_eq!(house.get("/v1/operations", Some(&good)).await, (200, String::new()));
    assert_eq!(house.post("/v1/jobs/a/stop", &good, json!({})).await, (403, "forbidden".into()), "its rule has no stop");
    assert_eq!(house.get("/v1/jobs/a", Some(&good)).await, (403, "forbidden".into()), "nor the default namespace");

    house.refused(&nomad.sign(&claims(&|c| c["exp"] = json!(now - 60))), "expired").await;
    house.refused(&nomad.sign(&claims(&|c| c["aud"] = json!(["vault.io"]))), "not for \"curfew\"").await;
    house.refused(&nomad.sign(&claims(&|c| drop(c.as_object_mut().unwrap().remove("aud")))), "aud").await;
    house.refused(&nomad.sign(&claims(&|c| drop(c.as_object_mut().unwrap().remove("exp")))), "exp").await;
    house.refused(&nomad.sign(&claims(&|c| c["nbf"] = json!(now + 600))), "begins").await;
    house.refused(&nomad.sign(&claims(&|c| c["nomad_job_id"] = json!("other"))), "no rule").await;
    house.refused(&forger.sign(&claims(&|_| {})), "not signed by this Nomad").await;
    house.refused(&Signer::new("k9").sign(&claims(&|_| {})), "knows no key").await;
    // With the public key as a password, and with none at all.
    let public = serde_json::to_vec(&nomad.jwk).unwrap();
    let hs = Header { kid: Some("k1".into()), ..Header::new(Algorithm::HS256) };
    house.refused(&encode(&hs, &claims(&|_| {}), &EncodingKey::from_secret(&public)).unwrap(), "HS256").await;
    let (head, body) = ("eyJhbGciOiJub25lIiwia2lkIjoiazEifQ", good.split('.').nth(1).unwrap());
    house.refused(&format!("{head}.{body}."), "neither a token nor").await;
    let mut tampered: Vec<&str> = good.split('.').collect();
    let other = forger.sign(&claims(&|c| c["nomad_job_id"] = json!("admin")));
    tampered[1] = other.split('.').nth(1).unwrap();
    house.refused(&tampered.join("."), "not signed by this Nomad").await;
    assert_eq!(house.lab.asked("/.well-known/jwks.json"), 1, "an unknown key is no reason to ask Nomad each time");
}

/// A CA, and what it signs, as files that are written anew at will.
struct Ca(Issuer<'static, KeyPair>, String);

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self(Issuer::new(params, key), pem)
    }

    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    fn client(&self, of: Option<(&Ca, &str)>) -> reqwest::Client {
        let root = reqwest::Certificate::from_pem(self.1.as_bytes()).unwrap();
        let mut builder = client().tls_certs_only([root]);
        if let Some((ca, name)) = of {
            let (cert, key) = ca.sign(name);
            builder = builder.identity(reqwest::Identity::from_pem(format!("{cert}{key}").as_bytes()).unwrap());
        }
        builder.build().unwrap()
    }
}

#[tokio::test]
async fn without_a_certificate_there_is_no_connection_and_a_new_one_is_served_when_its_files_change() {
    let (ca, other) = (Ca::new(), Ca::new());
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let put = |of: &Ca| {
        let (cert, key) = of.sign("127.0.0.1");
        std::fs::write(file("cert"), cert).unwrap();
        std::fs::write(file("key"), key).unwrap();
    };
    put(&ca);
    std::fs::write(file("clients"), &ca.1).unwrap();
    let grant = Grant { scopes: [Scope::Read].into(), namespaces: Default::default() };
    let mut house = House::new(lab(|c| {
        (c.tls_cert, c.tls_key, c.tls_client_ca) = (file("cert"), file("key"), file("clients"));
        c.auth = vec![Proof::Certificates];
        c.certificates = [("ci.example".to_owned(), grant)].into();
    }))
    .await;
    let url = house.url("/v1/operations");
    for nobody in [ca.client(None), ca.client(Some((&other, "ci.example")))] {
        assert!(nobody.get(&url).send().await.is_err(), "no certificate of the CA, and yet an answer");
    }
    // A plain connection is none either.
    let mut plain = TcpStream::connect(house.addr()).await.unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said).await;
    assert!(!String::from_utf8_lossy(&said).contains("200 OK"));
    house.http = ca.client(Some((&ca, "ci.example")));
    assert_eq!(house.get("/v1/operations", None).await, (200, String::new()));
    let (status, _) = house.post("/v1/jobs/a/stop", "", json!({})).await;
    assert_eq!(status, 401, "an empty bearer is a bearer");
    let stop = house.http.post(house.url("/v1/jobs/a/stop")).json(&json!({})).send().await.unwrap();
    assert_eq!(stop.status(), 403, "its certificate is for reading");
    let stranger = ca.client(Some((&ca, "stranger.example"))).get(&url).send().await.unwrap();
    assert_eq!(stranger.status(), 401);
    assert!(house.counted("handshake", None).await >= 3);

    // A certificate without its key changes nothing.
    std::fs::write(file("cert"), other.sign("127.0.0.1").0).unwrap();
    assert_eq!(ca.client(Some((&ca, "ci.example"))).get(&url).send().await.unwrap().status(), 200);
    put(&other);
    let renewed = other.client(Some((&ca, "ci.example")));
    until("the new certificate to be served", async || renewed.get(&url).send().await.is_ok_and(|a| a.status() == 200)).await;
}

#[tokio::test]
async fn a_body_that_is_too_large_and_more_than_ones_share_are_refused() {
    let house = House::new(lab(|c| {
        c.max_body_bytes = 1 << 20;
        c.rpc_rate = 20;
    }))
    .await;
    let large = json!({"spec": {"hcl": "x".repeat(80_000)}});
    let answer = house.http.post(house.url("/v1/jobs/plan")).json(&large).send().await.unwrap();
    assert_eq!(answer.status(), 413);
    assert_eq!(house.counted("body", None).await, 1);
    let mut statuses = Vec::new();
    for _ in 0..60 {
        let answer = house.http.get(house.url("/v1/kinds")).send().await.unwrap();
        if answer.status() == 429 {
            assert_eq!(answer.headers()["retry-after"], "1");
        }
        statuses.push(answer.status().as_u16());
    }
    assert!(statuses.contains(&429) && statuses.contains(&200), "{statuses:?}");
    until("its share to grow again", async || house.get("/v1/kinds", None).await.0 == 200).await;
}

#[tokio::test]
async fn an_address_that_guesses_is_not_listened_to_for_a_while() {
    let house = House::new(asking_for_tokens()).await;
    let (_, good) = house.token("ci", &[Scope::Read], &[], None).await;
    let mut last = 0;
    for _ in 0..40 {
        last = house.get("/v1/operations", Some("sesame")).await.0;
    }
    assert_eq!(last, 429);
    until("it to be heard again", async || house.get("/v1/operations", Some(&good)).await.0 == 200).await;
}

/// Half a head, and half a body: paused time runs to whatever ends them.
#[tokio::test(start_paused = true)]
async fn who_sends_slowly_is_cut_off() {
    let house = House::new(lab(|_| ())).await;
    for half in ["GET /v1/kinds HTTP/1.1\r\nHost: x\r\nX-Slow: ", "", "GET"] {
        let mut stream = TcpStream::connect(house.addr()).await.unwrap();
        stream.write_all(half.as_bytes()).await.unwrap();
        let mut said = Vec::new();
        // Closed, or reset: both are an end.
        let _ = stream.read_to_end(&mut said).await;
        assert!(!String::from_utf8_lossy(&said).contains(" 200 "), "{half:?}");
    }
    let mut stream = TcpStream::connect(house.addr()).await.unwrap();
    let head = "POST /v1/jobs/a/stop HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut said = vec![0; 4096];
    let n = stream.read(&mut said).await.unwrap();
    let said = String::from_utf8_lossy(&said[..n]).into_owned();
    assert!(said.starts_with("HTTP/1.1 408") && said.contains("x-request-id"), "{said}");
}

/// A connection from one of this machine's own addresses.
async fn connect(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

const HERE: [u8; 4] = [127, 0, 0, 1];
const THERE: [u8; 4] = [127, 0, 0, 2];

/// Opens an event stream and leaves it idle; its status (0: closed at once), and the connection.
async fn idle(from: [u8; 4], addr: SocketAddr, id: OpId) -> (u16, TcpStream) {
    let mut stream = connect(from, addr).await;
    let head = format!("GET /v1/operations/{id}/events HTTP/1.1\r\nHost: x\r\nX-Request-Id: me.1\r\n\r\n");
    let mut said = vec![0; 512];
    let n = match stream.write_all(head.as_bytes()).await {
        Ok(()) => stream.read(&mut said).await.unwrap_or(0),
        Err(_) => 0,
    };
    let said = String::from_utf8_lossy(&said[..n]).into_owned();
    assert!(n == 0 || said.contains("x-request-id: me.1"), "{said}");
    (said.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0), stream)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_idle_streams_of_one_address_leave_room_for_another() {
    let house = House::new(lab(|_| ())).await;
    let id = house.lab.ask(&*house.store, "a").await;
    let addr = house.addr();
    // Nobody closes what was refused: that takes a connection as well.
    let all: Vec<(u16, TcpStream)> =
        futures::stream::iter(0..1000).map(|_| idle(HERE, addr, id)).buffer_unordered(50).collect().await;
    let count = |code| all.iter().filter(|(c, _)| *c == code).count();
    // Three quarters of 512 streams and of 1024 connections.
    assert_eq!((count(200), count(503), count(0)), (384, 384, 232));
    let other = client().local_address(std::net::IpAddr::from(THERE)).build().unwrap();
    let ask = async |path: String| other.get(house.url(&path)).send().await.unwrap();
    assert_eq!(ask(format!("/v1/operations/{id}")).await.status(), 200);
    assert_eq!(ask(format!("/v1/operations/{id}?wait=100ms")).await.status(), 200, "it may wait, too");
    let (code, _stream) = idle(THERE, addr, id).await;
    assert_eq!(code, 200, "and have its events");
    let metrics = ask("/metrics".into()).await.text().await.unwrap();
    let refused = |why: &str| metrics.contains(&format!("curfew_rpc_refused_total{{why=\"{why}\"}} "));
    assert!(
        refused("address") && metrics.contains("{why=\"address\"} 616\n") && metrics.contains("{why=\"streams\"} 0\n"),
        "{metrics}"
    );
    drop(all);
    until("the places to be free again", async || idle(HERE, addr, id).await.0 == 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_and_long_polls_are_bounded_for_all_together_and_for_an_address() {
    let house = House::new(lab(|c| (c.rpc_streams, c.rpc_address_share) = (20, 60))).await;
    let id = house.lab.ask(&*house.store, "a").await;
    let addr = house.addr();
    let mut held = vec![];
    for (from, codes) in [(HERE, [200; 12].as_slice()), (HERE, &[503]), (THERE, &[200; 8]), (THERE, &[503])] {
        for code in codes {
            let (said, stream) = idle(from, addr, id).await;
            assert_eq!(said, *code, "{from:?} after {}", held.len());
            held.push(stream);
        }
    }
    assert_eq!((house.counted("address", None).await, house.counted("streams", None).await), (1, 1));
    assert_eq!(house.get("/v1/kinds", None).await.0, 200, "what does not wait is answered");
    assert_eq!(house.get(&format!("/v1/operations/{id}"), None).await.0, 200);
    let answer = house.http.get(house.url(&format!("/v1/operations/{id}?wait=1s"))).send().await.unwrap();
    assert!(answer.status() == 503 && answer.headers().contains_key("retry-after"), "{answer:?}");
    let problem: Value = answer.json().await.unwrap();
    assert!(problem["type"].as_str().unwrap().ends_with(":too-many-streams"), "{problem}");
    drop(held);
    until("the places to be free again", async || idle(HERE, addr, id).await.0 == 200).await;
}

#[tokio::test]
async fn more_connections_than_there_are_places_are_closed() {
    let house = House::new(lab(|c| (c.rpc_connections, c.rpc_address_share) = (10, 80))).await;
    let mut all = Vec::new();
    for _ in 0..8 {
        all.push(connect(HERE, house.addr()).await);
    }
    let closed = async |from| !matches!(connect(from, house.addr()).await.read(&mut [0; 1]).await, Ok(n) if n > 0);
    assert!(closed(HERE).await, "the ninth of one address");
    for _ in 0..2 {
        all.push(connect(THERE, house.addr()).await);
    }
    assert!(closed(THERE).await, "the eleventh of all");
    drop(all);
    until("a place", async || house.http.get(house.url("/healthz")).send().await.is_ok()).await;
    until("both to be counted", async || {
        house.counted("address", None).await >= 1 && house.counted("connections", None).await >= 1
    })
    .await;
}

#[tokio::test]
async fn events_are_the_trail_from_where_one_left_off_and_end_with_the_operation() {
    let house = House::new(lab(|_| ())).await;
    let id = house.lab.ask(&*house.store, "a").await;
    let remote = curfew_client(&house);
    let mut events = remote.events(id, 0);
    let first = next(&mut events).await;
    assert_eq!(first, "requested");
    assert_eq!(next(&mut events).await, "leased");
    // Another reader that has seen the first row.
    let seq = house.store.audit(AuditFilter { operation: Some(id), ..AuditFilter::default() }).await.unwrap()[0].seq;
    let mut later = remote.events(id, seq);
    assert_eq!(next(&mut later).await, "leased");
    assert_eq!(house.post(&format!("/v1/operations/{id}/pause"), "", json!({})).await.0, 200);
    assert_eq!((next(&mut events).await, next(&mut later).await), ("paused".to_owned(), "paused".to_owned()));
    let bad =
        house.http.get(house.url(&format!("/v1/operations/{id}/events"))).header("Last-Event-ID", "x").send().await.unwrap();
    assert_eq!(bad.status(), 400);
    // Open streams do not hold up the controller's end.
    let stopping = tokio::time::Instant::now();
    house.controller.stop(true).await;
    assert!(stopping.elapsed() < Duration::from_secs(40), "{:?}", stopping.elapsed());
}

fn curfew_client(house: &House) -> curfew_client::Client {
    curfew_client::Client::new(&house.addr().to_string()).unwrap()
}

async fn next(events: &mut curfew_client::Events) -> String {
    match tokio::time::timeout(Duration::from_secs(20), events.next()).await.unwrap().unwrap().unwrap() {
        curfew_client::Event::Row(row) => row.entry.action.as_str().to_owned(),
        curfew_client::Event::Finished(op) => format!("operation {}", op.state.as_str()),
    }
}

#[tokio::test]
async fn the_last_event_is_the_operation() {
    let house = House::new(lab(|_| ())).await;
    // It never begins: its kind is paused.
    assert_eq!(house.post("/v1/kinds/stop/pause", "", json!({})).await.0, 200);
    let id = house.lab.ask(&*house.store, "a").await;
    let mut events = curfew_client(&house).events(id, 0);
    assert_eq!(next(&mut events).await, "requested");
    assert_eq!(house.post(&format!("/v1/operations/{id}/cancel"), "", json!({})).await.0, 200);
    assert_eq!(next(&mut events).await, "cancelled");
    assert_eq!(next(&mut events).await, "operation cancelled");
    assert_eq!(events.next().await.unwrap(), None);
}

#[tokio::test]
async fn jobs_are_submitted_only_where_and_by_what_the_configuration_says() {
    let house = House::new(lab(|c| {
        c.submit_namespaces = vec!["prod".into()];
        c.submit_drivers = vec!["docker".into()];
    }))
    .await;
    let plan = async |namespace: &str, driver: &str| {
        let tasks = json!([{"Name": "t", "Driver": driver, "Config": {}}]);
        let job =
            json!({"ID": "a", "Namespace": namespace, "Datacenters": ["dc1"], "TaskGroups": [{"Name": "g", "Tasks": tasks}]});
        let body = Some(json!({"spec": {"json": job}}));
        let (status, kind, value) = house.ask(reqwest::Method::POST, "/v1/jobs", None, body).await;
        (status, kind, value["detail"].as_str().unwrap_or_default().to_owned())
    };
    let (status, kind, detail) = plan("default", "docker").await;
    assert!(status == 403 && kind == "forbidden" && detail.contains("submit_namespaces"), "{status} {detail}");
    let (status, kind, detail) = plan("prod", "raw_exec").await;
    assert!(status == 403 && kind == "forbidden" && detail.contains("raw_exec"), "{status} {detail}");
    assert_ne!(plan("prod", "docker").await.0, 403);
}
