//! What deploy/ holds: that it parses, fits the code, and works as far as that shows on this machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use curfew_tests::api::Api;
use curfew_tests::cluster::{Cluster, Kind, Shape};
use curfew_tests::command::curfew;
use curfew_tests::controller::Controller;
use curfew_tests::jobs::{IMPOLITE, service, task};
use curfew_tests::lab::{PATIENCE, runs, unique};
use curfew_tests::process::Proc;
use curfew_tests::run::Given;
use curfew_tests::wait::eventually;
use curfew_tests::{binary, free_port};
use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// What a program of this machine says, when it is here.
fn says(given: &Given, program: &str, args: &[&str]) -> Option<(bool, String)> {
    let out = Command::new(program).args(args).current_dir(root()).stdin(Stdio::null()).output();
    match out {
        Ok(out) => {
            let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
            Some((out.status.success(), text))
        }
        Err(e) => {
            given.skip(&format!("{program} is not on this machine: {e}"));
            None
        }
    }
}

/// Words that begin like a metric's name.
fn metrics(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|w| w.starts_with("curfew_") && !w.ends_with('_')).collect()
}

/// Every name in rules and dashboard is one that docs/metrics.md has (which is compared with what is exported).
pub async fn prometheus(given: Given) {
    let page = read("docs/metrics.md");
    let mut known = BTreeSet::new();
    for row in page.lines().filter(|l| l.starts_with("| `curfew_")) {
        let mut cells = row.trim_matches('|').split('|').map(|c| c.trim().trim_matches('`'));
        let (name, kind) = (cells.next().unwrap(), cells.next().unwrap());
        match kind {
            "histogram" => known.extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}"))),
            _ => known.extend([name.to_owned()]),
        }
    }
    assert!(known.len() > 30, "{known:?}");
    let rules = read("deploy/prometheus/curfew.rules.yml");
    let dashboard = read("deploy/grafana/curfew.json");
    for (file, text) in [("rules", &rules), ("dashboard", &dashboard)] {
        let used = metrics(text);
        assert!(used.len() > 10, "{file}: {used:?}");
        for name in used {
            assert!(known.contains(name), "the {file} ask for {name}, which is not exported");
        }
    }
    // What people look at first has every number that has an alert.
    let shown = metrics(&dashboard);
    for name in metrics(&rules) {
        assert!(shown.contains(name) || name.ends_with("_count"), "the dashboard does not show {name}");
    }
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|p| p["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "each panel has an id of its own");
    for word in rules.split_whitespace().map(|w| w.trim_matches('"')).filter(|w| w.starts_with("docs/")) {
        assert!(root().join(word).exists(), "the rules point at {word}");
    }
    for check in
        [["check", "rules", "deploy/prometheus/curfew.rules.yml"], ["test", "rules", "deploy/prometheus/curfew.rules.test.yml"]]
    {
        let Some((good, said)) = says(&given, "promtool", &check) else { return };
        assert!(good, "promtool {}: {said}", check.join(" "));
    }
}

pub async fn units(given: Given) {
    for unit in ["curfew.service", "curfew-gc.service"] {
        let path = format!("deploy/systemd/{unit}");
        let Some((_, said)) = says(&given, "systemd-analyze", &["security", "--offline=true", "--threshold=20", &path]) else {
            return;
        };
        if said.contains("offline") && !said.contains("Overall exposure") {
            given.skip(&format!("this systemd-analyze does not look at files: {said}"));
            return;
        }
        let level =
            said.split("exposure level for").nth(1).and_then(|l| l.split(": ").nth(1)?.split(' ').next()?.parse::<f64>().ok());
        assert!(level.is_some_and(|l| l < 2.0), "{unit}: {said}");
    }
    // In a root where the programs are; an unknown key is only a word to it, but it says it.
    let dir = tempfile::TempDir::with_prefix("curfew-test-units-").unwrap();
    let (bin, lib) = (dir.path().join("usr/bin"), dir.path().join("usr/lib/systemd/system"));
    [&bin, &lib].into_iter().for_each(|folder| std::fs::create_dir_all(folder).unwrap());
    std::os::unix::fs::symlink("usr/lib", dir.path().join("lib")).unwrap();
    for program in ["curfew", "curfew-gc"] {
        std::fs::copy("/bin/sh", bin.join(program)).unwrap();
    }
    let units = ["curfew.service", "curfew-gc.service", "curfew-gc.timer"];
    for unit in units {
        std::fs::copy(root().join("deploy/systemd").join(unit), lib.join(unit)).unwrap();
    }
    let inside = format!("--root={}", dir.path().display());
    let verify = ["verify", "--man=no", "--recursive-errors=no", &inside];
    let Some((good, said)) = says(&given, "systemd-analyze", &[&verify[..], &units[..]].concat()) else { return };
    if said.contains("unrecognized option") {
        given.skip(&format!("this systemd-analyze does not verify in a folder: {said}"));
        return;
    }
    assert!(good && said.is_empty(), "{said}");
}

