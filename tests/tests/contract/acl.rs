//! Fact 15, and what a token is not shown. Every case has policies, tokens and namespaces of its own.

use std::collections::BTreeSet;

use curfew_tests::wait::eventually;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::kit::{POLITE, batch, rolling, service, task, unique};
use crate::on::{Answer, On, SOON, id, s};

const NOBODY: &str = "00000000-0000-0000-0000-000000000000";
const DENIED: (u16, &str) = (403, "Permission denied");

/// A client token with these rules; its secret.
async fn token(on: &On, rules: &str) -> String {
    let name = unique("policy");
    on.put(&format!("/v1/acl/policy/{name}"), &json!({ "Name": name, "Rules": rules })).await.ok();
    let token = on.put("/v1/acl/token", &json!({ "Name": name, "Type": "client", "Policies": [name] })).await.ok();
    token.body["SecretID"].as_str().unwrap().to_owned()
}

async fn namespace(on: &On) -> String {
    let name = unique("space");
    on.put(&format!("/v1/namespace/{name}"), &json!({ "Name": name })).await.ok();
    name
}

fn in_namespace(mut job: Value, namespace: &str) -> Value {
    job["Namespace"] = json!(namespace);
    job
}

/// Not allowed. Nomad 2.0 hides an allocation with words of its own.
fn refused(answer: &Answer) -> bool {
    answer.says() == DENIED || answer.text.starts_with("Unknown allocation")
}

/// A call, and what the least policy grants it by.
type Needs = (Method, &'static str, &'static str);

const LIST: &str = "list-jobs";
const READ: &str = "read-job";
const SUBMIT: &str = "submit-job";
const LIFECYCLE: &str = "alloc-lifecycle";
const DISPATCH: &str = "dispatch-job";
const NODE_READ: &str = "node read";
const NODE_WRITE: &str = "node write";
const AGENT: &str = "agent read";
const CAPABILITIES: [&str; 5] = [SUBMIT, READ, LIST, LIFECYCLE, DISPATCH];

const CALLS: &[Needs] = &[
    (Method::POST, "/v1/jobs/parse", SUBMIT),
    (Method::PUT, "/v1/jobs", SUBMIT),
    (Method::PUT, "/v1/job/:job/plan", SUBMIT),
    (Method::PUT, "/v1/validate/job", READ),
    (Method::GET, "/v1/job/:job", READ),
    (Method::GET, "/v1/job/:job/versions", READ),
    (Method::DELETE, "/v1/job/:job", SUBMIT),
    (Method::GET, "/v1/job/:job/allocations", READ),
    (Method::GET, "/v1/job/:job/deployments", READ),
    (Method::GET, "/v1/job/:job/evaluations", READ),
    (Method::GET, "/v1/allocations", READ),
    (Method::GET, "/v1/allocation/:alloc", READ),
    (Method::PUT, "/v1/client/allocation/:alloc/signal", LIFECYCLE),
    (Method::GET, "/v1/evaluation/:eval", READ),
    (Method::GET, "/v1/deployments", READ),
    (Method::GET, "/v1/deployment/:deployment", READ),
    (Method::PUT, "/v1/deployment/fail/:deployment", SUBMIT),
    (Method::PUT, "/v1/deployment/promote/:deployment", SUBMIT),
    (Method::GET, "/v1/nodes", NODE_READ),
    (Method::GET, "/v1/node/:node", NODE_READ),
    // What a namespace hides is left out, without an error.
    (Method::GET, "/v1/node/:node/allocations", NODE_READ),
    (Method::PUT, "/v1/node/:node/eligibility", NODE_WRITE),
    (Method::PUT, "/v1/node/:node/drain", NODE_WRITE),
    (Method::GET, "/v1/client/stats", NODE_READ),
    (Method::GET, "/v1/agent/members", NODE_READ),
    (Method::GET, "/v1/agent/self", AGENT),
    (Method::GET, "/v1/status/leader", ""),
    (Method::GET, "/.well-known/jwks.json", ""),
    (Method::GET, "/v1/jobs", LIST),
    (Method::PUT, "/v1/job/:job/dispatch", DISPATCH),
];

