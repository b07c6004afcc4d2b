//! The controller's configuration: its shape, its defaults, and what must hold between the values.
//!
//! docs/timeouts.md explains each timeout; a test compares the two.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::access::{Grant, Proof, Workloads};
use crate::clock::Graces;
use crate::duration::{text, text_opt};
use crate::gc;
use crate::kinds::{Limits, Overrides};
use crate::operation::Kind;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `sqlite:PATH`, or `postgres://USER:PASSWORD@HOST:PORT/DATABASE`.
    pub database: DatabaseUrl,
    /// Where the RPC listens.
    pub listen: String,
    /// What Nomad's `kill_timeout` is raised to, out of the way of the kill clocks.
    #[serde(with = "text")]
    pub kill_timeout: Duration,
    /// Between SIGTERM and SIGKILL where neither the request nor the task says.
    #[serde(with = "text")]
    pub job_stop_timeout: Duration,
    /// How long a node's tasks have to leave when it is drained.
    #[serde(with = "text")]
    pub drain_timeout: Duration,
    /// For a poststop task of an allocation that is wanted stopped, from its own start.
    #[serde(with = "text")]
    pub poststop_timeout: Duration,
    /// How long a task must stay ended before its siblings count as told to end.
    #[serde(with = "text")]
    pub settle_time: Duration,
    /// How often Nomad is asked for everything that was told to end, in case events were lost.
    #[serde(with = "text")]
    pub resync_interval: Duration,
    /// How long before a clock's instant the last read is asked for.
    #[serde(with = "text")]
    pub read_lead: Duration,
    /// A worker that has not renewed its lease for this long has lost it.
    #[serde(with = "text")]
    pub lease_timeout: Duration,
    /// A controller that has not renewed the keeper's duty for this long sends no SIGKILL, and another one takes it over.
    #[serde(with = "text")]
    pub keeper_lease: Duration,
    /// How long finished operations are kept.
    #[serde(with = "text")]
    pub retention_operations: Duration,
    /// How long rows of the audit trail are kept.
    #[serde(with = "text")]
    pub retention_audit: Duration,
    /// How long steps in flight may take to finish when the controller is stopped.
    #[serde(with = "text")]
    pub shutdown_timeout: Duration,
    /// Every call to Nomad has this deadline (long polls and the event stream have their own).
    #[serde(with = "text")]
    pub nomad_timeout: Duration,
    /// Operations worked on at the same time.
    pub workers: usize,
    /// Calls to Nomad at the same time.
    pub nomad_connections: usize,
    /// The largest answer accepted from Nomad, and the largest request body accepted by the RPC is a sixteenth of it.
    pub max_body_bytes: usize,
    /// Job specifications kept in memory.
    pub spec_cache: usize,
    /// Drivers that take no signals: their tasks keep the author's `kill_timeout`, which Nomad enforces.
    pub signalless_drivers: Vec<String>,
    /// `[datacenters.NAME]`: what differs for the nodes of one datacenter. In the file only.
    pub datacenters: BTreeMap<String, InDatacenter>,
    /// How often the controller runs a gc; zero means never.
    #[serde(with = "text")]
    pub gc_interval: Duration,
    /// What a gc adds to a clock that no database explains, and how long an orphan must have been seen.
    #[serde(with = "text")]
    pub gc_grace: Duration,
    /// How long a dead job is kept before a gc purges it.
    #[serde(with = "text")]
    pub gc_retention: Duration,
    /// How long a job may wait for a place before a gc says so.
    #[serde(with = "text")]
    pub gc_never_placed: Duration,
    /// More candidates of a verdict than this in one pass: a gc acts on none of them.
    pub gc_cap: usize,
    /// What a gc does about each verdict, as in `orphan=act`, over its defaults.
    pub gc_verdicts: Vec<String>,
    /// The namespaces that a gc looks at; empty means all.
    pub gc_namespaces: Vec<String>,
    /// `[kinds.NAME]`: what differs for the operations of one kind. In the file only.
    pub kinds: BTreeMap<Kind, Overrides>,
    /// How callers of the RPC prove who they are. Empty: nobody is asked, and it listens on loopback only.
    pub auth: Vec<Proof>,
    /// `[workloads]`: which of Nomad's workload identities may do what. In the file only.
    pub workloads: Workloads,
    /// `[certificates.NAME]`: what a client certificate with that DNS name or URI may do. In the file only.
    pub certificates: BTreeMap<String, Grant>,
    /// The RPC's certificate with its chain, and its key, in PEM: HTTPS instead of HTTP. Read anew when they change.
    pub tls_cert: String,
    pub tls_key: String,
    /// Demands a certificate signed by one of these of every client.
    pub tls_client_ca: String,
    /// The namespaces that jobs may be submitted to; empty means all.
    pub submit_namespaces: Vec<String>,
    /// The drivers that submitted tasks may have; empty means all.
    pub submit_drivers: Vec<String>,
    /// Requests a second of one caller, and as many at once; zero means no bound.
    pub rpc_rate: usize,
    /// Connections to the RPC at the same time.
    pub rpc_connections: usize,
    /// Event streams and long polls at the same time.
    pub rpc_streams: usize,
    /// How much of these one client address may take, in percent.
    pub rpc_address_share: usize,
    /// Where OpenTelemetry traces are sent by OTLP over HTTP; empty means nowhere.
    pub otlp_endpoint: String,
}

const fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

impl Default for Config {
    fn default() -> Self {
        Self {
            database: "sqlite:curfew.db".into(),
            listen: "127.0.0.1:4690".into(),
            kill_timeout: secs(24 * 3600),
            job_stop_timeout: secs(30),
            drain_timeout: secs(3600),
            poststop_timeout: secs(300),
            settle_time: Duration::from_millis(1500),
            resync_interval: secs(10),
            read_lead: Duration::from_millis(25),
            lease_timeout: secs(300),
            keeper_lease: secs(10),
            retention_operations: secs(30 * 24 * 3600),
            retention_audit: secs(90 * 24 * 3600),
            shutdown_timeout: secs(25),
            nomad_timeout: secs(10),
            workers: 64,
            nomad_connections: 64,
            max_body_bytes: 64 << 20,
            spec_cache: 20_000,
            signalless_drivers: vec!["qemu".into()],
            datacenters: BTreeMap::new(),
            gc_interval: secs(900),
            gc_grace: secs(900),
            gc_retention: secs(7 * 24 * 3600),
            gc_never_placed: secs(24 * 3600),
            gc_cap: 100,
            gc_verdicts: vec![],
            gc_namespaces: vec![],
            kinds: BTreeMap::new(),
            auth: vec![],
            workloads: Workloads::default(),
            certificates: BTreeMap::new(),
            tls_cert: String::new(),
            tls_key: String::new(),
            tls_client_ca: String::new(),
            submit_namespaces: vec![],
            submit_drivers: vec![],
            rpc_rate: 2000,
            rpc_connections: 1024,
            rpc_streams: 512,
            rpc_address_share: 75,
            otlp_endpoint: String::new(),
        }
    }
}

/// A database's URL. It may hold a password, so that only [`DatabaseUrl::expose`] shows it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl<T: Into<String>> From<T> for DatabaseUrl {
    fn from(url: T) -> Self {
        Self(url.into())
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.split_once(':') {
            Some(("sqlite", _)) | None => write!(f, "{:?}", self.0),
            Some((scheme, _)) => write!(f, "\"{scheme}:…\""),
        }
    }
}

/// `[datacenters.NAME]`; what is absent is as everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InDatacenter {
    #[serde(with = "text_opt", skip_serializing_if = "Option::is_none")]
    pub drain_timeout: Option<Duration>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct BadConfig(pub String);

impl Config {
    pub fn graces(&self) -> Graces {
        Graces { job_stop_timeout: self.job_stop_timeout, poststop_timeout: self.poststop_timeout, settle: self.settle_time }
    }

    /// What holds for operations of this kind.
    pub fn kind(&self, kind: Kind) -> Limits {
        let own = self.kinds.get(&kind).copied().unwrap_or_default();
        own.over(Limits::of(kind, self.lease_timeout, self.workers))
    }

    /// How long the tasks of a node in this datacenter have to leave.
    pub fn drain_timeout(&self, datacenter: &str) -> Duration {
        self.datacenters.get(datacenter).and_then(|d| d.drain_timeout).unwrap_or(self.drain_timeout)
    }

