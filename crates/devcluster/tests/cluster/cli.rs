//! The official command line, when `CURFEW_TEST_NOMAD` names one.

use std::process::Stdio;
use std::time::Duration;

use serde_json::json;

use crate::harness::{Api, id, nodes};

async fn nomad(binary: &str, addr: &str, args: &[&str]) -> (bool, String) {
    let mut command = tokio::process::Command::new(binary);
    command.args(args).env("NOMAD_ADDR", addr).env("NO_COLOR", "1").stdin(Stdio::null()).kill_on_drop(true);
    let out = tokio::time::timeout(Duration::from_secs(60), command.output()).await.expect("the command ends").unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    (out.status.success(), text)
}

#[tokio::test]
async fn the_official_command_line() {
    let Ok(binary) = std::env::var("CURFEW_TEST_NOMAD") else {
        println!("SKIPPED: CURFEW_TEST_NOMAD names no binary, so the official command line was not tried");
        return;
    };
    let api = Api::with(nodes(2), |c| c.listen = Some("127.0.0.1:0".parse().unwrap())).await;
    let addr = api.cluster.base_url();
    let ok = async |args: &[&str]| {
        let (good, text) = nomad(&binary, &addr, args).await;
        assert!(good, "nomad {args:?}: {text}");
        text
    };
    let spec = concat!(env!("CARGO_MANIFEST_DIR"), "/../../jobspecs/poller-impolite.nomad.hcl");
    let planned = nomad(&binary, &addr, &["job", "plan", spec]).await.1;
    assert!(planned.contains("+ Job: \"poller-impolite\"") && planned.contains("All tasks successfully allocated"), "{planned}");
    ok(&["job", "run", "-detach", spec]).await;
    let a = id(&api.running("poller-impolite", 1).await[0]);
    assert!(ok(&["job", "status"]).await.contains("poller-impolite"));
    assert!(ok(&["job", "status", "poller-impolite"]).await.contains("running"));
    assert!(ok(&["alloc", "status", &a]).await.contains("Task started by client"));
    assert!(ok(&["alloc", "logs", &a]).await.contains("polling"));
    ok(&["alloc", "signal", "-s", "SIGUSR2", &a, "poller"]).await;
    ok(&["deployment", "list"]).await;
    assert!(ok(&["node", "status"]).await.contains("n1"));
    ok(&["node", "status", "-self"]).await;
    let n = api.cluster.node_id("n2").unwrap();
    ok(&["node", "status", &n]).await;
    ok(&["node", "eligibility", "-disable", &n]).await;
    ok(&["node", "eligibility", "-enable", &n]).await;
    ok(&["node", "drain", "-enable", "-deadline", "2s", "-yes", "-detach", &n]).await;
    ok(&["node", "drain", "-disable", "-yes", &n]).await;
    let evals = api.get("/v1/job/poller-impolite/evaluations").await;
    ok(&["eval", "status", evals[0]["ID"].as_str().unwrap()]).await;
    ok(&["job", "stop", "-detach", "poller-impolite"]).await;
    api.signal(&a, "poller", "SIGKILL").await;
    api.put("/v1/system/gc", json!({})).await;
    ok(&["system", "gc"]).await;
    let broken = std::env::temp_dir().join(format!("broken-{}.nomad.hcl", std::process::id()));
    std::fs::write(&broken, "job \"x\" {\n  foo = 1\n}\n").unwrap();
    let (good, text) = nomad(&binary, &addr, &["job", "run", broken.to_str().unwrap()]).await;
    assert!(!good, "{text}");
    std::fs::remove_file(broken).unwrap();
}
