//! Real processes and real signals.

use std::path::Path;

use serde_json::json;

use crate::harness::{Api, SECOND, events, id, job, last_event, shell};

const POLITE: &str = "trap 'echo got TERM; exit 0' TERM; echo up; while :; do sleep 0.05; done";
const IMPOLITE: &str = "trap 'echo ignoring TERM' TERM; echo up; while :; do sleep 0.05; done";

/// Processes whose command line holds a text.
fn alive(text: &str) -> usize {
    let own = std::process::id().to_string();
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().to_str().is_some_and(|p| p.bytes().all(|b| b.is_ascii_digit()) && p != own))
        .filter(|e| std::fs::read_to_string(e.path().join("cmdline")).is_ok_and(|c| c.contains(text)))
        .count()
}

#[tokio::test]
async fn term_then_kill() {
    let api = Api::start(1).await;
    api.register(&job("polite", "service", &[shell("t", POLITE)])).await;
    api.register(&job("impolite", "service", &[shell("t", IMPOLITE)])).await;
    let p = id(&api.running("polite", 1).await[0]);
    let i = id(&api.running("impolite", 1).await[0]);
    api.until(&format!("/v1/client/fs/logs/{p}?task=t&type=stdout&plain=true"), "up", |v| *v == json!("up\n")).await;
    assert_eq!(api.cluster.processes(), 2);
    api.delete("polite").await;
    let end = api.alloc_until(&p, "complete", |a| a["ClientStatus"] == "complete").await;
    assert_eq!(end["TaskStates"]["t"]["Events"][4]["DisplayMessage"], "Exit Code: 0");
    let log = api.call("GET", &format!("/v1/client/fs/logs/{p}?task=t&type=stdout&plain=true"), None).await;
    assert_eq!(log.text, "up\ngot TERM\n");
    api.delete("impolite").await;
    api.alloc_until(&i, "killing", |a| last_event(a, "t")["Type"] == "Killing").await;
    assert_eq!(api.signal(&i, "t", "SIGKILL").await.status, 200);
    let end = api.alloc_until(&i, "complete", |a| a["ClientStatus"] == "complete").await;
    assert_eq!(events(&end, "t"), ["Received", "Task Setup", "Started", "Killing", "Signaling", "Terminated", "Killed"]);
    assert_eq!(end["TaskStates"]["t"]["Events"][5]["DisplayMessage"], "Exit Code: 137, Signal: 9");
    assert_eq!(api.cluster.processes(), 0);
}

/// As in a shell's background job: what is ignored when a program starts, no shell beneath it can trap.
fn sigint_is_ignored_here() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|l| l.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(ignored.trim(), 16).unwrap() & (1 << 1) != 0
}

#[tokio::test]
async fn without_a_kill_signal_sigint_is_sent() {
    if sigint_is_ignored_here() {
        eprintln!(
            "SKIPPED without_a_kill_signal_sigint_is_sent: SIGINT is ignored in this process (a background job of a shell?)"
        );
        return;
    }
    let api = Api::start(1).await;
    let mut task = shell("t", "trap 'echo INT; exit 3' INT; trap 'echo TERM' TERM; while :; do sleep 0.05; done");
    task["KillSignal"] = json!("");
    api.register(&job("j", "service", &[task])).await;
    let a = id(&api.running("j", 1).await[0]);
    api.delete("j").await;
    let end = api.alloc_until(&a, "complete", |a| a["ClientStatus"] == "complete").await;
    assert_eq!(end["TaskStates"]["t"]["Events"][4]["ExitCode"], 3);
}

#[tokio::test]
async fn kill_timeout_kills_the_whole_tree() {
    let mark = format!("tree-{}", std::process::id());
    // One child in the group, one in a session of its own whose parent is gone; both ignore SIGTERM.
    let script = format!(
        "(trap '' TERM; while :; do sleep 0.2; : {mark}-a; done) & setsid bash -c \"trap '' TERM; while :; do sleep 0.2; : {mark}-b; done\" & \
         disown; trap '' TERM; while :; do sleep 0.2; done"
    );
    let api = Api::start(1).await;
    let mut task = shell("t", &script);
    task["KillTimeout"] = json!(SECOND);
    api.register(&job("j", "service", &[task])).await;
    let a = id(&api.running("j", 1).await[0]);
    api.until("/dev/v1/status", "children", |_| alive(&format!("{mark}-b")) >= 2).await;
    api.delete("j").await;
    api.alloc_until(&a, "complete", |a| a["ClientStatus"] == "complete").await;
    api.until("/dev/v1/status", "no children", |_| alive(&mark) == 0).await;
}