    /// How a gc judges.
    pub fn gc(&self) -> Result<gc::Settings, BadConfig> {
        let mut modes = gc::Modes::default();
        for text in self.gc_verdicts.iter().filter(|t| !t.trim().is_empty()) {
            modes.set(text).map_err(|e| BadConfig(format!("gc_verdicts: {e}")))?;
        }
        Ok(gc::Settings {
            modes,
            cap: Some(self.gc_cap),
            grace: self.gc_grace,
            retention: self.gc_retention,
            never_placed: self.gc_never_placed,
            retention_operations: self.retention_operations,
            retention_audit: self.retention_audit,
            graces: self.graces(),
            // An empty variable is a list of one empty name.
            namespaces: self.gc_namespaces.iter().filter(|n| !n.is_empty()).map(|n| n.as_str().into()).collect(),
        })
    }

    /// What must hold between the values, whichever file, variable or flag they came from.
    pub fn check(&self) -> Result<(), BadConfig> {
        let bad = |s: String| Err(BadConfig(s));
        let show = crate::duration::format;
        if self.job_stop_timeout >= self.kill_timeout {
            return bad(format!(
                "job_stop_timeout ({}) must be shorter than kill_timeout ({}): Nomad would send SIGKILL before Curfew's clock",
                show(self.job_stop_timeout),
                show(self.kill_timeout)
            ));
        }
        let own =
            self.datacenters.iter().filter_map(|(dc, d)| Some((format!("datacenters.{dc}.drain_timeout"), d.drain_timeout?)));
        for (name, drain_timeout) in std::iter::once(("drain_timeout".to_owned(), self.drain_timeout)).chain(own) {
            if drain_timeout.is_zero() {
                return bad(format!("{name} must be longer than zero"));
            }
            let needed = drain_timeout + self.job_stop_timeout;
            if needed >= self.kill_timeout {
                return bad(format!(
                    "{name} ({}) and job_stop_timeout ({}) must together be shorter than kill_timeout ({}): Nomad would send SIGKILL before a drain's deadline",
                    show(drain_timeout),
                    show(self.job_stop_timeout),
                    show(self.kill_timeout)
                ));
            }
        }
        for (name, value) in [
            ("kill_timeout", self.kill_timeout),
            ("job_stop_timeout", self.job_stop_timeout),
            ("poststop_timeout", self.poststop_timeout),
            ("settle_time", self.settle_time),
            ("resync_interval", self.resync_interval),
            ("lease_timeout", self.lease_timeout),
            ("nomad_timeout", self.nomad_timeout),
            ("retention_operations", self.retention_operations),
            ("retention_audit", self.retention_audit),
            ("gc_retention", self.gc_retention),
            ("gc_never_placed", self.gc_never_placed),
        ] {
            if value.is_zero() {
                return bad(format!("{name} must be longer than zero"));
            }
        }
        if self.lease_timeout <= self.nomad_timeout {
            return bad(format!(
                "lease_timeout ({}) must be longer than nomad_timeout ({}): a step waits for at least one answer",
                show(self.lease_timeout),
                show(self.nomad_timeout)
            ));
        }
        if self.keeper_lease < secs(1) {
            return bad(format!(
                "keeper_lease ({}) must be at least 1s: it is renewed five times in its time",
                show(self.keeper_lease)
            ));
        }
        for kind in self.kinds.keys() {
            self.check_kind(*kind)?;
        }
        if self.read_lead >= secs(1) {
            return bad(format!(
                "read_lead ({}) must be under 1s: the read before a SIGKILL would be stale",
                show(self.read_lead)
            ));
        }
        for (name, value) in [
            ("workers", self.workers),
            ("nomad_connections", self.nomad_connections),
            ("spec_cache", self.spec_cache),
            ("gc_cap", self.gc_cap),
            ("rpc_connections", self.rpc_connections),
            ("rpc_streams", self.rpc_streams),
        ] {
            if value == 0 {
                return bad(format!("{name} must be at least 1"));
            }
        }
        if !(1..=100).contains(&self.rpc_address_share) {
            return bad(format!("rpc_address_share ({}) is in percent: from 1 to 100", self.rpc_address_share));
        }
        self.gc()?;
        self.check_access()?;
        if !self.otlp_endpoint.is_empty() && !["http://", "https://"].iter().any(|s| self.otlp_endpoint.starts_with(s)) {
            return bad(format!("otlp_endpoint = \"{}\" is no URL; write one as in http://127.0.0.1:4318", self.otlp_endpoint));
        }
        if self.max_body_bytes < 1 << 20 {
            return bad("max_body_bytes must be at least 1048576 (1 MiB)".into());
        }
        Ok(())
    }