/// The things that the calls name.
struct Things {
    job: Value,
    parent: String,
    alloc: String,
    node: String,
    eval: String,
    deployment: String,
}

impl Things {
    async fn of(on: &On) -> Self {
        let job = rolling(service(&unique("least"), vec![task("t", POLITE)]), s(600));
        let mut parent = batch(&unique("parent"), vec![task("t", "true")]);
        parent["ParameterizedJob"] = json!({});
        on.register(&parent).await.ok();
        // With a deployment, and that needs a kill_timeout within its deadline.
        let mut short = job.clone();
        short["TaskGroups"][0]["Tasks"][0]["KillTimeout"] = json!(1_000_000_000);
        let alloc = on.start(&short).await;
        let deployment = on.get(&format!("/v1/job/{}/deployment", short["ID"].as_str().unwrap())).await.ok();
        let text = |key: &str| alloc[key].as_str().unwrap().to_owned();
        Self {
            parent: parent["ID"].as_str().unwrap().to_owned(),
            alloc: id(&alloc).to_owned(),
            node: text("NodeID"),
            eval: text("EvalID"),
            deployment: id(&deployment.body).to_owned(),
            job: short,
        }
    }

    async fn call(&self, on: &On, (method, template, _): &Needs) -> Answer {
        let id = self.job["ID"].as_str().unwrap();
        // What is deleted is not there, and a job of one's own is dispatched.
        let job = match (method.as_str(), template.ends_with("/dispatch")) {
            ("DELETE", _) => "nobody",
            (_, true) => &self.parent,
            _ => id,
        };
        let path = template
            .replace(":job", job)
            .replace(":alloc", &self.alloc)
            .replace(":eval", &self.eval)
            .replace(":deployment", &self.deployment)
            .replace(":node", &self.node);
        // A server has no stats of its own.
        let path = if *template == "/v1/client/stats" { format!("{path}?node_id={}", self.node) } else { path };
        let body = match *template {
            "/v1/jobs/parse" => json!({ "JobHCL": "job \"x\" {}" }),
            "/v1/jobs" | "/v1/validate/job" | "/v1/job/:job/plan" => json!({ "Job": self.job }),
            "/v1/client/allocation/:alloc/signal" => json!({ "Signal": "SIGCONT", "Task": "t" }),
            "/v1/node/:node/eligibility" => json!({ "Eligibility": "eligible" }),
            "/v1/node/:node/drain" => json!({ "DrainSpec": null, "MarkEligible": true }),
            "/v1/deployment/promote/:deployment" => json!({ "DeploymentID": self.deployment, "All": true }),
            _ => json!({}),
        };
        on.call(method.clone(), &path, (*method != Method::GET && *method != Method::DELETE).then_some(&body)).await
    }
}

fn rules(without: &str) -> String {
    let capabilities: Vec<String> = CAPABILITIES.iter().filter(|c| **c != without).map(|c| format!("{c:?}")).collect();
    let mut rules = format!("namespace \"*\" {{ capabilities = [{}] }}\n", capabilities.join(", "));
    match without {
        NODE_READ => {}
        NODE_WRITE => rules += "node { policy = \"read\" }\n",
        _ => rules += "node { policy = \"write\" }\n",
    }
    if without != AGENT {
        rules += "agent { policy = \"read\" }\n";
    }
    rules
}

