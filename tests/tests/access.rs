//! Who may call a controller, and clients of several, from outside: the commands, real sockets, a real Nomad's identities.

use std::time::Duration;

use curfew_core::operation::State;
use curfew_tests::certificates::Certificates;
use curfew_tests::cluster::{Cluster, Kind, Shape};
use curfew_tests::command::curfew;
use curfew_tests::controller::Controller;
use curfew_tests::jobs::{IMPOLITE, nanos, service, task, with};
use curfew_tests::lab::{PATIENCE, unique};
use curfew_tests::postgres::Server;
use curfew_tests::run::Given;
use curfew_tests::wait::eventually;
use serde_json::{Value, json};

/// Off loopback somebody must be asked who they are, and what is said contains the way out.
pub async fn off_loopback_it_does_not_start_without(_: Given) {
    for listen in ["0.0.0.0:0", "[::]:0"] {
        let ran = curfew(["serve", "--listen", listen]).run().await.code(2);
        assert!(ran.stderr.contains("not loopback") && ran.stderr.contains("curfew token create"), "{ran}");
    }
    let ran = curfew(["serve"]).env("CURFEW_TLS_CERT", "/nonexistent.pem").env("CURFEW_TLS_KEY", "/nonexistent.pem");
    let ran = ran.env("CURFEW_LISTEN", "127.0.0.1:0").run().await.code(2);
    assert!(ran.stderr.contains("tls_cert /nonexistent.pem cannot be read"), "{ran}");
}

/// The first token is made on the database, before there is a controller; everything after it through the RPC.
pub async fn the_first_token_is_made_on_the_database(_: Given) {
    let cluster = Cluster::start(Kind::Dev, &Shape::default()).await;
    let mut controller = Controller::new(cluster.addr(), &[("CURFEW_AUTH", "tokens")]);
    let database = format!("sqlite:{}", controller.database().display());
    let made = curfew(["token", "create", "boss", "--scope", "admin", "--database", &database]).run().await.code(0);
    let admin = made.stdout.trim().to_owned();
    assert!(admin.starts_with("curfew_") && admin.lines().count() == 1, "{made}");
    controller.launch();
    controller.ready().await;
    // The file is the controller's now.
    let locked = curfew(["token", "list", "--database", &database]).run().await.code(1);
    assert!(locked.stderr.contains("controller"), "{locked}");

    let nobody = controller.curfew(["op", "list"]).run().await.code(1);
    assert!(nobody.stderr.contains("CURFEW_TOKEN"), "{nobody}");
    let wrong = controller.curfew(["op", "list"]).env("CURFEW_TOKEN", format!("{}0", &admin[..admin.len() - 1])).run().await;
    assert!(wrong.code == Some(1) || admin.ends_with('0'), "{wrong}");
    let boss = |args: &[&str]| controller.curfew(args.iter().copied()).env("CURFEW_TOKEN", &admin);
    let made = boss(&["token", "create", "reader", "--scope", "read", "--expires-in", "1h", "--json"]).run().await.code(0);
    let made: Value = serde_json::from_str(&made.stdout).unwrap();
    let (id, reader) = (made["id"].as_str().unwrap().to_owned(), made["token"].as_str().unwrap().to_owned());
    let read = |args: &[&str]| controller.curfew(args.iter().copied()).env("CURFEW_TOKEN", &reader);
    read(&["op", "list"]).run().await.code(0);
    read(&["node", "list"]).run().await.code(0);
    read(&["clocks"]).run().await.code(0);
    read(&["status"]).run().await.code(0);
    let refused = read(&["job", "stop", "x", "--detach"]).run().await.code(1);
    assert!(refused.stderr.contains("scope stop") && refused.stderr.contains("token reader has read"), "{refused}");

    // From a file, and by a profile that names it.
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("curfew")).unwrap();
    let file = home.path().join("token");
    std::fs::write(&file, format!("{reader}\n")).unwrap();
    let profile = format!("[prod]\naddr = \"{}\"\ntoken_file = \"{}\"\n", controller.addr(), file.display());
    std::fs::write(home.path().join("curfew/profiles.toml"), profile).unwrap();
    let config = home.path().display().to_string();
    curfew(["op", "list", "--profile", "prod"]).env("XDG_CONFIG_HOME", &config).run().await.code(0);
    let unknown = curfew(["op", "list", "--profile", "dev"]).env("XDG_CONFIG_HOME", &config).run().await.code(2);
    assert!(unknown.stderr.contains("it has prod"), "{unknown}");

    let job = unique("told");
    let spec = service(&job, vec![task("t", IMPOLITE)]).to_string();
    boss(&["job", "run", "-"]).stdin(spec).run().await.code(0);
    let list = read(&["job", "list"]).run().await.code(0);
    assert!(list.stdout.contains(&job), "{list}");
    eventually(PATIENCE, "the task to live", async || {
        let ran = read(&["job", "status", &job]).run().await;
        if ran.stdout.contains("lives") { Ok(()) } else { Err(format!("{ran}")) }
    })
    .await;
    let stopped = boss(&["job", "stop", &job, "--stop-timeout", "1s", "--json"]).run().await.code(0).operation();
    let user = stopped.actor.strip_prefix("token boss, for ").map(str::to_owned);
    assert!(stopped.state == State::Succeeded && user.is_some(), "{stopped:?}");

    boss(&["token", "revoke", &id, "--reason", "lost"]).run().await.code(0);
    let dead = read(&["op", "list"]).run().await.code(1);
    assert!(dead.stderr.contains("was revoked"), "{dead}");
    let list = boss(&["token", "list"]).run().await.code(0);
    assert!(list.stdout.contains("revoked by token boss") && !list.stdout.contains(&reader), "{list}");
    let trail = boss(&["audit", "--json"]).run().await.code(0);
    let secret = |token: &str| token.rsplit('_').next().unwrap().to_owned();
    let log = controller.log();
    for token in [&admin, &reader] {
        assert!(!trail.stdout.contains(&secret(token)) && !log.contains(&secret(token)), "a secret was written down");
    }
    assert!(trail.stdout.contains("token_created") && trail.stdout.contains("token_revoked"), "{trail}");
    assert!(log.contains("a caller was not let in"), "{log}");
}