#[tokio::test]
async fn environment_directories_and_interpolation() {
    let api = Api::start(1).await;
    let mut task =
        shell("t", "echo \"$NOMAD_TASK_NAME $NOMAD_JOB_ID $NOMAD_META_who $WHERE\" > ${NOMAD_TASK_DIR}/out; cat local/x; pwd");
    task["Env"] = json!({"WHERE": "${node.unique.name} ${attr.kernel.name}"});
    task["Meta"] = json!({"who": "me"});
    task["Templates"] = json!([{"EmbeddedTmpl": "hello {{ env \"NOMAD_JOB_ID\" }}\n", "DestPath": "local/x"}]);
    api.register(&job("j", "batch", &[task])).await;
    api.until("/v1/job/j/allocations", "complete", |v| v[0]["ClientStatus"] == "complete").await;
    let a = id(&api.allocs("j").await[0]);
    let root = api.dir.path().join("alloc").join(&a);
    assert_eq!(std::fs::read_to_string(root.join("t/local/out")).unwrap(), "t j me n1 linux\n");
    let log = std::fs::read_to_string(root.join("alloc/logs/t.stdout.0")).unwrap();
    assert!(log.starts_with("hello j\n") && Path::new(log.lines().last().unwrap()).ends_with("t"), "{log}");
    // The official command line asks for frames.
    let framed = api.call("GET", &format!("/v1/client/fs/logs/{a}?task=t&type=stdout&offset=0&origin=start"), None).await;
    assert_eq!(framed.json()["File"], "t.stdout.0");
}

#[tokio::test]
async fn a_template_that_changes_restarts_its_task() {
    let api = Api::start(1).await;
    let mut task = shell("t", IMPOLITE);
    task["Templates"] = json!([{"EmbeddedTmpl": "{{ with nomadVar \"nomad/jobs/j\" }}{{ .v }}{{ end }}", "DestPath": "local/x", "ChangeMode": "restart"}]);
    let var = |v: &str| json!({"Path": "nomad/jobs/j", "Items": {"v": v}});
    api.put("/v1/var/nomad/jobs/j", var("1")).await;
    api.register(&job("j", "service", &[task])).await;
    let a = id(&api.running("j", 1).await[0]);
    api.put("/v1/var/nomad/jobs/j", var("2")).await;
    let now = api.alloc_until(&a, "restart signaled", |a| last_event(a, "t")["Type"] == "Restart Signaled").await;
    assert_eq!(last_event(&now, "t")["DisplayMessage"], "Template with change_mode restart re-rendered");
    assert_eq!(now["TaskStates"]["t"]["State"], "running");
    api.signal(&a, "t", "SIGKILL").await;
    let back = api.alloc_until(&a, "started", |a| last_event(a, "t")["Type"] == "Started").await;
    assert_eq!(events(&back, "t")[3..], ["Restart Signaled", "Signaling", "Terminated", "Restarting", "Started"]);
    let text = std::fs::read_to_string(api.dir.path().join("alloc").join(&a).join("t/local/x")).unwrap();
    assert_eq!(text, "2");
}

#[tokio::test]
async fn a_command_that_does_not_exist() {
    let api = Api::start(1).await;
    let mut task = shell("t", "");
    task["Config"] = json!({"command": "/no/such/program"});
    let mut j = crate::harness::no_restarts(job("j", "batch", &[task]));
    j["TaskGroups"][0]["ReschedulePolicy"] = json!({"Attempts": 0, "Unlimited": false});
    api.register(&j).await;
    let all = api.until("/v1/job/j/allocations", "failed", |v| v[0]["ClientStatus"] == "failed").await;
    assert_eq!(events(&all[0], "t")[2..], ["Driver Failure", "Not Restarting"]);
}

#[tokio::test]
async fn shutdown_ends_every_process() {
    let mark = format!("shutdown-{}", std::process::id());
    let api = Api::start(1).await;
    api.register(&job("j", "service", &[shell("t", &format!("trap '' TERM; while :; do sleep 0.2; : {mark}; done"))])).await;
    api.running("j", 1).await;
    assert!(alive(&mark) > 0);
    let Api { cluster, dir: _dir } = api;
    cluster.shutdown().await;
    assert_eq!(alive(&mark), 0);
}
