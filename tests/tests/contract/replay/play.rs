//! Asks what was asked, when it was asked, and compares.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use curfew_tests::api::TOKEN;
use curfew_tests::cluster::Cluster;
use curfew_tests::now;
use curfew_tests::wait::{clock_passes, within};
use reqwest::Method;
use serde_json::Value;

use super::compare::{Diff, is_uuid, pairs, plain, shapes, values};
use super::watch::{Seen, Watch};
use crate::on::template;

/// Longer pauses of a recording were only for looking on.
const LONGEST_PAUSE: f64 = 8.0;
/// How much later than recorded a state may come.
const LATE: Duration = Duration::from_secs(25);
/// How much later than recorded an answer may be as recorded.
const LATE_ANSWER: Duration = Duration::from_secs(6);
const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

struct Player<'a> {
    cluster: &'a Cluster,
    http: reqwest::Client,
    watch: Watch,
    /// Recorded id, the one it is here. Also ids of dispatched children.
    ids: BTreeMap<String, String>,
    /// Recorded index, the one it is here.
    indexes: BTreeMap<String, String>,
    /// How far each thing's states were matched.
    matched: BTreeMap<String, usize>,
    diffs: Vec<Diff>,
    /// The secrets of the tokens that were made here, by their names.
    tokens: BTreeMap<String, String>,
    /// The whole recording.
    text: String,
    /// The node whose client agent was killed.
    away: String,
    /// Ids that were only told apart by their states: which is which may still turn out to be the other way round.
    guessed: BTreeSet<String>,
}

struct Answer {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Value,
}

pub async fn play(cluster: &Cluster, lines: &[Value]) -> Vec<Diff> {
    let http = cluster.api.access.client().timeout(Duration::from_secs(120)).build().unwrap();
    let watch = Watch::on(cluster).await;
    let text = lines.iter().map(ToString::to_string).collect();
    let (ids, indexes, matched) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut player = Player {
        cluster,
        http,
        watch,
        ids,
        indexes,
        matched,
        diffs: vec![],
        tokens: BTreeMap::new(),
        text,
        away: String::new(),
        guessed: BTreeSet::new(),
    };
    let number = |l: &Value, key: &str| l[key].as_f64().unwrap_or_default();
    let (mut last, mut free) = (now(), 0.0_f64);
    let mut waiting = vec![];
    for (i, line) in lines.iter().enumerate() {
        let at = number(line, "at");
        if line.get("frame").is_some() {
            continue;
        }
        if let Some(note) = line["note"].as_str() {
            player.state(note).await;
            free = free.max(at);
            last = now();
            continue;
        }
        let pause = (at - free).clamp(0.0, LONGEST_PAUSE);
        if pause > 0.03 {
            clock_passes(last + Duration::from_secs_f64(pause), "the recording's pace").await;
        }
        if let Some(act) = line["do"].as_str() {
            player.act(act).await;
        } else if lines.get(i + 1).is_some_and(|next| number(next, "at") < at + number(line, "took") - 0.1) {
            // It was still waiting for its answer when the next thing was done.
            let call = player.request(line);
            waiting.push((line, tokio::spawn(async move { sent(call).await })));
        } else {
            player.exchange(line).await;
            free = free.max(at + number(line, "took"));
            last = now();
            continue;
        }
        free = free.max(at);
        last = now();
    }
    for (line, answer) in waiting {
        let answer = tokio::time::timeout(LATE, answer).await.map_err(|_| "no answer").unwrap().unwrap();
        let diffs = player.compare(line, &answer);
        player.diffs.extend(diffs);
    }
    player.frames(lines).await;
    player.diffs.dedup();
    player.diffs
}

async fn sent(request: reqwest::RequestBuilder) -> Answer {
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let headers =
        answer.headers().iter().map(|(k, v)| (k.as_str().to_lowercase(), v.to_str().unwrap_or_default().to_owned())).collect();
    let text = answer.text().await.unwrap();
    let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap_or(Value::String(text)) };
    Answer { status, headers, body }
}