/// The commands over TLS with a certificate of their own, and without one.
pub async fn over_tls_with_a_certificate(_: Given) {
    let cluster = Cluster::start(Kind::Dev, &Shape::default()).await;
    let made = Certificates::new();
    let path = |name: &str| made.path(name).display().to_string();
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("curfew.toml");
    let grants = "[certificates.\"cli.global.nomad\"]\nscopes = [\"read\", \"stop\"]\n";
    std::fs::write(&config, format!("auth = [\"certificates\"]\n{grants}")).unwrap();
    let (config, cert, key, ca) = (config.display().to_string(), path("server"), path("server-key"), path("ca"));
    let env = [("CURFEW_CONFIG", &*config), ("CURFEW_TLS_CERT", &cert), ("CURFEW_TLS_KEY", &key), ("CURFEW_TLS_CLIENT_CA", &ca)];
    let mut controller = Controller::new(cluster.addr(), &env);
    controller.launch();
    let addr = controller.addr().replace("http://127.0.0.1", "https://localhost");
    let ask = |args: &[&str]| curfew(args.iter().copied()).env("CURFEW_ADDR", &addr).env("CURFEW_CACERT", &ca);
    let with = |args: &[&str]| ask(args).env("CURFEW_CLIENT_CERT", path("client")).env("CURFEW_CLIENT_KEY", path("client-key"));
    eventually(PATIENCE, "the controller to be ready", async || {
        let ran = with(&["status", "--json"]).run().await;
        if ran.stdout.contains("\"running\"") { Ok(()) } else { Err(format!("{ran}\n{}", controller.log())) }
    })
    .await;
    with(&["op", "list"]).run().await.code(0);
    let refused = with(&["kind", "pause", "stop"]).run().await.code(1);
    assert!(refused.stderr.contains("certificate cli.global.nomad has"), "{refused}");
    ask(&["op", "list"]).run().await.code(1);
    let other = ask(&["op", "list"]).env("CURFEW_CLIENT_CERT", path("other-client"));
    other.env("CURFEW_CLIENT_KEY", path("other-client-key")).run().await.code(1);
    let stranger = curfew(["op", "list"]).env("CURFEW_ADDR", &addr).env("CURFEW_CACERT", path("other-ca")).run().await.code(1);
    assert!(stranger.stderr.contains("certificate") || stranger.stderr.contains("invalid"), "{stranger}");
}

