//! Tokens and policies: what each route needs, and that it needs it.

use axum::http::Request;
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};

use crate::harness::{Api, Reply, id, job, nodes, polite};

const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

impl Api {
    async fn guarded() -> (Self, String) {
        let api = Self::with(nodes(1), |c| {
            c.acl = true;
            c.namespaces = vec!["games".into()];
        })
        .await;
        let token = api.cluster.bootstrap_acl().unwrap();
        (api, token)
    }

    async fn send(&self, token: &str, method: &str, path: &str, body: &Value) -> Reply {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = Request::builder().method(method).uri(path).header("X-Nomad-Token", token).body(body.into()).unwrap();
        let (parts, body) = self.cluster.call(request).await.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        Reply { status: parts.status.as_u16(), headers: parts.headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
    }

    /// A client token with these rules.
    async fn token(&self, management: &str, name: &str, rules: &str) -> String {
        let policy = json!({"Name": name, "Rules": rules});
        let r = self.send(management, "PUT", &format!("/v1/acl/policy/{name}"), &policy).await;
        assert_eq!(r.status, 200, "{rules}: {}", r.text);
        let token = json!({"Name": name, "Type": "client", "Policies": [name]});
        let r = self.send(management, "PUT", "/v1/acl/token", &token).await;
        assert_eq!(r.status, 200, "{}", r.text);
        r.json()["SecretID"].as_str().unwrap().to_owned()
    }
}

fn refused(r: &Reply) -> bool {
    (r.status == 403 && r.text == "Permission denied") || (r.status == 500 && r.text.starts_with("Unknown allocation"))
}

fn namespace(capabilities: &str) -> String {
    format!("namespace \"default\" {{ capabilities = [\"{capabilities}\"] }}")
}

/// Method, path, and the least rules that it works with; several, where each alone is enough.
type Row = (&'static str, &'static str, &'static [&'static str]);

const NODE_READ: &str = "node { policy = \"read\" }";
const NODE_WRITE: &str = "node { policy = \"write\" }";