/// Every file that the Debian package names is there, and every unit, page and example is named.
pub async fn the_package(_: Given) {
    let cargo: toml::Table = read("crates/cli/Cargo.toml").parse().unwrap();
    let deb = &cargo["package"]["metadata"]["deb"];
    let mut folders = BTreeSet::new();
    for asset in deb["assets"].as_array().unwrap() {
        let from = asset[0].as_str().unwrap().trim_start_matches("../../");
        if from.starts_with("target/") {
            continue;
        }
        let (folder, pattern) = from.rsplit_once('/').unwrap_or(("", from));
        let end = pattern.strip_prefix('*');
        let found = std::fs::read_dir(root().join(folder)).unwrap().filter(|f| {
            let name = f.as_ref().unwrap().file_name();
            let name = name.to_string_lossy();
            end.map_or(name == pattern, |end| name.ends_with(end))
        });
        assert!(found.count() > 0, "the package wants {from}");
        folders.insert(from.to_owned());
    }
    let units: Vec<&str> =
        deb["systemd-units"].as_array().unwrap().iter().map(|unit| unit["unit-name"].as_str().unwrap()).collect();
    for file in std::fs::read_dir(root().join("deploy/systemd")).unwrap() {
        let name = file.unwrap().file_name().to_string_lossy().into_owned();
        let unit = name.rsplit_once('.').is_some_and(|(unit, _)| units.contains(&unit));
        assert!(unit || folders.contains(&format!("deploy/systemd/{name}")), "the package leaves {name} out");
    }
    // What people write into it survives an upgrade; it is for a token, so nobody else reads it.
    let settings = "etc/curfew/environment";
    assert_eq!(deb["conf-files"][0].as_str(), Some(&*format!("/{settings}")));
    let asset = deb["assets"].as_array().unwrap().iter().find(|a| a[1].as_str() == Some(settings)).unwrap();
    assert_eq!(asset[2].as_str(), Some("600"));
    for unit in ["curfew.service", "curfew-gc.service"] {
        assert!(read(&format!("deploy/systemd/{unit}")).contains(&format!("EnvironmentFile=-/{settings}")), "{unit}");
    }
    let build = read("deploy/debian/build");
    for made in ["man", "completions/curfew.bash", "curfew-gc"] {
        assert!(deb["assets"].to_string().contains(&format!("debian-assets/{made}")), "{made}");
    }
    assert!(build.contains("cargo deb") && build.contains("\"$out/curfew\" man"), "{build}");
}

pub async fn what_is_made_from_the_arguments(given: Given) {
    let dir = tempfile::TempDir::with_prefix("curfew-test-made-").unwrap();
    let man = dir.path().join("man/man1");
    curfew(["man".to_owned(), man.display().to_string()]).run().await.code(0);
    for page in ["curfew.1", "curfew-gc.1", "curfew-job-stop.1", "curfew-datacenter-drain.1", "curfew-op-extend.1"] {
        let text = std::fs::read_to_string(man.join(page)).unwrap_or_else(|e| panic!("{page}: {e}"));
        assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{page}: {text}");
        assert!(text.contains(&format!("Curfew {}", env!("CARGO_PKG_VERSION"))), "{page}: {text}");
    }
    let pages = std::fs::read_dir(&man).unwrap().map(|page| page.unwrap().path().display().to_string());
    let pages: Vec<String> = pages.collect();
    assert!(pages.len() > 40, "{pages:?}");
    // Both say nothing about a page that is as it should be.
    for check in [["groff", "-man", "-ww", "-z", "-Tutf8"], ["mandoc", "-man", "-T", "lint", "-Werror"]] {
        let args: Vec<&str> = check[1..].iter().copied().chain(pages.iter().map(String::as_str)).collect();
        if let Some((good, said)) = says(&given, check[0], &args) {
            assert!(good && said.is_empty(), "{}: {said}", check[0]);
        }
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = curfew(["completions", shell]).run().await.code(0).stdout;
        assert!(script.contains("confirm-drained"), "{shell}: {script}");
        let file = dir.path().join(shell);
        std::fs::write(&file, &script).unwrap();
        if let Some((good, said)) = says(&given, shell, &["-n", &file.display().to_string()]) {
            assert!(good, "{shell}: {said}");
        }
    }
    curfew(["completions", "tcsh"]).run().await.code(2);
}