impl Player<'_> {
    /// With the ids that things have here.
    fn here(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (then, now) in &self.ids {
            text = text.replace(then, now).replace(&curfew_tests::api::segment(then), &curfew_tests::api::segment(now));
        }
        for (i, node) in self.cluster.nodes().iter().enumerate() {
            text = text.replace(&format!("\"c{}\"", i + 1), &format!("\"{node}\""));
        }
        if let Some((head, tail)) = text.clone().split_once("index=") {
            let digits: String = tail.chars().take_while(char::is_ascii_digit).collect();
            if let Some(now) = self.indexes.get(&digits) {
                text = format!("{head}index={now}{}", &tail[digits.len()..]);
            }
        }
        text
    }

    fn request(&self, line: &Value) -> reqwest::RequestBuilder {
        let method: Method = line["method"].as_str().unwrap().parse().unwrap();
        let url = format!("{}{}", self.cluster.addr(), self.here(line["path"].as_str().unwrap()));
        let request = self.http.request(method, url);
        let request = match line["as"].as_str() {
            None | Some("management") => request,
            Some("nobody") => request.header(TOKEN, ""),
            Some("unknown") => request.header(TOKEN, NOBODY),
            Some(who) => request.header(TOKEN, self.tokens.get(who).map_or(who, String::as_str)),
        };
        match &line["request"] {
            Value::Null => request,
            Value::String(raw) => request.body(raw.clone()),
            body => request.header("content-type", "application/json").body(self.here(&body.to_string())),
        }
    }

    async fn exchange(&mut self, line: &Value) {
        let mut diffs = vec![];
        let polls = line["method"] == "GET" && !line["path"].as_str().is_some_and(|p| p.contains("index="));
        let mut first: Option<Vec<Diff>> = None;
        let asked = within(LATE_ANSWER, async || {
            let answer = sent(self.request(line)).await;
            diffs = self.compare(line, &answer);
            first.get_or_insert_with(|| diffs.clone());
            // A state may still be on its way; words and keys are not.
            let later = polls && diffs.iter().any(|d| d.path == "status" || !d.path.starts_with(['+', '-']));
            if later { Err(String::new()) } else { Ok(answer) }
        });
        // Late is a difference like any other.
        let _ = asked.await;
        // Keys that came only while waiting are not the answer's fault.
        let first = first.unwrap_or_default();
        diffs.retain(|d| !d.path.starts_with(['+', '-']) || first.iter().any(|f| f.path == d.path));
        self.diffs.append(&mut diffs);
    }

    /// Learns what ids and indexes are here.
    fn learn(&mut self, then: &Value, now: &Value) {
        match (then, now) {
            (Value::String(a), Value::String(b)) if a != b && a != NOBODY => {
                let child = |t: &str| t.contains("/dispatch-") || t.contains("/periodic-");
                if (is_uuid(a) && is_uuid(b)) || (child(a) && child(b)) {
                    self.ids.entry(a.clone()).or_insert_with(|| b.clone());
                }
            }
            (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
                pairs(a, b).into_iter().for_each(|(a, b)| self.learn(a, b));
            }
            (Value::Object(a), Value::Object(b)) => {
                for (key, a) in a {
                    if let Some(b) = b.get(key) {
                        self.learn(a, b);
                    }
                }
            }
            _ => {}
        }
    }

    fn compare(&mut self, line: &Value, answer: &Answer) -> Vec<Diff> {
        let path = line["path"].as_str().unwrap();
        let route = &format!("{} {}", line["method"].as_str().unwrap(), template(path));
        let mut out = vec![];
        if line["status"] != answer.status {
            out.push(Diff::new(route, "status", format!("recorded {}, here {}: {}", line["status"], answer.status, answer.body)));
        }
        let then: BTreeMap<String, &str> = line["headers"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(k, v)| (k.to_lowercase(), v.as_str().unwrap_or_default()))
            .collect();
        for name in ["content-type", "x-nomad-index", "x-nomad-knownleader", "x-nomad-lastcontact", "x-nomad-nexttoken"] {
            let (a, b) = (then.get(name).copied(), answer.headers.get(name).map(String::as_str));
            let same = match name {
                "x-nomad-index" | "x-nomad-lastcontact" => a.is_some() == b.is_some(),
                _ => a.map(plain) == b.map(plain),
            };
            if !same {
                out.push(Diff::new(route, format!("header {name}"), format!("recorded {a:?}, here {b:?}")));
            }
        }
        if let (Some(a), Some(b)) = (then.get("x-nomad-index"), answer.headers.get("x-nomad-index")) {
            self.indexes.insert((*a).to_owned(), b.clone());
        }
        if let (Some(name), Some(secret)) = (answer.body["Name"].as_str(), answer.body["SecretID"].as_str()) {
            self.tokens.insert(name.to_owned(), secret.to_owned());
        }
        match (&line["response"], &answer.body) {
            (Value::String(a), Value::String(b)) => {
                if plain(&self.here(a)) != plain(b) {
                    out.push(Diff::new(route, "text", format!("recorded {a:?}, here {b:?}")));
                }
            }
            (a, b) => {
                self.learn(a, b);
                out.extend(shapes(route, a, b));
                // A list of everything also showed what other recordings had left.
                let own = route.contains("/job/") && !route.ends_with("/evaluations");
                if own || !a.is_array() || a.as_array().map(Vec::len) == b.as_array().map(Vec::len) {
                    values(route, a, b, "", own, &mut out);
                }
            }
        }
        out
    }

    async fn act(&mut self, act: &str) {
        match act {
            "node down" => {
                let home = within(LATE, async || {
                    let all = self.cluster.api.try_get("/v1/allocations").await?;
                    all[0]["NodeName"].as_str().map(str::to_owned).ok_or_else(|| all.to_string())
                });
                let home = home.await.unwrap();
                self.cluster.node_down(&home).await;
                self.away = home;
            }
            "node up" => self.cluster.node_up(&self.away).await,
            call => {
                let (method, path) = call.split_once(' ').unwrap();
                self.cluster.api.call(method.parse().unwrap(), &self.here(path), None).await.unwrap();
            }
        }
    }

    /// Waits for a state that was seen: `…8 digits… v0 desired=run client=running migrate=None`, `deployment …`, `draining=…`.
    async fn state(&mut self, note: &str) {
        let words: Vec<&str> = note.split(' ').collect();
        let value = |prefix: &str| words.iter().find_map(|w| w.strip_prefix(prefix)).unwrap_or_default();
        if words[0] == "deployment" {
            let version: u64 = words[2].trim_start_matches('v').parse().unwrap_or_default();
            let state = words[3..].join(" ");
            return self
                .reaches("deployment", words[1], &state, |seen| {
                    seen.deployments.iter().filter(|(_, d)| d.0 == version).map(|(id, d)| (id.clone(), d.1.clone())).collect()
                })
                .await;
        }
        if let Some(drain) = note.strip_prefix("draining=") {
            let (node, allocs) = drain.split_once(" [").unwrap_or((drain, ""));
            self.reaches("node", "node", node, |seen| seen.nodes.clone().into_iter().collect()).await;
            for tuple in allocs.split("('").skip(1) {
                let parts: Vec<&str> = tuple
                    .trim_end_matches([')', ']', ',', ' '])
                    .split(", ")
                    .map(|p| p.trim_matches(['\'', '(', ')', ']']))
                    .collect();
                let state = parts[1..].join(" ");
                let job = parts[0].to_owned();
                self.reaches("allocation", parts[0], &state, |seen| {
                    let all = seen.allocs.iter();
                    all.filter(|(_, a)| !job.starts_with("force-") || a.0 == job)
                        .map(|(id, a)| (id.clone(), a.1.clone()))
                        .collect()
                })
                .await;
            }
            return;
        }
        let state = format!("{} {} {}", value("desired="), value("client="), value("migrate="));
        self.reaches("allocation", words[0], &state, |seen| {
            seen.allocs.iter().map(|(id, a)| (id.clone(), a.1.clone())).collect()
        })
        .await;
    }

    /// The thing with that short recorded name reaches the state, not before what it reached last.
    async fn reaches(&mut self, what: &str, short: &str, state: &str, candidates: impl Fn(&Seen) -> Vec<(String, Vec<String>)>) {
        // Jobs and nodes are called by their names, allocations and deployments by the first eight digits of their ids.
        let by_id = short.len() == 8 && short.chars().all(|c| c.is_ascii_hexdigit());
        let known =
            self.ids.iter().find(|(then, _)| by_id && then.starts_with(short)).map(|(then, now)| (then.clone(), now.clone()));
        let sure = known.as_ref().is_some_and(|(then, _)| !self.guessed.contains(then));
        let others: Vec<String> =
            self.ids.iter().filter(|(then, _)| !self.guessed.contains(*then)).map(|(_, now)| now.clone()).collect();
        let key = format!("{what} {short}");
        let from = self.matched.get(&key).copied().unwrap_or(0);
        let seen = self.watch.seen.clone();
        let found = within(LATE, async || {
            let all = candidates(&seen.lock().unwrap());
            let is_known = |id: &str| known.as_ref().is_some_and(|(_, now)| now == id);
            let mine = |id: &str| if sure { is_known(id) } else { !by_id || !others.iter().any(|o| o == id) };
            let mut hits: Vec<(bool, bool, String, usize)> = all
                .iter()
                .filter(|(id, _)| mine(id))
                .filter_map(|(id, states)| {
                    let skipped = if is_known(id) || !by_id { from } else { 0 };
                    let at = states.iter().skip(skipped).position(|s| s == state)? + skipped;
                    Some((!is_known(id), at + 1 < states.len(), id.clone(), at))
                })
                .collect();
            // What it was taken for; else what is in that state now.
            hits.sort();
            hits.into_iter().next().ok_or_else(|| format!("{all:?}"))
        })
        .await;
        match found {
            Ok((_, _, id, at)) => {
                self.matched.insert(key, at);
                if by_id && known.as_ref().is_none_or(|(_, now)| *now != id) {
                    // By its whole id, when a call names it later.
                    let whole = self.text.find(&format!("{short}-")).map(|at| self.text[at..].chars().take(36).collect());
                    let then = whole.unwrap_or_else(|| format!("{short}-only-noted"));
                    if let (Some((_, old)), Some(other)) =
                        (&known, self.ids.iter().find(|(_, now)| **now == id).map(|(then, _)| then.clone()))
                    {
                        self.ids.insert(other, old.clone());
                    }
                    self.guessed.insert(then.clone());
                    self.ids.insert(then, id);
                }
            }
            Err(why) => self.diffs.push(Diff::new(what, state, format!("{short}: {why}"))),
        }
    }

    /// The recorded frames of an event stream: what happened to its job, and in which order.
    async fn frames(&mut self, lines: &[Value]) {
        let kinds = |frame: &Value| -> Vec<String> {
            let all = frame["Events"].as_array().into_iter().flatten();
            all.map(|e| format!("{} {}", e["Topic"].as_str().unwrap_or_default(), e["Type"].as_str().unwrap_or_default()))
                .collect()
        };
        let then: Vec<&Value> = lines.iter().filter_map(|l| l.get("frame")).collect();
        let mut from = 0;
        for frame in then {
            let wanted = kinds(frame);
            let seen = self.watch.seen.clone();
            let found = within(LATE, async || {
                let seen = seen.lock().unwrap();
                let at = seen.frames.iter().skip(from).position(|f| {
                    let have = kinds(f);
                    wanted.iter().all(|w| have.contains(w))
                });
                at.map(|at| (at, seen.frames[from + at].clone()))
                    .ok_or_else(|| format!("{:?}", seen.frames.iter().skip(from).map(kinds).collect::<Vec<_>>()))
            })
            .await;
            let (at, here) = match found {
                Ok(found) => found,
                Err(rest) => {
                    self.diffs.push(Diff::new(
                        "event stream",
                        wanted.join(", "),
                        format!("not here, or in another order: {rest}"),
                    ));
                    continue;
                }
            };
            // Here what belongs to one index may come in one frame.
            from += at;
            for event in frame["Events"].as_array().into_iter().flatten() {
                let same = |e: &&Value| e["Topic"] == event["Topic"] && e["Type"] == event["Type"];
                if let Some(now) = here["Events"].as_array().into_iter().flatten().find(same) {
                    let route = format!("event {}", event["Topic"].as_str().unwrap_or_default());
                    self.diffs.extend(shapes(&route, event, now));
                }
            }
        }
    }
}