    /// Who may call, and how it is protected.
    fn check_access(&self) -> Result<(), BadConfig> {
        let bad = |s: &str| Err(BadConfig(s.to_owned()));
        if self.auth.is_empty() && !listens_on_loopback(&self.listen) {
            return Err(BadConfig(format!(
                "listen = \"{}\" is not loopback: anybody who reaches it could run code on the cluster. Set auth = [\"tokens\"] (and make one with curfew token create), or listen on 127.0.0.1",
                self.listen
            )));
        }
        match (self.tls_cert.is_empty(), self.tls_key.is_empty()) {
            (true, false) => return bad("tls_key is set, tls_cert is not"),
            (false, true) => return bad("tls_cert is set, tls_key is not"),
            (true, true) if !self.tls_client_ca.is_empty() => return bad("tls_client_ca needs tls_cert and tls_key as well"),
            _ => {}
        }
        if self.auth.contains(&Proof::Certificates) && self.tls_client_ca.is_empty() {
            return bad("auth has \"certificates\": tls_client_ca must name the CA that signs them");
        }
        if self.auth.contains(&Proof::Certificates) && self.certificates.is_empty() {
            return bad("auth has \"certificates\": [certificates.NAME] must say what each may do");
        }
        if self.auth.contains(&Proof::Workloads) && (self.workloads.rules.is_empty() || self.workloads.audience.is_empty()) {
            return bad("auth has \"workloads\": [workloads] must have an audience and at least one of [[workloads.rules]]");
        }
        for (name, grant) in &self.certificates {
            grant.check().map_err(|e| BadConfig(format!("certificates.\"{name}\": {e}")))?;
        }
        for (i, rule) in self.workloads.rules.iter().enumerate() {
            if rule.claims.is_empty() {
                return Err(BadConfig(format!(
                    "rule {} of [workloads] names no claim: it would be for every task of the cluster",
                    i + 1
                )));
            }
            rule.grant().check().map_err(|e| BadConfig(format!("rule {} of [workloads]: {e}", i + 1)))?;
        }
        Ok(())
    }

    fn check_kind(&self, kind: Kind) -> Result<(), BadConfig> {
        let bad = |s: String| Err(BadConfig(s));
        let (name, limits) = (kind.as_str(), self.kind(kind));
        let show = crate::duration::format;
        if !Kind::OPERATIONS.contains(&kind) {
            return bad(format!("[kinds.{name}] has nothing to set: no operation is of that kind"));
        }
        if limits.lease_timeout <= self.nomad_timeout {
            return bad(format!(
                "kinds.{name}.lease_timeout ({}) must be longer than nomad_timeout ({}): a step waits for at least one answer",
                show(limits.lease_timeout),
                show(self.nomad_timeout)
            ));
        }
        if limits.backoff.first.is_zero() || limits.backoff.longest < limits.backoff.first {
            return bad(format!(
                "kinds.{name}.backoff_first ({}) must be longer than zero and at most backoff_longest ({})",
                show(limits.backoff.first),
                show(limits.backoff.longest)
            ));
        }
        if limits.concurrency == 0 || limits.concurrency > self.workers {
            return bad(format!(
                "kinds.{name}.concurrency ({}) must be at least 1 and at most workers ({})",
                limits.concurrency, self.workers
            ));
        }
        if limits.attempts == Some(0) {
            return bad(format!("kinds.{name}.attempts must be at least 1; leave it out for as many as it takes"));
        }
        Ok(())
    }
}