pub async fn the_example_configuration(_: Given) {
    let example = root().join("deploy/curfew.toml").display().to_string();
    let said = curfew(["config", "check", "--config", &example]).run().await.code(0).stdout;
    assert!(said.contains("the configuration fits"), "{said}");
    let printed = curfew(["config", "default"]).run().await.code(0).stdout;
    assert_eq!(printed, read("deploy/curfew.toml"), "curfew config default > deploy/curfew.toml");
    let dir = tempfile::TempDir::with_prefix("curfew-test-config-").unwrap();
    let bad = dir.path().join("bad.toml");
    for (text, words) in [
        ("kill_timout = \"1h\"", vec!["bad.toml", "kill_timout"]),
        ("kill_timeout = \"10s\"", vec!["kill_timeout"]),
        ("database = \"mysql://x\"", vec!["mysql"]),
        ("gc_verdicts = [\"orphan=kill\"]", vec!["orphan=kill"]),
    ] {
        std::fs::write(&bad, text).unwrap();
        curfew(["config", "check", "--config", &bad.display().to_string()]).run().await.code(2).says(&words);
    }
    curfew(["config", "check"]).env("CURFEW_WORKERS", "many").run().await.code(2).says(&["CURFEW_WORKERS"]);
    curfew(["config", "check"]).env("NOMAD_CACERT", "/nowhere/ca.pem").run().await.code(2).says(&["/nowhere/ca.pem"]);
}

/// A token with deploy/nomad/policy.hcl and nothing else submits, stops and kills. (`doctor::a_read_only_token` asks the doctor about it.)
pub async fn the_policy_is_enough_for_a_stop(given: Given) {
    let cluster = Cluster::start(given.kind, &Shape { nodes: 1, acl: true, ..Shape::default() }).await;
    let rules = read("deploy/nomad/policy.hcl");
    cluster.api.put("/v1/acl/policy/curfew", &json!({ "Name": "curfew", "Rules": rules })).await;
    let token = cluster.api.put("/v1/acl/token", &json!({ "Name": "curfew", "Type": "client", "Policies": ["curfew"] })).await;
    let token = token["SecretID"].as_str().unwrap();
    let controller = Controller::start(cluster.addr(), &[("NOMAD_TOKEN", token)]).await;
    let id = unique("deaf");
    let job = service(&id, vec![task("t", IMPOLITE)]).to_string();
    controller.curfew(["job", "run", "-"]).stdin(job).run().await.code(0);
    runs(&cluster.api, "default", &id).await;
    let op = controller.curfew(["job", "stop", &id, "--stop-timeout", "1s", "--json"]).run().await.code(0).operation();
    assert_eq!(op.outcome.unwrap().killed, 1);
    let metrics = controller.api().call(reqwest::Method::GET, "/metrics", None).await.unwrap().1.to_string();
    assert!(!metrics.contains("outcome=\\\"denied\\\""), "{metrics}");
}

