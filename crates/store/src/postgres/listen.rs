//! Hears what any controller changed, on a connection of its own. While that is broken changes go by unheard; when it is back,
//! listeners are told that they missed some.

use std::future::poll_fn;
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tokio_postgres::AsyncMessage;

use super::connect::{Address, Raw};
use super::session::parse;
use super::trouble::{self, Trouble};
use crate::Change;

const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Listens until dropped.
pub(super) struct Listener {
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listener {
    /// Returns when it listens: whatever is committed from now on is heard.
    pub(super) async fn start(
        address: Address,
        channel: String,
        changes: broadcast::Sender<Change>,
    ) -> Result<Listener, Trouble> {
        let mut line = Line::open(&address, &channel, &changes).await?;
        let task = tokio::spawn(async move {
            loop {
                line.broken().await;
                tracing::warn!(
                    place = address.place,
                    "changes of other controllers are not heard: the connection is gone; connecting again"
                );
                let mut wait = FIRST_WAIT;
                line = loop {
                    match Line::open(&address, &channel, &changes).await {
                        Ok(line) => break line,
                        Err(e) => tracing::debug!(error = %e.what, "not yet"),
                    }
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                };
                // Nobody listens, perhaps.
                let _ = changes.send(Change::Missed);
            }
        });
        Ok(Listener { task })
    }
}

/// One connection that listens. Its task ends with it.
struct Line {
    task: JoinHandle<()>,
    client: tokio_postgres::Client,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Line {
    async fn open(address: &Address, channel: &str, changes: &broadcast::Sender<Change>) -> Result<Line, Trouble> {
        let (client, mut connection): Raw = address.connect().await?;
        let changes = changes.clone();
        let task = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                if let AsyncMessage::Notification(told) = message {
                    for change in parse(told.payload()) {
                        let _ = changes.send(change);
                    }
                }
            }
        });
        let line = Line { task, client };
        let listen = line.client.batch_execute(&format!("LISTEN {channel}")).await;
        listen.map_err(|e| trouble::sql(&address.place, "listen", e))?;
        Ok(line)
    }

    async fn broken(&mut self) {
        // Its end, by whatever, is all there is to know.
        let _ = (&mut self.task).await;
    }
}
