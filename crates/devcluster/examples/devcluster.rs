//! A cluster on its own until Ctrl-C: `cargo run -p curfew-devcluster --example devcluster -- PORT DATA_DIR [MAX_KILL_TIMEOUT_SECONDS [NODES]]`.

use std::io::Write;
use std::time::Duration;

use curfew_devcluster::{Cluster, ClusterConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let mut config = ClusterConfig::default();
    if let (Some(port), Some(listen)) = (args.next(), &mut config.listen) {
        listen.set_port(port.parse()?);
    }
    if let Some(dir) = args.next() {
        config.data_dir = dir.into();
    }
    if let Some(seconds) = args.next() {
        let most = Duration::from_secs(seconds.parse()?);
        config.nodes.iter_mut().for_each(|n| n.max_kill_timeout = most);
    }
    if let Some(n) = args.next() {
        config.nodes.truncate(n.parse()?);
    }
    let cluster = Cluster::start(config).await?;
    writeln!(std::io::stdout(), "export NOMAD_ADDR={}", cluster.base_url())?;
    tokio::signal::ctrl_c().await?;
    cluster.shutdown().await;
    Ok(())
}