/// Every route that asks for something. A capability by its name is one of the namespace `default`.
const GUARDED: &[Row] = &[
    ("GET", "/v1/jobs", &["list-jobs"]),
    ("GET", "/v1/jobs?namespace=*", &["list-jobs"]),
    ("POST", "/v1/jobs/parse", &["parse-job", "submit-job"]),
    ("GET", "/v1/jobs/statuses", &["read-job"]),
    ("PUT", "/v1/validate/job", &["read-job"]),
    ("GET", "/v1/job/x", &["read-job"]),
    ("GET", "/v1/job/x/allocations", &["read-job"]),
    ("GET", "/v1/job/x/evaluations", &["read-job"]),
    ("GET", "/v1/job/x/deployments", &["read-job"]),
    ("GET", "/v1/job/x/deployment", &["read-job"]),
    ("GET", "/v1/job/x/summary", &["read-job"]),
    ("GET", "/v1/job/x/versions", &["read-job"]),
    ("GET", "/v1/job/x/submission", &["read-job"]),
    ("GET", "/v1/job/x/services", &["read-job"]),
    ("GET", "/v1/job/x/actions", &["read-job"]),
    ("GET", "/v1/job/x/scale", &["read-job", "read-job-scaling"]),
    ("GET", "/v1/allocations", &["read-job"]),
    ("GET", "/v1/allocation/ALLOC", &["read-job"]),
    ("GET", "/v1/allocation/ALLOC/services", &["read-job"]),
    ("GET", "/v1/allocation/ALLOC/checks", &["read-job"]),
    ("GET", "/v1/client/allocation/ALLOC/stats", &["read-job"]),
    ("GET", "/v1/client/allocation/ALLOC/checks", &["read-job"]),
    ("PUT", "/v1/client/allocation/ALLOC/gc", &["submit-job", "gc-allocation"]),
    ("GET", "/v1/client/fs/ls/ALLOC", &["read-fs"]),
    ("GET", "/v1/client/fs/stat/ALLOC", &["read-fs"]),
    ("GET", "/v1/client/fs/cat/ALLOC", &["read-fs"]),
    ("GET", "/v1/client/fs/readat/ALLOC", &["read-fs"]),
    ("GET", "/v1/client/fs/stream/ALLOC", &["read-fs"]),
    ("GET", "/v1/client/fs/logs/ALLOC?task=t", &["read-fs", "read-logs"]),
    ("GET", "/v1/client/stats", &[NODE_READ]),
    ("GET", "/v1/client/metadata?node_id=NODE", &[NODE_READ]),
    ("PUT", "/v1/client/metadata?node_id=NODE", &[NODE_WRITE]),
    ("PUT", "/v1/client/gc", &[NODE_WRITE]),
    ("GET", "/v1/nodes", &[NODE_READ, NODE_WRITE]),
    ("GET", "/v1/node/NODE", &[NODE_READ]),
    ("GET", "/v1/node/NODE/allocations", &[NODE_READ]),
    ("GET", "/v1/node/pool/default", &["node_pool \"default\" { policy = \"read\" }"]),
    ("GET", "/v1/node/pool/default/jobs", &["node_pool \"default\" { policy = \"read\" }"]),
    ("GET", "/v1/node/pool/default/nodes", &["node_pool \"default\" { policy = \"read\" }\nnode { policy = \"read\" }"]),
    ("PUT", "/v1/node/NODE/evaluate", &[NODE_WRITE]),
    ("PUT", "/v1/node/NODE/eligibility", &[NODE_WRITE]),
    ("PUT", "/v1/node/00000000-0000-0000-0000-000000000000/purge", &[NODE_WRITE]),
    ("GET", "/v1/evaluations", &["read-job"]),
    ("GET", "/v1/evaluations/count", &["read-job"]),
    ("GET", "/v1/evaluation/EVAL", &["read-job"]),
    ("GET", "/v1/evaluation/EVAL/allocations", &["read-job"]),
    ("GET", "/v1/deployments", &["read-job"]),
    ("GET", "/v1/deployment/DEPLOYMENT", &["read-job"]),
    ("GET", "/v1/deployment/allocations/DEPLOYMENT", &["read-job"]),
    ("PUT", "/v1/deployment/pause/DEPLOYMENT", &["submit-job", "pause-deployment"]),
    ("PUT", "/v1/deployment/promote/DEPLOYMENT", &["submit-job", "promote-deployment"]),
    ("PUT", "/v1/deployment/allocation-health/DEPLOYMENT", &["submit-job", "set-alloc-health-deployment"]),
    ("PUT", "/v1/deployment/unblock/DEPLOYMENT", &["submit-job", "unblock-deployment"]),
    ("PUT", "/v1/deployment/fail/DEPLOYMENT", &["submit-job", "fail-deployment"]),
    ("GET", "/v1/agent/self", &["agent { policy = \"read\" }", "agent { policy = \"write\" }"]),
    ("GET", "/v1/agent/members", &[NODE_READ]),
    ("GET", "/v1/agent/servers", &["agent { policy = \"read\" }"]),
    ("GET", "/v1/namespace/default", &["list-jobs", "read-logs"]),
    ("PUT", "/v1/namespace/other", &[]),
    ("DELETE", "/v1/namespace/other", &[]),
    ("PUT", "/v1/system/gc", &[]),
    ("PUT", "/v1/system/reconcile/summaries", &[]),
    ("GET", "/v1/operator/scheduler/configuration", &["operator { policy = \"read\" }"]),
    ("PUT", "/v1/operator/scheduler/configuration", &["operator { policy = \"write\" }"]),
    ("GET", "/v1/operator/raft/configuration", &["operator { policy = \"read\" }"]),
    ("GET", "/v1/operator/autopilot/health", &["operator { policy = \"read\" }"]),
    ("GET", "/v1/acl/tokens", &[]),
    ("PUT", "/v1/acl/token", &[]),
    ("PUT", "/v1/acl/token/NOBODY", &[]),
    ("DELETE", "/v1/acl/token/NOBODY", &[]),
    ("GET", "/v1/acl/token/NOBODY", &[]),
    ("GET", "/v1/acl/policy/p", &[]),
    ("PUT", "/v1/acl/policy/p", &[]),
    ("DELETE", "/v1/acl/policy/p", &[]),
    ("GET", "/v1/var/a", &["namespace \"default\" {\n variables {\n path \"*\" { capabilities = [\"read\"] }\n }\n}"]),
    ("PUT", "/v1/var/a", &["namespace \"default\" {\n variables {\n path \"*\" { capabilities = [\"write\"] }\n }\n}"]),
    ("DELETE", "/v1/var/a", &["namespace \"default\" {\n variables {\n path \"*\" { capabilities = [\"destroy\"] }\n }\n}"]),
    ("GET", "/v1/volumes?type=csi", &["csi-list-volume", "csi-read-volume", "csi-mount-volume", "list-jobs"]),
    ("GET", "/v1/plugins?type=csi", &["plugin { policy = \"list\" }", "plugin { policy = \"read\" }"]),
    ("GET", "/v1/services", &["read-job"]),
    (
        "GET",
        "/v1/scaling/policies",
        &["list-scaling-policies", "namespace \"default\" { capabilities = [\"list-jobs\", \"read-job\"] }"],
    ),
    ("PUT", "/v1/search", &["read-job"]),
    ("PUT", "/v1/jobs", &["submit-job", "register-job"]),
    ("PUT", "/v1/job/x", &["submit-job", "register-job"]),
    ("PUT", "/v1/job/x/plan", &["submit-job", "plan-job"]),
    ("PUT", "/v1/job/x/evaluate", &["submit-job", "evaluate-job"]),
    ("PUT", "/v1/job/x/scale", &["submit-job", "scale-job"]),
    ("PUT", "/v1/job/x/revert", &["submit-job", "revert-job"]),
    ("PUT", "/v1/job/x/stable", &["submit-job", "stable-job"]),
    ("PUT", "/v1/job/x/dispatch", &["dispatch-job"]),
    ("PUT", "/v1/job/x/periodic/force", &["dispatch-job", "submit-job", "force-periodic-job"]),
    ("PUT", "/v1/client/allocation/ALLOC/signal", &["alloc-lifecycle"]),
    ("PUT", "/v1/client/allocation/ALLOC/restart", &["alloc-lifecycle"]),
    ("PUT", "/v1/allocation/ALLOC/stop", &["alloc-lifecycle"]),
    ("DELETE", "/v1/job/x", &["submit-job", "deregister-job", "purge-job"]),
    ("PUT", "/v1/node/NODE/drain", &[NODE_WRITE]),
    ("DELETE", "/v1/job/x?purge=true", &["submit-job", "purge-job"]),
];