/// Two controllers on one PostgreSQL: a client that waits survives the kill of the one it talks to.
pub async fn a_client_survives_the_kill_of_the_one_it_talks_to(given: Given) {
    let Some(server) = Server::start(given.name()) else {
        given.skip("PostgreSQL is not installed");
        return;
    };
    let cluster = Cluster::start(Kind::Dev, &Shape::default()).await;
    let url = server.url();
    let env = [("CURFEW_KEEPER_LEASE", "2s"), ("CURFEW_LEASE_TIMEOUT", "5s"), ("CURFEW_NOMAD_TIMEOUT", "4s")];
    let start = async || {
        let mut controller = Controller::new(cluster.addr(), &env).on(&url);
        controller.launch();
        controller.ready().await;
        controller
    };
    let (mut first, second) = (start().await, start().await);
    let both = format!("{},{}", first.addr(), second.addr());
    let ask = |args: &[&str]| curfew(args.iter().copied()).env("CURFEW_ADDR", &both);
    let job = unique("failover");
    let stubborn = with(task("t", IMPOLITE), json!({ "KillTimeout": nanos(Duration::from_secs(6)) }));
    let spec = service(&job, vec![stubborn]);
    ask(&["job", "run", "-"]).stdin(spec.to_string()).run().await.code(0);
    eventually(PATIENCE, "the task to live", async || {
        let ran = ask(&["job", "status", &job]).run().await;
        if ran.stdout.contains("lives") { Ok(()) } else { Err(format!("{ran}")) }
    })
    .await;
    let stopping = tokio::spawn(ask(&["job", "stop", &job, "--json"]).within(Duration::from_secs(90)).run());
    eventually(PATIENCE, "the stop to be under way", async || {
        let ops = second.api().get(&format!("/v1/operations?kind=stop&job={job}")).await;
        if ops[0]["state"] == "waiting" { Ok(()) } else { Err(ops.to_string()) }
    })
    .await;
    first.kill().await;
    let op = stopping.await.unwrap().code(0).operation();
    assert_eq!((op.state, op.outcome.map(|o| o.killed)), (State::Succeeded, Some(1)));
    // And what is asked from then on goes to the other one at once.
    ask(&["status"]).run().await.code(0);
}

