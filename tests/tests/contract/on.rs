//! What a case is given: a cluster, calls whose whole answer shows, and the moves that most cases make.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use curfew_tests::api::{TOKEN, segment};
use curfew_tests::cluster::Cluster;
use curfew_tests::process::{self, Proc};
use curfew_tests::wait::eventually;
use reqwest::Method;
use reqwest::header::HeaderMap;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::clusters::{Held, Lease};

/// For what should come soon, on a machine that runs everything at once.
pub const SOON: Duration = Duration::from_secs(45);

pub fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// An answer in full.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
    pub body: Value,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    pub fn index(&self) -> u64 {
        self.header("x-nomad-index").parse().unwrap_or_default()
    }

    /// Status and words of a refusal.
    pub fn says(&self) -> (u16, &str) {
        (self.status, &self.text)
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.status, 200, "{self:?}");
        self
    }
}

#[derive(Clone)]
pub struct On {
    pub cluster: Arc<Cluster>,
    held: Arc<Held>,
    http: reqwest::Client,
    /// Instead of the cluster's management token.
    token: Option<String>,
    called: Arc<Mutex<BTreeSet<String>>>,
    jobs: Arc<Mutex<Vec<String>>>,
    skipped: Arc<Mutex<Option<String>>>,
}

impl On {
    pub fn new(held: Arc<Held>) -> Self {
        let http = held.cluster.api.access.client().timeout(s(90)).build().unwrap();
        let cluster = held.cluster.clone();
        Self { cluster, held, http, token: None, called: Arc::default(), jobs: Arc::default(), skipped: Arc::default() }
    }

    /// With this token's secret; an empty one is none.
    pub fn bearing(&self, secret: &str) -> Self {
        Self { token: Some(secret.to_owned()), ..self.clone() }
    }

    /// A node of one's own, on a cluster whose nodes are lent.
    pub async fn node(&self) -> Lease {
        Lease::of(&self.held).await
    }

    /// Says why this case cannot be done here.
    pub fn skip(&self, why: &str) {
        *self.skipped.lock().unwrap() = Some(why.to_owned());
    }

    pub fn skipped(&self) -> Option<String> {
        self.skipped.lock().unwrap().clone()
    }

    pub fn called(&self) -> BTreeSet<String> {
        self.called.lock().unwrap().clone()
    }

    pub async fn try_call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Answer, String> {
        self.called.lock().unwrap().insert(format!("{method} {}", template(path)));
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = match body {
                // Not JSON: as it is.
                Value::String(raw) => request.body(raw.clone()),
                _ => request.json(body),
            };
        }
        let answer = request.send().await.map_err(|e| format!("{path}: {e:?}"))?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let text = answer.text().await.map_err(|e| format!("{path}: {e:?}"))?;
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Ok(Answer { status, headers, text, body })
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.cluster.addr()));
        match &self.token {
            Some(token) => request.header(TOKEN, token),
            None => request,
        }
    }

    pub async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        self.try_call(method, path, body).await.unwrap_or_else(|e| panic!("{e}"))
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, None).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::PUT, path, Some(body)).await
    }

    /// An event stream's answer, unread.
    pub async fn stream(&self, query: &str) -> reqwest::Response {
        self.called.lock().unwrap().insert("GET /v1/event/stream".into());
        self.request(Method::GET, &format!("/v1/event/stream?{query}")).send().await.unwrap()
    }

    pub async fn register(&self, job: &Value) -> Answer {
        self.jobs.lock().unwrap().push(job["ID"].as_str().unwrap_or_default().to_owned());
        self.put("/v1/jobs", &json!({ "Job": job })).await
    }

    /// Ended with this case, like the jobs it registered.
    pub fn owns(&self, job: &str) {
        self.jobs.lock().unwrap().push(job.to_owned());
    }

    pub async fn delete(&self, job: &str) -> Answer {
        self.call(Method::DELETE, &format!("/v1/job/{}", segment(job)), None).await
    }

    pub async fn signal(&self, alloc: &str, signal: &str, task: &str) -> Answer {
        self.put(&format!("/v1/client/allocation/{alloc}/signal"), &json!({ "Signal": signal, "Task": task })).await
    }

    pub async fn allocs(&self, job: &str) -> Result<Vec<Value>, String> {
        self.called.lock().unwrap().insert("GET /v1/job/:job/allocations".into());
        self.cluster.api.allocations(job).await
    }

    pub async fn alloc(&self, id: &str) -> Result<Value, String> {
        self.called.lock().unwrap().insert("GET /v1/allocation/:alloc".into());
        self.cluster.api.allocation(id).await
    }

    /// Registers it and waits until so many of its allocations run, each process ready for its signals.
    pub async fn start_all(&self, job: &Value, count: usize) -> Vec<Value> {
        self.register(job).await.ok();
        self.running(job["ID"].as_str().unwrap(), count).await
    }

    pub async fn start(&self, job: &Value) -> Value {
        self.start_all(job, 1).await.remove(0)
    }

    pub async fn running(&self, job: &str, count: usize) -> Vec<Value> {
        eventually(SOON, &format!("{count} running allocations of {job}"), async || {
            let all = self.allocs(job).await?;
            let up: Vec<Value> = all.iter().filter(|a| a["DesiredStatus"] == "run" && ready(a)).cloned().collect();
            if up.len() == count { Ok(up) } else { Err(brief(&all)) }
        })
        .await
    }

    /// Waits until the allocation is as wanted.
    pub async fn until(&self, alloc: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(SOON, what, async || {
            let alloc = self.alloc(alloc).await?;
            if wanted(&alloc) { Ok(alloc) } else { Err(brief(&[alloc])) }
        })
        .await
    }

    /// Waits for a task's event of a kind; gives the event.
    pub async fn event(&self, alloc: &str, task: &str, kind: &str) -> Value {
        let alloc = self.until(alloc, &format!("{kind} of {task}"), |a| last_event(a, task, kind).is_some()).await;
        last_event(&alloc, task, kind).unwrap()
    }

    /// The case is over, well or not: nothing of it is left.
    pub async fn clean(&self) {
        let jobs = std::mem::take(&mut *self.jobs.lock().unwrap());
        for job in jobs.iter().rev() {
            let path = format!("/v1/job/{}?purge=false", segment(job));
            let _ = self.cluster.api.call(Method::DELETE, &path, None).await;
            process::with_environment(&[format!("NOMAD_JOB_ID={job}")]).iter().for_each(|p| p.signal(Signal::KILL));
        }
    }
}

