//! OpenTelemetry traces of `curfew serve`, where the configuration names an `otlp_endpoint`.

use std::time::Duration;

use anyhow::Context;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::Registry;

use crate::args::Command;
use crate::{config, serve};

/// A collector that does not answer holds up nobody: spans are given up.
const PATIENCE: Duration = Duration::from_secs(5);
/// The last of them, at the end of the process.
const LAST: Duration = Duration::from_secs(1);

pub struct Traces(SdkTracerProvider);

/// Before any runtime: the exporter has a thread and a client of its own. What is wrong with the configuration otherwise is for the command to say.
pub fn wanted(command: &Command) -> anyhow::Result<Option<Traces>> {
    let Command::Serve(args) = command else { return Ok(None) };
    match config::load(args) {
        Ok(config) if !config.otlp_endpoint.is_empty() => Traces::to(&config.otlp_endpoint).map(Some),
        _ => Ok(None),
    }
}

impl Traces {
    fn to(endpoint: &str) -> anyhow::Result<Self> {
        let url = format!("{}/v1/traces", endpoint.trim_end_matches('/'));
        let mut client = reqwest::blocking::Client::builder().timeout(PATIENCE);
        let host = reqwest::Url::parse(&url).ok().and_then(|u| u.host_str().map(str::to_owned));
        if host.is_some_and(|h| h == "localhost" || h.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())) {
            // A proxy's loopback is another machine's.
            client = client.no_proxy();
        }
        let client = client.build().with_context(|| format!("otlp_endpoint {endpoint} cannot be used"))?;
        let exporter = SpanExporter::builder().with_http().with_http_client(client).with_endpoint(&url).with_timeout(PATIENCE);
        let exporter = exporter.build().with_context(|| format!("otlp_endpoint {endpoint} cannot be used"))?;
        let who = Resource::builder()
            .with_service_name("curfew")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", serve::who()))
            .build();
        Ok(Self(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(who).build()))
    }

    /// Spans of Curfew's own, whatever the log shows.
    pub fn layer(&self) -> impl Layer<Registry> + use<> {
        let spans = tracing_opentelemetry::layer().with_tracer(self.0.tracer("curfew")).with_location(false);
        let own = ["curfew_controller", "curfew_nomad"].map(|crate_name| (crate_name, tracing::Level::DEBUG));
        spans.with_filter(Targets::new().with_targets(own))
    }

    pub fn end(self) {
        if let Err(e) = self.0.shutdown_with_timeout(LAST) {
            tracing::warn!(error = %e, "the last traces were not sent");
        }
    }
}