/// deploy/nomad's jobs on a cluster: PostgreSQL, two controllers; the one that keeps the clocks is killed in the middle of a stop.
pub async fn two_controllers_as_nomad_jobs(given: Given) {
    let Some(postgres) = curfew_tests::postgres::programs() else {
        given.skip("PostgreSQL is not installed");
        return;
    };
    let cluster = Cluster::start(Kind::Dev, &Shape { nodes: 3, ..Shape::default() }).await;
    let dir = tempfile::TempDir::with_prefix("curfew-test-jobs-").unwrap();
    // PostgreSQL's own user walks through it.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    let port = free_port();
    // The first two digits of the ports that the two listen on; the job's own are 4690 and 4691.
    let base = (4000..6500)
        .map(|n| n * 10)
        .find(|base| (0..2).all(|i| std::net::TcpListener::bind(("127.0.0.1", base + i)).is_ok()))
        .unwrap();
    let listen = format!("127.0.0.1:{}${{NOMAD_ALLOC_INDEX}}", base / 10);
    var(&cluster.api, "curfew-postgres", json!({ "password": "sesame" })).await;
    let url = format!("postgres://curfew:sesame@127.0.0.1:{port}/postgres");
    var(&cluster.api, "curfew", json!({ "database": url })).await;

    let data = dir.path().join("data").display().to_string();
    register(&cluster.api, "deploy/nomad/curfew-postgres.nomad.hcl", |job| {
        // Which machine it is, is said in a node's meta.
        assert_eq!(job["Constraints"][0]["LTarget"], "${meta.curfew_database}", "{job}");
        job["Constraints"] = Value::Null;
        let env = &mut job["TaskGroups"][0]["Tasks"][0]["Env"];
        env["BIN"] = json!(postgres.display().to_string());
        env["DATA"] = json!(data);
        env["PORT"] = json!(port.to_string());
        env["RUN_AS"] = json!(curfew_tests::postgres::user());
    })
    .await;
    register(&cluster.api, "deploy/nomad/curfew.nomad.hcl", |job| {
        let task = &mut job["TaskGroups"][0]["Tasks"][0];
        task["Env"]["CURFEW_LISTEN"] = json!(listen);
        // What the one that dies has in its hands is free after this, not after 5m.
        task["Env"]["CURFEW_LEASE_TIMEOUT"] = json!("11s");
        // The embedded cluster gives its tasks no socket.
        task["Env"]["NOMAD_ADDR"] = json!(cluster.addr());
        let script = task["Config"]["args"][1].as_str().unwrap();
        assert!(script.contains("exec curfew serve"), "{script}");
        task["Config"]["args"][1] = json!(script.replace("exec curfew", &format!("exec {}", binary::curfew().display())));
    })
    .await;

    let controllers = [0, 1].map(|i| Api::new(format!("http://127.0.0.1:{}", base + i)));
    for controller in &controllers {
        eventually(PATIENCE, "a controller to be ready", async || {
            match controller.call(reqwest::Method::GET, "/readyz", None).await {
                Ok((200, _)) => Ok(()),
                other => Err(format!("{other:?}; {:?}", cluster.api.try_get("/v1/allocations").await)),
            }
        })
        .await;
    }
    let status = controllers[0].get("/v1/status").await;
    let keeper = status["keeper"].as_str().unwrap().to_owned();
    let (first, second) = if status["controller"] == keeper.as_str() { (0, 1) } else { (1, 0) };
    let (first, second) = (&controllers[first], &controllers[second]);

    let id = unique("deaf");
    let job = service(&id, vec![task("t", IMPOLITE)]).to_string();
    curfew(["job", "run", "-"]).env("CURFEW_ADDR", &*first.addr).stdin(job).run().await.code(0);
    let stop = curfew(["job", "stop", &id, "--stop-timeout", "5s", "--detach", "--json"]).env("CURFEW_ADDR", &*first.addr);
    let op = stop.run().await.code(0).operation();
    let pid = keeper.rsplit_once(':').and_then(|(_, pid)| pid.parse().ok()).and_then(Proc::of).unwrap();
    pid.signal(rustix::process::Signal::KILL);
    // Somebody who asked the one that died asks the other.
    let op = eventually(Duration::from_secs(90), "the other one to end the stop", async || {
        let op = second.try_get(&format!("/v1/operations/{}", op.id)).await?;
        if op["state"] == "succeeded" { Ok(op) } else { Err(op.to_string()) }
    })
    .await;
    assert_eq!(op["outcome"]["killed"], 1, "{op}");
    let after = second.get("/v1/status").await;
    assert_ne!(after["keeper"], keeper.as_str(), "{after}");
    for job in ["curfew", "curfew-postgres"] {
        cluster.api.delete(&format!("/v1/job/{job}")).await;
    }
    eventually(PATIENCE, "PostgreSQL to be gone", async || {
        let pid = std::fs::read_to_string(dir.path().join("data/data/postmaster.pid"));
        if pid.is_err() { Ok(()) } else { Err(format!("{pid:?}")) }
    })
    .await;
}

async fn var(api: &Api, job: &str, items: Value) {
    let path = format!("nomad/jobs/{job}");
    api.put(&format!("/v1/var/{path}"), &json!({ "Path": path, "Items": items })).await;
}

/// A jobspec of deploy/, changed where this machine is not the one that it is for.
async fn register(api: &Api, file: &str, change: impl FnOnce(&mut Value)) {
    let body = json!({ "JobHCL": read(file), "Canonicalize": false });
    let (status, mut job) = api.call(reqwest::Method::POST, "/v1/jobs/parse", Some(&body)).await.unwrap();
    assert_eq!(status, 200, "{file}: {job}");
    change(&mut job);
    api.put("/v1/jobs", &json!({ "Job": job })).await;
}