/// Runs, and what it runs has set its traps. A poststop task is called `after` in every case.
fn ready(alloc: &Value) -> bool {
    let up = |name: &String| procs(alloc, name).first().is_some_and(|p| p.minds_sigterm());
    let tasks = alloc["TaskStates"].as_object();
    alloc["ClientStatus"] == "running"
        && tasks.is_some_and(|t| t.iter().all(|(name, t)| name == "after" || (t["State"] == "running" && up(name))))
}

pub fn id(alloc: &Value) -> &str {
    alloc["ID"].as_str().unwrap()
}

/// The live processes of a task, its own first.
pub fn procs(alloc: &Value, task: &str) -> Vec<Proc> {
    process::of_task(alloc["JobID"].as_str().unwrap_or_default(), id(alloc), task)
}

#[track_caller]
pub fn proc(alloc: &Value, task: &str) -> Proc {
    *procs(alloc, task).first().unwrap_or_else(|| panic!("no process of {task}: {}", brief(std::slice::from_ref(alloc))))
}

/// A task's events by kind, oldest first.
pub fn kinds(alloc: &Value, task: &str) -> Vec<String> {
    events(alloc, task).iter().filter_map(|e| e["Type"].as_str().map(str::to_owned)).collect()
}

pub fn events(alloc: &Value, task: &str) -> Vec<Value> {
    alloc["TaskStates"][task]["Events"].as_array().cloned().unwrap_or_default()
}

pub fn last_event(alloc: &Value, task: &str, kind: &str) -> Option<Value> {
    events(alloc, task).into_iter().rev().find(|e| e["Type"] == kind)
}

/// What matters of allocations, on a line each.
pub fn brief(allocs: &[Value]) -> String {
    let line = |a: &Value| {
        let tasks = a["TaskStates"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, t)| format!("{name} {} {:?}", t["State"], kinds(a, name)));
        let tasks: Vec<String> = tasks.collect();
        format!("{} v{} {}/{} {tasks:?}", a["ID"], a["JobVersion"], a["DesiredStatus"], a["ClientStatus"])
    };
    allocs.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// `/v1/job/x/allocations?all=true` is `/v1/job/:job/allocations`.
pub fn template(path: &str) -> String {
    let path = path.split('?').next().unwrap_or(path);
    let parts: Vec<&str> = path.split('/').collect();
    let named = |i: usize| match (i.checked_sub(1).map(|b| parts[b]), parts.get(1)) {
        (Some("job"), Some(&"v1")) if i == 3 => Some(":job"),
        (Some("allocation"), _) => Some(":alloc"),
        (Some("evaluation"), _) => Some(":eval"),
        (Some("node"), _) if i == 3 => Some(":node"),
        (Some("deployment" | "fail" | "promote"), _) if parts[i].len() == 36 => Some(":deployment"),
        (Some("policy"), _) => Some(":policy"),
        _ => None,
    };
    (0..parts.len()).map(|i| named(i).unwrap_or(parts[i])).collect::<Vec<_>>().join("/")
}
