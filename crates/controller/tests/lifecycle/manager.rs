//! The service manager's side of sd_notify(3), on a real datagram socket.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use curfew_controller::Ending;
use curfew_controller::systemd::Notify;
use futures::FutureExt;
use tokio::time::Instant;

use crate::kit::{DELETED, Lab, until};

/// What was told, with the instant at which it came.
struct Manager {
    socket: UnixDatagram,
    told: Vec<(Instant, String)>,
}

impl Manager {
    fn new(socket: UnixDatagram) -> Self {
        socket.set_nonblocking(true).unwrap();
        Self { socket, told: vec![] }
    }

    fn listen(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(n) = self.socket.recv(&mut buffer) {
            let text = String::from_utf8(buffer[..n].to_vec()).unwrap();
            self.told.extend(text.lines().map(|l| (Instant::now(), l.to_owned())));
        }
    }

    fn heard(&mut self, what: &str) -> Vec<Instant> {
        self.listen();
        self.told.iter().filter(|(_, l)| l.contains(what)).map(|(at, _)| *at).collect()
    }

    async fn until_heard(&mut self, what: &str, times: usize) {
        let me = &mut *self;
        until(&format!("{what} to be told"), async || me.heard(what).len() >= times).await;
    }
}

const WATCHDOG: Duration = Duration::from_millis(600);

#[tokio::test(flavor = "multi_thread")]
async fn ready_status_watchdog_and_stopping_are_told() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("notify");
    let name = format!("@{}", path.display());
    let on_path = UnixDatagram::bind(&path).unwrap();
    let on_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name[1..]).unwrap()).unwrap();
    for (socket, address) in [(on_path, path.into_os_string()), (on_name, name.into())] {
        let mut manager = Manager::new(socket);
        let lab = Lab::new(Box::new(|line| line.starts_with("DELETE").then(|| async { DELETED.to_owned() }.boxed())));
        let store = lab.store();
        lab.ask(&*store, "j").await;
        let controller = lab.start(store);
        let telling = tokio::spawn(Notify::to(&address, Some(WATCHDOG)).unwrap().follow(controller.clone()));
        manager.until_heard("READY=1", 1).await;
        manager.until_heard("WATCHDOG=1", 6).await;
        let pings = manager.heard("WATCHDOG=1");
        let gaps: Vec<Duration> = pings.windows(2).map(|w| w[1] - w[0]).collect();
        // The one in the middle: a loaded machine may be late now and then.
        let mut sorted = gaps.clone();
        sorted.sort();
        assert!(sorted[sorted.len() / 2] <= WATCHDOG / 2, "{gaps:?}");
        manager.until_heard("STATUS=running: 1 stops under way", 1).await;
        controller.stop(true).await;
        telling.await.unwrap();
        manager.until_heard("STATUS=stopped", 1).await;
        assert_eq!((manager.heard("READY=1").len(), manager.heard("STOPPING=1").len()), (1, 1), "{:?}", manager.told);
        let order = |what| manager.told.iter().position(|(_, l)| l == what);
        assert!(order("READY=1") < order("STOPPING=1") && order("READY=1").is_some(), "{:?}", manager.told);
    }
}

/// The transport blocks the observer's thread, as a call of the wrong kind in a loop would. The controller has a runtime of its
/// own here: a thread that blocks may keep its runtime's timers with it, and then nothing there pets either.
#[tokio::test]
async fn a_loop_that_hangs_stops_the_petting_and_one_that_waits_for_nomad_does_not() {
    let (free, blocked): (Sender<()>, Receiver<()>) = channel();
    let (armed, blocked) = (Arc::new(AtomicBool::new(false)), Mutex::new(blocked));
    let block = armed.clone();
    let lab = Lab::with_timeout(
        Duration::from_millis(50),
        Box::new(move |line| match line {
            // Never answered: each has its deadline, and the loop turns.
            l if l.contains("/v1/deployments") => Some(std::future::pending().boxed()),
            l if l.contains("/v1/allocations") && block.load(Relaxed) => {
                // The sender is dropped at the end of the test.
                let _ = blocked.lock().unwrap().recv();
                None
            }
            _ => None,
        }),
    );
    let mut lab = lab;
    lab.config.resync_interval = Duration::from_millis(200);
    let dir = tempfile::TempDir::new().unwrap();
    let mut manager = Manager::new(UnixDatagram::bind(dir.path().join("n")).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let controller = {
        let _inside = runtime.enter();
        let controller = lab.start(lab.store());
        let telling = Notify::to(dir.path().join("n").as_os_str(), Some(WATCHDOG)).unwrap();
        tokio::spawn(telling.follow(controller.clone()));
        controller
    };
    manager.until_heard("WATCHDOG=1", 3).await;
    assert_eq!(controller.stuck(WATCHDOG), None);

    armed.store(true, Relaxed);
    // Which one is named first depends on whose timers stopped with it.
    until("a loop to be seen hanging", async || controller.stuck(WATCHDOG).is_some()).await;
    let since = Instant::now();
    until("what was on its way", async || since.elapsed() > WATCHDOG).await;
    let pets = manager.heard("WATCHDOG=1").len();
    until("three more intervals", async || since.elapsed() > 4 * WATCHDOG).await;
    assert_eq!(manager.heard("WATCHDOG=1").len(), pets, "a loop hangs");

    armed.store(false, Relaxed);
    free.send(()).unwrap();
    manager.until_heard("WATCHDOG=1", pets + 2).await;
    controller.stop(true).await;
    assert_eq!(controller.stopped().await, Ending::Clean);
    runtime.shutdown_background();
}