/// Routes that ask for nothing, not even a good token.
const OPEN: &[&str] =
    &["/v1/status/leader", "/v1/status/peers", "/v1/regions", "/v1/agent/health", "/v1/metrics", "/dev/v1/status"];

/// Lists that show a token what it may see, and an unknown token nothing.
const FILTERED: &[&str] = &[
    "/v1/namespaces",
    "/v1/node/pools",
    "/v1/vars",
    "/v1/vars?namespace=*",
    "/v1/acl/policies",
    "/v1/acl/policy/self",
    "/v1/acl/roles",
];

fn body_of(path: &str) -> Value {
    let spec = json!({"Job": job("x", "service", &[polite()])});
    match path.split('?').next().unwrap() {
        "/v1/jobs" | "/v1/job/x" | "/v1/job/x/plan" | "/v1/validate/job" => spec,
        "/v1/jobs/parse" => json!({"JobHCL": "job \"x\" {}"}),
        "/v1/search" => json!({"Prefix": "x", "Context": "jobs"}),
        "/v1/job/x/scale" => json!({"Count": 1, "Target": {"Group": "g"}}),
        p if p.ends_with("/eligibility") => json!({"Eligibility": "eligible"}),
        p if p.ends_with("/signal") => json!({"Signal": "SIGHUP", "Task": "t"}),
        p if p.starts_with("/v1/deployment/") => json!({"DeploymentID": "DEPLOYMENT"}),
        "/v1/var/a" => json!({"Items": {"a": "b"}}),
        _ => json!({}),
    }
}

