//! The controller's process is told to stop: exit codes, and what the next one finds.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use curfew_core::operation::State;
use curfew_tests::controller::Controller;
use curfew_tests::fake::Fake;
use curfew_tests::jobs::{POLITE, service, task};
use curfew_tests::lab::{Lab, PATIENCE, late, unique};
use curfew_tests::now;
use curfew_tests::run::Given;
use curfew_tests::wait::eventually;
use rustix::process::Signal;
use serde_json::json;

const S: Duration = Duration::from_secs(1);

/// A signal while it still looks for a Nomad that does not answer.
pub async fn a_signal_while_it_starts(_given: Given) {
    let fake = Fake::hanging().await;
    for signal in [Signal::TERM, Signal::INT] {
        let mut curfew = Controller::new(&fake.addr, &[]);
        curfew.launch();
        eventually(PATIENCE, "the RPC to say starting", async || match curfew.api().try_get("/healthz").await? {
            v if v == "starting\n" => Ok(()),
            v => Err(v.to_string()),
        })
        .await;
        let (code, body) = curfew.api().call(reqwest::Method::GET, "/readyz", None).await.unwrap();
        assert_eq!((code, body), (503, json!("starting\n")));
        let asked = now();
        assert_eq!(curfew.end(signal, 10 * S).await.code(), Some(0), "{}", curfew.log());
        assert!(now().since(asked) < S + late(), "{:?}", now().since(asked));
    }
}

/// Stops whose DELETE is never answered, with a controller that waits 2 s for them.
async fn hanging(given: &Given) -> (Lab, Vec<curfew_core::OpId>) {
    let lab = given.own_with(&[("CURFEW_SHUTDOWN_TIMEOUT", "2s"), ("CURFEW_NOMAD_TIMEOUT", "1m")]).await;
    let ids: Vec<String> = (0..10).map(|_| unique("hanging")).collect();
    for id in &ids {
        lab.start(&service(id, vec![task("t", POLITE)])).await;
    }
    let fault = json!({ "Kind": "delay", "Method": "DELETE", "Path": "/v1/job/*", "Delay": "10m" });
    lab.cluster.api.call(reqwest::Method::PUT, "/dev/v1/faults", Some(&fault)).await.unwrap();
    let mut ops = vec![];
    for id in &ids {
        ops.push(lab.stop_detached(id, &[]).await.id);
    }
    eventually(PATIENCE, "the DELETEs", async || {
        let seen = lab.proxy().seen("DELETE", "/v1/job/").len();
        if seen >= ids.len() { Ok(()) } else { Err(format!("{seen}")) }
    })
    .await;
    (lab, ops)
}

async fn done_by_the_next(mut lab: Lab, ops: Vec<curfew_core::OpId>) {
    lab.cluster.api.call(reqwest::Method::DELETE, "/dev/v1/faults", None).await.unwrap();
    lab.own().restart().await;
    for op in ops {
        assert_eq!(lab.curfew.finished(op, PATIENCE).await.state, State::Succeeded);
        let trail = lab.curfew.trail(op).await;
        assert!(trail.iter().any(|r| r["action"] == "aborted" && r["detail"]["unknown"] == true), "{trail:?}");
    }
}

pub async fn a_nomad_that_hangs(given: Given) {
    let (mut lab, ops) = hanging(&given).await;
    let asked = now();
    let status = lab.own().end(Signal::TERM, 15 * S).await;
    let took = now().since(asked);
    assert_eq!(status.code(), Some(1), "{}", lab.curfew.log());
    assert!(took >= 2 * S && took < 5 * S + late(), "{took:?}");
    done_by_the_next(lab, ops).await;
}

pub async fn a_second_signal(given: Given) {
    let (mut lab, ops) = hanging(&given).await;
    lab.own().proc().signal(Signal::TERM);
    eventually(PATIENCE, "shutting_down", async || match lab.curfew.api().try_get("/healthz").await? {
        v if v == "shutting_down\n" => Ok(()),
        v => Err(v.to_string()),
    })
    .await;
    let asked = now();
    assert_eq!(lab.own().end(Signal::INT, 15 * S).await.code(), Some(1), "{}", lab.curfew.log());
    assert!(now().since(asked) < S + late(), "{:?}", now().since(asked));
    done_by_the_next(lab, ops).await;
}

/// By the service manager's protocol, over a real socket: READY when it runs, the watchdog petted within half its time, STATUS
/// with counts, STOPPING before it ends.
pub async fn what_systemd_is_told(given: Given) {
    let dir = tempfile::TempDir::with_prefix("curfew-test-notify-").unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut told: Vec<(curfew_core::Timestamp, String)> = vec![];
    let mut hear = || {
        let mut buffer = [0; 4096];
        while let Ok(n) = socket.recv(&mut buffer) {
            told.push((now(), String::from_utf8_lossy(&buffer[..n]).into_owned()));
        }
        told.clone()
    };
    let env = [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "2000000")];
    let mut lab = given.own_with(&env).await;
    assert!(hear().iter().any(|(_, m)| m.lines().any(|l| l == "READY=1")), "{:?}", hear());
    let id = unique("notify");
    lab.start(&service(&id, vec![task("t", POLITE)])).await;
    let petted = |m: &[(curfew_core::Timestamp, String)]| -> Vec<curfew_core::Timestamp> {
        m.iter().filter(|(_, m)| m.contains("WATCHDOG=1")).map(|(at, _)| *at).collect()
    };
    let all = eventually(PATIENCE, "five pats for the watchdog", async || {
        let all = hear();
        if petted(&all).len() >= 5 { Ok(all) } else { Err(format!("{all:?}")) }
    })
    .await;
    let pats = petted(&all);
    assert!(pats.windows(2).all(|w| w[1].since(w[0]) < S + late()), "{pats:?}");
    assert!(all.iter().any(|(_, m)| m.contains("STATUS=running") && m.contains("clocks armed")), "{all:?}");
    assert_eq!(lab.own().end(Signal::TERM, 10 * S).await.code(), Some(0), "{}", lab.curfew.log());
    let all = hear();
    assert!(all.iter().any(|(_, m)| m.lines().any(|l| l == "STOPPING=1")), "{all:?}");
}