/// Whether only this machine can reach it. A name other than `localhost` may be anywhere.
pub fn listens_on_loopback(listen: &str) -> bool {
    let host = listen.rsplit_once(':').map_or(listen, |(host, _)| host).trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_hold_and_a_short_kill_timeout_is_refused_with_both_values() {
        Config::default().check().unwrap();
        let c = Config { kill_timeout: secs(20), ..Config::default() };
        let e = c.check().unwrap_err().to_string();
        assert!(e.contains("30s") && e.contains("20s"), "{e}");
    }

    #[test]
    fn a_configuration_does_not_show_its_password() {
        let c = Config { database: "postgres://curfew:sesame@h/db".into(), ..Config::default() };
        let shown = format!("{c:?}");
        assert!(shown.contains("\"postgres:…\"") && !shown.contains("sesame"), "{shown}");
        assert!(format!("{:?}", Config::default()).contains("\"sqlite:curfew.db\""));
    }

    #[test]
    fn off_loopback_somebody_must_be_asked_who_they_are() {
        for (listen, loopback) in
            [("127.0.0.1:4690", true), ("[::1]:1", true), ("localhost:1", true), ("127.9.9.9:0", true)].into_iter().chain([
                ("0.0.0.0:4690", false),
                ("[::]:4690", false),
                ("10.0.0.1:4690", false),
                ("curfew.example:4690", false),
                (":4690", false),
            ])
        {
            assert_eq!(listens_on_loopback(listen), loopback, "{listen}");
            let c = Config { listen: listen.into(), ..Config::default() };
            assert_eq!(c.check().is_ok(), loopback, "{listen}");
            Config { auth: vec![Proof::Tokens], ..c }.check().unwrap();
        }
    }

    #[test]
    fn what_proofs_need_is_there_and_a_grant_that_contradicts_itself_is_refused() {
        let refused = |json: &str| {
            let c: Result<Config, _> = serde_json::from_str(json);
            c.map_err(|e| e.to_string()).and_then(|c| c.check().map_err(|e| e.to_string())).unwrap_err()
        };
        for (json, said) in [
            (r#"{"auth": ["passwords"]}"#, "passwords"),
            (r#"{"auth": ["workloads"]}"#, "[[workloads.rules]]"),
            (r#"{"workloads": {"rules": [{"claims": {}, "scopes": ["read"]}]}}"#, "every task"),
            (r#"{"workloads": {"rules": [{"claims": {"a": "b"}, "scopes": ["drain"], "namespaces": ["x"]}]}}"#, "drain"),
            (r#"{"workloads": {"rules": [{"claims": {"a": "b"}, "scopes": ["read"], "namespace": ["x"]}]}}"#, "namespace"),
            (r#"{"auth": ["certificates"]}"#, "tls_client_ca"),
            (r#"{"tls_cert": "a"}"#, "tls_key"),
            (r#"{"tls_client_ca": "a"}"#, "tls_cert"),
            (r#"{"certificates": {"a": {"scopes": []}}}"#, "scope"),
            (r#"{"certificates": {"a": {"scopes": ["read"], "namespace": ["x"]}}}"#, "namespace"),
        ] {
            let e = refused(json);
            assert!(e.contains(said), "{json}: {e}");
        }
    }

    #[test]
    fn a_kind_has_the_defaults_but_for_what_its_table_sets() {
        let c: Config =
            serde_json::from_str(r#"{"workers": 8, "kinds": {"stop": {"attempts": 3, "backoff_longest": "1m"}}}"#).unwrap();
        c.check().unwrap();
        let (stop, submit) = (c.kind(Kind::Stop), c.kind(Kind::Submit));
        assert_eq!((stop.attempts, stop.backoff.longest, stop.concurrency), (Some(3), secs(60), 8));
        assert_eq!((stop.lease_timeout, submit.attempts, submit.backoff.longest), (secs(300), None, secs(15)));
        let refused = |json: &str| {
            let c: Result<Config, _> = serde_json::from_str(json);
            c.map_err(|e| e.to_string()).and_then(|c| c.check().map_err(|e| e.to_string())).unwrap_err()
        };
        for (json, name) in [
            (r#"{"kinds": {"stp": {}}}"#, "stp"),
            (r#"{"kinds": {"stop": {"atempts": 3}}}"#, "atempts"),
            (r#"{"kinds": {"kill": {}}}"#, "[kinds.kill]"),
            (r#"{"kinds": {"stop": {"concurrency": 65}}}"#, "kinds.stop.concurrency (65)"),
            (r#"{"kinds": {"stop": {"attempts": 0}}}"#, "kinds.stop.attempts"),
            (r#"{"kinds": {"submit": {"lease_timeout": "10s"}}}"#, "kinds.submit.lease_timeout (10s)"),
            (r#"{"kinds": {"submit": {"backoff_first": "20s"}}}"#, "kinds.submit.backoff_first (20s)"),
        ] {
            let said = refused(json);
            assert!(said.contains(name), "{json}: {said}");
        }
    }
}