#[tokio::test(start_paused = true)]
async fn every_route_needs_what_nomad_asks_for_and_nothing_else() {
    let (api, management) = Api::guarded().await;
    let mut spec = job("x", "service", &[polite()]);
    spec["Update"] = json!({"MaxParallel": 1, "ProgressDeadline": 2 * crate::harness::DAY});
    let registered = api.send(&management, "PUT", "/v1/jobs", &json!({ "Job": spec })).await.json();
    let get = async |path: &str| api.send(&management, "GET", path, &Value::Null).await.json();
    let up = async {
        let mut ticks = tokio::time::interval(std::time::Duration::from_millis(20));
        loop {
            ticks.tick().await;
            let alloc = &get("/v1/job/x/allocations").await[0];
            if alloc["ClientStatus"] == "running" {
                return id(alloc);
            }
        }
    };
    let alloc = tokio::time::timeout(std::time::Duration::from_secs(60), up).await.expect("it runs");
    let node = id(&get("/v1/nodes").await[0]);
    let deployment = id(&get("/v1/job/x/deployment").await);
    let eval = registered["EvalID"].as_str().unwrap();
    let fill = |path: &str| {
        path.replace("ALLOC", &alloc)
            .replace("NODE", &node)
            .replace("DEPLOYMENT", &deployment)
            .replace("EVAL", eval)
            .replace("NOBODY", NOBODY)
    };
    // All that another namespace can grant, and every level but write: nothing of that helps.
    let elsewhere = api.token(&management, "elsewhere", "namespace \"games\" { policy = \"write\" }").await;
    let mut wrong = vec![];
    for (i, (method, path, least)) in GUARDED.iter().enumerate() {
        let here = fill(path);
        let body = if *method == "GET" { Value::Null } else { serde_json::from_str(&fill(&body_of(path).to_string())).unwrap() };
        // `*` asks for any namespace; elsewhere is one.
        for token in ["", NOBODY, &elsewhere].iter().filter(|t| !path.contains("namespace=*") || **t != elsewhere) {
            let r = api.send(token, method, &here, &body).await;
            if !refused(&r) {
                wrong.push(format!("{method} {path} with {token:?}: {} {}", r.status, r.text));
            }
        }
        for (j, rules) in least.iter().enumerate() {
            let rules = if rules.contains(' ') { (*rules).to_owned() } else { namespace(rules) };
            let token = api.token(&management, &format!("p{i}-{j}"), &rules).await;
            let r = api.send(&token, method, &here, &body).await;
            if refused(&r) {
                wrong.push(format!("{method} {path} needs more than {rules}: {} {}", r.status, r.text));
            }
        }
        if least.is_empty() && refused(&api.send(&management, method, &here, &body).await) {
            wrong.push(format!("{method} {path} with a management token"));
        }
    }
    for path in OPEN {
        let r = api.send(NOBODY, "GET", path, &Value::Null).await;
        if r.status != 200 {
            wrong.push(format!("{path} with an unknown token: {} {}", r.status, r.text));
        }
    }
    for path in FILTERED {
        let (nobody, unknown) =
            (api.send("", "GET", path, &Value::Null).await, api.send(NOBODY, "GET", path, &Value::Null).await);
        if nobody.text != "[]" || !refused(&unknown) {
            wrong.push(format!("{path}: {} without a token, {} with an unknown one", nobody.text, unknown.text));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Where routes are told apart: the source, the function, what a path begins with.
const ROUTERS: &[(&str, &str, &str)] = &[
    (include_str!("../../src/http/mod.rs"), "fn route(", "/v1/"),
    (include_str!("../../src/http/acl.rs"), "fn route(", "/v1/acl/"),
    (include_str!("../../src/http/agent.rs"), "fn route(", "/v1/agent/"),
    (include_str!("../../src/http/agent.rs"), "fn operator(", "/v1/operator/"),
    (include_str!("../../src/http/allocs.rs"), "fn client(", "/v1/client/allocation/"),
    (include_str!("../../src/http/deployments.rs"), "fn route(", "/v1/deployment/"),
    (include_str!("../../src/http/fs.rs"), "fn route(", "/v1/client/fs/"),
    (include_str!("../../src/http/job.rs"), "fn route(", "/v1/job/"),
];

/// Tried by tests of their own.
const ELSEWHERE: &[&str] = &[r#"["event", "stream"]"#, r#"["bootstrap"]"#, r#"["token", "self"]"#];

#[test]
fn every_route_has_a_row() {
    let paths = || GUARDED.iter().map(|(_, path, _)| path).chain(OPEN).chain(FILTERED).map(|p| p.split('?').next().unwrap());
    let (mut arms, mut missing) = (0, vec![]);
    for (source, function, begin) in ROUTERS {
        let body = source.split_once(function).and_then(|(_, rest)| rest.split_once("\n}\n")).expect("it is there").0;
        for arm in body.lines().filter_map(|l| l.split_once("=>")).map(|(pattern, _)| pattern.trim()) {
            if ELSEWHERE.contains(&arm) {
                continue;
            }
            // The words of an arm are the odd parts between its quotation marks.
            let words: Vec<&str> =
                arm.split('"').skip(1).step_by(2).flat_map(|w| w.split('/')).filter(|w| !w.is_empty()).collect();
            let has = |path: &str, word: &str| path.strip_prefix(begin).is_some_and(|rest| rest.split('/').any(|s| s == word));
            for word in &words {
                arms += 1;
                // Alternatives at the beginning of a path have rows of their own.
                let with = if arm.split(',').next().is_some_and(|first| first.contains('|')) { word } else { &words[0] };
                if !paths().any(|p| has(p, word) && has(p, with)) {
                    missing.push(format!("{begin}… {word:?} of `{arm}`"));
                }
            }
        }
    }
    assert!(missing.is_empty(), "no row has\n{}", missing.join("\n"));
    assert!(arms > 60, "only {arms} found: the routers look different now");
}

#[tokio::test(start_paused = true)]
async fn the_bootstrap_is_done_once() {
    let api = Api::with(nodes(1), |c| c.acl = true).await;
    let secret = "00000000-0000-0000-0000-000000000066";
    let wrong = api.send("", "PUT", "/v1/acl/bootstrap", &json!({"BootstrapSecret": "x"})).await;
    assert_eq!((wrong.status, wrong.text.as_str()), (400, "invalid acl token"));
    let first = api.send("", "PUT", "/v1/acl/bootstrap", &json!({ "BootstrapSecret": secret })).await;
    let (token, index) = (first.json(), first.index());
    let keys: Vec<&str> = token.as_object().unwrap().keys().map(String::as_str).collect();
    let recorded = [
        "AccessorID",
        "CreateIndex",
        "CreateTime",
        "ExpirationTTL",
        "ExpirationTime",
        "Global",
        "Hash",
        "ModifyIndex",
        "Name",
        "Policies",
        "Roles",
        "SecretID",
        "Type",
    ];
    assert_eq!(keys, recorded);
    assert_eq!((&token["SecretID"], &token["Type"], &token["Global"]), (&json!(secret), &json!("management"), &json!(true)));
    let again = api.send("", "POST", "/v1/acl/bootstrap", &Value::Null).await;
    assert_eq!((again.status, again.text), (400, format!("ACL bootstrap already done (reset index: {index})")));
    assert!(api.cluster.bootstrap_acl().is_err());
    assert_eq!(api.send(secret, "GET", "/v1/jobs", &Value::Null).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn without_acls_nothing_is_asked_and_nothing_kept() {
    let api = Api::start(1).await;
    for (method, path) in [("PUT", "/v1/acl/bootstrap"), ("GET", "/v1/acl/token/self"), ("GET", "/v1/acl/policies")] {
        let r = api.send("whatever", method, path, &Value::Null).await;
        assert_eq!((r.status, r.text.as_str()), (400, "ACL support disabled"));
    }
    assert_eq!(api.send("whatever", "GET", "/v1/jobs", &Value::Null).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_token_expires() {
    let (api, management) = Api::guarded().await;
    api.token(&management, "reader", "namespace \"default\" { policy = \"read\" }").await;
    let wanted = json!({"Type": "client", "Policies": ["reader"], "ExpirationTTL": "1m"});
    let token = api.send(&management, "PUT", "/v1/acl/token", &wanted).await.json();
    assert_eq!(token["ExpirationTTL"], "1m0s");
    let secret = token["SecretID"].as_str().unwrap();
    let list = async || api.send(secret, "GET", "/v1/jobs", &Value::Null).await;
    assert_eq!(list().await.status, 200);
    api.pass(std::time::Duration::from_secs(61)).await;
    let late = list().await;
    assert_eq!((late.status, late.text.as_str()), (403, "Permission denied"));
    let own = api.send(secret, "GET", "/v1/acl/token/self", &Value::Null).await;
    assert_eq!((own.status, own.text.as_str()), (500, "ACL token expired"));
}

/// The first bytes of a stream, or that it has ended, or neither within a minute.
async fn first(api: &Api, token: &str, query: &str) -> (axum::body::BodyDataStream, Option<bool>) {
    let request =
        Request::builder().uri(format!("/v1/event/stream?{query}")).header("X-Nomad-Token", token).body(Bytes::new()).unwrap();
    let answer = api.cluster.call(request).await;
    assert_eq!(answer.status(), 200);
    let mut body = answer.into_body().into_data_stream();
    let first = tokio::time::timeout(std::time::Duration::from_secs(60), body.next()).await;
    (body, first.ok().map(|bytes| bytes.is_some()))
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_allowed_is_silent() {
    let (api, management) = Api::guarded().await;
    let one = api.token(&management, "one", "namespace \"default\" { policy = \"read\" }").await;
    let all = api.token(&management, "all", "namespace \"*\" { policy = \"read\" }\nnode { policy = \"read\" }").await;
    let curfew = "topic=Allocation&topic=Job&topic=Node&topic=Evaluation&namespace=*";
    for (token, query, speaks) in [
        ("", "topic=Job", false),
        (NOBODY, "topic=Job", false),
        ("nonsense", "topic=Job", false),
        (&one, "topic=Job", true),
        (&one, "topic=Job&topic=Node", false),
        // Every namespace that there is must be allowed, not just any.
        (&one, "topic=Job&namespace=*", false),
        (&one, "topic=Job&namespace=games", false),
        (&all, curfew, true),
        (&all, "namespace=*", false),
        (&all, "topic=Operator", false),
        (&management, "namespace=*", true),
    ] {
        let (_, got) = first(&api, token, query).await;
        assert_eq!(got, speaks.then_some(true), "{token} {query}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_its_token() {
    let (api, management) = Api::guarded().await;
    let token = api.token(&management, "all", "namespace \"*\" { policy = \"read\" }").await;
    let (mut body, got) = first(&api, &token, "topic=Job").await;
    assert_eq!(got, Some(true));
    let own = api.send(&token, "GET", "/v1/acl/token/self", &Value::Null).await.json();
    api.send(&management, "DELETE", &format!("/v1/acl/token/{}", own["AccessorID"].as_str().unwrap()), &Value::Null).await;
    let end = async { while body.next().await.is_some() {} };
    tokio::time::timeout(std::time::Duration::from_secs(60), end).await.expect("it ends");
}