/// Everything that Curfew calls works with it, and without one part exactly the calls that need this part do not.
pub async fn the_least_policy_works_for_every_call(on: On) {
    let known: BTreeSet<String> = CALLS.iter().map(|(m, t, _)| format!("{m} {t}")).collect();
    for route in curfew_nomad::routes().filter(|r| !r.ends_with("/v1/event/stream")) {
        assert!(known.contains(route), "the gateway can call {route}, and nobody knows what it needs");
    }
    let things = Things::of(&on).await;
    let mut wrong = vec![];
    for without in ["nothing", NODE_WRITE, NODE_READ, AGENT].iter().chain(&CAPABILITIES) {
        let secret = token(&on, &rules(without)).await;
        let bearer = on.bearing(&secret);
        for call in CALLS {
            let answer = things.call(&bearer, call).await;
            let missing = call.2 == *without || (*without == NODE_READ && call.2 == NODE_WRITE);
            if refused(&answer) != missing {
                wrong.push(format!("without {without}: {} {}: {} {}", call.0, call.1, answer.status, answer.text));
            }
        }
        let speaks = first_byte(&bearer, CURFEWS).await;
        if speaks == [READ, NODE_READ].contains(without) {
            wrong.push(format!("without {without} the event stream {}", if speaks { "speaks" } else { "is silent" }));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

pub async fn anonymous_and_unknown_tokens_are_refused(on: On) {
    let node = on.get("/v1/nodes").await.ok().body[0]["ID"].as_str().unwrap().to_owned();
    let drain = format!("/v1/node/{node}/drain");
    for secret in ["", NOBODY] {
        let who = on.bearing(secret);
        for path in ["/v1/jobs", "/v1/jobs?namespace=*", "/v1/nodes", "/v1/agent/self", "/v1/acl/tokens", "/v1/job/nobody"] {
            let answer = who.get(path).await;
            // Before 2.0 the agent says of an unknown token what is wrong with it.
            let agents = secret == NOBODY && path == "/v1/agent/self" && !on.cluster.is_at_least((2, 0, 0));
            let expected = if agents { (403, "ACL token not found") } else { DENIED };
            assert_eq!((answer.says(), answer.header("content-type")), (expected, "text/plain; charset=utf-8"), "{path}");
            assert_eq!(answer.header("x-nomad-index"), "", "{path}");
        }
        assert_eq!(who.delete("nobody").await.says(), DENIED);
        assert_eq!(who.put(&drain, &json!({ "DrainSpec": { "Deadline": 1 } })).await.says(), DENIED);
        assert_eq!(who.put("/v1/system/gc", &json!({})).await.says(), DENIED);
        for open in ["/v1/status/leader", "/v1/regions", "/v1/agent/health"] {
            who.get(open).await.ok();
        }
    }
    let nobody = on.bearing("").get("/v1/acl/token/self").await;
    if on.cluster.is_at_least((1, 10, 0)) {
        assert_eq!((&nobody.body["AccessorID"], &nobody.body["Policies"]), (&json!("anonymous"), &json!(["anonymous"])));
    } else {
        assert_eq!(nobody.says(), (500, "acl token lookup failed: missing secret id"));
    }
    let unknown = if on.cluster.is_at_least((1, 10, 0)) { DENIED } else { (404, "ACL token not found") };
    assert_eq!(on.bearing(NOBODY).get("/v1/acl/token/self").await.says(), unknown);
    // What is no id at all is taken for the identity of a task, from 2.0 on.
    let answer = on.bearing("nonsense").get("/v1/agent/self").await;
    let why = if on.cluster.is_at_least((2, 0, 0)) { "failed to parse signed token" } else { "UUID must be 36 characters" };
    assert_eq!((answer.status, answer.text.contains(why)), (500, true), "{answer:?}");
    assert_eq!(on.bearing("nonsense").get("/v1/jobs").await.says(), DENIED);
}

/// A job in a namespace of its own, running; and its allocation.
async fn there(on: &On, space: &str) -> (Value, Value) {
    let job = in_namespace(service(&unique("there"), vec![task("t", POLITE)]), space);
    on.put("/v1/jobs", &json!({ "Job": job })).await.ok();
    let name = job["ID"].as_str().unwrap().to_owned();
    let alloc = eventually(SOON, "an allocation elsewhere", async || {
        let all = on.cluster.api.allocations_in(space, &name).await?;
        all.iter().find(|a| a["ClientStatus"] == "running").cloned().ok_or_else(|| format!("{all:?}"))
    })
    .await;
    (job, alloc)
}

async fn gone(on: &On, space: &str, job: &Value) {
    on.call(Method::DELETE, &format!("/v1/job/{}?namespace={space}", job["ID"].as_str().unwrap()), None).await.ok();
}

pub async fn lists_show_what_is_allowed(on: On) {
    let (seen, hidden) = (namespace(&on).await, namespace(&on).await);
    let (job, _) = there(&on, &seen).await;
    let (other, _) = there(&on, &hidden).await;
    let secret = token(&on, &format!("namespace {seen:?} {{ policy = \"read\" }}")).await;
    let who = on.bearing(&secret);
    for list in ["/v1/jobs", "/v1/allocations", "/v1/evaluations", "/v1/deployments"] {
        let all = who.get(&format!("{list}?namespace=*")).await.ok();
        let spaces: BTreeSet<&str> = all.body.as_array().unwrap().iter().filter_map(|r| r["Namespace"].as_str()).collect();
        assert_eq!(spaces, BTreeSet::from([seen.as_str()]), "{list}");
        who.get(&format!("{list}?namespace={seen}")).await.ok();
        assert_eq!(who.get(&format!("{list}?namespace={hidden}")).await.says(), DENIED, "{list}");
        assert_eq!(who.get(list).await.says(), DENIED, "{list}");
    }
    let names: Vec<Value> =
        who.get("/v1/namespaces").await.ok().body.as_array().unwrap().iter().map(|n| n["Name"].clone()).collect();
    assert_eq!(names, [json!(seen)]);
    for none in ["/v1/node/pools", "/v1/vars", "/v1/acl/policies?prefix=nobody"] {
        assert_eq!(who.get(none).await.ok().body, json!([]), "{none}");
    }
    assert_eq!(who.get(&format!("/v1/namespace/{hidden}")).await.says(), DENIED);
    gone(&on, &seen, &job).await;
    gone(&on, &hidden, &other).await;
}

/// Without a word; only the answer's index is that of the newest of all.
pub async fn a_nodes_allocations_leave_out_what_is_hidden(on: On) {
    let (seen, hidden) = (namespace(&on).await, namespace(&on).await);
    let (job, alloc) = there(&on, &seen).await;
    let (other, _) = there(&on, &hidden).await;
    let path = format!("/v1/node/{}/allocations", alloc["NodeID"].as_str().unwrap());
    let secret = token(&on, &format!("node {{ policy = \"read\" }}\nnamespace {seen:?} {{ policy = \"read\" }}")).await;
    let newest = |a: &Answer| a.body.as_array().unwrap().iter().filter_map(|a| a["ModifyIndex"].as_u64()).max().unwrap();
    let (all, some) = (on.get(&path).await.ok(), on.bearing(&secret).get(&path).await.ok());
    assert_eq!(all.index(), newest(&all));
    let spaces: BTreeSet<&str> = some.body.as_array().unwrap().iter().filter_map(|r| r["Namespace"].as_str()).collect();
    assert_eq!(spaces, BTreeSet::from([seen.as_str()]));
    assert!(some.index() > newest(&some), "{} and {}", some.index(), newest(&some));
    gone(&on, &seen, &job).await;
    gone(&on, &hidden, &other).await;
}

/// Asked for by its own id, in a namespace that the token does not know.
pub async fn what_is_in_a_hidden_namespace(on: On) {
    let (mine, hidden) = (namespace(&on).await, namespace(&on).await);
    let (job, alloc) = there(&on, &hidden).await;
    let secret = token(&on, &format!("namespace {mine:?} {{ policy = \"write\" }}")).await;
    let who = on.bearing(&secret);
    let (alloc_id, eval) = (id(&alloc), alloc["EvalID"].as_str().unwrap());
    let answer = who.get(&format!("/v1/allocation/{alloc_id}")).await;
    if on.cluster.is_at_least((2, 0, 0)) {
        // Not a 404, and not the words of one that is not there.
        assert_eq!(answer.says(), (500, format!("Unknown allocation {alloc_id:?}").as_str()));
    }
    assert!(refused(&answer), "{answer:?}");
    assert_eq!(who.get(&format!("/v1/evaluation/{eval}?namespace={mine}")).await.says(), DENIED);
    assert_eq!(who.signal(alloc_id, "SIGTERM", "t").await.says(), DENIED);
    assert_eq!(who.put(&format!("/v1/allocation/{alloc_id}/stop"), &json!({})).await.says(), DENIED);
    assert_eq!(who.get(&format!("/v1/client/allocation/{alloc_id}/stats")).await.says(), DENIED);
    // What is not there at all is told from it.
    assert_eq!(who.get(&format!("/v1/allocation/{NOBODY}")).await.says(), (404, "alloc not found"));
    assert_eq!(who.signal(NOBODY, "SIGTERM", "t").await.says(), (404, format!("Unknown allocation {NOBODY:?}").as_str()));
    assert_eq!(who.put(&format!("/v1/allocation/{NOBODY}/stop"), &json!({})).await.says(), (404, "allocation not found"));
    gone(&on, &hidden, &job).await;
}

pub async fn policies_are_checked_when_they_are_written(on: On) {
    let name = unique("wrong");
    let path = format!("/v1/acl/policy/{name}");
    let wrong = |why: &str| (400, format!("policy 0 invalid: 1 error occurred:\n\t* failed to parse rules: {why}\n\n"));
    for (rules, why) in [
        ("node { }", "Invalid node policy: &acl.NodePolicy{Policy:\"\"}"),
        ("agent { policy = \"list\" }", "Invalid agent policy: &acl.AgentPolicy{Policy:\"list\"}"),
        ("foo = 1", "Invalid policy: foo = 1"),
        ("operator { capabilities = [\"x\"] }", "Invalid operator capability 'x'"),
    ] {
        if rules.starts_with("operator") && !on.cluster.is_at_least((2, 0, 0)) {
            continue;
        }
        let answer = on.put(&path, &json!({ "Name": name, "Rules": rules })).await;
        assert_eq!((answer.status, answer.text), wrong(why), "{rules}");
    }
    let answer = on.put(&path, &json!({ "Name": "other", "Rules": "" })).await;
    assert_eq!(answer.says(), (400, "ACL policy name does not match request path"));
    assert_eq!(on.get(&path).await.says(), (404, "ACL policy not found"));
    let rules = "namespace \"a\" { policy = \"read\" capabilities = [\"submit-job\"] }";
    on.put(&path, &json!({ "Name": name, "Rules": rules, "Description": "d" })).await.ok();
    let kept = on.get(&path).await.ok();
    assert_eq!((&kept.body["Rules"], &kept.body["Description"]), (&json!(rules), &json!("d")));
    on.call(Method::DELETE, &path, None).await.ok();
    on.call(Method::DELETE, &path, None).await.ok();
}

pub async fn tokens_are_made_and_deleted(on: On) {
    let put = async |body: Value| on.put("/v1/acl/token", &body).await;
    for (body, why) in [
        (json!({ "Type": "client" }), "client token missing policies or roles"),
        (json!({ "Type": "nothing" }), "token type must be client or management"),
        (json!({ "Type": "management", "Policies": ["p"] }), "management token cannot be associated with policies or roles"),
        (
            json!({ "Type": "client", "Policies": ["p"], "ExpirationTTL": "1s" }),
            "expiration time cannot be less than 1m0s in the future (was 1s)",
        ),
    ] {
        let answer = put(body).await;
        assert_eq!(answer.says(), (400, format!("token 0 invalid: 1 error occurred:\n\t* {why}\n\n").as_str()));
    }
    let made = put(json!({ "Name": "m", "Type": "management", "ExpirationTTL": "1h" })).await.ok().body;
    let (accessor, secret) = (made["AccessorID"].as_str().unwrap(), made["SecretID"].as_str().unwrap());
    let bearer = on.bearing(secret);
    assert_eq!(bearer.get("/v1/acl/token/self").await.ok().body["ExpirationTTL"], "1h0m0s");
    bearer.get("/v1/acl/tokens").await.ok();
    let path = format!("/v1/acl/token/{accessor}");
    on.call(Method::DELETE, &path, None).await.ok();
    let again = on.call(Method::DELETE, &path, None).await;
    assert_eq!(again.says(), (400, format!("Cannot delete nonexistent tokens: {accessor}").as_str()));
    assert_eq!(on.get(&path).await.says(), (404, "ACL token not found"));
    eventually(SOON, "the deleted token is refused", async || match bearer.get("/v1/jobs").await {
        a if a.says() == DENIED => Ok(()),
        a => Err(format!("{a:?}")),
    })
    .await;
}

/// What Curfew asks of the stream.
const CURFEWS: &str = "topic=Allocation&topic=Job&topic=Node&topic=Evaluation&namespace=*";

/// Whether it says anything. A good one does at once.
/// Before 2.0 a refusal is told: 403 (1.10), or 500 (1.8).
async fn first_byte(on: &On, query: &str) -> bool {
    let mut answer = on.stream(query).await;
    let status = answer.status().as_u16();
    if !on.cluster.is_at_least((2, 0, 0)) && matches!(status, 403 | 500) {
        return false;
    }
    assert_eq!((status, answer.headers()["content-type"].to_str().unwrap()), (200, "application/json"));
    matches!(timeout(s(3), answer.chunk()).await, Ok(Ok(Some(_))))
}

pub async fn a_stream_without_the_right_is_silent(on: On) {
    let space = namespace(&on).await;
    let reader = "node { policy = \"read\" }\nnamespace \"default\" { policy = \"read\" }";
    // Not any namespace must be allowed, but every one that there is.
    let one = token(&on, reader).await;
    let all = token(&on, &format!("{reader}\nnamespace \"*\" {{ policy = \"read\" }}")).await;
    for (secret, query, speaks) in [
        ("", "topic=Job", false),
        (NOBODY, "topic=Job", false),
        ("nonsense", "topic=Job", false),
        (&one, "topic=Job&topic=Node", true),
        (&one, "topic=Operator", false),
        (&one, &format!("topic=Job&namespace={space}"), false),
        (&one, CURFEWS, false),
        (&all, CURFEWS, true),
        // Every topic there is wants a management token.
        (&all, "namespace=*", false),
    ] {
        // On 1.8 any namespace opens `*`.
        let speaks = speaks || (secret == one && query == CURFEWS && !on.cluster.is_at_least((1, 10, 0)));
        assert_eq!(first_byte(&on.bearing(secret), query).await, speaks, "{query} with {secret:?}");
    }
}

/// `*` is the namespaces that there are when it is opened.
pub async fn an_open_stream_knows_no_later_namespace(on: On) {
    let mut answer = on.stream("topic=Job&namespace=*").await;
    let space = namespace(&on).await;
    let (later, here) = (service(&unique("later"), vec![task("t", POLITE)]), service(&unique("here"), vec![task("t", POLITE)]));
    let later = in_namespace(later, &space);
    on.put("/v1/jobs", &json!({ "Job": later })).await.ok();
    on.register(&here).await.ok();
    let read = async {
        let mut text = String::new();
        while !text.contains(here["ID"].as_str().unwrap()) {
            text.push_str(&String::from_utf8_lossy(&answer.chunk().await.unwrap().expect("the stream ended")));
        }
        text
    };
    let seen = timeout(s(30), read).await.expect("the event of the later job");
    // On 1.8 it does.
    assert!(!on.cluster.is_at_least((1, 10, 0)) || !seen.contains(later["ID"].as_str().unwrap()), "{seen}");
    gone(&on, &space, &later).await;
}

pub async fn a_namespace_is_a_world_of_its_own(on: On) {
    let space = namespace(&on).await;
    let job = service(&unique("twice"), vec![task("t", POLITE)]);
    let name = job["ID"].as_str().unwrap();
    on.register(&job).await.ok();
    // The query's namespace is for a job that names none; one that names one is there.
    on.put(&format!("/v1/jobs?namespace={space}"), &json!({ "Job": job })).await.ok();
    for (query, namespace) in [("", "default"), (format!("?namespace={space}").as_str(), space.as_str())] {
        assert_eq!(on.get(&format!("/v1/job/{name}{query}")).await.ok().body["Namespace"], namespace);
    }
    assert_eq!(on.get(&format!("/v1/job/{name}?namespace=*")).await.says(), (404, "job not found"));
    gone(&on, &space, &job).await;
    assert_eq!(on.get(&format!("/v1/job/{name}")).await.ok().body["Stop"], false);
    let both = on.get(&format!("/v1/jobs?namespace=*&prefix={name}")).await.ok().body;
    assert_eq!(both.as_array().map(Vec::len), Some(2), "{both}");
    assert_eq!(on.get("/v1/namespace/nope").await.says(), (404, "Namespace not found"));
}
