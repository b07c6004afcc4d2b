//! A cluster and a controller to measure: the embedded one, or `NOMAD_ADDR`'s.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use curfew_client::{Client, OperationView, SpecText, StopRequest, SubmitRequest, Who};
use curfew_controller::{Controller, Metrics, Parts, SystemClock, random};
use curfew_core::config::Config;
use curfew_core::operation::State;
use curfew_core::{Allocation, Desired, JobKey};
use curfew_devcluster::{Cluster, ClusterConfig, NodeConfig};
use curfew_nomad::{Nomad, NomadConfig};
use futures::{FutureExt, StreamExt, TryStreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;

pub struct Lab {
    /// The controller's own way to Nomad: its calls are counted.
    pub nomad: Nomad,
    /// For everything that is not Curfew's.
    pub bare: Nomad,
    pub client: Client,
    pub on: String,
    pub embedded: bool,
    controller: Controller,
    cluster: Option<Cluster>,
    _dir: TempDir,
}

/// Requests at the same time while things are set up.
const AT_ONCE: usize = 32;
const PATIENCE: Duration = Duration::from_secs(120);

impl Lab {
    pub async fn open(nodes: usize) -> anyhow::Result<Lab> {
        Self::open_on(nodes, None).await
    }

    /// With its operations in the database that `url` names; else in an SQLite file of its own.
    pub async fn open_on(nodes: usize, url: Option<&str>) -> anyhow::Result<Lab> {
        let dir = TempDir::with_prefix("curfew-bench-")?;
        let (cluster, addr) = match std::env::var("NOMAD_ADDR").ok().filter(|a| !a.is_empty()) {
            Some(addr) => (None, addr),
            None => {
                let nodes = (0..nodes).map(|i| NodeConfig {
                    cpu: 10_000_000,
                    memory_mb: 10_000_000,
                    ..NodeConfig::new(format!("n{i}"), "dc1")
                });
                let config = ClusterConfig {
                    listen: Some(([127, 0, 0, 1], 0).into()),
                    nodes: nodes.collect(),
                    data_dir: dir.path().join("cluster"),
                    ..ClusterConfig::default()
                };
                let cluster = Cluster::start(config).await?;
                let addr = cluster.base_url();
                (Some(cluster), addr)
            }
        };
        let nomad = || {
            let env = |name: &str| if name == "NOMAD_ADDR" { Some(addr.clone()) } else { std::env::var(name).ok() };
            anyhow::Ok(Nomad::new(NomadConfig::from_env(env)?)?)
        };
        let (nomad, bare) = (nomad()?, nomad()?);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let client = Client::new(&listener.local_addr()?.to_string())?;
        let own = format!("sqlite:{}", dir.path().join("curfew.db").display());
        let store = curfew_store::open(url.unwrap_or(&own)).await?;
        let parts = Parts {
            nomad: nomad.clone(),
            store: std::future::ready(Ok(store)).boxed(),
            clock: Arc::new(SystemClock),
            random: random(),
            config: Config::default(),
            holder: format!("bench:{}", std::process::id()),
            listener: Some(listener),
            metrics: Metrics::new(),
            gc: None,
        };
        let controller = curfew_controller::start(parts)?;
        if let Err(e) = controller.started().await {
            bail!("the controller cannot start: {}", curfew_controller::error::chain(e));
        }
        let embedded = cluster.is_some();
        let version = bare.version().await?;
        let on = if embedded { "the embedded cluster".to_owned() } else { format!("Nomad {version} at {addr}") };
        let lab = Lab { nomad, bare, client, on, embedded, controller, cluster, _dir: dir };
        lab.eventually("the controller to see Nomad", || async { Ok(lab.client.status().await?.nomad == "in sight") }).await?;
        Ok(lab)
    }

    pub async fn close(self) {
        self.controller.stop(true).await;
        if let Some(cluster) = self.cluster {
            cluster.shutdown().await;
        }
    }

    /// A job of tasks that ignore SIGTERM; `kill_timeout` is Nomad's own clock, for the baseline.
    pub fn impolite(&self, id: &str, count: usize, kill_timeout: Option<Duration>) -> Value {
        let (driver, config) = if self.embedded {
            ("mock_driver", json!({ "ignore_sigterm": true }))
        } else {
            ("raw_exec", json!({ "command": "/bin/sh", "args": ["-c", "trap '' TERM INT; while :; do sleep 1; done"] }))
        };
        let mut task = json!({ "Name": "t", "Driver": driver, "Config": config, "KillSignal": "SIGTERM", "Resources": { "CPU": 20, "MemoryMB": 10 } });
        if let (Some(t), Some(task)) = (kill_timeout, task.as_object_mut()) {
            task.insert("KillTimeout".into(), json!(u64::try_from(t.as_nanos()).unwrap_or(u64::MAX)));
        }
        json!({ "ID": id, "Name": id, "Type": "batch", "Datacenters": ["dc1"],
                "TaskGroups": [{ "Name": "g", "Count": count, "Tasks": [task] }] })
    }

    pub async fn submit_all(&self, jobs: Vec<Value>) -> anyhow::Result<()> {
        futures::stream::iter(jobs)
            .map(|job| async move {
                let request = SubmitRequest {
                    spec: SpecText::Json(job),
                    namespace: None,
                    watch: false,
                    check_index: None,
                    who: Who::default(),
                };
                let op = self.client.submit(&request, None).await?;
                let op = self.client.wait(op.id, PATIENCE).await?;
                match op.state {
                    State::Succeeded => Ok(()),
                    _ => bail!("submit ended as {}: {}", op.state.as_str(), op.error.unwrap_or_default()),
                }
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(())
    }

    pub async fn register_all(&self, jobs: Vec<Value>) -> anyhow::Result<()> {
        futures::stream::iter(jobs)
            .map(|job| async move {
                let key = JobKey::new("default", job["ID"].as_str().unwrap_or_default());
                self.bare.register(&key, &job, None).await.map(|_| ())
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(())
    }

    /// Stops them all at once, each with its own timeout; returns the operations at their ends.
    pub async fn stop_all(&self, jobs: Vec<(String, Duration)>) -> anyhow::Result<Vec<OperationView>> {
        let accepted: Vec<OperationView> = futures::stream::iter(jobs)
            .map(|(id, timeout)| async move {
                let request = StopRequest { stop_timeout: Some(timeout), ..StopRequest::default() };
                self.client.stop(&id, &request, None).await
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        let mut ended = Vec::with_capacity(accepted.len());
        // One after the other: what is measured is not the waiting.
        for op in accepted {
            let op = self.client.wait(op.id, PATIENCE).await?;
            if op.state != State::Succeeded {
                bail!("{} is {} ({})", op.target.name(), op.state.as_str(), op.waiting_for.or(op.error).unwrap_or_default());
            }
            ended.push(op);
        }
        Ok(ended)
    }

    pub async fn allocations(&self, id: &str) -> anyhow::Result<Vec<Allocation>> {
        Ok(self.bare.job_allocations(&JobKey::new("default", id)).await?.0)
    }

    pub async fn until_running(&self, ids: &[String], count: usize) -> anyhow::Result<()> {
        for id in ids {
            self.eventually(&format!("{count} allocations of {id} to run"), || async {
                let allocs = self.allocations(id).await?;
                Ok(allocs.iter().filter(|a| a.desired == Desired::Run && a.any_task_lives()).count() == count)
            })
            .await?;
        }
        Ok(())
    }

    pub async fn until_dead(&self, ids: &[String]) -> anyhow::Result<()> {
        for id in ids {
            self.eventually(&format!("the allocations of {id} to end"), || async {
                Ok(!self.allocations(id).await?.iter().any(Allocation::any_task_lives))
            })
            .await?;
        }
        Ok(())
    }

    pub async fn eventually<F>(&self, what: &str, mut holds: impl FnMut() -> F) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<bool>>,
    {
        let give_up = tokio::time::Instant::now() + PATIENCE;
        loop {
            if holds().await? {
                return Ok(());
            }
            if tokio::time::Instant::now() > give_up {
                return Err(anyhow::anyhow!("gave up after {}s", PATIENCE.as_secs())).context(format!("waiting for {what}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