/// A task calls with the identity that Nomad signed for it.
pub async fn a_task_calls_with_its_workload_identity(_: Given) {
    let shape = Shape::default();
    let cluster = Cluster::start(Kind::Real, &shape).await;
    let job = unique("caller");
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("curfew.toml");
    let text = format!(
        "auth = [\"workloads\"]\n[[workloads.rules]]\nclaims = {{ nomad_namespace = \"default\", nomad_job_id = \"{job}\" }}\nscopes = [\"read\"]\n"
    );
    std::fs::write(&config, text).unwrap();
    let identity =
        |name: &str, audience: &str| json!({ "Name": name, "Audience": [audience], "File": true, "TTL": 3_600_000_000_000_u64 });
    let out = dir.path().display().to_string();
    let script = format!("umask 0; cp secrets/nomad_*.jwt {out}/ && exec sleep 3600");
    let caller = with(task("t", &script), json!({ "Identities": [identity("curfew", "curfew"), identity("other", "other")] }));
    let spec = json!({ "Job": service(&job, vec![caller]) });
    cluster.api.put("/v1/jobs", &spec).await;
    let file = |name: &str| dir.path().join(format!("nomad_{name}.jwt"));
    eventually(PATIENCE, "the identities to be there", async || {
        if file("curfew").exists() && file("other").exists() {
            Ok(())
        } else {
            Err(format!("{:?}", cluster.api.allocations(&job).await))
        }
    })
    .await;
    let config = config.display().to_string();
    let controller = Controller::start(cluster.addr(), &[("CURFEW_CONFIG", &*config)]).await;
    let with = |name: &str| controller.curfew(["op", "list"]).env("CURFEW_TOKEN_FILE", file(name).display().to_string());
    with("curfew").run().await.code(0);
    let other = with("other").run().await.code(1);
    assert!(other.stderr.contains("not for \"curfew\""), "{other}");
    let stop =
        controller.curfew(["job", "stop", &job, "--detach"]).env("CURFEW_TOKEN_FILE", file("curfew").display().to_string());
    let stop = stop.run().await.code(1);
    assert!(stop.stderr.contains(&format!("workload {job}/t has read")), "{stop}");
}

/// What a generated client is used for.
const PYTHON: &str = r#"
import sys
from generated import Client
from generated.api.jobs import stop
from generated.api.operations import list_, show
from generated.models import StopRequest

client = Client(base_url=sys.argv[1])
asked = [stop.sync(sys.argv[2], client=client, body=StopRequest(stop_timeout="1s", actor="python"), idempotency_key="p1") for _ in range(2)]
assert asked[0].id == asked[1].id, asked
op = show.sync(asked[0].id, client=client, wait="1m")
assert (str(op.state.value), op.actor, op.outcome.killed) == ("succeeded", "python", 1), op
assert [o.id for o in list_.sync(client=client, job=sys.argv[2])][0] == op.id
missing = stop.sync_detailed("no-such-job", client=client, body=StopRequest())
assert missing.status_code == 404 and missing.parsed.type_ == "urn:curfew:problem:no-such-job", missing
print("generated client: ok")
"#;

/// A client that another language's generator makes of the description stops a job.
pub async fn a_generated_python_client(given: Given) {
    let generator = std::env::var("CURFEW_TEST_PYTHON").unwrap_or_default();
    if generator.is_empty() {
        given.skip("CURFEW_TEST_PYTHON names no Python that has openapi-python-client (pip install openapi-python-client)");
        return;
    }
    let cluster = Cluster::start(Kind::Dev, &Shape::default()).await;
    let controller = Controller::start(cluster.addr(), &[]).await;
    let dir = tempfile::tempdir().unwrap();
    let described = controller.curfew(["openapi"]).run().await.code(0);
    std::fs::write(dir.path().join("openapi.json"), described.stdout).unwrap();
    std::fs::write(dir.path().join("use.py"), PYTHON).unwrap();
    let python = async |args: &[&str]| {
        let ran = tokio::process::Command::new(&generator).args(args).current_dir(dir.path()).output().await.unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert!(ran.status.success(), "{args:?}: {said}");
        said
    };
    let make =
        ["-m", "openapi_python_client", "generate", "--path", "openapi.json", "--output-path", "generated", "--meta", "none"];
    python(&make).await;
    let job = unique("python");
    let spec = service(&job, vec![task("t", IMPOLITE)]).to_string();
    controller.curfew(["job", "run", "-"]).stdin(spec).run().await.code(0);
    eventually(PATIENCE, "the task to live", async || {
        let ran = controller.curfew(["job", "status", &job]).run().await;
        if ran.stdout.contains("lives") { Ok(()) } else { Err(format!("{ran}")) }
    })
    .await;
    let said = python(&["use.py", controller.addr(), &job]).await;
    assert!(said.contains("generated client: ok"), "{said}");
}
